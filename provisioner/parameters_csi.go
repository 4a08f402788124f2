package provisioner

import "github.com/quarry-storage/quarry/api/v1alpha1"

// ApplyParameters writes a class's parameters into the spec of a volume that is about to be made, whose volumeMode is set
// already, and returns them as a PersistentVolume remembers them (v1alpha1.AnnotationParameters). It is how the CSI front
// door reads parameters, on a cluster and without one. The error is a *ParameterError.
func ApplyParameters(class map[string]string, spec *v1alpha1.VolumeSpec) (canonical string, err error) {
	p, err := ParseParameters(class)
	if err != nil {
		return "", err
	}
	if err := p.CheckMode(spec.VolumeMode); err != nil {
		return "", err
	}
	p.Apply(spec)
	return p.JSON(), nil
}
