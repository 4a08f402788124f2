package store

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/record"
	"github.com/quarry-storage/quarry/nodeagent/verify"
)

// TestCopyOfAVolumeIsNotTheVolume leaves an old copy of a volume on another
// pool and takes the volume's own pool offline: the copy is at no time served,
// nor deleted, in the volume's place.
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

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	require.NoError(t, err, "%s", out)
}

// withoutPool makes a record one of an earlier version, which names no pool.
func withoutPool(t *testing.T, dir string) {
	t.Helper()
	file := filepath.Join(dir, record.VolumeFile)
	data, err := os.ReadFile(file)
	require.NoError(t, err)
	rec, err := record.DecodeVolume(data)
	require.NoError(t, err)
	require.NotEmpty(t, rec.PoolUID)
	rec.PoolUID = ""
	data, err = record.EncodeVolume(rec)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(file, data, 0o600))
}

// TestCopyWhileTheVolumesDiskIsAway starts while a volume's disk is away and
// another pool has a copy of it: that is not brought up, not given out and not
// deleted, whoever asks, and the volume is served once its disk is back.
func TestCopyWhileTheVolumesDiskIsAway(t *testing.T) {
	n := newNode(t, onExt4.make(t, gib), onExt4.make(t, gib))
	n.dirty = true // the copy stays
	r := block("pvc-1")
	r.Pool = "pool2"
	v := n.mustCreate(r)
	mark(t, v, "new")
	n.reboot()
	uid := n.store.Pools()[1].UID
	copied := filepath.Join(n.pools[0].Path, v.ID)
	run(t, "cp", "-a", filepath.Join(n.pools[1].Path, v.ID), copied)
	hide(t, n.pools[1].Path, "-away", "")
	s := n.prepare()
	s.Expect("pool2", disk.Expectation{UID: uid})
	s.Refresh(t.Context())

	var copy *disk.CopyError
	require.ErrorAs(t, s.Pools()[0].Broken[v.ID], &copy)
	require.Equal(t, disk.CopyError{ID: v.ID, Pool: "pool1", PoolUID: s.Pools()[0].UID, Of: uid}, *copy)
	require.Empty(t, s.List())
	asked := func() map[string]error {
		return map[string]error{
			"find":     call(s.Find(t.Context(), v.ID)),
			"activate": call(s.Activate(t.Context(), v.ID)),
			"open":     call(s.Open(t.Context(), v.ID)),
			"grow":     call(s.Grow(t.Context(), v.ID, 2*v.SizeBytes)),
			"restore":  call(s.Restore(t.Context(), v.ID)),
			"delete":   s.Delete(t.Context(), v.ID, purge),
			"take":     s.TakeCopy(t.Context(), v.ID),
		}
	}
	for what, err := range asked() {
		require.Error(t, err, what)
		require.NotErrorAs(t, err, &copy, "%s: it may be on the disk that is away", what)
	}
	require.NoDirExists(t, filepath.Join(n.devices, v.ID))
	require.DirExists(t, copied)

	// The disk is given up: what is there is a copy, and is said to be one.
	n.pools = n.pools[:1]
	s = n.start()
	for what, err := range asked() {
		if what != "take" {
			require.ErrorAs(t, err, &copy, what)
			require.ErrorContains(t, err, uid)
		}
	}
	require.DirExists(t, copied)
	got, err := s.Get(v.ID)
	require.NoError(t, err, "whoever knows that there is no other may take it")
	require.Equal(t, "pool1", got.Pool)

	n.start() // it is written down
	got, err = n.store.Get(v.ID)
	require.NoError(t, err)
	require.NoError(t, got.Unavailable)
	require.Equal(t, "new", marked(t, got))
	n.reboot()
}

// TestCopyOfADeletedVolume deletes a volume that has a copy on another pool,
// for good: the copy stays, and is no volume, also for who asks again.
func TestCopyOfADeletedVolume(t *testing.T) {
	n := newNode(t, onExt4.make(t, gib), onExt4.make(t, gib))
	n.dirty = true // the copy stays
	r := plain("pvc-1")
	r.Pool = "pool1"
	v := n.mustCreate(r)
	copied := filepath.Join(n.pools[1].Path, v.ID)
	run(t, "cp", "-a", filepath.Join(n.pools[0].Path, v.ID), copied)
	require.NoError(t, n.store.Delete(t.Context(), v.ID, keep(3600)))
	n.store.Refresh(t.Context())
	require.NoError(t, n.store.Delete(t.Context(), v.ID, keep(3600)), "it is in the trash")
	require.NoError(t, call(n.store.Restore(t.Context(), v.ID)))
	require.NoError(t, n.store.Delete(t.Context(), v.ID, purge))
	require.NoError(t, n.store.Drain(t.Context()))
	for range 2 {
		n.store.Refresh(t.Context())
		require.NotContains(t, n.ids(), v.ID)
		require.Contains(t, n.store.Pools()[1].Broken, v.ID)
		require.Error(t, n.store.Delete(t.Context(), v.ID, purge), "nobody can say whether that is it")
		require.DirExists(t, copied)
		n.start()
	}
	in, err := disk.Inspect(n.pools[1].Path)
	require.NoError(t, err)
	require.Contains(t, in.Broken, v.ID)
	require.True(t, contains(verify.Pools(t.Context(), New(n.options()).View(), true), "is a copy"))
}

// TestCopiedTrash copies an entry of the trash to another pool: nothing frees
// it.
func TestCopiedTrash(t *testing.T) {
	n := newNode(t, onExt4.make(t, gib), onExt4.make(t, gib))
	n.dirty = true // the copy stays
	r := plain("pvc-1")
	r.Pool = "pool1"
	n.mustCreate(r)
	require.NoError(t, n.store.Delete(t.Context(), r.ID, purge))
	trash := filepath.Join(record.MetaDir, record.TrashDir)
	entry := n.store.Trash()[0].Entry
	run(t, "cp", "-a", filepath.Join(n.pools[0].Path, trash, entry), filepath.Join(n.pools[1].Path, trash))
	n.start()
	require.NoError(t, n.store.Drain(t.Context()))
	require.NoDirExists(t, filepath.Join(n.pools[0].Path, trash, entry))
	require.DirExists(t, filepath.Join(n.pools[1].Path, trash, entry))
	require.Contains(t, n.store.Pools()[1].Broken, record.TrashDir+"/"+entry)
}

// TestRecordsNameTheirPool: what is made, adopted, moved by a person or written
// anew for whatever reason names the pool that it is on; a disk that was copied
// as a whole is the same pool.
func TestRecordsNameTheirPool(t *testing.T) {
	n := newNode(t, onExt4.make(t, gib), onExt4.make(t, gib))
	s := n.store
	uids := []string{s.Pools()[0].UID, s.Pools()[1].UID}
	named := func(pool int) string {
		rec, err := os.ReadFile(filepath.Join(n.pools[pool].Path, "pvc-1", record.VolumeFile))
		require.NoError(t, err)
		v, err := record.DecodeVolume(rec)
		require.NoError(t, err)
		return v.PoolUID
	}
	r := plain("pvc-1")
	r.Pool = "pool1"
	v := n.mustCreate(r)
	mark(t, v, "kept")
	require.Equal(t, uids[0], named(0))

	withoutPool(t, filepath.Join(n.pools[0].Path, v.ID))
	s = n.start()
	require.NoError(t, s.SetOrigin(t.Context(), v.ID, record.Origin{ClaimNamespace: "a", ClaimName: "b"}))
	require.Equal(t, uids[0], named(0), "written with the next change")

	run(t, "cp", "-a", filepath.Join(n.pools[0].Path, v.ID), n.pools[1].Path)
	require.NoError(t, os.RemoveAll(filepath.Join(n.pools[0].Path, v.ID)))
	s.Refresh(t.Context())
	got, err := s.Activate(t.Context(), v.ID)
	require.NoError(t, err, "a person moved it")
	require.Equal(t, "pool2", got.Pool)
	require.Equal(t, uids[1], named(1))
	s = n.start()
	got, err = s.Get(v.ID)
	require.NoError(t, err)
	require.NoError(t, got.Unavailable)
	require.Equal(t, "kept", marked(t, got))
}
