package rescue

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

// move replaces the Volume and the PersistentVolume of a volume whose disk is
// on another node now. found is what the disk says. After a crash between any
// two writes the next plan finds the volume to be moved, or its
// PersistentVolume missing:
//
//  1. The PersistentVolume gets policy Retain, and with it the annotation with
//     the policy it had: nothing deletes the data any more, and the controller
//     neither carries Retain over nor writes the old Volume again.
//  2. The Volume of the old node is deleted. That never deletes data.
//  3. The Volume is written for the new node, with the policy and the claim
//     that it has to have in the end, and its agent confirms that it has it:
//     until then the old PersistentVolume stays.
//  4. The PersistentVolume is deleted, and what holds it is taken away, since
//     it only protects the claim, which stays.
//  5. The new one is written, for the claim's UID, with the policy it had. One
//     that was Released is Released again.
func (r *Rescuer) move(ctx context.Context, found *v1alpha1.Volume) error {
	v := found.DeepCopy()
	pv, err := get[corev1.PersistentVolume](
		ctx,
		r,
		client.ObjectKey{Name: v.Labels[v1alpha1.LabelPVName]},
	)
	if err != nil {
		return err
	}
	if pv != nil && !names(pv, v.Name) {
		return fmt.Errorf(
			"PersistentVolume %s exists by now, and it is not that of volume %s", pv.Name, v.Name)
	}

	old, err := get[v1alpha1.Volume](ctx, r, client.ObjectKey{Name: v.Name})
	if err != nil {
		return err
	}

	if old != nil {
		if old.Spec.DesiredState != v1alpha1.DesiredPresent {
			return fmt.Errorf("volume %s is to be %s by now", v.Name, old.Spec.DesiredState)
		}
		v.Spec.ReclaimPolicy, v.Spec.Claim = old.Spec.ReclaimPolicy, old.Spec.Claim
	}

	// What was given up by its claim stays so: another claim of that name must
	// not get the old data.
	var released *corev1.ObjectReference
	if pv != nil && pv.Status.Phase == corev1.VolumeReleased {
		released = pv.Spec.ClaimRef.DeepCopy()
	}

	if pv != nil {
		if err := takeOn(v, pv); err != nil {
			return err
		}
	}

	if released == nil {
		if _, err := r.claimRef(ctx, v); err != nil { // refused while nothing is touched
			return err
		}
	}
	if pv != nil {
		if err := r.retain(ctx, pv); err != nil {
			return err
		}
	}

	if old != nil && old.Spec.NodeName != v.Spec.NodeName {
		err := r.Client.Delete(ctx, old, client.Preconditions{UID: &old.UID})
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("delete the Volume of node %s: %w", old.Spec.NodeName, err)
		}
		r.say(
			"volume/%s deleted on node %s (the object, not the data)", old.Name, old.Spec.NodeName)
	}

	if err := r.writeVolume(ctx, v); err != nil {
		return err
	}

	ready, err := r.awaitReady(ctx, v.Name)
	if err != nil {
		return err
	}
	if pv != nil {
		if err := r.takeAway(ctx, pv); err != nil {
			return err
		}
	}

	_, err = r.persistentVolume(ctx, ready, v.Spec.ReclaimPolicy, released)
	if err != nil || released != nil || ready.Spec.Claim == nil {
		return err
	}

	return r.awaitBound(ctx, ready.Spec.Claim, ready.Labels[v1alpha1.LabelPVName])
}

// takeOn has a Volume say of its policy and its claim what its PersistentVolume
// does. One that is to be deleted is an error.
func takeOn(v *v1alpha1.Volume, pv *corev1.PersistentVolume) error {
	switch policy := policyOf(pv); policy {
	case corev1.PersistentVolumeReclaimDelete, corev1.PersistentVolumeReclaimRetain:
		v.Spec.ReclaimPolicy = policy
	}

	if ref := pv.Spec.ClaimRef; ref != nil {
		next := &v1alpha1.ClaimReference{
			Namespace: ref.Namespace,
			Name:      ref.Name,
			UID:       ref.UID,
		}
		if c := v.Spec.Claim; c != nil && c.Namespace == ref.Namespace && c.Name == ref.Name {
			next.Labels, next.LabelsLeftOut = c.Labels, c.LabelsLeftOut
		}
		v.Spec.Claim = next
	}

	if pv.Status.Phase == corev1.VolumeReleased &&
		policyOf(pv) == corev1.PersistentVolumeReclaimDelete {
		return fmt.Errorf(
			"PersistentVolume %s is released, and its volume is to be deleted; set its "+
				"policy to Retain to keep the volume", pv.Name)
	}

	return nil
}

// retain sets policy Retain on a PersistentVolume that is going to be replaced,
// and keeps the one it had beside it.
func (r *Rescuer) retain(ctx context.Context, pv *corev1.PersistentVolume) error {
	if pv.Annotations[v1alpha1.AnnotationReclaimPolicy] != "" {
		return nil
	}

	base := pv.DeepCopy()
	if pv.Annotations == nil {
		pv.Annotations = map[string]string{}
	}

	pv.Annotations[v1alpha1.AnnotationReclaimPolicy] = string(pv.Spec.PersistentVolumeReclaimPolicy)
	pv.Spec.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimRetain
	if err := r.Client.Patch(ctx, pv,
		client.MergeFromWithOptions(base, client.MergeFromWithOptimisticLock{})); err != nil {
		return fmt.Errorf("set PersistentVolume %s to Retain: %w", pv.Name, err)
	}

	r.say("persistentvolume/%s set to Retain while it is replaced", pv.Name)
	return nil
}

// takeAway deletes a PersistentVolume whose policy is Retain, whatever
// finalizers it has, and waits until it is gone.
func (r *Rescuer) takeAway(ctx context.Context, pv *corev1.PersistentVolume) error {
	err := r.Client.Delete(ctx, pv, client.Preconditions{UID: &pv.UID})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete PersistentVolume %s: %w", pv.Name, err)
	}
	for {
		now, err := get[corev1.PersistentVolume](ctx, r, client.ObjectKeyFromObject(pv))
		if err != nil {
			return err
		}

		if now == nil || now.UID != pv.UID {
			r.say("persistentvolume/%s deleted, to be written again", pv.Name)
			return nil
		}

		if now.Spec.PersistentVolumeReclaimPolicy != corev1.PersistentVolumeReclaimRetain {
			return fmt.Errorf(
				"somebody set PersistentVolume %s back to %s",
				pv.Name,
				now.Spec.PersistentVolumeReclaimPolicy,
			)
		}

		base := now.DeepCopy()
		now.Finalizers = nil
		err = r.Client.Patch(
			ctx,
			now,
			client.MergeFromWithOptions(base, client.MergeFromWithOptimisticLock{}),
		)
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
			return fmt.Errorf("take away the finalizers of PersistentVolume %s: %w", pv.Name, err)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}
