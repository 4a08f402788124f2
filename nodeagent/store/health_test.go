package store

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/internal/testroot"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

func remount(t *testing.T, path, how string) {
	t.Helper()
	out, err := exec.Command("mount", "-o", "remount,"+how, path).CombinedOutput()
	require.NoError(t, err, string(out))
}

// online has the pools looked at and asserts that the first can be used.
func online(t *testing.T, n *node) Pool {
	t.Helper()
	n.store.Refresh(t.Context())
	p := n.store.Pools()[0]
	require.Nil(t, p.Offline)
	return p
}

// TestReadOnlyPool makes a pool's filesystem read-only under a running store
// and writable again: what cannot be made there is refused, and nothing needs
// a restart.
func TestReadOnlyPool(t *testing.T) {
	for _, kind := range []poolKind{onExt4, onXFS, onBtrfs} {
		t.Run(kind.name, func(t *testing.T) {
			path := kind.make(t, gib)
			n := newNode(t, path)
			v := n.mustCreate(small)
			mark(t, v, "kept")

			remount(t, path, "ro")
			t.Cleanup(func() { remount(t, path, "rw") })
			adm, err := n.store.Admit(t.Context(), Request{ID: "pvc-2", SizeBytes: 32 * mib,
				VolumeMode: record.ModeBlock})
			require.NoError(t, err, "nobody has looked yet")
			_, err = n.store.Create(t.Context(), adm[0])
			reason, refused := Reason(err)
			require.Equal(t, v1alpha1.ReasonPoolOffline, reason, "%v", err)
			require.True(t, refused, "so that another disk is tried")
			n.store.Refresh(t.Context())
			offline(t, n, disk.OfflineReadOnly)
			_, err = n.create(Request{ID: "pvc-2", SizeBytes: 32 * mib, VolumeMode: record.ModeBlock})
			reason, refused = Reason(err)
			require.Equal(t, v1alpha1.ReasonPoolOffline, reason)
			require.True(t, refused)
			fresh := n.start()
			require.Equal(t, disk.OfflineReadOnly, fresh.Pools()[0].Offline.Reason,
				"an agent that starts says the same")

			remount(t, path, "rw")
			online(t, n)
			require.Equal(t, "kept", marked(t, v))
			n.mustCreate(Request{ID: "pvc-2", SizeBytes: 32 * mib, VolumeMode: record.ModeBlock})
		})
	}
}

// shutDown stops a filesystem as its own code does after an error it cannot go
// on from.
func shutDown(t *testing.T, path string) {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	const goingDown, noLogFlush = 0x8004587d, 2 // EXT4_IOC_SHUTDOWN, XFS_IOC_GOINGDOWN
	require.NoError(t, unix.IoctlSetPointerInt(int(f.Fd()), goingDown, noLogFlush))
}

// TestPoolThatWasShutDown stops a pool's filesystem, which stays mounted, and
// mounts it anew.
func TestPoolThatWasShutDown(t *testing.T) {
	for _, fstype := range []string{"ext4", "xfs"} {
		t.Run(fstype, func(t *testing.T) {
			d := newDisk(t, fstype)
			n := newNode(t, d.at)
			v := n.mustCreate(small)
			mark(t, v, "kept")
			unix.Sync()

			shutDown(t, d.at)
			_, err := n.create(Request{ID: "pvc-2", SizeBytes: 32 * mib, VolumeMode: record.ModeBlock})
			reason, refused := Reason(err)
			require.Equal(t, v1alpha1.ReasonPoolOffline, reason, "%v", err)
			require.True(t, refused)
			n.store.Refresh(t.Context())
			p := n.store.Pools()[0]
			require.NotNil(t, p.Offline)
			require.Contains(t, []string{disk.OfflineReadOnly, disk.OfflineFailed}, p.Offline.Reason, "%v", p.Offline)

			d.out(t)
			d.in(t)
			online(t, n)
			require.Equal(t, "kept", marked(t, v))
			n.mustCreate(Request{ID: "pvc-2", SizeBytes: 32 * mib, VolumeMode: record.ModeBlock})
		})
	}
}

// TestStartOnFullDisk starts an agent on a disk that somebody else filled to
// the last block: its volumes are served, and deleting one gives room back.
func TestStartOnFullDisk(t *testing.T) {
	for _, kind := range []poolKind{onExt4, onXFS, onBtrfs} {
		t.Run(kind.name, func(t *testing.T) {
			path := kind.make(t, gib)
			n := newNode(t, path)
			v := n.mustCreate(Request{ID: "pvc-1", Backend: record.BackendLoop, FSType: "ext4", SizeBytes: 64 * mib})
			mark(t, v, "kept")
			n.mustCreate(Request{ID: "pvc-2", Backend: record.BackendLoop, VolumeMode: record.ModeBlock,
				SizeBytes: 64 * mib})
			features := n.store.Pools()[0].Features
			fillWithWrites(t, path)

			n.reboot()
			n.start()
			p := online(t, n)
			require.Less(t, p.Available, int64(mib))
			require.Equal(t, "kept", marked(t, v), "it is mounted")
			_, err := n.create(Request{ID: "pvc-3", Backend: record.BackendLoop, SizeBytes: 64 * mib})
			reason, refused := Reason(err)
			require.Equal(t, v1alpha1.ReasonInsufficientCapacity, reason, "%v", err)
			require.True(t, refused)

			require.NoError(t, n.store.Delete(t.Context(), "pvc-2", purge))
			require.NoError(t, n.store.Drain(t.Context()))
			p = online(t, n)
			require.Equal(t, features, p.Features, "what it can do is found out once there is room")
		})
	}
}

// fillWithWrites leaves no block, and none of those that a filesystem keeps
// for small files either.
func fillWithWrites(t *testing.T, path string) {
	t.Helper()
	fill(t, path)
	for i := 0; ; i++ {
		err := os.WriteFile(fmt.Sprintf("%s/Somebodys-%d", path, i), make([]byte, 4096), 0o600)
		if err != nil {
			require.ErrorIs(t, err, unix.ENOSPC)
			return
		}
		require.Less(t, i, 100_000)
	}
}

// TestRoomThatComesBackIsTold fills and empties a pool's disk without the
// store: whoever was told the room is told anew.
func TestRoomThatComesBackIsTold(t *testing.T) {
	path := onExt4.make(t, gib)
	n := newNode(t, path)
	told := func() int64 {
		pools := n.store.Pools()
		n.store.Told(pools)
		return pools[0].Available
	}
	before := told()
	file := filepath.Join(path, "Somebodys")
	require.NoError(t, os.WriteFile(file, make([]byte, 300*mib), 0o600))
	unix.Sync()
	looked(t, n, func() bool { return told() < before-250*mib })
	require.NoError(t, os.Remove(file))
	looked(t, n, func() bool { return told() > before-50*mib })
}

// looked looks at the pools as an agent does, until the store says that
// something changed and it is so.
func looked(t *testing.T, n *node, so func() bool) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		changed := n.store.Changed()
		n.store.Refresh(t.Context())
		select {
		case <-changed:
			if so() {
				return
			}
		default:
		}
		require.True(t, time.Now().Before(deadline), "nobody was told")
		time.Sleep(time.Millisecond)
	}
}

// TestSmallMovesAreNotTold: a write of some bytes by a tenant is no news.
func TestSmallMovesAreNotTold(t *testing.T) {
	path := onExt4.make(t, gib)
	n := newNode(t, path)
	n.store.Told(n.store.Pools())
	testroot.Run(t, "dd", "if=/dev/zero", "of="+path+"/Somebodys", "bs=1M", "count=2", "conv=fsync", "status=none")
	changed := n.store.Changed()
	n.store.Refresh(t.Context())
	select {
	case <-changed:
		t.Fatal("2 MiB of 1 GiB were told")
	default:
	}
}

// testPatience is how long a test waits for what another process does, which
// it looks for every testLook.
const (
	testPatience = time.Minute
	testLook     = time.Millisecond
)
