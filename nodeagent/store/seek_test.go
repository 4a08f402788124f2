package store

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// plain is a volume that every filesystem has.
func plain(id string) Request {
	return Request{ID: id, Enforcement: record.EnforcementNone, SizeBytes: 16 * mib}
}

// block is a volume whose size is promised on every filesystem.
func block(id string) Request {
	return Request{ID: id, VolumeMode: record.ModeBlock, Allocation: record.AllocationThin, SizeBytes: 64 * mib}
}

// TestRecordPutBack damages a volume's record and puts it back: the volume is
// served again without a restart, and what it was promised is kept meanwhile.
func TestRecordPutBack(t *testing.T) {
	n := newNode(t, onExt4.make(t, gib))
	v := n.mustCreate(block("pvc-1"))
	mark(t, v, "kept")
	file := filepath.Join(n.pools[0].Path, v.ID, record.VolumeFile)
	good, err := os.ReadFile(file)
	require.NoError(t, err)
	n.reboot()
	require.NoError(t, os.WriteFile(file, []byte("{}"), 0o600))
	s := n.start()
	p := s.Pools()[0]
	require.Contains(t, p.Broken, v.ID)
	require.EqualValues(t, v.SizeBytes, p.Promised, "its image is there, and what it lacks is still owed")
	_, err = s.Find(t.Context(), v.ID)
	var mismatch *disk.MismatchError
	require.ErrorAs(t, err, &mismatch, "it is there, and not lost")
	require.ErrorAs(t, s.Delete(t.Context(), v.ID, purge), &mismatch, "it is not deleted")

	require.NoError(t, os.WriteFile(file, good, 0o600))
	s.Refresh(t.Context())
	got, err := s.Get(v.ID)
	require.NoError(t, err)
	require.NoError(t, got.Unavailable)
	require.Equal(t, "kept", marked(t, got))
	require.Empty(t, s.Pools()[0].Broken)
	require.EqualValues(t, v.SizeBytes, s.Pools()[0].Promised)
}

// TestRecordOfADiskWithErrors has a record that cannot be read for another
// reason than what is in it: that is an error, and not a loss.
func TestRecordOfADiskWithErrors(t *testing.T) {
	n := newNode(t, onExt4.make(t, gib))
	v := n.mustCreate(plain("pvc-1"))
	file := filepath.Join(n.pools[0].Path, v.ID, record.VolumeFile)
	require.NoError(t, os.Rename(file, file+"-away"))
	require.NoError(t, os.Mkdir(file, 0o700)) // reading it is an error of the system call
	s := n.start()
	_, err := s.Find(t.Context(), v.ID)
	reason, refused := Reason(err)
	require.Equal(t, v1alpha1.ReasonFailed, reason, "%v", err)
	require.False(t, refused)
	var missing *NotFoundError
	require.False(t, errors.As(err, &missing))
	require.Error(t, s.Delete(t.Context(), v.ID, purge))
	require.DirExists(t, filepath.Dir(file))

	require.NoError(t, os.Remove(file))
	require.NoError(t, os.Rename(file+"-away", file))
	got, err := s.Find(t.Context(), v.ID)
	require.NoError(t, err, "whoever asks has the disk looked at")
	require.Equal(t, v.ID, got.ID)
	_, err = s.Activate(t.Context(), v.ID)
	require.NoError(t, err)
}

// TestVolumeOfAnotherAgent lets a second store make a volume on the same disk:
// the first one finds it before it says anything of it.
func TestVolumeOfAnotherAgent(t *testing.T) {
	for _, call := range []string{"create", "delete", "delete from trash", "restore", "activate"} {
		t.Run(call, func(t *testing.T) {
			n := newNode(t, onExt4.make(t, gib))
			other := New(n.options())
			other.Expect("pool1", disk.Expectation{MayCreate: true})
			other.Refresh(t.Context())
			v := n.mustCreate(plain("pvc-1"))
			mark(t, v, "kept")
			dir := filepath.Join(n.pools[0].Path, v.ID)
			if call == "delete from trash" || call == "restore" {
				require.NoError(t, n.store.Delete(t.Context(), v.ID, keep(3600)))
			}
			n.store = other // what is checked in the end
			switch call {
			case "create":
				got := n.mustCreate(plain("pvc-1"))
				require.Equal(t, "kept", marked(t, got))
			case "delete":
				require.NoError(t, other.Delete(t.Context(), v.ID, purge))
				require.NoDirExists(t, dir)
			case "delete from trash":
				require.NoError(t, other.Delete(t.Context(), v.ID, purge))
				require.NoError(t, other.Drain(t.Context()))
				require.Empty(t, other.Trash())
			case "restore":
				got, err := other.Restore(t.Context(), v.ID)
				require.NoError(t, err)
				require.Equal(t, "kept", marked(t, got))
			case "activate":
				_, err := other.Activate(t.Context(), v.ID)
				require.NoError(t, err)
			}
		})
	}
}

// TestDirectoryPutBack moves a volume's directory away and back, with and
// without a restart in between.
func TestDirectoryPutBack(t *testing.T) {
	for _, restart := range []bool{false, true} {
		n := newNode(t, onExt4.make(t, gib))
		v := n.mustCreate(plain("pvc-1"))
		mark(t, v, "kept")
		dir := filepath.Join(n.pools[0].Path, v.ID)
		away := filepath.Join(n.pools[0].Path, "Away") // no volume is called so
		require.NoError(t, os.Rename(dir, away))
		if restart {
			n.start()
			_, err := n.store.Find(t.Context(), v.ID)
			var missing *NotFoundError
			require.ErrorAs(t, err, &missing)
			require.Empty(t, missing.Unseen)
		} else {
			_, err := n.store.Activate(t.Context(), v.ID)
			require.Error(t, err)
		}
		require.NoError(t, os.Rename(away, dir))
		n.store.Refresh(t.Context())
		got, err := n.store.Get(v.ID)
		require.NoError(t, err)
		require.NoError(t, got.Unavailable)
		require.Equal(t, "kept", marked(t, got))
	}
}

// TestDirectoryOnAnotherPool has a person move a volume to another pool of the
// node: it is found there, and its deletion deletes it.
func TestDirectoryOnAnotherPool(t *testing.T) {
	path := onExt4.make(t, gib)
	one, two := filepath.Join(path, "one"), filepath.Join(path, "two")
	require.NoError(t, os.Mkdir(one, 0o755))
	require.NoError(t, os.Mkdir(two, 0o755))
	n := newNode(t, one, two)
	v := n.mustCreate(Request{ID: "pvc-1", Pool: "pool1", Enforcement: record.EnforcementNone, SizeBytes: 16 * mib})
	require.NoError(t, os.Rename(filepath.Join(one, v.ID), filepath.Join(two, v.ID)))
	require.NoError(t, n.store.Delete(t.Context(), v.ID, purge))
	require.NoDirExists(t, filepath.Join(two, v.ID))
	_, err := n.store.Get(v.ID)
	var missing *NotFoundError
	require.ErrorAs(t, err, &missing)
}

// TestGoneIsNotSaidOfADiskThatIsAway deletes and looks for what may be on a
// pool that is offline.
func TestGoneIsNotSaidOfADiskThatIsAway(t *testing.T) {
	n := newNode(t, onExt4.make(t, gib), onExt4.make(t, gib))
	v := n.mustCreate(Request{ID: "pvc-1", Pool: "pool2", Enforcement: record.EnforcementNone, SizeBytes: 16 * mib})
	identity := filepath.Join(n.pools[1].Path, record.MetaDir)
	uid := n.store.Pools()[1].UID
	require.NoError(t, os.Rename(identity, identity+"-away"))
	n.prepare()
	n.store.Expect("pool2", disk.Expectation{UID: uid})
	n.store.Refresh(t.Context())
	_, err := n.store.Find(t.Context(), v.ID)
	var missing *NotFoundError
	require.ErrorAs(t, err, &missing)
	require.Len(t, missing.Unseen, 1)
	require.Equal(t, "pool2", missing.Unseen[0].Pool)
	var unseen *UnseenError
	require.ErrorAs(t, n.store.Delete(t.Context(), v.ID, purge), &unseen)

	require.NoError(t, os.Rename(identity+"-away", identity))
	n.store.Refresh(t.Context())
	require.NoError(t, n.store.Delete(t.Context(), v.ID, purge))
	require.NoDirExists(t, filepath.Join(n.pools[1].Path, v.ID))
}

// TestSwappedDisks starts with two disks in each other's place, and puts them
// right one at a time, in both orders: both volumes are served in the end, each
// from its pool, without a restart.
func TestSwappedDisks(t *testing.T) {
	for first := range 2 {
		one, two := onExt4.make(t, gib), onExt4.make(t, gib)
		n := newNode(t, one, two)
		paths := []string{one, two}
		var volumes [2]Volume
		var uids [2]string
		for i, p := range n.store.Pools() {
			volumes[i] = n.mustCreate(Request{ID: "pvc-" + p.Name, Pool: p.Name, Enforcement: record.EnforcementNone,
				SizeBytes: 16 * mib})
			mark(t, volumes[i], p.Name)
			uids[i] = p.UID
		}
		swap(t, one, two)
		s := n.prepare()
		s.Refresh(t.Context()) // nobody could be asked which disk is which
		for i := range paths {
			s.Expect(n.pools[i].Name, disk.Expectation{UID: uids[i]})
		}
		s.Refresh(t.Context())
		require.Equal(t, disk.OfflineSwapped, s.Pools()[0].Offline.Reason)
		require.Equal(t, disk.OfflineSwapped, s.Pools()[1].Offline.Reason)

		// One is put right while the other is still away.
		other := 1 - first
		spare := t.TempDir()
		move(t, paths[other], spare)
		move(t, paths[first], paths[other])
		s.Refresh(t.Context())
		move(t, spare, paths[first])
		s.Refresh(t.Context())
		for i, v := range volumes {
			got, err := s.Get(v.ID)
			require.NoError(t, err)
			require.NoError(t, got.Unavailable, "pool %d, put right first: %d", i, first)
			require.Equal(t, n.pools[i].Name, got.Pool)
			require.Equal(t, n.pools[i].Name, marked(t, got))
			require.Empty(t, s.Pools()[i].Broken)
		}
	}
}

func move(t *testing.T, from, to string) {
	t.Helper()
	require.NoError(t, unix.Mount(from, to, "", unix.MS_MOVE, ""))
}

func swap(t *testing.T, a, b string) {
	t.Helper()
	spare := t.TempDir()
	move(t, a, spare)
	move(t, b, a)
	move(t, spare, b)
}

// TestPoolAwayWhileAVolumeIsMade takes a pool offline and brings it back at the
// last step of a creation: what the volume is promised is at no time anybody
// else's.
func TestPoolAwayWhileAVolumeIsMade(t *testing.T) {
	n := newNode(t, onExt4.make(t, gib))
	identity := filepath.Join(n.pools[0].Path, record.MetaDir, record.PoolFile)
	var s *Store
	flapped := false
	s = n.start(func(o *Options) {
		o.Fault = func(step string) error {
			if step != "commit" || flapped {
				return nil
			}
			flapped = true
			require.NoError(t, os.Rename(identity, identity+"-away"))
			s.Refresh(context.Background())
			require.NotNil(t, s.Pools()[0].Offline)
			require.NoError(t, os.Rename(identity+"-away", identity))
			s.Refresh(context.Background())
			require.Nil(t, s.Pools()[0].Offline)
			require.EqualValues(t, 64*mib, s.Pools()[0].Promised, "it is still being made")
			return nil
		}
	})
	n.mustCreate(block("pvc-1"))
	require.True(t, flapped)
	require.EqualValues(t, 64*mib, s.Pools()[0].Promised)
}

// TestTrashThatCannotBeRead damages the note of a volume in the trash: neither
// is it said to be deleted, nor that there is nothing, and its name is not used
// again, until a person says what is to become of it.
func TestTrashThatCannotBeRead(t *testing.T) {
	for _, restart := range []bool{false, true} {
		n := newNode(t, onExt4.make(t, gib))
		n.mustCreate(plain("pvc-1"))
		require.NoError(t, n.store.Delete(t.Context(), "pvc-1", keep(3600)))
		entry := n.store.Trash()[0].Entry
		at := filepath.Join(n.pools[0].Path, record.MetaDir, record.TrashDir)
		away := filepath.Join(n.pools[0].Path, "Away")
		require.NoError(t, os.Rename(at, away))
		n.start() // it knows nothing of what is to come
		require.NoError(t, os.Remove(at))
		require.NoError(t, os.Rename(away, at))
		dir := filepath.Join(n.pools[0].Path, record.MetaDir, record.TrashDir, entry)
		note := filepath.Join(dir, record.TrashedFile)
		good, err := os.ReadFile(note)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(note, []byte("{}"), 0o600))
		if restart {
			n.start()
		}
		s := n.store
		for what, err := range map[string]error{
			"find":    call(s.Find(t.Context(), "pvc-1")),
			"delete":  s.Delete(t.Context(), "pvc-1", purge),
			"trash":   s.Delete(t.Context(), "pvc-1", keep(3600)),
			"restore": call(s.Restore(t.Context(), "pvc-1")),
			"create":  call(n.create(plain("pvc-1"))),
		} {
			require.ErrorContains(t, err, entry, what)
			var missing *NotFoundError
			require.False(t, errors.As(err, &missing), what)
		}
		require.DirExists(t, dir)
		if restart {
			require.NoError(t, os.WriteFile(note, good, 0o600))
			require.NoError(t, call(s.Restore(t.Context(), "pvc-1")))
			continue
		}
		require.NoError(t, os.Rename(dir, dir+disk.FreeingSuffix))
		require.NoError(t, s.Delete(t.Context(), "pvc-1", purge))
		require.NoError(t, s.Drain(t.Context()))
		require.NoDirExists(t, dir+disk.FreeingSuffix)
	}
}

// TestACopyThatArrives lays a second one of a volume beside it while an agent
// runs, of a version that wrote no pool into records: it is found and said.
func TestACopyThatArrives(t *testing.T) {
	n := newNode(t, onExt4.make(t, gib), onExt4.make(t, gib))
	n.dirty = true // the copy stays
	r := plain("pvc-1")
	r.Pool = "pool1"
	v := n.mustCreate(r)
	withoutPool(t, filepath.Join(n.pools[0].Path, v.ID))
	s := n.start()
	require.Empty(t, s.Pools()[1].Broken)
	run(t, "cp", "-a", filepath.Join(n.pools[0].Path, v.ID), n.pools[1].Path)
	s.Glance(t.Context())
	require.Contains(t, s.Pools()[1].Broken, v.ID)
	require.Empty(t, s.Pools()[0].Broken)
	require.NoError(t, os.RemoveAll(filepath.Join(n.pools[1].Path, v.ID)))
	s.Glance(t.Context())
	require.Empty(t, s.Pools()[1].Broken)
}
