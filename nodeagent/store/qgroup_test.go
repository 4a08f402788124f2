package store

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/backend"
	"github.com/quarry-storage/quarry/nodeagent/btrfs"
	"github.com/quarry-storage/quarry/nodeagent/internal/testroot"
	"github.com/quarry-storage/quarry/nodeagent/quota"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// twoOnBtrfs makes two directory volumes on one btrfs.
func twoOnBtrfs(t *testing.T) (n *node, pool *os.File, a, b Volume) {
	t.Helper()
	path := onBtrfs.make(t, 768*mib)
	n = newNode(t, path)
	pool, err := os.Open(path)
	require.NoError(t, err)
	t.Cleanup(func() { pool.Close() })
	a = n.mustCreate(Request{ID: "a-1", Backend: record.BackendDirectory, SizeBytes: 32 * mib})
	b = n.mustCreate(Request{ID: "b-1", Backend: record.BackendDirectory, SizeBytes: 32 * mib})
	return n, pool, a, b
}

// nestIn makes a subvolume in a volume and has it charged to another's group,
// as an administrator's mistake can.
func nestIn(t *testing.T, pool *os.File, v, charged Volume) (id uint64) {
	t.Helper()
	data, err := os.Open(v.Path)
	require.NoError(t, err)
	defer data.Close()
	require.NoError(t, btrfs.CreateSubvolume(data, "nested", btrfs.NoGroup))
	top, err := os.Open(filepath.Join(v.Path, "nested"))
	require.NoError(t, err)
	defer top.Close()
	id, err = btrfs.ID(top)
	require.NoError(t, err)
	require.NoError(t, btrfs.Expel(pool, id, uint32(v.QuotaID)))
	require.NoError(t, btrfs.AddMember(pool, id, uint32(charged.QuotaID)))
	require.NoError(t, os.WriteFile(filepath.Join(v.Path, "nested", "file"), make([]byte, 8*mib), 0o644))
	require.NoError(t, btrfs.Sync(pool))
	return id
}

// Usage that is charged to the wrong volume is given back, from either side,
// and said on both.
func TestUsageOfAnotherVolumeIsGivenBack(t *testing.T) {
	for _, first := range []string{"a-1", "b-1"} {
		t.Run(first+" first", func(t *testing.T) {
			n, pool, a, b := twoOnBtrfs(t)
			nestIn(t, pool, a, b)
			usage, err := n.store.Usage(t.Context(), b.ID)
			require.NoError(t, err)
			require.GreaterOrEqual(t, usage.Bytes, int64(8*mib), "charged to the wrong one")

			second := map[string]string{"a-1": "b-1", "b-1": "a-1"}[first]
			lost := &backend.EnforcementError{}
			require.ErrorAs(t, n.store.Recheck(t.Context(), first), &lost)
			require.Equal(t, v1alpha1.ReasonEscaped, lost.Reason)
			_ = n.store.Recheck(t.Context(), second)
			require.NoError(t, btrfs.Sync(pool))
			usage, err = n.store.Usage(t.Context(), b.ID)
			require.NoError(t, err)
			require.Less(t, usage.Bytes, int64(mib))
			usage, err = n.store.Usage(t.Context(), a.ID)
			require.NoError(t, err)
			require.GreaterOrEqual(t, usage.Bytes, int64(8*mib))
			for _, id := range []string{first, second} {
				require.NoError(t, n.store.Recheck(t.Context(), id), "and that is all")
				v, err := n.store.Get(id)
				require.NoError(t, err)
				require.NoError(t, v.NotEnforced)
			}
		})
	}
}

// What is charged to a volume that is deleted does not keep it: its room is
// promised again, and what was charged stays where it is.
func TestDeletionDoesNotWaitForOthersUsage(t *testing.T) {
	n, pool, a, b := twoOnBtrfs(t)
	nested := nestIn(t, pool, a, b)
	require.NoError(t, n.store.Delete(t.Context(), b.ID, purge))
	require.NoError(t, n.store.Drain(t.Context()))
	require.Empty(t, n.store.Trash())
	require.FileExists(t, filepath.Join(a.Path, "nested", "file"))
	free, err := btrfs.GroupFree(pool, uint32(b.QuotaID))
	require.NoError(t, err)
	require.True(t, free)

	lost := &backend.EnforcementError{}
	require.ErrorAs(t, n.store.Recheck(t.Context(), a.ID), &lost)
	g, _, err := btrfs.GetGroup(pool, uint32(a.QuotaID))
	require.NoError(t, err)
	require.Contains(t, g.Members, nested)
}

// A snapshot that an administrator keeps elsewhere shares what the deleted
// volume wrote: that is no longer the volume's.
func TestDeletionDoesNotWaitForASnapshotElsewhere(t *testing.T) {
	n, pool, a, _ := twoOnBtrfs(t)
	n.dirty = true // the snapshot is a directory that is no volume
	require.NoError(t, os.WriteFile(filepath.Join(a.Path, "file"), make([]byte, 8*mib), 0o644))
	require.NoError(t, btrfs.Sync(pool))
	data, err := os.Open(a.Path)
	require.NoError(t, err)
	require.NoError(t, btrfs.Snapshot(data, pool, "kept-by-hand", true, btrfs.NoGroup))
	require.NoError(t, data.Close())
	require.NoError(t, n.store.Delete(t.Context(), a.ID, purge))
	require.NoError(t, n.store.Drain(t.Context()))
	require.Empty(t, n.store.Trash())
	require.FileExists(t, filepath.Join(pool.Name(), "kept-by-hand", "file"))
}

// fillToTheLast writes until a volume takes nothing more, not even a name.
func fillToTheLast(t *testing.T, pool *os.File, v Volume) {
	t.Helper()
	err := writeUntilFull(t, filepath.Join(v.Path, "file"), 2*v.SizeBytes)
	require.ErrorIs(t, err, unix.EDQUOT)
	require.NoError(t, btrfs.Sync(pool))
	for i := 0; err == nil || i == 0; i++ {
		require.Less(t, i, 100_000)
		err = os.Mkdir(filepath.Join(v.Path, "d"+string(rune('a'+i%26))+string(rune('a'+i/26%26))+string(
			rune('a'+i/676))), 0o755)
	}
	require.ErrorIs(t, err, unix.EDQUOT)
}

// A full volume with a snapshot inside is deleted, also out of the trash, by a
// purge, and by an agent that was killed in between.
func TestFullVolumeWithASnapshotInsideIsDeleted(t *testing.T) {
	for name, how := range map[string]record.Deletion{"purge": purge, "trash": keep(3600)} {
		t.Run(name, func(t *testing.T) {
			n, pool, a, b := twoOnBtrfs(t)
			require.NoError(t, os.WriteFile(filepath.Join(a.Path, "first"), make([]byte, mib), 0o644))
			data, err := os.Open(a.Path)
			require.NoError(t, err)
			require.NoError(t, btrfs.Snapshot(data, data, "snapshot", true, btrfs.NoGroup))
			require.NoError(t, data.Close())
			nestIn(t, pool, a, b)
			fillToTheLast(t, pool, a)
			fillToTheLast(t, pool, b)

			require.NoError(t, n.store.Delete(t.Context(), a.ID, how))
			s := n.start()
			require.NoError(t, s.Delete(t.Context(), a.ID, purge))
			require.NoError(t, s.Drain(t.Context()))
			require.Empty(t, s.Trash())
			free, err := btrfs.GroupFree(pool, uint32(a.QuotaID))
			require.NoError(t, err)
			require.True(t, free)
		})
	}
}

// Quotas that were switched off and on again have forgotten what there was: the
// group is made again, and it is said, also after a restart.
func TestQuotasSwitchedOffAndOn(t *testing.T) {
	n, pool, a, _ := twoOnBtrfs(t)
	n.dirty = true
	require.NoError(t, os.WriteFile(filepath.Join(a.Path, "file"), make([]byte, 8*mib), 0o644))
	testroot.Run(t, "btrfs", "quota", "disable", pool.Name())
	lost := &backend.EnforcementError{}
	require.ErrorAs(t, n.store.Recheck(t.Context(), a.ID), &lost)
	require.Equal(t, v1alpha1.ReasonQuotaLost, lost.Reason)
	require.NoError(t, btrfs.Sync(pool))
	require.NoError(t, btrfs.EnableSimple(pool))
	for range 2 {
		require.ErrorAs(t, n.store.Recheck(t.Context(), a.ID), &lost)
		require.Equal(t, v1alpha1.ReasonUncounted, lost.Reason)
	}
	g, there, err := btrfs.GetGroup(pool, uint32(a.QuotaID))
	require.NoError(t, err)
	require.True(t, there)
	require.EqualValues(t, a.SizeBytes, g.Limit)
	require.Len(t, g.Members, 1)
	require.ErrorIs(t, writeUntilFull(t, filepath.Join(a.Path, "more"), 2*a.SizeBytes), unix.EDQUOT,
		"the limit holds for what is new")

	s := n.start()
	v, err := s.Get(a.ID)
	require.NoError(t, err)
	require.NoError(t, v.Unavailable, "its data is there all the same")
	require.ErrorAs(t, v.NotEnforced, &lost)
	require.Equal(t, v1alpha1.ReasonUncounted, lost.Reason)
	fresh := n.mustCreate(Request{ID: "c-1", Backend: record.BackendDirectory, SizeBytes: 32 * mib})
	require.NoError(t, s.Recheck(t.Context(), fresh.ID))
	require.NoError(t, s.Delete(t.Context(), a.ID, purge))
	require.NoError(t, s.Drain(t.Context()))
}

// New volumes on btrfs are overwritten in place, so that rewriting a file does
// not use up the limit.
func TestRewritingDoesNotUseUpTheLimit(t *testing.T) {
	_, pool, a, _ := twoOnBtrfs(t)
	require.NoError(t, os.Mkdir(filepath.Join(a.Path, "db"), 0o755))
	f, err := os.Create(filepath.Join(a.Path, "db", "file"))
	require.NoError(t, err)
	defer f.Close()
	const size, page = 20 * mib, 8 << 10
	_, err = f.Write(make([]byte, size))
	require.NoError(t, err)
	require.NoError(t, f.Sync())
	for round := range 8 {
		for i := range size / page {
			_, err := f.WriteAt([]byte{byte(round), byte(i)}, int64(i*7919%(size/page)*page))
			require.NoError(t, err)
			if i%128 == 0 {
				require.NoError(t, f.Sync(), "round %d", round)
			}
		}
	}
	require.NoError(t, f.Sync())
	require.NoError(t, btrfs.Sync(pool))
	g, _, err := btrfs.GetGroup(pool, uint32(a.QuotaID))
	require.NoError(t, err)
	require.Less(t, g.Usage, uint64(size+4*mib))
}

// Where no id can be proven free the volume is refused, so that another node is
// asked, and nothing is left.
func TestNoFreeQuotaIDIsARefusal(t *testing.T) {
	reason, refused := Reason(quota.ErrNoFreeID)
	require.Equal(t, v1alpha1.ReasonUnsupported, reason)
	require.True(t, refused)
}

// writeUntilFull writes a file of up to size bytes and returns what ended it.
func writeUntilFull(t *testing.T, path string, size int64) error {
	t.Helper()
	f, err := os.Create(path)
	require.NoError(t, err)
	defer f.Close()
	buf := make([]byte, mib)
	for at := int64(0); at < size; at += mib {
		if _, err := f.WriteAt(buf, at); err != nil {
			return err
		}
	}
	return f.Sync()
}
