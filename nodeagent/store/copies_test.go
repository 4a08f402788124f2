package store

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/quarry-storage/quarry/nodeagent/record"
)

// TestCopyOfAVolumeIsNotTheVolume leaves an old copy of a volume on another pool
// and takes the volume's own pool offline: the copy is at no time served, nor
// deleted, in the volume's place.
func TestCopyOfAVolumeIsNotTheVolume(t *testing.T) {
	n := newNode(t, onExt4.make(t, gib), onExt4.make(t, gib))
	n.dirty = true // the copy stays
	r := plain("pvc-1")
	r.Pool = "pool1"
	v := n.mustCreate(r)
	mark(t, v, "old")
	kept := filepath.Join(n.pools[1].Path, v.ID)
	out, err := exec.Command("cp", "-a", filepath.Join(n.pools[0].Path, v.ID), kept).CombinedOutput()
	require.NoError(t, err, "%s", out)
	mark(t, v, "new")
	s := n.start()
	for range 20 { // both disks come at the same instant, and it is always the same that has the volume
		require.Contains(t, s.Pools()[1].Broken, v.ID)
		s = n.start()
	}

	for _, trouble := range []struct{ begin, end func() }{
		{func() { remount(t, n.pools[0].Path, "ro") }, func() { remount(t, n.pools[0].Path, "rw") }},
		{func() { hide(t, n.pools[0].Path, "-away", "") }, func() { hide(t, n.pools[0].Path, "", "-away") }},
	} {
		trouble.begin()
		for range 2 { // the second one looks at what was broken at the first
			s.Refresh(t.Context())
		}
		require.NotNil(t, s.Pools()[0].Offline)
		got, err := s.Find(t.Context(), v.ID)
		require.NoError(t, err)
		require.Equal(t, "pool1", got.Pool)
		require.Error(t, got.Unavailable)
		if up, err := s.Activate(t.Context(), v.ID); err == nil { // what is read-only can be read
			require.Equal(t, "pool1", up.Pool)
		}
		require.Error(t, s.Delete(t.Context(), v.ID, purge))
		require.DirExists(t, kept)

		trouble.end()
		s.Refresh(t.Context())
		got, err = s.Activate(t.Context(), v.ID)
		require.NoError(t, err)
		require.Equal(t, "pool1", got.Pool)
		require.Equal(t, "new", marked(t, got))
	}
}

// hide renames a pool's identity, from one suffix to another.
func hide(t *testing.T, path, to, from string) {
	t.Helper()
	file := filepath.Join(path, record.MetaDir, record.PoolFile)
	require.NoError(t, os.Rename(file+from, file+to))
}

// TestDeleteOfAMovedVolumeWithADiskAway deletes a volume whose directory is not
// on its pool any more while another pool is offline, where it may be.
func TestDeleteOfAMovedVolumeWithADiskAway(t *testing.T) {
	n := newNode(t, onExt4.make(t, gib), onExt4.make(t, gib))
	r := plain("pvc-1")
	r.Pool = "pool1"
	v := n.mustCreate(r)
	here, there := filepath.Join(n.pools[0].Path, v.ID), filepath.Join(n.pools[1].Path, v.ID)
	out, err := exec.Command("cp", "-a", here, there).CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.NoError(t, os.RemoveAll(here))
	hide(t, n.pools[1].Path, "-away", "")
	n.store.Refresh(t.Context())
	for range 2 {
		var unseen *UnseenError
		require.ErrorAs(t, n.store.Delete(t.Context(), v.ID, purge), &unseen)
	}
	hide(t, n.pools[1].Path, "", "-away")
	n.store.Refresh(t.Context())
	require.NoError(t, n.store.Delete(t.Context(), v.ID, purge))
	require.NoDirExists(t, there)
}
