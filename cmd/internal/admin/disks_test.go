package admin

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/listing"
	"github.com/quarry-storage/quarry/nodeagent/record"
	"github.com/quarry-storage/quarry/nodeagent/translate"
	"github.com/quarry-storage/quarry/provisioner/parameters"
)

// fromDisk is what becomes of records that a node lists.
func fromDisk(t *testing.T, p listing.PoolListing) *v1alpha1.Volume {
	t.Helper()
	out, err := json.Marshal([]listing.PoolListing{p})
	require.NoError(t, err)
	n := nodeListing{node: "node1"}
	require.NoError(t, json.Unmarshal(out, &n.pools))
	disks := disksOf([]nodeListing{n})
	require.Len(t, disks, 1)
	require.Equal(t, "node1", disks[0].Node)
	require.Equal(t, "fast", disks[0].Pool)
	require.Len(t, disks[0].Volumes, 1)
	return disks[0].Volumes[0].Volume
}

// TestVolumeComesBackAsItWas writes a claim's Volume down as the agent does,
// and reads it back from the disk.
func TestVolumeComesBackAsItWas(t *testing.T) {
	class := map[string]string{"backend": "loop", "fsType": "xfs", "mkfsOptions": "-m crc=1",
		"onDelete": "trash", "trashRetention": "1h", "owner": "1000", "mode": "0770", "onNodeLoss": "afterDelay"}
	spec := v1alpha1.VolumeSpec{VolumeMode: corev1.PersistentVolumeFilesystem,
		MountOptions: []string{"noatime"}}
	canonical, err := parameters.Apply(class, &spec)
	require.NoError(t, err)
	r := record.Volume{
		ID: "pvc-1-1", Backend: "loop", Enforcement: "quota", VolumeMode: "Filesystem",
		SizeBytes: 1 << 30, Allocation: "thick", FSType: "xfs",
		MkfsOptions: spec.MkfsOptions, MountOptions: spec.MountOptions, Owner: 1000, Mode: 0o770,
		Origin: record.Origin{Node: "where-it-was", PVName: "pvc-1",
			Provisioner: v1alpha1.LocalProvisioner, StorageClass: "c", ReclaimPolicy: "Delete",
			AccessModes: []string{"ReadWriteOnce"}, ClaimNamespace: "shop",
			ClaimName: "data", ClaimUID: "1", ClaimLabels: map[string]string{"app": "db"},
			Deletion: record.Deletion{OnDelete: "trash", RetentionSeconds: 3600,
				Scrub: "none"}, Parameters: spec.Parameters},
	}
	pool := listing.PoolListing{Name: "fast", Path: "/volumes", UID: "u",
		Volumes: []listing.VolumeListing{{Volume: r, Path: "/volumes/pvc-1-1/mount/data"}}}
	v := fromDisk(t, pool)
	require.Equal(t, "node1", v.Spec.NodeName)
	require.True(t, v.Spec.Published)
	require.Equal(t, v1alpha1.DesiredPresent, v.Spec.DesiredState)
	require.Equal(t, "pvc-1", v.Labels[v1alpha1.LabelPVName])
	require.Equal(t, &v1alpha1.ClaimReference{Namespace: "shop", Name: "data", UID: "1",
		Labels: map[string]string{"app": "db"}}, v.Spec.Claim)
	require.Equal(t, spec.MkfsOptions, v.Spec.MkfsOptions)
	require.Equal(t, spec.Deletion, v.Spec.Deletion)
	require.Equal(t, spec.Owner, v.Spec.Owner)
	require.Equal(t, "/volumes/pvc-1-1/mount/data", v.Status.Path)
	require.Equal(t, int64(1<<30), v.Spec.Capacity.Value())
	require.JSONEq(t, canonical, parameters.JSONOf(&v.Spec),
		"a PersistentVolume remembers the same")

	// Records of before parameters were kept there.
	pool.Volumes[0].Origin.Parameters = nil
	v = fromDisk(t, pool)
	require.Equal(t, v1alpha1.BackendLoop, v.Spec.Backend)
	require.Equal(t, "xfs", v.Spec.FSType)
	require.Equal(t, v1alpha1.OnDeleteTrash, v.Spec.Deletion.OnDelete)
	_, err = parameters.FromJSON(parameters.JSONOf(&v.Spec))
	require.NoError(t, err, "what the PersistentVolume remembers can be read again")
}

func TestTrashAdoptedAndInlineVolumes(t *testing.T) {
	r := record.Volume{ID: "pvc-1-1", Backend: "directory", VolumeMode: "Filesystem",
		SizeBytes: 1 << 20, Origin: record.Origin{PVName: "pvc-1"}}
	inline := r
	inline.ID, inline.Origin.Attributes = "csi-1", map[string]string{translate.InlineAttribute: "true"}
	v := fromDisk(t, listing.PoolListing{Name: "fast", Path: "/volumes",
		Volumes: []listing.VolumeListing{{Volume: inline}}, Trash: []listing.TrashListing{
			{Entry: "attempt@1"}, // never was a volume
			{Entry: "pvc-1-1@1", RemainingSeconds: 60, Volume: &r,
				Trash: record.Trash{Deletion: record.Deletion{OnDelete: "trash",
					RetentionSeconds: 90}}},
		}})
	require.Equal(t, v1alpha1.DesiredTrashed, v.Spec.DesiredState)
	require.Equal(t, 90*time.Second, v.Spec.Deletion.TrashRetention.Duration)
	require.Empty(t, v.Status.Path)

	r.AdoptedFrom = "old/data"
	v = fromDisk(t, listing.PoolListing{Name: "fast", Path: "/volumes",
		Volumes: []listing.VolumeListing{{Volume: r}}})
	require.Equal(t, &v1alpha1.Adoption{Path: "/volumes/old/data", Type: v1alpha1.AdoptDirectory},
		v.Spec.Adopt)
	require.Equal(t, v1alpha1.AllocationThick, v.Spec.Allocation, "the API takes no empty one")
	require.Equal(t, v1alpha1.EnforcementQuota, v.Spec.Enforcement)
}
