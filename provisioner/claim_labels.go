package provisioner

import (
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

// referenceTo is what a Volume says of the claim it is for.
func referenceTo(claim *corev1.PersistentVolumeClaim) *v1alpha1.ClaimReference {
	ref := &v1alpha1.ClaimReference{
		Namespace: claim.Namespace,
		Name:      claim.Name,
		UID:       claim.UID,
	}
	ref.Labels, ref.LabelsLeftOut = boundLabels(claim.Labels)
	return ref
}

// boundLabels are those labels of a claim that are kept with its volume: the
// first ones by name, within what the API documents. The number of labels of an
// object is not limited by the API server, and what is kept of each claim costs
// memory here, in the agent and on disk. leftOut is how many are not kept.
func boundLabels(labels map[string]string) (kept map[string]string, leftOut int32) {
	names := slices.Sorted(maps.Keys(labels))
	bytes, n := 0, 0
	for _, name := range names {
		bytes += len(name) + len(labels[name])
		if n == v1alpha1.MaxClaimLabels || bytes > v1alpha1.MaxClaimLabelBytes {
			break
		}
		n++
	}

	if n == len(names) {
		return labels, 0
	}

	kept = make(map[string]string, n)
	for _, name := range names[:n] {
		kept[name] = labels[name]
	}

	return kept, int32(len(names) - n)
}
