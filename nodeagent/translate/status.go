package translate

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/record"
	"github.com/quarry-storage/quarry/nodeagent/store"
)

// VolumeOnDisk is the Volume object of a volume of the store, with its status,
// for those who speak to no API server. poolFilesystem is the filesystem that
// its pool lies on.
func VolumeOnDisk(there *store.Volume, poolFilesystem string) *v1alpha1.Volume {
	v := VolumeOf(&there.Volume)
	v.Spec.Pool = there.Pool

	SetPlace(&v.Status, there, poolFilesystem)
	if there.Unavailable == nil {
		SetReady(&v.Status, v1alpha1.VolumeReady, v1alpha1.ReasonReady, "")
	} else {
		reason, _ := store.Reason(there.Unavailable)
		SetReady(&v.Status, v1alpha1.VolumeUnavailable, reason, there.Unavailable.Error())
	}

	return v
}

// SetPlace says where a volume is and what it was made as. poolFilesystem is
// the filesystem that its pool lies on.
func SetPlace(status *v1alpha1.VolumeStatus, there *store.Volume, poolFilesystem string) {
	status.Pool, status.PoolUID = there.Pool, there.PoolUID
	status.Backend = v1alpha1.Backend(there.Backend)
	status.Path = there.Path
	status.Capacity = resource.NewQuantity(there.SizeBytes, resource.BinarySI)

	status.FSType = there.FSType
	if there.Backend == record.BackendDirectory {
		status.FSType = poolFilesystem
	}

	if there.VolumeMode == string(corev1.PersistentVolumeBlock) {
		status.FSType = ""
	}
}

// SetReady sets the condition Ready, and with it the phase.
func SetReady(status *v1alpha1.VolumeStatus, phase v1alpha1.VolumePhase, reason, message string) {
	status.Phase = phase
	truth := metav1.ConditionFalse
	if phase == v1alpha1.VolumeReady {
		truth = metav1.ConditionTrue
	}
	SetCondition(status, v1alpha1.ConditionReady, truth, reason, message)
}

// SetCondition sets a condition, of the generation that the status answers.
func SetCondition(status *v1alpha1.VolumeStatus, kind string, truth metav1.ConditionStatus, reason,
	message string) {
	const longest = 32 << 10 // of a condition's message, as the API has it
	if len(message) > longest {
		message = message[:longest]
	}

	meta.SetStatusCondition(&status.Conditions, metav1.Condition{
		Type:               kind,
		Status:             truth,
		Reason:             reason,
		Message:            message,
		ObservedGeneration: status.ObservedGeneration,
	})
}
