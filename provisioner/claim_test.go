package provisioner

import (
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v10/controller"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

func TestCheckClaim(t *testing.T) {
	claim := func(change func(*corev1.PersistentVolumeClaimSpec)) *corev1.PersistentVolumeClaim {
		c := &corev1.PersistentVolumeClaim{Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{
				"storage": resource.MustParse("1Gi")}}}}
		change(&c.Spec)
		return c
	}
	require.NoError(t, checkClaim(claim(func(s *corev1.PersistentVolumeClaimSpec) {
		s.AccessModes = append(s.AccessModes, corev1.ReadWriteOncePod)
	})))
	for want, change := range map[string]func(*corev1.PersistentVolumeClaimSpec){
		"accessModes: ReadOnlyMany": func(s *corev1.PersistentVolumeClaimSpec) {
			s.AccessModes = append(s.AccessModes, corev1.ReadOnlyMany)
		},
		"must be more than 0": func(s *corev1.PersistentVolumeClaimSpec) { s.Resources.Requests = nil },
		"18446744073709551617: no volume is larger than 1Ei": func(s *corev1.PersistentVolumeClaimSpec) {
			s.Resources.Requests["storage"] = resource.MustParse("18446744073709551617") // 1, in 64 bits
		},
		"9223372036854775808: no volume": func(s *corev1.PersistentVolumeClaimSpec) {
			s.Resources.Requests["storage"] = resource.MustParse("9223372036854775808") // negative, in 64 bits
		},
		"volumeAttributesClassName": func(s *corev1.PersistentVolumeClaimSpec) {
			s.VolumeAttributesClassName = new("gold")
		},
		`snapshot "s"`: func(s *corev1.PersistentVolumeClaimSpec) {
			s.DataSourceRef = &corev1.TypedObjectReference{APIGroup: new("snapshot.storage.k8s.io"),
				Kind: "VolumeSnapshot", Name: "s"}
		},
		`claim "c"`: func(s *corev1.PersistentVolumeClaimSpec) {
			s.DataSource = &corev1.TypedLocalObjectReference{Kind: "PersistentVolumeClaim", Name: "c"}
		},
	} {
		err := checkClaim(claim(change))
		require.ErrorContains(t, err, want)
		require.Equal(t, v1alpha1.ReasonUnsupportedClaim, judge(err).Reason)
	}
	err := checkClaim(claim(func(s *corev1.PersistentVolumeClaimSpec) {
		s.DataSourceRef = &corev1.TypedObjectReference{APIGroup: new("forklift.example"), Kind: "Image", Name: "i"}
	}))
	_, ignored := err.(*controller.IgnoredError) //nolint:errorlint // the library asserts the type as well
	require.True(t, ignored, "%T", err)
}
