package rescue

import (
	"context"
	"fmt"
	"maps"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

// writeVolume writes a Volume; one that exists is left as it is, if it is the
// same one.
func (r *Rescuer) writeVolume(ctx context.Context, v *v1alpha1.Volume) error {
	fresh := &v1alpha1.Volume{ObjectMeta: metav1.ObjectMeta{
		Name:   v.Name,
		Labels: map[string]string{},
	}}
	v.Spec.DeepCopyInto(&fresh.Spec)
	maps.Copy(fresh.Labels, v.Labels)

	if len(validation.IsValidLabelValue(v.Spec.NodeName)) == 0 {
		fresh.Labels[v1alpha1.LabelNode] = v.Spec.NodeName
	}

	err := r.Client.Create(ctx, fresh)
	if apierrors.IsAlreadyExists(err) {
		there, err := r.volume(ctx, v.Name)
		if err != nil {
			return err
		}
		if there.Spec.NodeName != v.Spec.NodeName {
			return fmt.Errorf("it exists by now, on node %s", there.Spec.NodeName)
		}
		return nil
	}

	if err != nil {
		return fmt.Errorf("write Volume %s: %w", v.Name, err)
	}

	r.say("volume/%s created on node %s (%s)", v.Name, v.Spec.NodeName, v.Spec.DesiredState)
	return nil
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
		return nil, fmt.Errorf("write PersistentVolume %s: %w", pv.Name, err)
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
		return fmt.Errorf("write claim %s: %w", claimText(v.Spec.Claim), err)
	}

	r.say("persistentvolumeclaim/%s created in namespace %s", claim.Name, claim.Namespace)
	return nil
}
