package provisioner

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/provisioner/parameters"
)

// annProvisionedBy is set by the library on every PersistentVolume it creates;
// Kubernetes leaves those to us.
const annProvisionedBy = "pv.kubernetes.io/provisioned-by"

// localPV is the PersistentVolume of a volume that is ready, with its pool's
// labels. The library adds claimRef, class and its own annotations.
func localPV(
	pvName string,
	v *v1alpha1.Volume,
	node *corev1.Node,
	poolLabels map[string]string,
) (*corev1.PersistentVolume, error) {
	// The label's value is not the node's name everywhere, and the scheduler
	// compares the label.
	host := node.Labels[corev1.LabelHostname]
	if host == "" {
		return nil, &unavailableError{
			node.Name,
			v.Name,
			"the node has no label " + corev1.LabelHostname,
		}
	}
	if !path.IsAbs(v.Status.Path) || path.Clean(v.Status.Path) != v.Status.Path {
		return nil, &unavailableError{node.Name, v.Name, fmt.Sprintf(
			"its agent reports the path %q", v.Status.Path)}
	}

	local := &corev1.LocalVolumeSource{Path: v.Status.Path}
	if v.Status.Backend == v1alpha1.BackendLoop &&
		v.Spec.VolumeMode == corev1.PersistentVolumeFilesystem &&
		v.Status.FSType != "" {
		// For people who look; kubelet mounts nothing where the path is a
		// directory.
		local.FSType = &v.Status.FSType
	}

	capacity := v.Spec.Capacity
	if v.Status.Capacity != nil {
		capacity = *v.Status.Capacity
	}

	mode, policy := v.Spec.VolumeMode, v.Spec.ReclaimPolicy
	if policy == "" { // a record made by hand
		policy = corev1.PersistentVolumeReclaimRetain
	}

	return &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{
			Name:   pvName,
			Labels: maps.Clone(poolLabels),
			Annotations: map[string]string{
				v1alpha1.AnnotationVolume:     v.Name,
				v1alpha1.AnnotationNode:       node.Name,
				v1alpha1.AnnotationNodeUID:    string(node.UID),
				v1alpha1.AnnotationPool:       v.Status.Pool,
				v1alpha1.AnnotationParameters: parameters.JSONOf(&v.Spec),
			},
		},
		Spec: corev1.PersistentVolumeSpec{
			Capacity:                      corev1.ResourceList{corev1.ResourceStorage: capacity},
			AccessModes:                   v.Spec.AccessModes,
			VolumeMode:                    &mode,
			MountOptions:                  v.Spec.MountOptions,
			PersistentVolumeReclaimPolicy: policy,
			PersistentVolumeSource:        corev1.PersistentVolumeSource{Local: local},
			NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{
				NodeSelectorTerms: []corev1.NodeSelectorTerm{
					{MatchExpressions: []corev1.NodeSelectorRequirement{{
						Key:      corev1.LabelHostname,
						Operator: corev1.NodeSelectorOpIn,
						Values:   []string{host},
					}}},
				},
			}},
		},
	}, nil
}

// PersistentVolumeOf is the whole PersistentVolume of a volume that is ready,
// with no claim yet, of whichever door the volume came in by: what the library
// or the CSI sidecar would have written, so that they handle it from then on as
// one of theirs. They add their finalizer themselves.
func PersistentVolumeOf(
	pvName string,
	v *v1alpha1.Volume,
	node *corev1.Node,
	poolLabels map[string]string,
) (*corev1.PersistentVolume, error) {
	pv, err := localPV(pvName, v, node, poolLabels)
	if err != nil {
		return nil, err
	}

	pv.Spec.StorageClassName = v.Spec.StorageClassName
	pv.Annotations[annProvisionedBy] = v1alpha1.LocalProvisioner
	if v.Spec.Provisioner != v1alpha1.CSIDriver {
		return pv, nil
	}

	// What CreateVolume answers, and what external-provisioner makes of it.
	pv.Annotations = map[string]string{annProvisionedBy: v1alpha1.CSIDriver}
	pv.Spec.PersistentVolumeSource = corev1.PersistentVolumeSource{
		CSI: &corev1.CSIPersistentVolumeSource{
			Driver:       v1alpha1.CSIDriver,
			VolumeHandle: v.Name,
			VolumeAttributes: map[string]string{
				v1alpha1.AnnotationParameters: parameters.JSONOf(&v.Spec),
			},
		},
	}
	if v.Spec.VolumeMode == corev1.PersistentVolumeFilesystem {
		pv.Spec.CSI.FSType = v.Spec.FSType
	}

	only := &pv.Spec.NodeAffinity.Required.NodeSelectorTerms[0].MatchExpressions[0]
	*only = corev1.NodeSelectorRequirement{
		Key:      v1alpha1.TopologyNode,
		Operator: corev1.NodeSelectorOpIn,
		Values:   []string{node.Name},
	}
	return pv, nil
}

// origin is what a PersistentVolume says about the volume behind it: in
// annotations for classic ones; for CSI ones in the volume's attributes, under
// the same names, but for the node. Attributes cannot be changed, and the
// affinity could be: what the scheduler goes by is what holds.
type origin struct {
	Provisioner string
	Volume      string
	Node        string
	Parameters  string
}

// originOf reads it; ok is false for PersistentVolumes that are not ours, or
// that are made by hand.
func originOf(pv *corev1.PersistentVolume) (o origin, ok bool) {
	facts := pv.Annotations
	switch {
	case pv.Spec.CSI != nil && pv.Spec.CSI.Driver == v1alpha1.CSIDriver:
		facts = pv.Spec.CSI.VolumeAttributes
		o.Provisioner, o.Volume = v1alpha1.CSIDriver, pv.Spec.CSI.VolumeHandle
		o.Node = TopologyNodeOf(pv)
	case pv.Spec.Local != nil && pv.Annotations[annProvisionedBy] == v1alpha1.LocalProvisioner:
		o.Provisioner = v1alpha1.LocalProvisioner
		o.Volume, o.Node = facts[v1alpha1.AnnotationVolume], facts[v1alpha1.AnnotationNode]
	default:
		return origin{}, false
	}

	o.Parameters = facts[v1alpha1.AnnotationParameters]
	return o, v1alpha1.IsVolumeID(o.Volume) && o.Node != ""
}

// TopologyNodeOf is the one node that a PersistentVolume's affinity allows by
// the topology of the CSI driver, "" if that is not one.
func TopologyNodeOf(pv *corev1.PersistentVolume) string {
	if pv.Spec.NodeAffinity == nil || pv.Spec.NodeAffinity.Required == nil {
		return ""
	}

	node := ""
	for _, term := range pv.Spec.NodeAffinity.Required.NodeSelectorTerms {
		one := ""
		for _, e := range term.MatchExpressions {
			if e.Key == v1alpha1.TopologyNode && e.Operator == corev1.NodeSelectorOpIn &&
				len(e.Values) == 1 {
				one = e.Values[0]
			}
		}

		if one == "" || node != "" && node != one {
			return ""
		}

		node = one
	}

	return node
}

// LeadsTo reports whether anything in a PersistentVolume leads to the volume:
// as one of ours does, or one that a person made by hand to have the data back,
// by path or by handle. A volume that something leads to is no orphan.
func LeadsTo(pv *corev1.PersistentVolume, v *v1alpha1.Volume) bool {
	if o, ok := originOf(pv); ok && o.Volume == v.Name {
		return true
	}
	switch {
	case pv.Spec.CSI != nil:
		return pv.Spec.CSI.Driver == v1alpha1.CSIDriver && pv.Spec.CSI.VolumeHandle == v.Name
	case pv.Spec.Local != nil:
		// An id is a whole element of a path: <pool>/<id>/...,
		// /run/quarry/dev/<id>.
		return slices.Contains(strings.Split(pv.Spec.Local.Path, "/"), v.Name) ||
			v.Spec.Adopt != nil && pv.Spec.Local.Path == v.Spec.Adopt.Path
	}
	return false
}

// volumeFromPV is the Volume that a PersistentVolume was made from, as far as
// the PersistentVolume tells: all that is fixed at creation, so that the agent
// finds its volume under it, and that it was published.
func volumeFromPV(pv *corev1.PersistentVolume) (*v1alpha1.Volume, error) {
	o, ok := originOf(pv)
	if !ok {
		return nil, &notOursError{pv.Name, "it does not name a volume and a node of ours"}
	}
	// Without a Volume only the name ties a volume to its PersistentVolume. A
	// forged one could otherwise have a Volume written for any volume that has
	// none, such as one that a person rescued, and then have it deleted.
	if _, derived := attemptNumber(pv.Name, o.Volume); !derived {
		return nil, &notOursError{
			pv.Name,
			fmt.Sprintf(
				"Volume %s has no record, and its name does not follow from the PersistentVolume's",
				o.Volume,
			),
		}
	}

	p, err := parameters.FromJSON(o.Parameters)
	if err != nil {
		return nil, fmt.Errorf("PersistentVolume %s: %w", pv.Name, err)
	}

	mode := corev1.PersistentVolumeFilesystem
	if pv.Spec.VolumeMode != nil {
		mode = *pv.Spec.VolumeMode
	}

	capacity := pv.Spec.Capacity[corev1.ResourceStorage]
	spec := v1alpha1.VolumeSpec{
		NodeName:         o.Node,
		DesiredState:     v1alpha1.DesiredPresent,
		Published:        true,
		VolumeMode:       mode,
		AccessModes:      pv.Spec.AccessModes,
		Capacity:         *resource.NewQuantity(capacity.Value(), resource.BinarySI),
		MountOptions:     pv.Spec.MountOptions,
		StorageClassName: pv.Spec.StorageClassName,
		Provisioner:      o.Provisioner,
	}
	if p := pv.Spec.PersistentVolumeReclaimPolicy; p != corev1.PersistentVolumeReclaimRecycle {
		spec.ReclaimPolicy = p
	}
	if ref := pv.Spec.ClaimRef; ref != nil {
		spec.Claim = &v1alpha1.ClaimReference{
			Namespace: ref.Namespace,
			Name:      ref.Name,
			UID:       ref.UID,
		}
	}
	if l := pv.Spec.Local; l != nil && !slices.Contains(strings.Split(l.Path, "/"), o.Volume) {
		// Made by hand, at the path that an adopted volume left a link at. Data
		// that is not there is not made anew.
		spec.Adopt = &v1alpha1.Adoption{Path: l.Path, Type: v1alpha1.AdoptDirectory}
	}

	p.Apply(&spec)
	return newVolumeObject(pv.Name, o.Volume, &spec), nil
}

// matches reports why a Volume is not the one behind a PersistentVolume, or "".
// A user who may write PersistentVolumes could otherwise have any volume of the
// cluster deleted by naming it.
func matches(v *v1alpha1.Volume, pv *corev1.PersistentVolume, o origin) string {
	var differences []string
	if have := v.Labels[v1alpha1.LabelPVName]; have != pv.Name {
		differences = append(differences, fmt.Sprintf(
			"volume %s belongs to PersistentVolume %q", v.Name, have))
	}
	if v.Spec.NodeName != o.Node {
		differences = append(differences, fmt.Sprintf(
			"volume %s is on node %s, not %s", v.Name, v.Spec.NodeName, o.Node))
	}
	return strings.Join(differences, "; ")
}

// StalePath says that the path in a PersistentVolume is not where its volume
// is, and what to do about it; "" if all is well. The path of its pool was
// changed. The volume is the same one: it can be deleted, but pods find nothing
// at the old path, and a PersistentVolume's path cannot be changed.
func StalePath(v *v1alpha1.Volume, pv *corev1.PersistentVolume) string {
	if pv.Spec.Local == nil || v.Status.Path == "" || v.Status.Path == pv.Spec.Local.Path {
		return ""
	}
	if v.Spec.Adopt != nil && v.Spec.Adopt.Path == pv.Spec.Local.Path {
		return "" // by the link that was left there
	}
	return fmt.Sprintf(
		"volume %s is at %s now, and PersistentVolume %s says %s: pods cannot use it there; "+
			"set the pool's path back, or run `kubectl quarry recover`, which writes the "+
			"PersistentVolume again", v.Name, v.Status.Path, pv.Name, pv.Spec.Local.Path)
}
