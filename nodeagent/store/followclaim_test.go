package store

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// TestDescribe lets the record on disk, and the index, follow what the cluster
// says.
func TestDescribe(t *testing.T) {
	path := onExt4.make(t, gib)
	n := newNode(t, path)
	r := small
	r.Origin = record.Origin{
		Wish: "digest", Node: "node1", PVName: "pv-1", Provisioner: "local.quarry.storage",
		StorageClass: "fast", ReclaimPolicy: "Delete",
		AccessModes: []string{"ReadWriteOnce"}, ClaimNamespace: "default",
		ClaimName: "data", ClaimUID: "uid-1", ClaimLabels: map[string]string{"app": "db"},
		RequestedBackend: "auto", Deletion: record.Deletion{OnDelete: "purge"},
		Attributes: map[string]string{"readIOPS": "100"},
		Parameters: map[string]string{"onDelete": "purge"}, SpreadGroup: "default/db",
	}
	v := n.mustCreate(r)
	onDisk := func() record.Origin {
		in, err := disk.Inspect(path)
		require.NoError(t, err)
		return in.Volumes[0].Origin
	}
	inode := func() uint64 {
		var st unix.Stat_t
		require.NoError(t, unix.Stat(filepath.Join(path, v.ID, record.VolumeFile), &st))
		return st.Ino
	}
	require.Equal(t, r.Origin, onDisk())

	// Nothing differs: the file is not written again, which would be a new one.
	before := inode()
	same := r.Origin
	same.Wish = ""
	require.NoError(t, n.store.SetOrigin(t.Context(), v.ID, same))
	require.Equal(t, before, inode())

	moved := r.Origin
	moved.Wish, moved.Node, moved.ReclaimPolicy = "another", "node2", "Retain"
	moved.ClaimNamespace, moved.ClaimName, moved.ClaimUID, moved.ClaimLabels = "other", "new", "uid-2", nil
	moved.Deletion = record.Deletion{OnDelete: "trash", RetentionSeconds: 60, Scrub: "zero"}
	moved.Parameters = map[string]string{"onDelete": "trash"}
	require.NoError(t, n.store.SetOrigin(t.Context(), v.ID, moved))
	require.NotEqual(t, before, inode())
	moved.Wish = "digest" // it never changes
	require.Equal(t, moved, onDisk())
	got, err := n.store.Get(v.ID)
	require.NoError(t, err)
	require.Equal(t, moved, got.Origin)
	index := filepath.Join(path, record.MetaDir, record.ByClaimDir)
	to, err := filepath.EvalSymlinks(filepath.Join(index, "other", "new"))
	require.NoError(t, err)
	require.Equal(t, filepath.Join(path, v.ID), to)
	require.NoDirExists(t, filepath.Join(index, "default"), "the former claim's link is gone")

	// What an object that was written again by hand does not name stays, but
	// not a claim.
	require.NoError(t, n.store.SetOrigin(t.Context(), v.ID, record.Origin{ReclaimPolicy: "Retain"}))
	kept := onDisk()
	require.Equal(t, "pv-1", kept.PVName)
	require.Equal(t, moved.Parameters, kept.Parameters)
	require.Equal(t, moved.AccessModes, kept.AccessModes)
	require.Equal(t, "default/db", kept.SpreadGroup)
	require.Empty(t, kept.ClaimName)
	require.NoFileExists(t, filepath.Join(index, "other", "new"))

	// After a restart it is the same, and a crash in the middle of the next
	// change leaves the one or the other.
	n.start()
	got, err = n.store.Get(v.ID)
	require.NoError(t, err)
	require.Equal(t, kept, got.Origin)

	var missing *NotFoundError
	require.ErrorAs(t, n.store.SetOrigin(t.Context(), "pvc-2", moved), &missing)

	// Somebody else's record in its place is not written over.
	file := filepath.Join(path, v.ID, record.VolumeFile)
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	other := got.Volume
	other.CreatedAt = other.CreatedAt.AddDate(1, 0, 0)
	swapped, err := record.EncodeVolume(&other)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(file, swapped, 0o600))
	var mismatch *disk.MismatchError
	require.ErrorAs(t, n.store.SetOrigin(t.Context(), v.ID, moved), &mismatch)
	left, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, swapped, left)
	require.NoError(t, os.WriteFile(file, text, 0o600))
}
