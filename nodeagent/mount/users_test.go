package mount_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/quarry-storage/quarry/nodeagent/internal/testroot"
	"github.com/quarry-storage/quarry/nodeagent/mount"
)

func scan(t *testing.T) *mount.Table {
	t.Helper()
	table, err := mount.Scan()
	require.NoError(t, err)
	return table
}

// Who has a device mounted in a mount namespace of their own is found, and no
// longer when they are gone.
func TestOfDevice(t *testing.T) {
	testroot.RequireRoot(t)
	for _, fstype := range testroot.Filesystems() {
		t.Run(fstype, func(t *testing.T) {
			device := newDevice(t, fstype)
			dev, err := mount.BlockDevice(device)
			require.NoError(t, err)
			require.Empty(t, scan(t).OfDevice(dev))
			target := t.TempDir()
			ns := testroot.NewMountNamespace(t, `mount "$1" "$2"`, device.Name(), target)
			uses := scan(t).OfDevice(dev)
			require.Len(t, uses, 1)
			require.Equal(t, ns.PID, uses[0].PID)
			require.Equal(t, target, uses[0].Mountpoint)
			require.Equal(t, fstype, uses[0].FSType)
			ns.Stop()
			require.Empty(t, scan(t).OfDevice(dev))
		})
	}
}

// A bind mount of a volume's directory in a pod is found by the place within
// the filesystem, also in a subvolume, and that of its neighbour is not.
func TestUnder(t *testing.T) {
	testroot.RequireRoot(t)
	for _, fstype := range testroot.Filesystems() {
		t.Run(fstype, func(t *testing.T) {
			pool := testroot.NewFilesystem(t, fstype, 320*testroot.MiB)
			if fstype == "btrfs" {
				testroot.Run(t, "btrfs", "subvolume", "create", pool+"/volumes")
				testroot.Run(t, "btrfs", "subvolume", "create", pool+"/volumes/a")
			}
			for _, id := range []string{"a", "ab"} { // one is a prefix of the other
				require.NoError(t, os.MkdirAll(filepath.Join(pool, "volumes", id, "data"), 0o755))
			}
			place := func(path string) mount.Place {
				f, err := mount.Open(filepath.Join(pool, path))
				require.NoError(t, err)
				defer f.Close()
				p, err := mount.PlaceOf(f)
				require.NoError(t, err)
				return p
			}
			require.Equal(t, "/volumes/a", place("volumes/a").Path)
			target := t.TempDir()
			ns := testroot.NewMountNamespace(t, `mount --bind "$1" "$2"`, pool+"/volumes/ab/data", target)
			uses := scan(t).Under(place("volumes/ab"))
			require.Len(t, uses, 1)
			require.Equal(t, ns.PID, uses[0].PID)
			require.Equal(t, "/volumes/ab/data", uses[0].Root)
			require.Empty(t, scan(t).Under(place("volumes/a")))

			// It stays the same mount when the directory is renamed away.
			require.NoError(t, os.Rename(pool+"/volumes/ab", pool+"/volumes/trash"))
			require.Len(t, scan(t).Under(place("volumes/trash")), 1)
			// And when it is removed, which a mount elsewhere does not prevent.
			require.NoError(t, os.Remove(pool+"/volumes/trash/data"))
			require.Len(t, scan(t).Under(place("volumes/trash")), 1)
			ns.Stop()
			require.Empty(t, scan(t).Under(place("volumes/trash")))
		})
	}
}

// A place is the same through whatever mount it is looked at.
func TestPlaceThroughBindMount(t *testing.T) {
	testroot.RequireRoot(t)
	for _, fstype := range testroot.Filesystems() {
		t.Run(fstype, func(t *testing.T) {
			pool, target := testroot.NewFilesystem(t, fstype, 320*testroot.MiB), newTarget(t)
			require.NoError(t, os.MkdirAll(pool+"/volumes/a", 0o755))
			direct, err := mount.PlaceOf(open(t, pool+"/volumes/a"))
			require.NoError(t, err)
			source, err := mount.Open(pool + "/volumes")
			require.NoError(t, err)
			require.NoError(t, mount.Bind(t.Context(), source, open(t, target), mount.BindOptions{}))
			require.NoError(t, source.Close())
			f, err := mount.Open(target + "/a")
			require.NoError(t, err)
			defer f.Close()
			through, err := mount.PlaceOf(f)
			require.NoError(t, err)
			require.Equal(t, direct, through)
		})
	}
}

// A namespace that is kept by a bind mount, without a process, is looked into
// all the same.
func TestHiddenNamespace(t *testing.T) {
	testroot.RequireRoot(t)
	before := scan(t).Hidden
	dir := t.TempDir()
	// The kernel refuses to bind a namespace inside itself or a younger one,
	// and wants the place to be private.
	testroot.Mount(t, "tmpfs", dir, "-t", "tmpfs")
	testroot.Run(t, "mount", "--make-private", dir)
	file := filepath.Join(dir, "ns")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	testroot.UnmountOnCleanup(t, file)
	volume := filepath.Join(dir, "volume")
	require.NoError(t, os.Mkdir(volume, 0o700))
	testroot.Run(t, "unshare", "--mount="+file, "mount", "--bind", volume, "/mnt")

	table := scan(t)
	require.Subset(t, before, table.Hidden)
	f, err := mount.Open(volume)
	require.NoError(t, err)
	defer f.Close()
	place, err := mount.PlaceOf(f)
	require.NoError(t, err)
	uses := table.Under(place)
	require.Len(t, uses, 1)
	require.Equal(t, "/mnt", uses[0].Mountpoint)
	require.Contains(t, uses[0].String(), "without processes (kept at "+file+")")
}
