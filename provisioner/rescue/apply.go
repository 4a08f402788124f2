package rescue

import (
	"context"
	"errors"
	"fmt"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

// Apply does what a plan says, in its order. A step that fails keeps back only
// what needs it; all errors are returned together. Every step looks again
// before it writes, and finds what an earlier run has done.
func (r *Rescuer) Apply(ctx context.Context, steps []Step) error {
	var errs []error
	failed := map[string]bool{} // volumes whose next steps make no sense
	for i := range steps {
		s := &steps[i]
		if !s.Changes() {
			continue
		}
		if ctx.Err() != nil {
			return errors.Join(append(errs, ctx.Err())...)
		}
		if s.volume != nil && failed[s.volume.Name] {
			continue
		}

		if err := r.apply(ctx, s); err != nil {
			errs = append(errs, fmt.Errorf("%s %s: %w", s.Verb, s.Object, err))
			r.say("%s %s FAILED: %v", s.Verb, s.Object, err)
			if s.volume != nil {
				failed[s.volume.Name] = true
			}
		}
	}

	return errors.Join(errs...)
}

func (r *Rescuer) apply(ctx context.Context, s *Step) error {
	switch s.Verb {
	case TakeOver:
		return r.takeOver(ctx, s.Object[len("pool/"):], s.takeOver)
	case WriteVolume:
		return r.writeVolume(ctx, s.volume)
	case Move:
		return r.move(ctx, s.volume)
	case HandOver:
		v, err := r.awaitReady(ctx, s.volume.Name)
		if err != nil {
			return err
		}
		return r.handOver(ctx, v)
	case WritePV:
		v, err := r.awaitReady(ctx, s.volume.Name)
		if err != nil {
			return err
		}
		_, err = r.persistentVolume(ctx, v, "", nil)
		return err
	case WriteClaim:
		v, err := r.volume(ctx, s.volume.Name)
		if err != nil {
			return err
		}
		if err := r.claim(ctx, v); err != nil {
			return err
		}
		return r.awaitBound(ctx, v.Spec.Claim, v.Labels[v1alpha1.LabelPVName])
	}
	return fmt.Errorf("nothing is known of how to %s", s.Verb)
}

// takeOver has a pool's agent make the disk of another cluster this one's, and
// waits until it has.
func (r *Rescuer) takeOver(ctx context.Context, pool, cluster string) error {
	p, err := get[v1alpha1.Pool](ctx, r, client.ObjectKey{Name: pool})
	if err != nil {
		return err
	}
	if p == nil {
		return fmt.Errorf("pool %s has no Pool object", pool)
	}

	if p.Spec.TakeOver != cluster {
		base := p.DeepCopy()
		p.Spec.TakeOver = cluster
		if err := r.Client.Patch(ctx, p,
			client.MergeFromWithOptions(base, client.MergeFromWithOptimisticLock{})); err != nil {
			return fmt.Errorf("allow pool %s to be taken over: %w", pool, err)
		}
		r.say("pool/%s may take over the disk of cluster %s", pool, cluster)
	}

	why := ""
	err = await(
		ctx,
		r,
		&v1alpha1.PoolList{},
		client.ObjectKey{Name: pool},
		"pool "+pool,
		func(p *v1alpha1.Pool) (bool, error) {
			c := meta.FindStatusCondition(p.Status.Conditions, v1alpha1.ConditionReady)
			if c == nil {
				return false, nil
			}
			why = c.Message
			return c.Status == metav1.ConditionTrue, nil
		},
	)
	if err != nil {
		return fmt.Errorf("%w; its agent says: %s", err, why)
	}

	r.say("pool/%s is ready", pool)
	return nil
}
