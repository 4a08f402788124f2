package admin

import (
	"path"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent"
	"github.com/quarry-storage/quarry/nodeagent/listing"
	"github.com/quarry-storage/quarry/nodeagent/record"
	"github.com/quarry-storage/quarry/nodeagent/store"
	"github.com/quarry-storage/quarry/provisioner"
	"github.com/quarry-storage/quarry/provisioner/rescue"
)

// nodeListing is what `quarry ls -o json` printed on a node.
type nodeListing struct {
	node  string
	pools []listing.PoolListing
}

// disksOf puts what the agents printed into the words of the API. Volumes that live and die with one pod are left out: no
// object ever speaks of them.
func disksOf(nodes []nodeListing) []rescue.Disk {
	var out []rescue.Disk
	for _, n := range nodes {
		for i := range n.pools {
			p := &n.pools[i]
			d := rescue.Disk{Node: n.node, Pool: p.Name, Path: p.Path, UID: p.UID, ClusterID: p.ClusterID, Error: p.Error,
				Missing: slices.Contains([]string{store.OfflineMissing, store.OfflineNoMountpoint, store.OfflineUninitialized}, p.Reason)}
			for j := range p.Volumes {
				if v := &p.Volumes[j]; !nodeagent.IsInline(&v.Volume) {
					d.Volumes = append(d.Volumes, rescue.Found{Volume: volumeOf(n.node, p, &v.Volume, v.Path)})
				}
			}
			for j := range p.Trash {
				t := &p.Trash[j]
				if t.Volume == nil || nodeagent.IsInline(t.Volume) {
					continue
				}
				v := volumeOf(n.node, p, t.Volume, "")
				v.Spec.DesiredState = v1alpha1.DesiredTrashed
				v.Spec.Deletion = deletionOf(t.Deletion)
				d.Volumes = append(d.Volumes, rescue.Found{Volume: v, InTrash: true, Remaining: time.Duration(t.RemainingSeconds) * time.Second})
			}
			out = append(out, d)
		}
	}
	return out
}

// volumeOf is the Volume that a record on disk stands for, on the node where the disk is now.
func volumeOf(node string, p *listing.PoolListing, r *record.Volume, dataPath string) *v1alpha1.Volume {
	o := &r.Origin
	size := resource.NewQuantity(r.SizeBytes, resource.BinarySI)
	v := &v1alpha1.Volume{
		ObjectMeta: metav1.ObjectMeta{Name: r.ID, Labels: map[string]string{}},
		Spec:       specOf(node, r),
		Status: v1alpha1.VolumeStatus{
			Phase: v1alpha1.VolumeReady, Pool: p.Name, PoolUID: p.UID, Backend: v1alpha1.Backend(r.Backend),
			FSType: r.FSType, Path: dataPath, Capacity: size,
		},
	}
	if o.PVName != "" {
		v.Labels[v1alpha1.LabelPVName] = o.PVName
	}
	if r.AdoptedFrom != "" {
		// Never "or create": where the data is missing nothing is made in its place.
		v.Spec.Adopt = &v1alpha1.Adoption{Path: path.Join(p.Path, r.AdoptedFrom), Type: v1alpha1.AdoptDirectory}
		if r.Backend == record.BackendLoop {
			v.Spec.Adopt.Type = v1alpha1.AdoptFile
		}
	}
	return v
}

// specOf is the wish that a record answers: what its class said, where the record has that, else what was carved.
func specOf(node string, r *record.Volume) v1alpha1.VolumeSpec {
	o := &r.Origin
	spec := v1alpha1.VolumeSpec{
		NodeName: node, DesiredState: v1alpha1.DesiredPresent, Published: true,
		VolumeMode: corev1.PersistentVolumeMode(r.VolumeMode), Capacity: *resource.NewQuantity(r.Promise(), resource.BinarySI),
		MountOptions: r.MountOptions, StorageClassName: o.StorageClass, SpreadGroup: o.SpreadGroup,
		ReclaimPolicy: corev1.PersistentVolumeReclaimPolicy(o.ReclaimPolicy), Provisioner: o.Provisioner, Attributes: o.Attributes,
	}
	if spec.VolumeMode == "" {
		spec.VolumeMode = corev1.PersistentVolumeFilesystem
	}
	for _, m := range o.AccessModes {
		spec.AccessModes = append(spec.AccessModes, corev1.PersistentVolumeAccessMode(m))
	}
	if o.ClaimName != "" {
		spec.Claim = &v1alpha1.ClaimReference{Namespace: o.ClaimNamespace, Name: o.ClaimName, UID: types.UID(o.ClaimUID),
			Labels: o.ClaimLabels, LabelsLeftOut: int32(o.ClaimLabelsLeftOut)}
	}
	if len(o.Parameters) > 0 {
		if _, err := provisioner.ApplyParameters(o.Parameters, &spec); err == nil {
			return spec
		}
	}
	spec.Backend, spec.Enforcement, spec.Allocation = v1alpha1.Backend(r.Backend), v1alpha1.Enforcement(r.Enforcement), v1alpha1.Allocation(r.Allocation)
	if o.RequestedBackend != "" {
		spec.Backend = v1alpha1.Backend(o.RequestedBackend)
	}
	if spec.Enforcement == "" {
		spec.Enforcement = v1alpha1.EnforcementQuota
	}
	if spec.Allocation == "" {
		spec.Allocation = v1alpha1.AllocationThick
	}
	spec.FSType, spec.MkfsOptions, spec.Inodes = r.FSType, r.MkfsOptions, r.Inodes
	spec.Deletion = deletionOf(o.Deletion)
	return spec
}

func deletionOf(d record.Deletion) v1alpha1.DeletionPolicy {
	out := v1alpha1.DeletionPolicy{OnDelete: v1alpha1.OnDelete(d.OnDelete), Scrub: v1alpha1.Scrub(d.Scrub)}
	if out.OnDelete == "" {
		out.OnDelete = v1alpha1.OnDeletePurge
	}
	if out.Scrub == "" {
		out.Scrub = v1alpha1.ScrubNone
	}
	if d.RetentionSeconds > 0 {
		out.TrashRetention = &metav1.Duration{Duration: time.Duration(d.RetentionSeconds) * time.Second}
	}
	return out
}
