package rescue

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

// Adoption is data on a node that is to become a volume.
type Adoption struct {
	// PV is a PersistentVolume that was made by hand and is handed over; node,
	// path, size, modes, class, claim and policy are its own. Empty: a new one
	// is made.
	PV string

	Node string
	Path string
	Type v1alpha1.AdoptionType

	// Name is that of the PersistentVolume that is made; empty: after the node
	// and the path.
	Name string
	// Size is what the volume is limited to, in bytes. An image has its own.
	Size resource.Quantity
	// Class may be empty: a claim without a class gets it.
	Class       string
	Enforcement v1alpha1.Enforcement
	VolumeMode  corev1.PersistentVolumeMode
	// Claim, if set, is the one that it is kept for.
	Claim *v1alpha1.ClaimReference
	// ReclaimPolicy is Retain where it is empty: data that was there before
	// Quarry stays unless a person says otherwise.
	ReclaimPolicy corev1.PersistentVolumeReclaimPolicy
}

// Prepare reads what the adoption refers to and returns the Volume that has it
// carried out when it is written, by Adopt or by hand. Nothing is written.
func (r *Rescuer) Prepare(ctx context.Context, a Adoption) (*v1alpha1.Volume, error) {
	if a.PV != "" {
		if err := r.fromPV(ctx, &a); err != nil {
			return nil, err
		}
	}
	if a.Node == "" || a.Path == "" {
		return nil, errors.New(
			"an adoption needs a node and a path, or a PersistentVolume that names both")
	}
	if !path.IsAbs(a.Path) || path.Clean(a.Path) != a.Path || a.Path == "/" {
		return nil, fmt.Errorf("%q is not an absolute, clean path", a.Path)
	}

	node, err := get[corev1.Node](ctx, r, client.ObjectKey{Name: a.Node})
	if err == nil && node == nil {
		err = fmt.Errorf("there is no node %s", a.Node)
	}
	if err != nil {
		return nil, err
	}
	if a.Name == "" {
		a.Name = nameFor(a.Node, a.Path)
	}

	name := a.Name + "-1"
	if !v1alpha1.IsVolumeID(name) || len(validation.IsValidLabelValue(a.Name)) > 0 {
		return nil, fmt.Errorf(
			"%q cannot be the name of a volume's PersistentVolume: lower-case letters, digits "+
				"and inner dashes, at most 63; name another with --name", a.Name)
	}

	return a.volume(name), nil
}

// volume writes the adoption down, as it is to be in the end.
func (a *Adoption) volume(name string) *v1alpha1.Volume {
	file := a.Type == v1alpha1.AdoptFile || a.Type == v1alpha1.AdoptFileOrCreate
	spec := v1alpha1.VolumeSpec{
		NodeName:         a.Node,
		DesiredState:     v1alpha1.DesiredPresent,
		Published:        true,
		Backend:          v1alpha1.BackendDirectory,
		Enforcement:      a.Enforcement,
		Allocation:       v1alpha1.AllocationThick,
		VolumeMode:       a.VolumeMode,
		AccessModes:      []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
		Capacity:         a.Size,
		Adopt:            &v1alpha1.Adoption{Path: a.Path, Type: a.Type},
		StorageClassName: a.Class,
		ReclaimPolicy:    a.ReclaimPolicy,
		Provisioner:      v1alpha1.LocalProvisioner,
		Claim:            a.Claim,
		Deletion: v1alpha1.DeletionPolicy{
			OnDelete: v1alpha1.OnDeletePurge,
			Scrub:    v1alpha1.ScrubNone,
		},
	}
	if file {
		spec.Backend = v1alpha1.BackendLoop
	}
	if spec.Enforcement == "" {
		spec.Enforcement = v1alpha1.EnforcementQuota
	}
	if spec.VolumeMode == "" {
		spec.VolumeMode = corev1.PersistentVolumeFilesystem
	}
	if spec.Adopt.Type == "" {
		spec.Adopt.Type = v1alpha1.AdoptDirectory
	}
	if spec.ReclaimPolicy != corev1.PersistentVolumeReclaimDelete {
		spec.ReclaimPolicy = corev1.PersistentVolumeReclaimRetain
	}

	labels := map[string]string{v1alpha1.LabelPVName: a.Name}
	if len(validation.IsValidLabelValue(a.Node)) == 0 {
		labels[v1alpha1.LabelNode] = a.Node
	}

	return &v1alpha1.Volume{
		TypeMeta: metav1.TypeMeta{
			APIVersion: v1alpha1.GroupVersion.String(),
			Kind:       "Volume",
		},
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels},
		Spec:       spec,
	}
}

// Manifest is the Volume that starts an adoption. Data that is there is
// published from the beginning: an attempt that was never published would be
// given up, and deleted, when no claim waits for it. What may be made empty is
// not: agents make nothing empty in the place of what was published. It names
// no claim until it is, so that the sweep does not give it up.
func Manifest(v *v1alpha1.Volume) *v1alpha1.Volume {
	v = v.DeepCopy()
	if strings.HasSuffix(string(v.Spec.Adopt.Type), "OrCreate") {
		v.Spec.Published, v.Spec.Claim = false, nil
	}
	return v
}

// nameFor makes a name out of a node and a path: node1 and
// /volumes/easemesh-storage become node1-easemesh-storage.
func nameFor(node, dir string) string {
	clean := func(s string) string {
		s = strings.Map(func(c rune) rune {
			if c >= 'a' && c <= 'z' || c >= '0' && c <= '9' {
				return c
			}
			return '-'
		}, strings.ToLower(s))
		return strings.Trim(s, "-")
	}
	return strings.Trim(clean(strings.SplitN(node, ".", 2)[0])+"-"+clean(path.Base(dir)), "-")
}

// fromPV fills in what a PersistentVolume that was made by hand says.
func (r *Rescuer) fromPV(ctx context.Context, a *Adoption) error {
	pv, err := get[corev1.PersistentVolume](ctx, r, client.ObjectKey{Name: a.PV})
	if err != nil {
		return err
	}
	if pv == nil {
		return fmt.Errorf("there is no PersistentVolume %s", a.PV)
	}
	if _, _, ours := behind(pv); ours && !names(pv, a.PV+"-1") || pv.Spec.Local == nil {
		return fmt.Errorf("PersistentVolume %s is not a local one made by hand", a.PV)
	}
	if why := wouldBeDeleted(pv); why != "" {
		return fmt.Errorf("PersistentVolume %s %s", a.PV, why)
	}
	if a.Path != "" && a.Path != pv.Spec.Local.Path {
		return fmt.Errorf("PersistentVolume %s is at %s, not %s", a.PV, pv.Spec.Local.Path, a.Path)
	}

	node, err := r.nodeOf(ctx, pv)
	if err != nil {
		return err
	}
	if a.Node != "" && a.Node != node {
		return fmt.Errorf("PersistentVolume %s is on node %s, not %s", a.PV, node, a.Node)
	}

	a.Name, a.Node, a.Path, a.Class = pv.Name, node, pv.Spec.Local.Path, pv.Spec.StorageClassName
	a.ReclaimPolicy = pv.Spec.PersistentVolumeReclaimPolicy
	if a.Size.IsZero() {
		a.Size = *pv.Spec.Capacity.Storage()
	}
	if pv.Spec.VolumeMode != nil {
		a.VolumeMode = *pv.Spec.VolumeMode
	}
	if ref := pv.Spec.ClaimRef; ref != nil {
		a.Claim = &v1alpha1.ClaimReference{
			Namespace: ref.Namespace,
			Name:      ref.Name,
			UID:       ref.UID,
		}
	}

	return nil
}

// nodeOf finds the one node that a local PersistentVolume's affinity allows.
func (r *Rescuer) nodeOf(ctx context.Context, pv *corev1.PersistentVolume) (string, error) {
	hosts := affinityHosts(pv)
	if len(hosts) != 1 {
		return "", fmt.Errorf(
			"PersistentVolume %s names %d nodes by the label %s, not one; an adoption needs "+
				"to know which", pv.Name, len(hosts), corev1.LabelHostname)
	}

	var nodes corev1.NodeList
	if err := r.Client.List(ctx, &nodes,
		client.MatchingLabels{corev1.LabelHostname: hosts[0]}); err != nil {
		return "", fmt.Errorf("list nodes: %w", err)
	}
	if len(nodes.Items) != 1 {
		return "", fmt.Errorf(
			"PersistentVolume %s is for %s %s, and %d nodes have that label",
			pv.Name,
			corev1.LabelHostname,
			hosts[0],
			len(nodes.Items),
		)
	}

	return nodes.Items[0].Name, nil
}

// Begun returns the Volume of an adoption that was begun before; nil if it was
// not. A Volume of that name that is another one is an error.
func (r *Rescuer) Begun(ctx context.Context, v *v1alpha1.Volume) (*v1alpha1.Volume, error) {
	there, err := get[v1alpha1.Volume](ctx, r, client.ObjectKey{Name: v.Name})
	if err != nil || there == nil {
		return nil, err
	}
	if there.Spec.Adopt == nil || there.Spec.Adopt.Path != v.Spec.Adopt.Path ||
		there.Spec.NodeName != v.Spec.NodeName {
		return nil, fmt.Errorf(
			"volume %s exists, and it is another one; choose another name", v.Name)
	}
	return there, nil
}

// Adopt writes what Prepare returned, waits until the node's agent has made a
// volume of the data, and then hands the PersistentVolume over, or writes a new
// one. A second call goes on where the first stopped. What an agent refuses was
// not touched, and its Volume is taken away again.
func (r *Rescuer) Adopt(ctx context.Context, v *v1alpha1.Volume) error {
	if _, err := r.Begun(ctx, v); err != nil {
		return err
	}

	pvName := v.Labels[v1alpha1.LabelPVName]
	pv, err := get[corev1.PersistentVolume](ctx, r, client.ObjectKey{Name: pvName})
	if err != nil {
		return err
	}

	byHand := pv != nil && (pv.Spec.Local == nil || pv.Annotations[v1alpha1.AnnotationVolume] == "")
	if byHand && (pv.Spec.Local == nil || pv.Spec.Local.Path != v.Spec.Adopt.Path) {
		return fmt.Errorf(
			"PersistentVolume %s exists, and it is not at %s; choose another name",
			pvName,
			v.Spec.Adopt.Path,
		)
	}
	if byHand {
		if on, err := r.nodeOf(ctx, pv); err != nil {
			return err
		} else if on != v.Spec.NodeName {
			return fmt.Errorf(
				"PersistentVolume %s is on node %s, not %s; choose another name",
				pvName,
				on,
				v.Spec.NodeName,
			)
		}
	}
	if err := r.writeVolume(ctx, Manifest(v)); err != nil {
		return err
	}

	ready, err := r.awaitReady(ctx, v.Name)
	if err != nil {
		return errors.Join(err, r.takeBack(ctx, ready))
	}

	if !ready.Spec.Published {
		base := ready.DeepCopy()
		ready = ready.DeepCopy()
		ready.Spec.Published, ready.Spec.Claim = true, v.Spec.Claim
		if err := r.Client.Patch(ctx, ready,
			client.MergeFromWithOptions(base, client.MergeFromWithOptimisticLock{})); err != nil {
			return fmt.Errorf("publish volume %s: %w", v.Name, err)
		}
	}

	r.say("volume/%s is ready: %s is a link to it", v.Name, v.Spec.Adopt.Path)
	if pv != nil {
		return r.handOver(ctx, ready)
	}
	if _, err := r.persistentVolume(ctx, ready, "", nil); err != nil || ready.Spec.Claim == nil {
		return err
	}

	return r.awaitBound(ctx, ready.Spec.Claim, pvName)
}

// takeBack removes the Volume of an adoption that its agent refused. Deleting
// the object never deletes data.
func (r *Rescuer) takeBack(ctx context.Context, v *v1alpha1.Volume) error {
	if v == nil || v.Status.Phase != v1alpha1.VolumeRefused {
		return nil
	}
	if err := client.IgnoreNotFound(r.Client.Delete(ctx, v, client.Preconditions{
		UID:             &v.UID,
		ResourceVersion: &v.ResourceVersion,
	})); err != nil {
		return fmt.Errorf("delete the refused Volume %s: %w", v.Name, err)
	}

	r.say("volume/%s deleted again; nothing was touched on the node", v.Name)
	return nil
}
