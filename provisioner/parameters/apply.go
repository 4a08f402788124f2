package parameters

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

// Apply writes a class's parameters into the spec of a volume that is about to
// be made, whose volumeMode is set already, and returns them as a
// PersistentVolume remembers them (v1alpha1.AnnotationParameters). It is how
// the CSI front door reads parameters, on a cluster and without one. The error
// is a *Error.
func Apply(class map[string]string, spec *v1alpha1.VolumeSpec) (canonical string, err error) {
	p, err := Parse(class)
	if err != nil {
		return "", err
	}
	if err := p.CheckMode(spec.VolumeMode); err != nil {
		return "", err
	}

	p.Apply(spec)
	return p.JSON(), nil
}

// Apply writes the parameters into the spec of a volume that is about to be
// made; spec.volumeMode is set already. What concerns a filesystem is left out
// of a Block volume, so that one class serves both.
func (p Set) Apply(spec *v1alpha1.VolumeSpec) {
	spec.Backend, spec.Enforcement, spec.Allocation = p.Backend, p.Enforcement, p.Allocation
	spec.Pool = p.Pool
	spec.PoolSelector = p.PoolSelector.DeepCopy()
	spec.Deletion = v1alpha1.DeletionPolicy{OnDelete: p.OnDelete, Scrub: p.Scrub}
	if p.TrashRetention > 0 {
		spec.Deletion.TrashRetention = &metav1.Duration{Duration: p.TrashRetention}
	}

	spec.Parameters = p.all()
	if spec.VolumeMode == corev1.PersistentVolumeBlock {
		return
	}

	spec.FSType = p.FSType
	spec.MkfsOptions = append([]string(nil), p.MkfsOptions...)
	spec.Owner, spec.Group, spec.Mode, spec.Inodes = p.Owner, p.Group, p.Mode, p.Inodes
}
