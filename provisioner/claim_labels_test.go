package provisioner

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/provisioner/parameters"
)

// TestLabelsOfAClaimAreBounded makes the wish of a claim with a megabyte of
// labels: a record of it stays small, and always has the same ones.
func TestLabelsOfAClaimAreBounded(t *testing.T) {
	claim := &corev1.PersistentVolumeClaim{}
	claim.Labels = map[string]string{}
	for i := range 12_600 {
		claim.Labels[fmt.Sprintf("a%05d", i)] = strings.Repeat("x", 63)
	}
	wish := wishOf(claim, &storagev1.StorageClass{}, parameters.Set{})
	require.Len(t, wish.Claim.Labels, v1alpha1.MaxClaimLabels)
	require.Contains(t, wish.Claim.Labels, "a00000")
	require.Contains(t, wish.Claim.Labels, fmt.Sprintf("a%05d", v1alpha1.MaxClaimLabels-1))
	require.EqualValues(t, 12_600-v1alpha1.MaxClaimLabels, wish.Claim.LabelsLeftOut)

	claim.Labels = map[string]string{"app": "db"}
	wish = wishOf(claim, &storagev1.StorageClass{}, parameters.Set{})
	require.Equal(t, claim.Labels, wish.Claim.Labels)
	require.Zero(t, wish.Claim.LabelsLeftOut)
}
