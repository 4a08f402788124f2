package rescue

import (
	"context"
	"fmt"
	"maps"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/provisioner/parameters"
)

// handOver makes a PersistentVolume that was made by hand one of Quarry's: from
// then on its deletion and its growth are handled like those of any other. Its
// path stays, which leads to the volume by the link that adoption left. A
// second call changes nothing.
func (r *Rescuer) handOver(ctx context.Context, v *v1alpha1.Volume) error {
	name := v.Labels[v1alpha1.LabelPVName]
	pv, err := get[corev1.PersistentVolume](ctx, r, client.ObjectKey{Name: name})
	if err != nil {
		return err
	}
	if pv == nil {
		return fmt.Errorf(
			"PersistentVolume %s was deleted meanwhile; volume %s is kept, without one",
			name,
			v.Name,
		)
	}
	if names(pv, v.Name) {
		return nil
	}
	if pv.Spec.Local == nil || v.Spec.Adopt != nil && v.Spec.Adopt.Path != pv.Spec.Local.Path ||
		pv.Annotations[annProvisionedBy] != "" {
		return fmt.Errorf(
			"PersistentVolume %s is not the one that volume %s was adopted for", name, v.Name)
	}
	if why := wouldBeDeleted(pv); why != "" {
		return fmt.Errorf("PersistentVolume %s %s", name, why)
	}

	if on, err := r.nodeOf(ctx, pv); err != nil {
		return err
	} else if on != v.Spec.NodeName { // the same path on every node is how people make them
		return fmt.Errorf(
			"PersistentVolume %s is on node %s, and volume %s on %s",
			name,
			on,
			v.Name,
			v.Spec.NodeName,
		)
	}

	node, err := get[corev1.Node](ctx, r, client.ObjectKey{Name: v.Spec.NodeName})
	if err != nil {
		return err
	}
	if node == nil {
		return fmt.Errorf("node %s does not exist", v.Spec.NodeName)
	}

	base := pv.DeepCopy()
	if pv.Annotations == nil {
		pv.Annotations = map[string]string{}
	}

	maps.Copy(pv.Annotations, Annotations(v, node))
	if err := r.Client.Patch(ctx, pv,
		client.MergeFromWithOptions(base, client.MergeFromWithOptimisticLock{})); err != nil {
		return fmt.Errorf("hand PersistentVolume %s over: %w", name, err)
	}

	r.say(
		"persistentvolume/%s is Quarry's from now on (policy %s)",
		name,
		pv.Spec.PersistentVolumeReclaimPolicy,
	)
	return nil
}

// Annotations are those that make a local PersistentVolume one of Quarry's.
func Annotations(v *v1alpha1.Volume, node *corev1.Node) map[string]string {
	return map[string]string{
		annProvisionedBy:              v1alpha1.LocalProvisioner,
		v1alpha1.AnnotationVolume:     v.Name,
		v1alpha1.AnnotationNode:       node.Name,
		v1alpha1.AnnotationNodeUID:    string(node.UID),
		v1alpha1.AnnotationPool:       v.Status.Pool,
		v1alpha1.AnnotationParameters: parameters.JSONOf(&v.Spec),
	}
}

// wouldBeDeleted says why a PersistentVolume's data would be deleted as soon as
// it is Quarry's, "" if it would not.
func wouldBeDeleted(pv *corev1.PersistentVolume) string {
	if pv.DeletionTimestamp != nil {
		return "is being deleted"
	}

	over := pv.Status.Phase == corev1.VolumeReleased || pv.Status.Phase == corev1.VolumeFailed
	if over && pv.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete {
		return fmt.Sprintf(
			"is %s with reclaim policy Delete: its data would be deleted as soon as it is "+
				"Quarry's; set its policy to Retain, or take away its claimRef, first",
			pv.Status.Phase)
	}
	return ""
}
