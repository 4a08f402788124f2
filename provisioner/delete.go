package provisioner

import (
	"context"
	"errors"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v10/controller"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

// ShouldDelete implements controller.DeletionGuard: only PersistentVolumes that
// name their volume are ours to delete.
func (l *localDoor) ShouldDelete(_ context.Context, pv *corev1.PersistentVolume) bool {
	o, ok := originOf(pv)
	return ok && o.Provisioner == v1alpha1.LocalProvisioner
}

// Delete has the volume of a released PersistentVolume deleted, or trashed, and
// returns nil once its agent confirmed. It returns nil as well when the
// volume's Node does not exist any more: the wish stays recorded, and the data
// goes if that node ever comes back. Every other error leaves the wish recorded
// and is retried.
func (l *localDoor) Delete(ctx context.Context, pv *corev1.PersistentVolume) error {
	node, err := l.delete(ctx, pv)
	if err == nil {
		l.waiting.removeVolume(pv.Name)
		return nil
	}

	if ignored, is := errors.AsType[*controller.IgnoredError](err); is {
		l.waiting.removeVolume(pv.Name)
		return ignored
	}

	l.waiting.addVolume(pv, node)
	if _, is := errors.AsType[*agentNotReadyError](err); is {
		// It became so just now, before the waiting room knew.
		if ready, _ := l.agents.Ready(node); ready {
			l.waiting.wakeVolumes(one(pv.Name))
		}
	}

	return errors.New(explanation(err))
}

func (l *localDoor) delete(
	ctx context.Context,
	pv *corev1.PersistentVolume,
) (node string, err error) {
	if l.volumes.confirmed.has(string(pv.UID)) {
		// All that is left is the library's: it could not delete the
		// PersistentVolume, or has not seen that it did.
		return "", nil
	}

	// Only a live read may decide over data: the policy may have been changed
	// to Retain a moment ago.
	var now corev1.PersistentVolume
	switch err := l.live.Get(ctx, client.ObjectKeyFromObject(pv), &now); {
	case apierrors.IsNotFound(err):
		return "", &controller.IgnoredError{Reason: "the PersistentVolume does not exist any more"}
	case err != nil:
		return "", &apiError{"read PersistentVolume " + pv.Name, err}
	case now.UID != pv.UID, now.Status.Phase != corev1.VolumeReleased,
		now.Spec.PersistentVolumeReclaimPolicy != corev1.PersistentVolumeReclaimDelete:
		return "", &controller.IgnoredError{Reason: "the PersistentVolume is not released with " +
			"policy Delete"}
	}

	o, ok := originOf(&now)
	if !ok {
		return "", &controller.IgnoredError{Reason: "the PersistentVolume does not name a " +
			"volume of ours"}
	}

	v, err := l.volumes.forDeletion(ctx, &now, o)
	if err != nil {
		return o.Node, err
	}

	wait := l.deleteWait
	if wait <= 0 {
		wait = defaultDeleteWait
	}

	waitCtx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()

	err = l.volumes.awaitGone(waitCtx, v)
	if err == nil {
		l.volumes.confirmed.add(string(now.UID))
	}
	if _, is := errors.AsType[*agentNotReadyError](err); !is {
		return o.Node, err
	}

	exists, readErr := nodeExists(ctx, l.live, v.Spec.NodeName)
	if readErr != nil || exists {
		return o.Node, err
	}

	l.events.Eventf(&now, nil, corev1.EventTypeWarning, v1alpha1.ReasonNodeGone, "Delete",
		"Node %s does not exist any more; Volume %s stays as a record, so that the data is "+
			"removed if the node comes back", v.Spec.NodeName, v.Name)
	return o.Node, nil
}

// defaultDeleteWait is how long one worker waits for an agent to delete a
// volume.
const defaultDeleteWait = 10 * time.Second

// forDeletion records the wish to delete, and returns the Volume that holds it.
// A record that was lost is written again from the PersistentVolume, so that
// the agent removes the data and does not just report it as orphaned. The cache
// will do for a Volume that is there, since the wish is only written to the
// very state that was looked at; that it was lost is concluded from a live
// read.
func (r *volumeObjects) forDeletion(
	ctx context.Context,
	pv *corev1.PersistentVolume,
	o origin,
) (*v1alpha1.Volume, error) {
	v := &v1alpha1.Volume{}
	err := r.client.Get(ctx, client.ObjectKey{Name: o.Volume}, v)
	if apierrors.IsNotFound(err) {
		err = r.live.Get(ctx, client.ObjectKey{Name: o.Volume}, v)
	}

	if apierrors.IsNotFound(err) {
		if v, err = volumeFromPV(pv); err != nil {
			return nil, err
		}
		v.Spec.DesiredState = wishToDelete(v)
		if err := r.client.Create(ctx, v); err != nil {
			return nil, &apiError{"write Volume " + o.Volume + " again to delete it", err}
		}
		return v, nil
	}

	if err != nil {
		return nil, &apiError{"read Volume " + o.Volume, err}
	}
	if why := matches(v, pv, o); why != "" {
		return nil, &notOursError{pv.Name, why}
	}

	return r.desire(ctx, v, wishToDelete(v))
}

// wishToDelete is what deleting means for a volume.
func wishToDelete(v *v1alpha1.Volume) v1alpha1.DesiredState {
	if v.Spec.Deletion.OnDelete == v1alpha1.OnDeleteTrash {
		return v1alpha1.DesiredTrashed
	}
	return v1alpha1.DesiredDeleted
}

// desire sets desiredState to Trashed or Deleted, of a volume that a claim was
// given. Deleted is final and stays. A volume that was given up as one that no
// claim was served from is marked as published all the same, since its deletion
// is asked for now.
func (r *volumeObjects) desire(
	ctx context.Context,
	v *v1alpha1.Volume,
	want v1alpha1.DesiredState,
) (*v1alpha1.Volume, error) {
	for {
		deleted := v.Spec.DesiredState == v1alpha1.DesiredDeleted
		if v.Spec.DesiredState == want && v.Spec.Published ||
			deleted && (v.Spec.Published || v.Status.Phase == v1alpha1.VolumeDeleted) {
			return v, nil
		}

		changed := v.DeepCopy()
		changed.Spec.Published = true
		if !deleted {
			changed.Spec.DesiredState = want
		}

		err := r.client.Patch(
			ctx,
			changed,
			client.MergeFromWithOptions(v, client.MergeFromWithOptimisticLock{}),
		)
		if err == nil {
			return changed, nil
		}
		if !apierrors.IsConflict(err) {
			return nil, &apiError{"mark Volume " + v.Name + " " + string(want), err}
		}

		newer := &v1alpha1.Volume{}
		if err := r.live.Get(ctx, client.ObjectKeyFromObject(v), newer); err != nil {
			return nil, &apiError{"read Volume " + v.Name, err}
		}
		if newer.UID != v.UID {
			return nil, &deletePendingError{v.Name, v.Spec.NodeName, "its record was written anew"}
		}

		v = newer
	}
}

// awaitGone waits until the agent has done what desiredState asks. The Volume
// of what is deleted is the sweep's to remove, which sees the same change.
func (r *volumeObjects) awaitGone(ctx context.Context, v *v1alpha1.Volume) error {
	changes := r.changed.subscribe(v.Name)
	defer changes.Close()

	var agent <-chan bool
	if r.agentChanged != nil {
		s := r.agentChanged.subscribe(v.Spec.NodeName)
		defer s.Close()
		agent = s.C
	}

	// The newest state there is: the cache may be ahead of what was read before
	// the subscription.
	cached := &v1alpha1.Volume{}
	err := r.client.Get(ctx, client.ObjectKeyFromObject(v), cached)
	if err == nil && cached.UID == v.UID && cached.Generation >= v.Generation &&
		cached.Spec.DesiredState == v.Spec.DesiredState {
		v = cached
	}

	uid := v.UID
	for {
		if isGone(v) {
			return nil
		}
		if ready, why := r.agents.Ready(v.Spec.NodeName); !ready {
			return &agentNotReadyError{Node: v.Spec.NodeName, Why: why, Recorded: true}
		}
		if why, busy := inUse(v); busy {
			return &inUseError{v.Name, v.Spec.NodeName, why}
		}

		select {
		case newer := <-changes.C:
			if newer.UID == uid {
				v = newer.DeepCopy()
			}
		case <-agent:
		case <-ctx.Done():
			_, why := readyCondition(v.Status.Conditions)
			if why == "" {
				why = "its agent has not answered yet"
			}
			return &deletePendingError{v.Name, v.Spec.NodeName, why}
		}
	}
}

// inUse reports what keeps a volume from being deleted, once the agent has
// looked since the wish was recorded.
func inUse(v *v1alpha1.Volume) (why string, busy bool) {
	for _, c := range v.Status.Conditions {
		looked := max(c.ObservedGeneration, v.Status.ObservedGeneration) >= v.Generation
		if c.Type == v1alpha1.ConditionInUse && c.Status == metav1.ConditionTrue && looked {
			return c.Message, true
		}
	}
	return "", false
}

// remove takes a Volume away whose agent confirmed that nothing is left. A
// trashed volume keeps its Volume.
func (r *volumeObjects) remove(ctx context.Context, v *v1alpha1.Volume) error {
	if v.Status.Phase != v1alpha1.VolumeDeleted || v.Spec.DesiredState == v1alpha1.DesiredPresent {
		return nil
	}
	return r.removeObject(ctx, v)
}

func (r *volumeObjects) removeObject(ctx context.Context, v *v1alpha1.Volume) error {
	err := r.client.Delete(ctx, v, client.Preconditions{
		UID:             &v.UID,
		ResourceVersion: &v.ResourceVersion,
	})
	switch {
	case apierrors.IsConflict(err):
		log.FromContext(ctx).V(1).Info("The record changed; the sweep removes it", "volume", v.Name)
		return nil
	case err != nil && !apierrors.IsNotFound(err):
		return &apiError{"remove Volume " + v.Name, err}
	}
	return nil
}
