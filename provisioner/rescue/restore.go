package rescue

import (
	"context"
	"errors"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/provisioner"
)

// Trashed lists the volumes that are in the trash, or on their way there.
func (r *Rescuer) Trashed(ctx context.Context) ([]v1alpha1.Volume, error) {
	return r.volumes(
		ctx,
		func(v *v1alpha1.Volume) bool { return v.Spec.DesiredState == v1alpha1.DesiredTrashed },
	)
}

// Orphans lists the volumes that may have been used and that no
// PersistentVolume names. The label that the controller sets is a moment
// behind; this is not.
func (r *Rescuer) Orphans(ctx context.Context) ([]v1alpha1.Volume, error) {
	// Volumes first: a volume whose PersistentVolume is written in between is
	// none.
	all, err := r.volumes(ctx, func(v *v1alpha1.Volume) bool {
		return v.Spec.DesiredState == v1alpha1.DesiredPresent && provisioner.WasReady(v)
	})
	if err != nil {
		return nil, err
	}

	var pvs corev1.PersistentVolumeList
	if err := r.Client.List(ctx, &pvs); err != nil {
		return nil, fmt.Errorf("list PersistentVolumes: %w", err)
	}

	var out []v1alpha1.Volume
	for i := range all {
		v := &all[i]
		led := slices.ContainsFunc(pvs.Items, func(pv corev1.PersistentVolume) bool {
			// The latter is being handed over.
			return provisioner.LeadsTo(&pv, v) || pv.Name == v.Labels[v1alpha1.LabelPVName]
		})
		if led {
			continue
		}

		awaited, err := r.awaited(ctx, v)
		if err != nil {
			return nil, err
		}
		if !awaited {
			out = append(out, *v)
		}
	}

	return out, nil
}

// awaited reports whether the claim that a volume was made for still waits for
// it: its PersistentVolume is being written.
func (r *Rescuer) awaited(ctx context.Context, v *v1alpha1.Volume) (bool, error) {
	ref := v.Spec.Claim
	if ref == nil || ref.UID == "" {
		return false, nil
	}

	claim, err := get[corev1.PersistentVolumeClaim](ctx, r, client.ObjectKey{
		Namespace: ref.Namespace,
		Name:      ref.Name,
	})
	return claim != nil && claim.UID == ref.UID && claim.Status.Phase == corev1.ClaimPending, err
}

// Deleting lists the volumes that may have been used and that are to go,
// but have not gone yet: something uses them, or their agent is not there.
func (r *Rescuer) Deleting(ctx context.Context) ([]v1alpha1.Volume, error) {
	return r.volumes(ctx, func(v *v1alpha1.Volume) bool {
		return v.Spec.DesiredState == v1alpha1.DesiredDeleted && v.Spec.Published
	})
}

func (r *Rescuer) volumes(
	ctx context.Context,
	which func(*v1alpha1.Volume) bool,
) ([]v1alpha1.Volume, error) {
	var list v1alpha1.VolumeList
	if err := r.Client.List(ctx, &list); err != nil {
		return nil, fmt.Errorf("list Volumes: %w", err)
	}

	var out []v1alpha1.Volume
	for i := range list.Items {
		if which(&list.Items[i]) {
			out = append(out, list.Items[i])
		}
	}

	return out, nil
}

// volume reads a volume that a person named.
func (r *Rescuer) volume(ctx context.Context, id string) (*v1alpha1.Volume, error) {
	v, err := get[v1alpha1.Volume](ctx, r, client.ObjectKey{Name: id})
	if err == nil && v == nil {
		err = fmt.Errorf(
			"there is no Volume %s; `kubectl quarry recover` finds volumes on disk that have none",
			id,
		)
	}
	return v, err
}

// persistentVolumeOf returns the PersistentVolume that names the volume,
// whatever it is called; nil if there is none.
func (r *Rescuer) persistentVolumeOf(
	ctx context.Context,
	v *v1alpha1.Volume,
) (*corev1.PersistentVolume, error) {
	var pvs corev1.PersistentVolumeList
	if err := r.Client.List(ctx, &pvs); err != nil {
		return nil, fmt.Errorf("list PersistentVolumes: %w", err)
	}

	for i := range pvs.Items {
		if provisioner.LeadsTo(&pvs.Items[i], v) {
			return &pvs.Items[i], nil
		}
	}

	return nil, nil
}

// RestoreOptions say how a volume comes back.
type RestoreOptions struct {
	// NoClaim leaves it to others to make the claim; the
	// PersistentVolume waits for it.
	NoClaim bool
	// Claim, if set, is another claim than the one the volume was made for. Its
	// namespace and name count.
	Claim *v1alpha1.ClaimReference
	// Any offers the volume to whatever claim asks for it: no claimRef, and no
	// claim is made.
	Any bool
}

// Restore brings back a volume from the trash, or one that has no
// PersistentVolume any more: it is wanted again, and once its agent says that
// it is ready, its PersistentVolume is written for its claim, and then the
// claim, if that is gone. A second call goes on where the first stopped.
// Nothing is written when the claim is bound to something else (a
// *ClaimTakenError), or while the volume is still being deleted.
func (r *Rescuer) Restore(ctx context.Context, id string, o RestoreOptions) error {
	v, err := r.volume(ctx, id)
	if err != nil {
		return err
	}
	if err := r.mayRestore(ctx, v); err != nil {
		return err
	}
	if o.Claim != nil || o.Any {
		v.Spec.Claim = o.Claim
	}
	if _, err := r.claimRef(ctx, v); err != nil {
		return err
	}

	ref := v.Spec.Claim
	if err := r.desire(ctx, v, v1alpha1.DesiredPresent); err != nil {
		return err
	}
	if v, err = r.awaitReady(ctx, id); err != nil {
		return err
	}

	v = v.DeepCopy()
	v.Spec.Claim = ref
	pv, err := r.persistentVolume(ctx, v, "", nil)
	if err != nil {
		return err
	}

	if ref == nil || ref.Name == "" {
		r.say(
			"volume %s is available to any claim of class %q as PersistentVolume %s",
			id,
			pv.Spec.StorageClassName,
			pv.Name,
		)
		return nil
	}

	if !o.NoClaim {
		if err := r.claim(ctx, v); err != nil {
			return err
		}
	}

	return r.awaitBound(ctx, ref, pv.Name)
}

// mayRestore refuses what would lose data or could not end well.
func (r *Rescuer) mayRestore(ctx context.Context, v *v1alpha1.Volume) error {
	switch {
	case v.Spec.DesiredState == v1alpha1.DesiredDeleted:
		return fmt.Errorf("volume %s is being deleted for good; there is no way back", v.Name)
	case !provisioner.WasReady(v):
		return fmt.Errorf(
			"volume %s was never used: the controller makes it, or gives it up", v.Name)
	case v.Status.Phase == v1alpha1.VolumeDeleted:
		return fmt.Errorf("the space of volume %s was freed already", v.Name)
	}

	pv, err := get[corev1.PersistentVolume](
		ctx,
		r,
		client.ObjectKey{Name: v.Labels[v1alpha1.LabelPVName]},
	)
	if err != nil || pv == nil {
		return err
	}

	switch {
	case !names(pv, v.Name):
		return fmt.Errorf(
			"PersistentVolume %s exists, and it is not that of volume %s", pv.Name, v.Name)
	case pv.DeletionTimestamp != nil,
		v.Spec.DesiredState != v1alpha1.DesiredPresent && pv.Status.Phase == corev1.VolumeReleased:
		// Its deletion would have the volume trashed again.
		return fmt.Errorf(
			"PersistentVolume %s is still being deleted; try again once it is gone", pv.Name)
	case pv.Status.Phase == corev1.VolumeReleased || pv.Status.Phase == corev1.VolumeFailed:
		return fmt.Errorf(
			"PersistentVolume %[1]s is there, and %[2]s with policy %[3]s: set its policy to "+
				"Retain, take away its spec.claimRef, and make a claim with volumeName %[1]s",
			pv.Name, pv.Status.Phase, pv.Spec.PersistentVolumeReclaimPolicy)
	}

	return nil
}

// desire sets what is wanted of a volume's data, against the very state that
// was looked at.
func (r *Rescuer) desire(
	ctx context.Context,
	v *v1alpha1.Volume,
	want v1alpha1.DesiredState,
) error {
	if v.Spec.DesiredState == want {
		return nil
	}

	// A patch of one field, made conditional by hand: v may have been changed
	// in memory.
	base := &v1alpha1.Volume{ObjectMeta: metav1.ObjectMeta{
		Name:            v.Name,
		ResourceVersion: v.ResourceVersion,
	}}
	changed := base.DeepCopy()
	// The person who decides over it knows of it.
	changed.Spec.DesiredState, changed.Spec.Published = want, true
	err := r.Client.Patch(
		ctx,
		changed,
		client.MergeFromWithOptions(base, client.MergeFromWithOptimisticLock{}),
	)
	switch {
	case apierrors.IsConflict(err):
		return fmt.Errorf("volume %s changed just now; look again: %w", v.Name, err)
	case err != nil:
		return fmt.Errorf("mark volume %s %s: %w", v.Name, want, err)
	}

	r.say("volume/%s marked %s", v.Name, want)
	return nil
}

// ErrInUse ends Delete when the wish is recorded, and the volume goes once
// nothing uses it any more.
var ErrInUse = errors.New("still in use")

// Delete has a volume's data deleted for good, and waits until its agent
// confirms. It may be called for a volume in the trash, and for one that no
// PersistentVolume names. The error wraps ErrInUse when something on its node
// still uses it: then it goes as soon as that ends.
func (r *Rescuer) Delete(ctx context.Context, id string) error {
	v, err := r.volume(ctx, id)
	if err != nil {
		return err
	}
	if !provisioner.WasReady(v) {
		return fmt.Errorf("volume %s was never used: the controller makes it, or gives it up", id)
	}

	pv, err := r.persistentVolumeOf(ctx, v)
	if err != nil {
		return err
	}
	if pv != nil {
		return fmt.Errorf(
			"PersistentVolume %s still names volume %s; delete its claim, or that, first",
			pv.Name,
			id,
		)
	}
	if err := r.desire(ctx, v, v1alpha1.DesiredDeleted); err != nil {
		return err
	}

	err = await(
		ctx,
		r,
		&v1alpha1.VolumeList{},
		client.ObjectKey{Name: id},
		"volume "+id,
		func(now *v1alpha1.Volume) (bool, error) {
			if now.Status.Phase == v1alpha1.VolumeDeleted &&
				now.Status.ObservedGeneration >= now.Generation {
				return true, nil
			}

			c := meta.FindStatusCondition(now.Status.Conditions, v1alpha1.ConditionInUse)
			if c != nil && c.Status == metav1.ConditionTrue &&
				max(c.ObservedGeneration, now.Status.ObservedGeneration) >= now.Generation {
				return true, fmt.Errorf("it goes when it is free: %w: %s", ErrInUse, c.Message)
			}
			return false, nil
		},
	)
	if err == nil || errors.Is(err, errGone) {
		r.say("volume/%s deleted", id)
		return nil
	}

	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf(
			"%w; the wish is recorded, and the volume goes when the agent of node %s acts on it",
			err,
			v.Spec.NodeName,
		)
	}

	return err
}
