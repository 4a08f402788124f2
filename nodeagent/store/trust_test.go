package store

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/config"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// TestPreallocationThatTakesNothing takes the blocks of each thick image away
// again, as a filesystem does that never took them: no such volume is made.
func TestPreallocationThatTakesNothing(t *testing.T) {
	path := onExt4.make(t, gib)
	n := newNode(t, path)
	require.False(t, n.store.Pools()[0].Features.Unreserved)
	n.start(func(o *Options) {
		o.Fault = func(step string) error {
			if step != "look at blocks" {
				return nil
			}
			images, err := filepath.Glob(filepath.Join(path, record.MetaDir, record.TmpDir, "*", record.ImageFile))
			require.NoError(t, err)
			require.Len(t, images, 1)
			f, err := os.OpenFile(images[0], os.O_RDWR, 0)
			require.NoError(t, err)
			defer f.Close()
			return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 64*mib)
		}
	})
	before := online(t, n).Promised
	_, err := n.create(Request{ID: "pvc-1", VolumeMode: record.ModeBlock, SizeBytes: 64 * mib})
	reason, refused := Reason(err)
	require.Equal(t, v1alpha1.ReasonUnsupported, reason, "%v", err)
	require.True(t, refused)
	require.NoError(t, n.store.Drain(t.Context()))
	require.Equal(t, before, n.store.Pools()[0].Promised, "nothing is promised for it")

	// What was found by probing keeps it from being begun, and thin ones are
	// made.
	_, err = planFor(&Request{VolumeMode: record.ModeBlock, Allocation: record.AllocationThick},
		disk.Features{Unreserved: true}, "ext4")
	reason, _ = Reason(err)
	require.Equal(t, v1alpha1.ReasonUnsupported, reason)
	_, err = planFor(&Request{VolumeMode: record.ModeBlock, Allocation: record.AllocationThin},
		disk.Features{Unreserved: true}, "ext4")
	require.NoError(t, err)
}

// TestPreallocationIsProbed on filesystems that have it.
func TestPreallocationIsProbed(t *testing.T) {
	for _, kind := range []poolKind{onExt4, onXFS, onBtrfs} {
		n := newNode(t, kind.make(t, gib))
		require.False(t, n.store.Pools()[0].Features.Unreserved, kind.name)
	}
}

// TestReserveBesideTheSystem: a pool on kubelet's filesystem, or on that of the
// directory above it, keeps more free, unless somebody said how much.
func TestReserveBesideTheSystem(t *testing.T) {
	path := onExt4.make(t, gib)
	within := filepath.Join(path, "Kubelet")
	require.NoError(t, os.Mkdir(within, 0o755))
	reserve := func(pool, kubelet, given string) string {
		n := &node{t: t, pools: poolsAt([]string{pool}), devices: filepath.Join(t.TempDir(), "dev")}
		t.Cleanup(n.takeDown)
		n.pools[0].EnableQuota = false // one of the pools is on the machine's own disk
		c, err := config.Default(pool)
		require.NoError(t, err)
		n.pools[0].Reserve = c.Pools[0].Reserve
		if given != "" {
			n.pools[0].Reserve, err = config.ParseReserve(given)
			require.NoError(t, err)
		}
		n.start(func(o *Options) { o.KubeletDir = kubelet })
		online(t, n)
		return n.store.pools[0].reserve.String()
	}
	require.Equal(t, config.DefaultReserve, reserve(path, t.TempDir(), ""), "a disk of its own")
	require.Equal(t, config.DefaultSharedReserve, reserve(path, within, ""), "kubelet's disk")
	require.Equal(t, "5%", reserve(path, within, "5%"), "somebody said so")
	// What is a mount point is asked of the machine's first process, which sees
	// no mount of the tests.
	require.Equal(t, config.DefaultSharedReserve, reserve(t.TempDir(), "", ""), "a directory of the system's disk")
	require.Equal(t, "5%", reserve(t.TempDir(), "", "5%"), "somebody said so")
}
