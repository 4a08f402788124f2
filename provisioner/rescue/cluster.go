package rescue

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

// DefaultPatience is how long an agent, or the binder, is waited for.
const DefaultPatience = 2 * time.Minute

// Rescuer works on a cluster. Client reads live: it must not be one with a
// cache.
type Rescuer struct {
	Client client.WithWatch
	// Say is told each thing that was done, in one line; nil: nobody is.
	Say func(format string, args ...any)
	// Patience bounds each wait for somebody else's work; 0: DefaultPatience.
	Patience time.Duration
}

func (r *Rescuer) say(format string, args ...any) {
	if r.Say != nil {
		r.Say(format, args...)
	}
}

func (r *Rescuer) patience(ctx context.Context) (context.Context, context.CancelFunc) {
	wait := r.Patience
	if wait <= 0 {
		wait = DefaultPatience
	}
	return context.WithTimeout(ctx, wait)
}

// errGone ends a wait for an object that was deleted meanwhile.
var errGone = errors.New("it was deleted meanwhile")

// watchRetry is how long to wait before a watch that the server ended is begun
// again.
const watchRetry = 200 * time.Millisecond

// await calls done with every state of the object called key until done says
// so, or returns errGone once the object does not exist. what names it in
// errors.
func await[T any, P interface {
	*T
	client.Object
}](ctx context.Context, r *Rescuer, list client.ObjectList, key client.ObjectKey, what string, done func(P) (bool, error)) error {
	ctx, cancel := r.patience(ctx)
	defer cancel()
	for {
		over, err := watchOnce(ctx, r, list, key, done)
		if over && err != nil && ctx.Err() == nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		if over && ctx.Err() == nil {
			return nil
		}

		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w", what, context.Cause(ctx))
		case <-time.After(watchRetry):
		}
	}
}

// watchOnce is await until the server ends the watch; then over is false.
func watchOnce[T any, P interface {
	*T
	client.Object
}](ctx context.Context, r *Rescuer, list client.ObjectList, key client.ObjectKey, done func(P) (bool, error)) (over bool, err error) {
	// Without a version the watch begins with what is there; of what is not
	// there it says nothing.
	w, err := r.Client.Watch(
		ctx,
		list,
		client.InNamespace(key.Namespace),
		client.MatchingFields{"metadata.name": key.Name},
	)
	if err != nil {
		return true, fmt.Errorf("watching: %w", err)
	}

	defer w.Stop()

	there, err := get[T, P](ctx, r, key)
	switch {
	case err != nil:
		return true, err
	case there == nil:
		return true, errGone
	}

	for e := range w.ResultChan() {
		o, ok := e.Object.(P)
		switch {
		case !ok: // an error of the server
			return false, nil
		case e.Type == watch.Deleted:
			return true, errGone
		}
		if ok, err := done(o); ok || err != nil {
			return true, err
		}
	}

	return false, nil
}

// awaitReady waits until the volume can be used, and returns it.
func (r *Rescuer) awaitReady(ctx context.Context, name string) (*v1alpha1.Volume, error) {
	var last *v1alpha1.Volume
	err := await(
		ctx,
		r,
		&v1alpha1.VolumeList{},
		client.ObjectKey{Name: name},
		"volume "+name,
		func(v *v1alpha1.Volume) (bool, error) {
			last = v
			ready := meta.FindStatusCondition(v.Status.Conditions, v1alpha1.ConditionReady)
			if v.Status.Phase == v1alpha1.VolumeReady &&
				v.Spec.DesiredState == v1alpha1.DesiredPresent {
				// Agents do not say that once more of every change that they
				// have seen.
				return true, nil
			}
			if ready == nil ||
				max(ready.ObservedGeneration, v.Status.ObservedGeneration) < v.Generation {
				return false, nil
			}

			switch v.Status.Phase {
			case v1alpha1.VolumeLost, v1alpha1.VolumeRefused:
				return true, fmt.Errorf(
					"it is %s on node %s: %s", v.Status.Phase, v.Spec.NodeName, ready.Message)
			}

			return v.Status.Phase == v1alpha1.VolumeReady, nil
		},
	)
	if last == nil || !errors.Is(err, context.DeadlineExceeded) {
		return last, err
	}

	node := last.Spec.NodeName
	if c := meta.FindStatusCondition(last.Status.Conditions,
		v1alpha1.ConditionReady); c != nil && c.Message != "" {
		return nil, fmt.Errorf("%w; the agent of node %s says: %s", err, node, c.Message)
	}

	return nil, fmt.Errorf("%w; is the agent of node %s running?", err, node)
}

// get reads an object; nil, nil if it does not exist.
func get[T any, P interface {
	*T
	client.Object
}](ctx context.Context, r *Rescuer, key client.ObjectKey) (P, error) {
	o := P(new(T))
	err := r.Client.Get(ctx, key, o)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading %T %s: %w", o, key.String(), err)
	}

	return o, nil
}

// persistentVolume writes the PersistentVolume of a volume that is ready, for
// its claim if it has one. A second call finds it. policy, if not empty, is the
// one it gets, and released, if not nil, the claim that gave it up.
func (r *Rescuer) persistentVolume(
	ctx context.Context,
	v *v1alpha1.Volume,
	policy corev1.PersistentVolumeReclaimPolicy,
	released *corev1.ObjectReference,
) (*corev1.PersistentVolume, error) {
	node, err := get[corev1.Node](ctx, r, client.ObjectKey{Name: v.Spec.NodeName})
	if err != nil {
		return nil, err
	}
	if node == nil {
		return nil, fmt.Errorf(
			"volume %s is on node %s, which does not exist", v.Name, v.Spec.NodeName)
	}

	var class *storagev1.StorageClass
	if v.Spec.StorageClassName != "" {
		if class, err = get[storagev1.StorageClass](ctx, r,
			client.ObjectKey{Name: v.Spec.StorageClassName}); err != nil {
			return nil, err
		}
	}

	poolLabels, err := r.poolLabels(ctx, v)
	if err != nil {
		return nil, err
	}

	pv, err := PersistentVolume(v, node, class, poolLabels)
	if err != nil {
		return nil, err
	}
	if policy != "" {
		pv.Spec.PersistentVolumeReclaimPolicy = policy
	}
	if pv.Spec.ClaimRef = released; released == nil {
		if pv.Spec.ClaimRef, err = r.claimRef(ctx, v); err != nil {
			return nil, err
		}
	}

	err = r.Client.Create(ctx, pv)
	if apierrors.IsAlreadyExists(err) {
		there, err := get[corev1.PersistentVolume](ctx, r, client.ObjectKeyFromObject(pv))
		if err != nil {
			return nil, err
		}
		if there == nil || !names(there, v.Name) || there.DeletionTimestamp != nil {
			return nil, fmt.Errorf(
				"PersistentVolume %s exists, and it is not that of volume %s", pv.Name, v.Name)
		}
		return there, nil
	}

	if err != nil {
		return nil, fmt.Errorf("writing PersistentVolume %s: %w", pv.Name, err)
	}

	r.say("persistentvolume/%s created on node %s%s", pv.Name, v.Spec.NodeName, forClaim(v))
	return pv, nil
}

func forClaim(v *v1alpha1.Volume) string {
	if v.Spec.Claim == nil || v.Spec.Claim.Name == "" {
		return ", for any claim"
	}
	return ", for claim " + claimText(v.Spec.Claim)
}

// poolLabels are those that a PersistentVolume gets of its volume's pool, so
// that claims with a selector can choose it.
func (r *Rescuer) poolLabels(ctx context.Context, v *v1alpha1.Volume) (map[string]string, error) {
	pool, err := get[v1alpha1.Pool](
		ctx,
		r,
		client.ObjectKey{Name: v1alpha1.PoolObjectName(v.Spec.NodeName, v.Status.Pool)},
	)
	if pool == nil || err != nil {
		return nil, err
	}
	return pool.Labels, nil
}

// claimRef names the volume's claim, with the UID only of a claim that exists
// and was bound to this PersistentVolume.
func (r *Rescuer) claimRef(
	ctx context.Context,
	v *v1alpha1.Volume,
) (*corev1.ObjectReference, error) {
	ref := v.Spec.Claim
	if ref == nil || ref.Name == "" {
		return nil, nil
	}

	out := &corev1.ObjectReference{
		Kind:       "PersistentVolumeClaim",
		APIVersion: "v1",
		Namespace:  ref.Namespace,
		Name:       ref.Name,
	}
	claim, err := get[corev1.PersistentVolumeClaim](ctx, r, client.ObjectKey{
		Namespace: ref.Namespace,
		Name:      ref.Name,
	})
	if err != nil || claim == nil {
		return out, err
	}

	switch claim.Spec.VolumeName {
	case v.Labels[v1alpha1.LabelPVName]:
		out.UID = claim.UID
	case "":
	default:
		return nil, &ClaimTakenError{
			Claim:  claimText(ref),
			By:     claim.Spec.VolumeName,
			Volume: v.Name,
		}
	}

	return out, nil
}

// ClaimTakenError: the claim that a volume is to come back to is bound to
// something else.
type ClaimTakenError struct{ Claim, By, Volume string }

func (e *ClaimTakenError) Error() string {
	return fmt.Sprintf(
		"claim %s is bound to PersistentVolume %s, so volume %s cannot come back to it; delete "+
			"that claim first, or name another one", e.Claim, e.By, e.Volume)
}

// claim writes the volume's claim again where it is gone. A second call finds
// it.
func (r *Rescuer) claim(ctx context.Context, v *v1alpha1.Volume) error {
	claim := Claim(v)
	if claim == nil {
		return nil
	}

	err := r.Client.Create(ctx, claim)
	switch {
	case apierrors.IsAlreadyExists(err):
		return nil
	case err != nil:
		return fmt.Errorf("writing claim %s: %w", claimText(v.Spec.Claim), err)
	}

	r.say("persistentvolumeclaim/%s created in namespace %s", claim.Name, claim.Namespace)
	return nil
}

// awaitBound waits until a claim is bound to the PersistentVolume, if the claim
// exists.
func (r *Rescuer) awaitBound(
	ctx context.Context,
	ref *v1alpha1.ClaimReference,
	pvName string,
) error {
	key := client.ObjectKey{Namespace: ref.Namespace, Name: ref.Name}
	claim, err := get[corev1.PersistentVolumeClaim](ctx, r, key)
	if claim == nil || err != nil {
		return err
	}

	err = await(
		ctx,
		r,
		&corev1.PersistentVolumeClaimList{},
		key,
		"claim "+claimText(ref),
		func(c *corev1.PersistentVolumeClaim) (bool, error) {
			return c.Status.Phase == corev1.ClaimBound && c.Spec.VolumeName == pvName, nil
		},
	)
	if err != nil {
		return fmt.Errorf(
			"%w: it does not bind to PersistentVolume %s; `kubectl -n %s describe pvc %s` says "+
				"why (its class, size and access modes have to fit)",
			err, pvName, ref.Namespace, ref.Name)
	}

	r.say("persistentvolumeclaim/%s bound in namespace %s", ref.Name, ref.Namespace)
	return nil
}
