package nodeagent

import (
	"errors"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/keylock"
	"github.com/quarry-storage/quarry/nodeagent/record"
	"github.com/quarry-storage/quarry/nodeagent/store"
)

// RequestOf puts a Volume's wish into the store's words. An error is one in the wish: *store.RefusedError.
func RequestOf(v *v1alpha1.Volume) (store.Request, error) { return requestOf(v) }

// VolumeOf puts a volume that is on disk into the API's words, for those who speak to no API server. It is published:
// whoever asks may use it. poolFilesystem is the filesystem that its pool lies on.
func VolumeOf(there *store.Volume, poolFilesystem string) *v1alpha1.Volume {
	o := &there.Origin
	v := &v1alpha1.Volume{
		ObjectMeta: metav1.ObjectMeta{
			Name: there.ID, CreationTimestamp: metav1.NewTime(there.CreatedAt),
			Labels: map[string]string{v1alpha1.LabelPVName: o.PVName},
		},
		Spec: v1alpha1.VolumeSpec{
			NodeName: o.Node, Pool: there.Pool, DesiredState: v1alpha1.DesiredPresent, Published: true,
			Backend: v1alpha1.Backend(there.Backend), Enforcement: v1alpha1.Enforcement(there.Enforcement),
			VolumeMode: corev1.PersistentVolumeMode(there.VolumeMode), Allocation: v1alpha1.Allocation(there.Allocation),
			Capacity: *resource.NewQuantity(there.Promise(), resource.BinarySI), FSType: there.FSType,
			MkfsOptions: there.MkfsOptions, MountOptions: there.MountOptions, Inodes: there.Inodes,
			StorageClassName: o.StorageClass, ReclaimPolicy: corev1.PersistentVolumeReclaimPolicy(o.ReclaimPolicy),
			Provisioner: o.Provisioner, Attributes: o.Attributes, Parameters: o.Parameters, SpreadGroup: o.SpreadGroup,
		},
	}
	for _, m := range o.AccessModes {
		v.Spec.AccessModes = append(v.Spec.AccessModes, corev1.PersistentVolumeAccessMode(m))
	}
	describe(&v.Status, there, poolFilesystem)
	if there.Unavailable == nil {
		setReady(&v.Status, v1alpha1.VolumeReady, v1alpha1.ReasonReady, "")
	} else {
		reason, _ := store.Reason(there.Unavailable)
		setReady(&v.Status, v1alpha1.VolumeUnavailable, reason, there.Unavailable.Error())
	}
	return v
}

// InlineAttribute marks, in the record on disk, a volume that lives and dies with one pod. No Volume object speaks of it.
const InlineAttribute = "quarry.storage/inline"

// IsInline tells a volume that lives and dies with one pod.
func IsInline(v *record.Volume) bool { return v.Origin.Attributes[InlineAttribute] == "true" }

// Error is an error with one of the API's reasons.
type Error struct {
	Code string // a v1alpha1.Reason*
	Err  error
}

func (e *Error) Error() string { return e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

// Reason is what follows from the error, in the API's words.
func (e *Error) Reason() string { return e.Code }

// WithReason gives an error of the store about a volume that is there, or should be, its reason. Nil stays nil.
func WithReason(err error) error {
	var (
		missing  *store.NotFoundError
		badID    *record.IDError
		inUse    *store.InUseError
		offline  *store.OfflineError
		inactive *store.InactiveError
		busy     *keylock.BusyError
		known    *Error
	)
	switch {
	case err == nil || errors.As(err, &known):
		return err
	case errors.As(err, &missing), errors.As(err, &badID):
		return &Error{v1alpha1.ReasonVolumeNotFound, err}
	case errors.As(err, &inUse):
		return &Error{v1alpha1.ReasonVolumeInUse, err}
	case errors.As(err, &inactive):
		return &Error{v1alpha1.ReasonNotActive, err}
	case errors.As(err, &busy):
		return &Error{v1alpha1.ReasonPending, err}
	case errors.As(err, &offline):
		return &Error{v1alpha1.ReasonVolumeUnavailable, err}
	}
	reason, _ := store.Reason(err)
	return &Error{reason, err}
}

// FilesystemOf returns the filesystem that a pool lies on, "" if it is offline.
func FilesystemOf(s *store.Store, pool string) string {
	return s.FilesystemOf(pool)
}
