package rescue

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/provisioner"
)

// Annotations and attributes that belong to Kubernetes and to
// external-provisioner.
const (
	annProvisionedBy   = "pv.kubernetes.io/provisioned-by"
	annDeletionSecret  = "volume.kubernetes.io/provisioner-deletion-secret-name"
	annDeletionSecrets = "volume.kubernetes.io/provisioner-deletion-secret-namespace"
	attrIdentity       = "storage.kubernetes.io/csiProvisionerIdentity"
)

// PersistentVolume is the one of a volume that is there, as its front door
// would have written it, so that deletion and expansion go on as ever. It has
// no claimRef. class may be nil; it only gives the mount options of directory
// volumes, which their disk does not keep. poolLabels may be nil.
func PersistentVolume(
	v *v1alpha1.Volume,
	node *corev1.Node,
	class *storagev1.StorageClass,
	poolLabels map[string]string,
) (*corev1.PersistentVolume, error) {
	name := v.Labels[v1alpha1.LabelPVName]
	if name == "" {
		return nil, fmt.Errorf(
			"volume %s does not say which PersistentVolume is its own (label %s)",
			v.Name,
			v1alpha1.LabelPVName,
		)
	}

	if class != nil && len(v.Spec.MountOptions) == 0 &&
		v.Status.Backend == v1alpha1.BackendDirectory {
		v = v.DeepCopy()
		v.Spec.MountOptions = class.MountOptions
	}

	pv, err := provisioner.PersistentVolumeOf(name, v, node, poolLabels)
	if err != nil {
		return nil, err
	}

	if csi := pv.Spec.CSI; csi != nil {
		// Without them external-provisioner looks for the secrets that the
		// class names now, when it deletes.
		pv.Annotations[annDeletionSecret], pv.Annotations[annDeletionSecrets] = "", ""
		csi.VolumeAttributes[attrIdentity] = "0-0-" + v1alpha1.CSIDriver
	}

	return pv, nil
}

// Claim is the claim that a volume was made for, bound to the PersistentVolume
// of that name; nil if it was made for none.
func Claim(v *v1alpha1.Volume) *corev1.PersistentVolumeClaim {
	ref := v.Spec.Claim
	if ref == nil || ref.Name == "" {
		return nil
	}

	class, mode := v.Spec.StorageClassName, v.Spec.VolumeMode
	if mode == "" {
		mode = corev1.PersistentVolumeFilesystem
	}

	return &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: ref.Namespace,
			Name:      ref.Name,
			Labels:    ref.Labels,
		},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: v.Spec.AccessModes,
			// Empty means none; only an unset one would get the cluster's
			// default class.
			StorageClassName: &class,
			VolumeMode:       &mode,
			VolumeName:       v.Labels[v1alpha1.LabelPVName],
			Resources: corev1.VolumeResourceRequirements{
				Requests: corev1.ResourceList{corev1.ResourceStorage: sizeOf(v)},
			},
		},
	}
}

// sizeOf is the size in force.
func sizeOf(v *v1alpha1.Volume) resource.Quantity {
	if v.Status.Capacity != nil && !v.Status.Capacity.IsZero() {
		return *v.Status.Capacity
	}
	return v.Spec.Capacity
}

// behind reads which volume, on which node, a PersistentVolume says is behind
// it; ok is false for those that are not ours.
func behind(pv *corev1.PersistentVolume) (id, node string, ok bool) {
	switch {
	case pv.Spec.CSI != nil && pv.Spec.CSI.Driver == v1alpha1.CSIDriver:
		id, node = pv.Spec.CSI.VolumeHandle, provisioner.TopologyNodeOf(pv)
	case pv.Spec.Local != nil && pv.Annotations[annProvisionedBy] == v1alpha1.LocalProvisioner:
		id, node = pv.Annotations[v1alpha1.AnnotationVolume],
			pv.Annotations[v1alpha1.AnnotationNode]
	}
	return id, node, id != "" && node != ""
}

// names reports whether the PersistentVolume is that of the volume.
func names(pv *corev1.PersistentVolume, id string) bool {
	have, _, ok := behind(pv)
	return ok && have == id
}

// policyOf is the reclaim policy a PersistentVolume is meant to have: while it
// is replaced it has Retain.
func policyOf(pv *corev1.PersistentVolume) corev1.PersistentVolumeReclaimPolicy {
	if policy := pv.Annotations[v1alpha1.AnnotationReclaimPolicy]; policy != "" {
		return corev1.PersistentVolumeReclaimPolicy(policy)
	}
	return pv.Spec.PersistentVolumeReclaimPolicy
}

// claimText is a claim as people write it, "-" for none.
func claimText(ref *v1alpha1.ClaimReference) string {
	if ref == nil || ref.Name == "" {
		return "-"
	}
	return ref.Namespace + "/" + ref.Name
}
