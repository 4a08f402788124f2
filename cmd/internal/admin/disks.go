package admin

import (
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/listing"
	"github.com/quarry-storage/quarry/nodeagent/record"
	"github.com/quarry-storage/quarry/nodeagent/translate"
	"github.com/quarry-storage/quarry/provisioner/parameters"
	"github.com/quarry-storage/quarry/provisioner/rescue"
)

// nodeListing is what `quarry ls -o json` printed on a node.
type nodeListing struct {
	node  string
	pools []listing.PoolListing
}

// disksOf puts what the agents printed into the words of the API. Volumes that
// live and die with one pod are left out: no object ever speaks of them.
func disksOf(nodes []nodeListing) []rescue.Disk {
	var out []rescue.Disk
	for _, n := range nodes {
		for i := range n.pools {
			p := &n.pools[i]
			d := rescue.Disk{Node: n.node, Pool: p.Name, Path: p.Path, UID: p.UID,
				ClusterID: p.ClusterID, Error: p.Error,
				Missing: slices.Contains([]string{disk.OfflineMissing, disk.OfflineNoMountpoint,
					disk.OfflineUninitialized}, p.Reason)}
			for j := range p.Volumes {
				if v := &p.Volumes[j]; !translate.IsInline(&v.Volume) {
					d.Volumes = append(d.Volumes, rescue.Found{Volume: volumeOf(n.node, p,
						&v.Volume, v.Path)})
				}
			}

			for j := range p.Trash {
				t := &p.Trash[j]
				if t.Volume == nil || translate.IsInline(t.Volume) {
					continue
				}

				v := volumeOf(n.node, p, t.Volume, "")
				v.Spec.DesiredState = v1alpha1.DesiredTrashed
				v.Spec.Deletion = translate.DeletionPolicyOf(t.Deletion)
				d.Volumes = append(d.Volumes, rescue.Found{Volume: v, InTrash: true,
					Remaining: time.Duration(t.RemainingSeconds) * time.Second})
			}

			out = append(out, d)
		}
	}

	return out
}

// volumeOf is the Volume that a record on disk stands for, on the node where
// the disk is now. What its class said counts, where the record has that, else
// what was carved.
func volumeOf(node string, p *listing.PoolListing, r *record.Volume,
	dataPath string) *v1alpha1.Volume {
	v := translate.VolumeOf(r)
	v.Spec.NodeName = node
	v.Spec.Adopt = translate.AdoptionOf(r, p.Path)
	v.Status = v1alpha1.VolumeStatus{
		Phase:    v1alpha1.VolumeReady,
		Pool:     p.Name,
		PoolUID:  p.UID,
		Backend:  v1alpha1.Backend(r.Backend),
		FSType:   r.FSType,
		Path:     dataPath,
		Capacity: resource.NewQuantity(r.SizeBytes, resource.BinarySI),
	}

	if len(r.Origin.Parameters) == 0 {
		return v
	}

	asked := v.Spec.DeepCopy()
	if _, err := parameters.Apply(r.Origin.Parameters, asked); err == nil {
		v.Spec = *asked
	}

	return v
}
