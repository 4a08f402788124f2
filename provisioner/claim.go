package provisioner

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v10/controller"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/provisioner/parameters"
)

// checkClaim finds what a classic volume cannot give. The error is a
// *claimError, or a *controller.IgnoredError where another provisioner serves
// the claim; the latter must reach the library as it is, because the library
// asserts its type.
func checkClaim(claim *corev1.PersistentVolumeClaim) error {
	for _, mode := range claim.Spec.AccessModes {
		// kubelet's local plugin lists ReadWriteOnce only, and nothing on one
		// node's disk can be shared by nodes.
		if mode != corev1.ReadWriteOnce && mode != corev1.ReadWriteOncePod {
			return &claimError{"accessModes", fmt.Sprintf(
				"%s is not possible for a volume on one node's disk; "+
					"use ReadWriteOnce or ReadWriteOncePod", mode)}
		}
	}

	if name := claim.Spec.VolumeAttributesClassName; name != nil && *name != "" {
		return &claimError{"volumeAttributesClassName", fmt.Sprintf(
			"%q: classic volumes have no attributes that change", *name)}
	}

	size := claim.Spec.Resources.Requests[corev1.ResourceStorage]
	if size.Sign() <= 0 {
		return &claimError{"resources.requests.storage", "must be more than 0"}
	}
	if tooLarge(size) {
		return &claimError{"resources.requests.storage", fmt.Sprintf(
			"%s: no volume is larger than %s", size.String(), largestVolume.String())}
	}

	return checkSource(claim)
}

// largestVolume is the largest size that either door accepts. Quantities have
// no limit, and Value() of one beyond 2^63-1 wraps around: 2^64+1 bytes would
// become a volume of one byte.
var largestVolume = *resource.NewQuantity(1<<60, resource.BinarySI)

func tooLarge(size resource.Quantity) bool { return size.Cmp(largestVolume) > 0 }

// checkSource looks at what the volume's first content is to be. Without this a
// claim for a copy would get an empty volume. Kinds that are not Kubernetes'
// own are left to their populators, as KEP-1495 asks.
func checkSource(claim *corev1.PersistentVolumeClaim) error {
	refuse := func(group *string, kind, name string) error {
		switch {
		case (group == nil || *group == "") && kind == "PersistentVolumeClaim":
			return &claimError{"dataSource", fmt.Sprintf(
				"a copy of claim %q: volumes are made empty, Quarry makes no copies yet", name)}
		case group != nil && *group == "snapshot.storage.k8s.io" && kind == "VolumeSnapshot":
			return &claimError{"dataSource", fmt.Sprintf(
				"a copy of snapshot %q: volumes are made empty, Quarry makes no copies yet", name)}
		}
		return &controller.IgnoredError{Reason: fmt.Sprintf(
			"a data source of kind %s is somebody else's to populate", kind)}
	}

	if ref := claim.Spec.DataSourceRef; ref != nil {
		return refuse(ref.APIGroup, ref.Kind, ref.Name)
	}
	if ref := claim.Spec.DataSource; ref != nil {
		return refuse(ref.APIGroup, ref.Kind, ref.Name)
	}
	return nil
}

// claimMode is the claim's volumeMode, which the API server sets but hand-made
// objects may lack.
func claimMode(claim *corev1.PersistentVolumeClaim) corev1.PersistentVolumeMode {
	if claim.Spec.VolumeMode == nil {
		return corev1.PersistentVolumeFilesystem
	}
	return *claim.Spec.VolumeMode
}

// reclaimPolicy is the class's, which may be unset; the API's own default is
// Delete.
func reclaimPolicy(class *storagev1.StorageClass) corev1.PersistentVolumeReclaimPolicy {
	if class.ReclaimPolicy == nil {
		return corev1.PersistentVolumeReclaimDelete
	}
	return *class.ReclaimPolicy
}

// waitsForConsumer reports whether the scheduler chooses the node.
func waitsForConsumer(class *storagev1.StorageClass) bool {
	return class.VolumeBindingMode != nil &&
		*class.VolumeBindingMode == storagev1.VolumeBindingWaitForFirstConsumer
}

// wishOf is the spec of the volume that the claim asks for, but for the node.
func wishOf(
	claim *corev1.PersistentVolumeClaim,
	class *storagev1.StorageClass,
	p parameters.Set,
) v1alpha1.VolumeSpec {
	size := claim.Spec.Resources.Requests[corev1.ResourceStorage]
	spec := v1alpha1.VolumeSpec{
		DesiredState: v1alpha1.DesiredPresent,
		VolumeMode:   claimMode(claim),
		AccessModes:  claim.Spec.AccessModes,
		// Whole bytes, rounded up.
		Capacity:         *resource.NewQuantity(size.Value(), resource.BinarySI),
		MountOptions:     class.MountOptions,
		Claim:            referenceTo(claim),
		StorageClassName: class.Name,
		ReclaimPolicy:    reclaimPolicy(class),
		Provisioner:      class.Provisioner,
	}
	p.Apply(&spec)
	return spec
}
