package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/nodeagent/record"
)

// room is how many bytes can still be promised.
func room(n *node) int64 {
	n.store.pools[0].space.expire()
	return n.store.Pools()[0].Available
}

// TestParallelCreates lets many creates, deletes and growths race for a pool that has room for a few, while images are being
// allocated: never is more promised than there is, and none that would fit is refused in the end.
func TestParallelCreates(t *testing.T) {
	path := onExt4.make(t, 2*gib)
	n := newNode(t, path)
	const size = 32 * mib
	fits := int(room(n) / size)
	require.Greater(t, fits, 40)
	var made, refused atomic.Int64
	over := make(chan string, 1)
	ctx, stop := context.WithCancel(t.Context())
	var watch sync.WaitGroup
	watch.Go(func() {
		for ctx.Err() == nil {
			var st unix.Statfs_t
			p := n.store.Pools()[0]
			if err := unix.Statfs(path, &st); err != nil || p.Promised > int64(fits)*size+size || int64(st.Bavail)*st.Frsize == 0 {
				select {
				case over <- fmt.Sprintf("promised %d, capacity %d, free %d, %v", p.Promised, p.Capacity, st.Bavail, err):
				default:
				}
				return
			}
		}
	})
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			_, err := n.create(Request{ID: fmt.Sprintf("pvc-%d", i), VolumeMode: record.ModeBlock, SizeBytes: size})
			var full *CapacityError
			switch {
			case err == nil:
				made.Add(1)
			case errors.As(err, &full):
				refused.Add(1)
			default:
				t.Error(err)
			}
		})
	}
	wg.Wait()
	stop()
	watch.Wait()
	select {
	case what := <-over:
		t.Fatal(what)
	default:
	}
	require.EqualValues(t, 200, made.Load()+refused.Load())
	// Metadata of the pool's filesystem takes a little of what was free.
	require.InDelta(t, fits, made.Load(), 1)
	n.check()
	for _, id := range n.ids() {
		wg.Go(func() {
			if err := n.store.Delete(context.Background(), id, purge); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	n.check()
	require.Zero(t, n.store.Pools()[0].Promised)
}

// TestSameIDInParallel makes one volume out of many requests for it.
func TestSameIDInParallel(t *testing.T) {
	n := newNode(t, onExt4.make(t, gib))
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if _, err := n.create(Request{ID: "pvc-1", SizeBytes: 32 * mib, FSType: "ext4"}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	require.Equal(t, []string{"pvc-1"}, n.ids())
	require.EqualValues(t, 32*mib, n.store.Pools()[0].Promised)
}

// TestGroup admits the claims of a pod together or not at all.
func TestGroup(t *testing.T) {
	n := newNode(t, onExt4.make(t, gib))
	size := room(n) / 2 / blockAlign * blockAlign
	a := Request{ID: "a", SizeBytes: size, VolumeMode: record.ModeBlock}
	b, c := a, a
	b.ID, c.ID = "b", "c"
	c.SizeBytes = 64 * mib
	_, err := n.store.Admit(t.Context(), a, b, c)
	var full *CapacityError
	require.ErrorAs(t, err, &full)
	require.Zero(t, n.store.Pools()[0].Promised, "nothing is promised to the two that fit")
	admitted, err := n.store.Admit(t.Context(), a, b)
	require.NoError(t, err)
	_, err = n.store.Admit(t.Context(), c)
	require.ErrorAs(t, err, &full)
	admitted[1].Cancel()
	admitted[1].Cancel()
	_, err = n.store.Create(t.Context(), admitted[0])
	require.NoError(t, err)
	admitted[0].Cancel()
	require.Equal(t, size, n.store.Pools()[0].Promised, "cancelling after the fact takes nothing away")
	again, err := n.store.Admit(t.Context(), a, c)
	require.NoError(t, err)
	again[0].Cancel()
	again[1].Cancel()
	require.Equal(t, size, n.store.Pools()[0].Promised)
}

// TestTwoPoolsOfOneFilesystem share its space.
func TestTwoPoolsOfOneFilesystem(t *testing.T) {
	for _, k := range []poolKind{onExt4, onBtrfs, onExt4Prj, onXFSPrj} {
		t.Run(k.name, func(t *testing.T) {
			path := k.make(t, 2*gib)
			a, b := filepath.Join(path, "a"), filepath.Join(path, "b")
			require.NoError(t, os.Mkdir(a, 0o755))
			require.NoError(t, os.Mkdir(b, 0o755))
			n := newNode(t, a, b)
			pools := n.store.Pools()
			require.Equal(t, pools[0].FilesystemID, pools[1].FilesystemID)
			free := room(n)
			first := Request{ID: "one", Pool: "pool1", SizeBytes: free/2 - 4*mib} // records take a little
			if k.quota == "" {
				first.VolumeMode = record.ModeBlock
			}
			second := first
			second.ID, second.Pool = "two", "pool2"
			v1, v2 := n.mustCreate(first), n.mustCreate(second)
			if k.quota != "" {
				require.NotEqual(t, v1.QuotaID, v2.QuotaID)
			}
			third := second
			third.ID, third.SizeBytes = "three", 128*mib
			_, err := n.create(third)
			var full *CapacityError
			require.ErrorAs(t, err, &full)
			n.start()
			n.check()
			_, err = n.create(third)
			require.ErrorAs(t, err, &full)
			// Written data is no less promised than before.
			if k.quota == "" {
				require.NoError(t, n.store.Delete(t.Context(), "one", keep(3600)))
				_, err = n.create(third)
				require.ErrorAs(t, err, &full, "trash counts")
			}
			require.NoError(t, n.store.Delete(t.Context(), "one", purge))
			require.NoError(t, n.store.Drain(t.Context()))
			n.mustCreate(third)
		})
	}
}

// TestSameIDInTwoPools uses the one it found first, and leaves the other alone.
func TestSameIDInTwoPools(t *testing.T) {
	path := onExt4.make(t, gib)
	a, b := filepath.Join(path, "a"), filepath.Join(path, "b")
	require.NoError(t, os.Mkdir(a, 0o755))
	require.NoError(t, os.Mkdir(b, 0o755))
	n := newNode(t, a, b)
	r := small
	r.Pool = "pool1"
	mark(t, n.mustCreate(r), "kept")
	require.NoError(t, os.CopyFS(filepath.Join(b, r.ID), os.DirFS(filepath.Join(a, r.ID))))
	n.start()
	n.dirty = true
	v, err := n.store.Get(r.ID)
	require.NoError(t, err)
	require.Equal(t, "pool1", v.Pool)
	require.Len(t, n.store.Pools()[1].Broken, 1)
	require.True(t, contains(n.store.Verify(t.Context()), "another pool has"))
	require.NoError(t, n.store.Delete(t.Context(), r.ID, purge))
	require.NoError(t, n.store.Drain(t.Context()))
	require.FileExists(t, filepath.Join(b, r.ID, "data/mark"))
}

// TestPressure frees trash before its time where the pool allows it, the oldest first, and only if that helps.
func TestPressure(t *testing.T) {
	path := onExt4.make(t, gib)
	n := newNode(t, path)
	n.pools[0].PurgeUnderPressure = true
	n.start()
	size := room(n) / 4 / blockAlign * blockAlign
	block := func(id string, size int64) Request {
		return Request{ID: id, SizeBytes: size, VolumeMode: record.ModeBlock}
	}
	for i, id := range []string{"old", "young", "kept"} {
		n.mustCreate(block(id, size))
		if id != "kept" {
			require.NoError(t, n.store.Delete(t.Context(), id, keep(3600)))
			for _, e := range n.store.trash {
				if e.id == id {
					e.trash.DeletedAt = e.trash.DeletedAt.Add(time.Duration(i) * time.Minute)
				}
			}
		}
	}
	var full *CapacityError
	_, err := n.create(block("huge", 4*size))
	require.ErrorAs(t, err, &full)
	require.NoError(t, n.store.Drain(t.Context()))
	require.Len(t, n.store.Trash(), 2, "it would not have helped")
	_, err = n.create(block("more", size*3/2))
	require.ErrorAs(t, err, &full, "it is refused now")
	require.NoError(t, n.store.Drain(t.Context()))
	require.Len(t, n.store.Trash(), 1)
	require.Equal(t, "young", n.store.Trash()[0].Volume.ID)
	n.mustCreate(block("more", size*3/2))

	n.pools[0].PurgeUnderPressure = false
	n.start()
	_, err = n.create(block("last", size))
	require.ErrorAs(t, err, &full)
	require.NoError(t, n.store.Drain(t.Context()))
	require.Len(t, n.store.Trash(), 1, "not where it is not allowed")
}

// TestRefusals are requests that no pool here can meet.
func TestRefusals(t *testing.T) {
	n := newNode(t, onExt4.make(t, gib))
	for name, c := range map[string]struct {
		r      Request
		reason string
	}{
		"no such pool":       {Request{Pool: "x", SizeBytes: gib}, "PoolNotFound"},
		"too small for xfs":  {Request{FSType: "xfs", SizeBytes: 200 * mib}, "TooSmall"},
		"unknown filesystem": {Request{FSType: "ntfs", SizeBytes: 200 * mib}, "InvalidOptions"},
		"no quota here":      {Request{Backend: record.BackendDirectory, SizeBytes: 16 * mib}, "Unsupported"},
		"strict directory":   {Request{Backend: record.BackendDirectory, Enforcement: record.EnforcementStrict, SizeBytes: 16 * mib}, "Unsupported"},
		"block directory":    {Request{Backend: record.BackendDirectory, VolumeMode: record.ModeBlock, SizeBytes: 16 * mib}, "Unsupported"},
		"too large":          {Request{SizeBytes: 1 << 50}, "InsufficientCapacity"},
		"negative":           {Request{SizeBytes: -1}, "InvalidOptions"},
		"a shell":            {Request{SizeBytes: 64 * mib, MkfsOptions: []string{"-O", "$(reboot)"}}, "InvalidOptions"},
		"mount option":       {Request{SizeBytes: 64 * mib, MountOptions: []string{"suid,dev,bind"}}, "InvalidOptions"},
	} {
		t.Run(name, func(t *testing.T) {
			c.r.ID = "pvc-1"
			_, err := n.create(c.r)
			reason, refused := Reason(err)
			require.Equal(t, c.reason, reason, "%v", err)
			require.True(t, refused)
			require.Zero(t, n.store.Pools()[0].Promised)
		})
	}
}

// TestScrubOnBtrfs: zeros over a file on btrfs would go elsewhere.
func TestScrubOnBtrfs(t *testing.T) {
	n := newNode(t, onBtrfs.make(t, gib))
	r := Request{ID: "pvc-1", SizeBytes: 32 * mib, Origin: record.Origin{Deletion: record.Deletion{OnDelete: "purge", Scrub: scrubZero}}}
	require.Equal(t, record.BackendLoop, n.mustCreate(r).Backend)
	r.ID, r.Backend = "pvc-2", record.BackendDirectory
	_, err := n.create(r)
	reason, refused := Reason(err)
	require.Equal(t, "Unsupported", reason)
	require.True(t, refused)
}
