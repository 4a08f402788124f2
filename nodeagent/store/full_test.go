package store

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/nodeagent/config"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/internal/testroot"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// overcommitted is a node with one pool that promises four times what there is.
func overcommitted(t *testing.T, kind poolKind) *node {
	t.Helper()
	n := newNode(t, kind.make(t, gib))
	var err error
	n.pools[0].Overcommit, err = config.ParseOvercommit("4.0")
	require.NoError(t, err)
	n.start()
	return n
}

func freeBytes(t *testing.T, path string) int64 {
	t.Helper()
	var st unix.Statfs_t
	require.NoError(t, unix.Statfs(path, &st))
	return int64(st.Bfree) * st.Bsize
}

// fill leaves no block of a filesystem free, root's reserve included, and
// returns the file that took them.
func fill(t *testing.T, path string) string {
	t.Helper()
	at := filepath.Join(path, "Somebodys")
	f, err := os.Create(at)
	require.NoError(t, err)
	defer f.Close()
	for step, size := int64(64*mib), int64(0); step >= 4096; {
		if err := unix.Fallocate(int(f.Fd()), 0, size, step); err != nil {
			require.ErrorIs(t, err, unix.ENOSPC)
			step /= 2
			continue
		}
		size += step
	}
	return at
}

// TestThickThatDoesNotFit promises more than there is and is held to it. The
// disk has to be as it was afterwards: ext4 keeps every block it could allocate
// before it found that it cannot allocate all.
func TestThickThatDoesNotFit(t *testing.T) {
	for _, kind := range []poolKind{onExt4, onXFS, onBtrfs} {
		t.Run(kind.name, func(t *testing.T) {
			n := overcommitted(t, kind)
			before := freeBytes(t, n.pools[0].Path)
			_, err := n.create(Request{ID: "pvc-1", SizeBytes: 2 * gib, VolumeMode: record.ModeBlock})
			var full *disk.CapacityError
			require.ErrorAs(t, err, &full)
			require.NoError(t, n.store.Drain(t.Context()))
			testroot.Run(t, "sync", "-f", n.pools[0].Path)
			require.InDelta(t, before, freeBytes(t, n.pools[0].Path), float64(32*mib))
			n.check()
			require.Empty(t, n.ids())
			require.Empty(t, n.store.Trash())
		})
	}
}

// TestDeleteOnAFullDisk deletes where no block is left for the note that a
// deletion leaves: deleting is what helps.
func TestDeleteOnAFullDisk(t *testing.T) {
	for _, kind := range []poolKind{onExt4, onXFS} {
		t.Run(kind.name, func(t *testing.T) {
			n := newNode(t, kind.make(t, gib))
			n.pools[0].PurgeUnderPressure = true
			n.start()
			for _, id := range []string{"pvc-1", "pvc-2", "pvc-3", "pvc-4"} {
				n.mustCreate(Request{ID: id, SizeBytes: 32 * mib, VolumeMode: record.ModeBlock})
			}
			require.NoError(t, n.store.Delete(t.Context(), "pvc-2", keep(3600)))
			require.NoError(t, n.store.Delete(t.Context(), "pvc-3", keep(3600)))
			foreign := fill(t, n.pools[0].Path)

			require.NoError(t, n.store.Delete(t.Context(), "pvc-1", purge), "a volume")
			require.NoError(t, n.store.Delete(t.Context(), "pvc-2", purge), "what is in the trash")
			// More than the two that are being freed leave.
			_, err := n.create(Request{ID: "pvc-5", SizeBytes: 80 * mib, VolumeMode: record.ModeBlock})
			var full *disk.CapacityError
			require.ErrorAs(t, err, &full)
			if len(n.store.Trash()) == 3 { // it had been measured before the disk was filled
				_, err = n.create(Request{ID: "pvc-5", SizeBytes: 80 * mib, VolumeMode: record.ModeBlock})
				require.ErrorAs(t, err, &full)
			}
			require.NoError(t, n.store.Drain(t.Context()))
			require.Empty(t, n.store.Trash(), "and trash that has to give way")
			n.check()
			n.start() // what is on the disk says the same
			n.check()
			require.Equal(t, []string{"pvc-4"}, n.ids())
			require.NoError(t, os.Remove(foreign))
		})
	}
}

// TestGrowthFailsAfterAnother lets a growth come as far as its last step, and
// the next one meet a full disk. What the first one gained is in use by then.
func TestGrowthFailsAfterAnother(t *testing.T) {
	n := overcommitted(t, onExt4)
	v := n.mustCreate(Request{ID: "pvc-1", SizeBytes: 16 * mib, VolumeMode: record.ModeBlock})
	n.store.opts.Fault = func(step string) error {
		if step == "grow: done" {
			return unix.EIO
		}
		return nil
	}
	_, err := n.store.Grow(t.Context(), "pvc-1", 32*mib)
	require.ErrorIs(t, err, unix.EIO)
	n.store.opts.Fault = nil
	device, err := os.OpenFile(v.Path, os.O_RDWR|unix.O_DSYNC, 0)
	require.NoError(t, err)
	_, err = device.WriteAt([]byte("kept"), 24*mib)
	require.NoError(t, err)

	_, err = n.store.Grow(t.Context(), "pvc-1", 3*gib)
	var full *disk.CapacityError
	require.ErrorAs(t, err, &full)
	have := make([]byte, 4)
	_, err = device.ReadAt(have, 24*mib)
	require.NoError(t, err)
	require.Equal(t, "kept", string(have))
	require.NoError(t, device.Close())
	image, err := os.Stat(filepath.Join(n.pools[0].Path, "pvc-1", record.ImageFile))
	require.NoError(t, err)
	require.EqualValues(t, 32*mib, image.Size())

	v, err = n.store.Grow(t.Context(), "pvc-1", 32*mib)
	require.NoError(t, err)
	require.EqualValues(t, 32*mib, v.SizeBytes)
	require.Zero(t, v.GrowingTo)
}

// TestPoolIsNotOnlineBeforeItIsRead puts a disk in and looks at the moment when
// its volumes are being read: that a volume is not known yet must not be taken
// for its absence, nor its space be promised.
func TestPoolIsNotOnlineBeforeItIsRead(t *testing.T) {
	d := newDisk(t, "ext4")
	n := newNode(t, d.at)
	v := n.mustCreate(small)
	mark(t, v, "kept")
	n.reboot()
	d.out(t)
	n.prepare()
	n.store.Expect("pool1", disk.Expectation{UID: v.PoolUID})
	n.store.Refresh(t.Context())
	d.in(t)

	unlock, err := n.store.locks.Lock(t.Context(), v.ID) // reading waits for it
	require.NoError(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		n.store.Refresh(t.Context())
	}()
	require.Eventually(t, func() bool {
		p := n.store.Pools()[0]
		return p.Offline != nil && p.Offline.Reason == disk.OfflineLoading
	}, time.Minute, time.Millisecond)
	_, err = n.create(Request{ID: "pvc-2", SizeBytes: 16 * mib, VolumeMode: record.ModeBlock})
	var offline *disk.OfflineError
	require.ErrorAs(t, err, &offline)
	unlock()
	<-done
	require.Nil(t, n.store.Pools()[0].Offline)
	require.Equal(t, "kept", marked(t, v))
}

// TestRetentionIsNotedWhileOthersAreDeleted: how much of a retention passed has
// to reach the disk on a busy node as well.
func TestRetentionIsNotedWhileOthersAreDeleted(t *testing.T) {
	n := newNode(t, onExt4.make(t, gib))
	n.mustCreate(small)
	require.NoError(t, n.store.Delete(t.Context(), small.ID, keep(24*3600)))
	n.store.mu.Lock()
	for _, e := range n.store.trash {
		e.since = e.since.Add(-2 * time.Hour)
	}
	n.store.mu.Unlock()
	done := make(chan struct{})
	go func() {
		defer close(done)
		n.store.Run(t.Context())
	}()
	n.store.freer.wake() // as a deletion does
	require.Eventually(t, func() bool {
		return n.store.Trash()[0].ElapsedSeconds >= 7200
	}, time.Minute, time.Millisecond)
	require.Eventually(t, func() bool {
		in, err := disk.Inspect(n.pools[0].Path)
		require.NoError(t, err)
		return in.Trash[0].ElapsedSeconds >= 7200
	}, time.Minute, 10*time.Millisecond)
	t.Cleanup(func() { <-done })
}
