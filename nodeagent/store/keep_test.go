package store

import (
	"context"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/nodeagent/btrfs"
	"github.com/quarry-storage/quarry/nodeagent/quota"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// keepEnforced runs the look at a store's volumes until the test ends.
func keepEnforced(t *testing.T, s *Store) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); s.KeepEnforced(ctx, 20*time.Millisecond) }()
	t.Cleanup(func() { cancel(); <-done })
}

// eventually waits for what a look does.
func eventually(t *testing.T, what func() bool) {
	t.Helper()
	require.Eventually(t, what, time.Minute, time.Millisecond)
}

// limited reports whether a volume's qgroup has its limit, and members only of
// its own.
func limited(pool *os.File, v Volume, members int) func() bool {
	return func() bool {
		g, _, err := btrfs.GetGroup(pool, uint32(v.QuotaID))
		return err == nil && g.Limit == uint64(v.SizeBytes) && len(g.Members) == members
	}
}

// holds reports whether the last look found nothing.
func holds(s *Store, id string) func() bool {
	return func() bool {
		v, err := s.Get(id)
		return err == nil && v.NotEnforced == nil
	}
}

// What is lost is found and put back, and is said to hold again, by itself.
func TestKeepEnforced(t *testing.T) {
	n, pool, a, b := twoOnBtrfs(t)
	require.Empty(t, n.store.OldestLook())
	keepEnforced(t, n.store)
	require.NoError(t, btrfs.SetLimit(pool, uint32(a.QuotaID), 0))
	eventually(t, limited(pool, a, 1))
	nestIn(t, pool, a, b)
	eventually(t, limited(pool, a, 2))
	eventually(t, limited(pool, b, 1))
	eventually(t, holds(n.store, a.ID))
	eventually(t, holds(n.store, b.ID))
	require.Contains(t, n.store.OldestLook(), "pool1")
}

// A filesystem that does not answer has a worker of its own: the other pools'
// volumes are looked at all the same.
func TestKeepEnforcedBesideAFrozenFilesystem(t *testing.T) {
	one, two := onBtrfs.make(t, 512*mib), onBtrfs.make(t, 512*mib)
	n := newNode(t, one, two)
	a := n.mustCreate(Request{ID: "a-1", Pool: "pool1", Backend: record.BackendDirectory, SizeBytes: 16 * mib})
	b := n.mustCreate(Request{ID: "b-1", Pool: "pool2", Backend: record.BackendDirectory, SizeBytes: 16 * mib})
	pool1, err := os.Open(one)
	require.NoError(t, err)
	defer pool1.Close()
	pool2, err := os.Open(two)
	require.NoError(t, err)
	defer pool2.Close()
	// To put this one's limit back waits until the filesystem is thawed.
	require.NoError(t, btrfs.SetLimit(pool1, uint32(a.QuotaID), 0))
	const freeze, thaw = 0xC0045877, 0xC0045878 // FIFREEZE, FITHAW of linux/fs.h
	require.NoError(t, unix.IoctlSetInt(int(pool1.Fd()), freeze, 0))
	thawed := false
	defer func() {
		if !thawed {
			_ = unix.IoctlSetInt(int(pool1.Fd()), thaw, 0)
		}
	}()
	keepEnforced(t, n.store)
	for range 3 {
		require.NoError(t, btrfs.SetLimit(pool2, uint32(b.QuotaID), 0))
		eventually(t, limited(pool2, b, 1))
	}
	require.NoError(t, unix.IoctlSetInt(int(pool1.Fd()), thaw, 0))
	thawed = true
	eventually(t, limited(pool1, a, 1))
}

// An operation on one volume that takes long costs the others nothing, and one
// volume's usage is given back to it while another is being walked.
func TestVolumesTakeTurns(t *testing.T) {
	for _, k := range quotaPools {
		t.Run(k.name, func(t *testing.T) {
			path := k.make(t, 512*mib)
			n := newNode(t, path)
			busy := n.mustCreate(Request{ID: "a-busy", Backend: record.BackendDirectory, SizeBytes: 16 * mib})
			v := n.mustCreate(Request{ID: "b-1", Backend: record.BackendDirectory, SizeBytes: 16 * mib})
			pool, err := os.Open(path)
			require.NoError(t, err)
			defer pool.Close()
			unlock, err := n.store.locks.Lock(t.Context(), busy.ID)
			require.NoError(t, err)
			keepEnforced(t, n.store)
			defer unlock()
			if k.quota == record.QuotaBtrfs {
				require.NoError(t, btrfs.SetLimit(pool, uint32(v.QuotaID), 0))
				eventually(t, limited(pool, v, 1))
				return
			}
			stray := filepath.Join(v.Path, "stray")
			require.NoError(t, os.WriteFile(stray, make([]byte, mib), 0o644))
			f, err := os.Open(stray)
			require.NoError(t, err)
			defer f.Close()
			require.NoError(t, quota.SetProject(f, uint32(busy.QuotaID), false))
			eventually(t, func() bool {
				id, _, err := quota.GetProject(f)
				return err == nil && uint64(id) == v.QuotaID
			})
		})
	}
}

// TestLooksHaveTheLowestPriority: what is looked at in turn keeps nobody's disk
// busy, and no other thread of the process is slowed with it.
func TestLooksHaveTheLowestPriority(t *testing.T) {
	priorities := func() (class, nice int) {
		const whoProcess, classShift = 1, 13 // ioprio_get(2)
		priority, _, errno := unix.Syscall(unix.SYS_IOPRIO_GET, whoProcess, 0, 0)
		require.Zero(t, errno)
		left, err := unix.Getpriority(unix.PRIO_PROCESS, 0) // the system call returns 20 less it
		require.NoError(t, err)
		return int(priority >> classShift), 20 - left
	}
	const classIdle = 3
	t.Run("a look", func(t *testing.T) {
		runtime.LockOSThread() // which ends with this goroutine, as a look's does
		require.NoError(t, idle())
		class, nice := priorities()
		require.Equal(t, classIdle, class)
		require.Equal(t, 19, nice)
	})

	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	class, nice := priorities()
	require.NotEqual(t, classIdle, class)
	require.Less(t, nice, 19)
}
