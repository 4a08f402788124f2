package rescue

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

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
}](ctx context.Context, r *Rescuer, list client.ObjectList, key client.ObjectKey, what string,
	done func(P) (bool, error)) error {
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
			return fmt.Errorf("wait for %s: %w", what, context.Cause(ctx))
		case <-time.After(watchRetry):
		}
	}
}

// watchOnce is await until the server ends the watch; then over is false.
func watchOnce[T any, P interface {
	*T
	client.Object
}](ctx context.Context, r *Rescuer, list client.ObjectList, key client.ObjectKey,
	done func(P) (bool, error)) (over bool, err error) {
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
