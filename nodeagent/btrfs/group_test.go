package btrfs

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/quarry-storage/quarry/nodeagent/internal/testroot"
	"github.com/quarry-storage/quarry/nodeagent/quota"
)

func TestModes(t *testing.T) {
	fs := newFilesystem(t)
	s, err := Probe(fs, quota.ProbeID)
	require.NoError(t, err)
	require.Equal(t, ModeOff, s.Mode)
	require.False(t, s.Groups)
	require.NotEmpty(t, s.Reason)
	all, err := Groups(fs)
	require.NoError(t, err)
	require.Empty(t, all)

	testroot.Run(t, "btrfs", "quota", "enable", fs.Name())
	s, err = Probe(fs, quota.ProbeID)
	require.NoError(t, err)
	require.Equal(t, ModeFull, s.Mode)
	require.False(t, s.Groups, "full qgroups do not count as able")
	require.ErrorIs(t, EnableSimple(fs), ErrFullQgroups)
}

func TestSimpleIsProbedByDoing(t *testing.T) {
	fs := newSimple(t)
	require.NoError(t, EnableSimple(fs), "a second call changes nothing")
	// What a crash in the middle of a probe leaves.
	require.NoError(t, CreateGroup(fs, quota.ProbeID))
	require.NoError(t, SetLimit(fs, quota.ProbeID, 1))

	s, err := Probe(fs, quota.ProbeID)
	require.NoError(t, err)
	require.Equal(t, Support{Mode: ModeSimple, Groups: true}, s)
	all, err := Groups(fs)
	require.NoError(t, err)
	require.Empty(t, all)
}

func TestEnableSimpleNeedsLinux67(t *testing.T) {
	fs := newFilesystem(t)
	err := EnableSimple(fs)
	if !kernelBefore(t, 6, 7) {
		require.NoError(t, err)
		return
	}
	var unsupported *ErrUnsupported
	require.ErrorAs(t, err, &unsupported)
	require.Equal(t, "6.7", unsupported.Since)
}

func TestGroup(t *testing.T) {
	fs := newSimple(t)
	free, err := GroupFree(fs, testGroup)
	require.NoError(t, err)
	require.True(t, free)
	require.NoError(t, RemoveGroup(fs, testGroup), "no such group is no error")

	volume := newVolume(t, fs, 64*miB)
	require.NoError(t, CreateGroup(fs, testGroup), "a second call changes nothing")
	free, err = GroupFree(fs, testGroup)
	require.NoError(t, err)
	require.False(t, free)
	id, err := ID(volume)
	require.NoError(t, err)

	require.NoError(t, os.WriteFile(filepath.Join(volume.Name(), "file"), make([]byte, 10*miB), 0o644))
	require.NoError(t, Sync(fs))
	g, exists, err := GetGroup(fs, testGroup)
	require.NoError(t, err)
	require.True(t, exists)
	require.Equal(t, uint64(testGroup), g.Number)
	require.Equal(t, 64*miB, g.Limit)
	require.Equal(t, []uint64{id}, g.Members)
	require.GreaterOrEqual(t, g.Usage, 10*miB)
	require.Less(t, g.Usage, 11*miB)
	strays, err := Strays(fs, id, testGroup)
	require.NoError(t, err)
	require.Empty(t, strays)

	for _, limit := range []uint64{1, 4095, 1<<30 + 1, 1 << 50, 0, 64 * miB} {
		require.NoError(t, SetLimit(fs, testGroup, limit))
		g, _, err = GetGroup(fs, testGroup)
		require.NoError(t, err)
		require.Equal(t, limit, g.Limit)
	}

	var inUse *ErrGroupInUse
	require.ErrorAs(t, RemoveGroup(fs, testGroup), &inUse)
	require.False(t, inUse.Deleted)
	require.NoError(t, volume.Close()) // an open descriptor keeps it from being freed
	require.NoError(t, DeleteSubvolume(t.Context(), fs, "volume"))
	require.NoError(t, WaitFreed(t.Context(), fs, id))
	require.NoError(t, Sync(fs))
	require.NoError(t, RemoveGroup(fs, testGroup))
	all, err := Groups(fs)
	require.NoError(t, err)
	require.Empty(t, all)
	require.Error(t, CreateSubvolume(fs, "volume", testGroup), "no such group")
	require.NoDirExists(t, filepath.Join(fs.Name(), "volume"))
}

// Extents that a snapshot elsewhere shares stay charged to their origin, whose
// group must stay until the snapshot is gone.
func TestGroupOutlivesItsVolumeWhileASnapshotSharesIt(t *testing.T) {
	fs := newSimple(t)
	volume := newVolume(t, fs, 64*miB)
	id, err := ID(volume)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(volume.Name(), "file"), make([]byte, 10*miB), 0o644))
	require.NoError(t, Sync(fs))
	const other = testGroup + 1
	require.NoError(t, CreateGroup(fs, other))
	require.NoError(t, Snapshot(volume, fs, "snapshot", true, other))
	top := open(t, filepath.Join(fs.Name(), "snapshot"))
	snapshot, err := ID(top)
	require.NoError(t, err)
	require.NoError(t, top.Close())

	require.NoError(t, volume.Close()) // an open descriptor keeps it from being freed
	require.NoError(t, DeleteSubvolume(t.Context(), fs, "volume"))
	require.NoError(t, WaitFreed(t.Context(), fs, id))
	require.NoError(t, Sync(fs))
	var inUse *ErrGroupInUse
	require.ErrorAs(t, RemoveGroup(fs, testGroup), &inUse)
	require.GreaterOrEqual(t, inUse.Usage, 10*miB)
	require.Equal(t, id, inUse.Subvolume)

	require.NoError(t, DeleteSubvolume(t.Context(), fs, "snapshot"))
	require.NoError(t, WaitFreed(t.Context(), fs, snapshot))
	require.NoError(t, Sync(fs))
	require.NoError(t, RemoveGroup(fs, testGroup))
	require.NoError(t, RemoveGroup(fs, other))
}

func TestAddMember(t *testing.T) {
	fs := newSimple(t)
	require.NoError(t, CreateSubvolume(fs, "volume", NoGroup))
	volume := open(t, filepath.Join(fs.Name(), "volume"))
	require.NoError(t, os.WriteFile(filepath.Join(volume.Name(), "file"), make([]byte, 10*miB), 0o644))
	require.NoError(t, Sync(fs))
	id, err := ID(volume)
	require.NoError(t, err)
	require.NoError(t, CreateGroup(fs, testGroup))
	strays, err := Strays(fs, id, testGroup)
	require.NoError(t, err)
	require.Equal(t, []Stray{{Subvolume: id, Outside: true}}, strays)

	require.NoError(t, AddMember(fs, id, testGroup))
	require.NoError(t, AddMember(fs, id, testGroup), "a second call changes nothing")
	require.NoError(t, Sync(fs))
	g, _, err := GetGroup(fs, testGroup)
	require.NoError(t, err)
	require.Equal(t, []uint64{id}, g.Members)
	require.GreaterOrEqual(t, g.Usage, 10*miB, "what it holds comes along")
}

func TestManyGroupsInParallel(t *testing.T) {
	fs := newSimple(t)
	ids := quota.NewAllocator(nil)
	const volumes = 200
	var mu sync.Mutex
	seen := make(map[uint32]bool)
	var work errgroup.Group
	work.SetLimit(32)
	for i := range volumes {
		work.Go(func() error {
			n, err := ids.Acquire(func(id uint32) (bool, error) { return GroupFree(fs, id) })
			if err != nil {
				return err
			}
			mu.Lock()
			seen[n] = true
			mu.Unlock()
			if err := CreateGroup(fs, n); err != nil {
				return err
			}
			if err := SetLimit(fs, n, uint64(i+1)*miB); err != nil {
				return err
			}
			return CreateSubvolume(fs, fmt.Sprint("v", i), n)
		})
	}
	require.NoError(t, work.Wait())
	require.Len(t, seen, volumes)
	all, err := Groups(fs)
	require.NoError(t, err)
	require.Len(t, all, volumes)
	for _, g := range all {
		require.Len(t, g.Members, 1)
		require.NotZero(t, g.Limit)
	}
}
