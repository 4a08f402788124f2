package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/internal/testroot"
	"github.com/quarry-storage/quarry/nodeagent/record"
	"github.com/quarry-storage/quarry/nodeagent/verify"
)

// room is how many bytes can still be promised.
func room(n *node) int64 {
	n.store.pools[0].space.expire()
	return n.store.Pools()[0].Available
}

// TestParallelCreates lets many creates, deletes and growths race for a pool
// that has room for a few, while images are being allocated: never is more
// promised than there is, and none that would fit is refused in the end.
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
			// Not f_bavail, of which ext4 holds 16 MiB back for its own books.
			if err := unix.Statfs(path, &st); err != nil || p.Promised > int64(fits)*size+size || st.Bfree == 0 {
				select {
				case over <- fmt.Sprintf("promised %d, capacity %d, free %d of %d blocks, %v", p.Promised, p.Capacity,
					st.Bavail, st.Bfree, err):
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
			var full *disk.CapacityError
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
	var full *disk.CapacityError
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
			var full *disk.CapacityError
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
	require.True(t, contains(verify.Live(t.Context(), n.store.View()), "is a copy"))
	require.NoError(t, n.store.Delete(t.Context(), r.ID, purge))
	require.NoError(t, n.store.Drain(t.Context()))
	require.FileExists(t, filepath.Join(b, r.ID, "data/mark"))
}

// TestPressure frees trash before its time where the pool allows it, the oldest
// first, and only if that helps.
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
	var full *disk.CapacityError
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

	require.Equal(t, n.store.Trash()[0].Volume.Promise(), n.store.Pools()[0].Purgeable,
		"what would give way is offered")

	n.pools[0].PurgeUnderPressure = false
	n.start()
	require.Zero(t, n.store.Pools()[0].Purgeable)
	_, err = n.create(block("last", size))
	require.ErrorAs(t, err, &full)
	require.NoError(t, n.store.Drain(t.Context()))
	require.Len(t, n.store.Trash(), 1, "not where it is not allowed")
}

// TestPressureOfGrowth frees trash before its time for a volume that wants to
// grow, on the filesystem where that helps.
func TestPressureOfGrowth(t *testing.T) {
	n := newNode(t, onExt4.make(t, gib), onExt4.make(t, gib))
	n.pools[0].PurgeUnderPressure, n.pools[1].PurgeUnderPressure = true, true
	n.start()
	size := (room(n) - 8*mib) / 4 / blockAlign * blockAlign // what directories take is not ours to promise
	block := func(id, pool string) Request {
		return Request{ID: id, Pool: pool, SizeBytes: size, VolumeMode: record.ModeBlock}
	}
	for _, r := range []Request{block("old", "pool1"), block("elsewhere", "pool2")} {
		n.mustCreate(r)
		require.NoError(t, n.store.Delete(t.Context(), r.ID, keep(3600)))
	}
	n.mustCreate(block("grows", "pool1"))
	// An entry of the trash under the same id, as after a volume was deleted
	// and made again.
	require.NoError(t, n.store.Delete(t.Context(), "grows", keep(3600)))
	n.mustCreate(block("grows", "pool1"))

	var full *disk.CapacityError
	_, err := n.store.Grow(t.Context(), "grows", 5*size)
	require.ErrorAs(t, err, &full)
	require.NoError(t, n.store.Drain(t.Context()))
	require.Len(t, n.store.Trash(), 3, "it would not have helped")

	changed := n.store.Changed()
	_, err = n.store.Grow(t.Context(), "grows", 4*size)
	require.ErrorAs(t, err, &full, "it is refused now")
	require.NoError(t, n.store.Drain(t.Context()))
	select {
	case <-changed:
	default:
		t.Fatal("whoever waits for room was not told")
	}
	require.Len(t, n.store.Trash(), 1)
	require.Equal(t, "elsewhere", n.store.Trash()[0].Volume.ID)
	v, err := n.store.Grow(t.Context(), "grows", 4*size)
	require.NoError(t, err)
	require.Equal(t, 4*size, v.SizeBytes)

	// Of a group only those count that may go to a filesystem: what is missing
	// on pool1 is no reason to free trash on pool2.
	_, err = n.store.Admit(t.Context(), block("a", "pool1"), block("b", "pool2"))
	require.ErrorAs(t, err, &full)
	require.NoError(t, n.store.Drain(t.Context()))
	require.Len(t, n.store.Trash(), 1)

	// Nor is trash freed where it would help one of a group, if the other one
	// fits nowhere.
	large := block("b", "pool2")
	large.SizeBytes = 4 * size
	_, err = n.store.Admit(t.Context(), block("a", "pool1"), large)
	require.ErrorAs(t, err, &full)
	require.NoError(t, n.store.Drain(t.Context()))
	require.Len(t, n.store.Trash(), 1)
	_, err = n.store.Admit(t.Context(), large)
	require.ErrorAs(t, err, &full, "it is refused now")
	require.NoError(t, n.store.Drain(t.Context()))
	require.Empty(t, n.store.Trash(), "alone it gets what is in the trash")

	// A new volume for pool1 gets nothing of what lies in the trash of another
	// filesystem.
	n.mustCreate(block("other", "pool2"))
	require.NoError(t, n.store.Delete(t.Context(), "other", keep(3600)))
	_, err = n.create(block("more", "pool1"))
	require.ErrorAs(t, err, &full)
	require.NoError(t, n.store.Drain(t.Context()))
	require.Len(t, n.store.Trash(), 1)
}

// TestSpread puts volumes of one group apart, as far as there are pools with
// room, and counts those that are only promised.
func TestSpread(t *testing.T) {
	n := newNode(t, onExt4.make(t, gib), onExt4.make(t, gib), onExt4.make(t, 2*gib))
	member := func(id, group string, size int64) Request {
		return Request{ID: id, SizeBytes: size, Enforcement: record.EnforcementNone,
			Origin: record.Origin{SpreadGroup: group}}
	}
	count := func(admitted ...*Admission) map[string]int {
		pools := map[string]int{}
		for _, a := range admitted {
			pools[a.pool.name()]++
		}
		return pools
	}
	// Without a group it is the pool with the most room.
	adm, err := n.store.Admit(t.Context(), member("pvc-1", "", 16*mib), member("pvc-2", "", 16*mib))
	require.NoError(t, err)
	require.Equal(t, map[string]int{"pool3": 2}, count(adm...))
	adm[0].Cancel()
	adm[1].Cancel()

	// In one call, of which none is made yet.
	one, err := n.store.Admit(t.Context(), member("a-0", "a", 16*mib), member("a-1", "a", 16*mib), member("b-0",
		"b", 16*mib))
	require.NoError(t, err)
	require.Equal(t, "pool3", one[0].pool.name(), "the one with the most room comes first")
	require.NotEqual(t, "pool3", one[1].pool.name())
	require.Equal(t, "pool3", one[2].pool.name(), "another group")
	// In another call, with one of the others made and one promised only.
	_, err = n.store.Create(t.Context(), one[0])
	require.NoError(t, err)
	two, err := n.store.Admit(t.Context(), member("a-2", "a", 16*mib))
	require.NoError(t, err)
	require.Equal(t, map[string]int{"pool1": 1, "pool2": 1, "pool3": 1}, count(one[0], one[1], two[0]))
	// What was promised and taken back counts no more.
	one[1].Cancel()
	again, err := n.store.Admit(t.Context(), member("a-1", "a", 16*mib))
	require.NoError(t, err)
	require.Equal(t, one[1].pool, again[0].pool)
	for _, a := range []*Admission{again[0], two[0], one[2]} {
		_, err = n.store.Create(t.Context(), a)
		require.NoError(t, err)
	}
	require.Empty(t, n.store.alikeLocked("")[one[0].pool])

	// After a restart the disks tell.
	n.start()
	require.NoError(t, n.store.Delete(t.Context(), "a-2", keep(60)))
	a3, err := n.store.Admit(t.Context(), member("a-3", "a", 16*mib))
	require.NoError(t, err)
	require.Equal(t, two[0].pool.name(), a3[0].pool.name(), "what is in the trash is nobody's neighbour")
	// Room comes before being apart.
	a4, err := n.store.Admit(t.Context(), member("a-4", "a", 1100*mib))
	require.NoError(t, err)
	require.Equal(t, "pool3", a4[0].pool.name())
	a3[0].Cancel()
	a4[0].Cancel()

	other := newNode(t, onExt4.make(t, gib), onExt4.make(t, gib))
	adm, err = other.store.Admit(t.Context(), member("c-0", "c", 16*mib), member("c-1", "c", 16*mib), member("c-2",
		"c", 16*mib), member("c-3", "c", 16*mib))
	require.NoError(t, err)
	require.Equal(t, map[string]int{"pool1": 2, "pool2": 2}, count(adm...))
	for _, a := range adm {
		a.Cancel()
	}
	require.Zero(t, other.store.Pools()[0].Promised)
}

// TestPoolSelector matches what the Pool object has: the labels of the
// configuration, and where the pool is.
func TestPoolSelector(t *testing.T) {
	testroot.RequireRoot(t)
	n := newNode(t)
	n.pools = poolsAt([]string{t.TempDir(), t.TempDir()})
	n.pools[0].Labels = map[string]string{"disk": "ssd", "quarry.storage/node": "a-lie"}
	n.start()
	for selector, pool := range map[string]string{
		"disk=ssd":                         "pool1",
		"!disk":                            "pool2",
		"quarry.storage/pool=pool2":        "pool2",
		"quarry.storage/pool notin(pool2)": "pool1",
		"quarry.storage/node=node1,disk":   "pool1",
		"quarry.storage/node!=node1":       "",
		"quarry.storage/node=a-lie":        "",
		"disk=ssd,quarry.storage/pool=x":   "",
	} {
		parsed, err := labels.Parse(selector)
		require.NoError(t, err)
		r := small
		r.PoolSelector = parsed
		adm, err := n.store.Admit(t.Context(), r)
		if pool == "" {
			reason, refused := Reason(err)
			require.Equal(t, "PoolNotFound", reason, selector)
			require.True(t, refused)
			continue
		}
		require.NoError(t, err, selector)
		require.Equal(t, pool, adm[0].pool.name(), selector)
		adm[0].Cancel()
	}
	long := strings.Repeat("n", 64)
	require.NotContains(t, PoolLabels(long, &n.pools[0]), "quarry.storage/node", "a label's value cannot be so long")
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
		"strict directory": {Request{Backend: record.BackendDirectory, Enforcement: record.EnforcementStrict,
			SizeBytes: 16 * mib}, "Unsupported"},
		"block directory": {Request{Backend: record.BackendDirectory, VolumeMode: record.ModeBlock,
			SizeBytes: 16 * mib}, "Unsupported"},
		"too large":    {Request{SizeBytes: 1 << 50}, "InsufficientCapacity"},
		"negative":     {Request{SizeBytes: -1}, "InvalidOptions"},
		"a shell":      {Request{SizeBytes: 64 * mib, MkfsOptions: []string{"-O", "$(reboot)"}}, "InvalidOptions"},
		"mount option": {Request{SizeBytes: 64 * mib, MountOptions: []string{"suid,dev,bind"}}, "InvalidOptions"},
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
	r := Request{ID: "pvc-1", SizeBytes: 32 * mib, Origin: record.Origin{Deletion: record.Deletion{OnDelete: "purge",
		Scrub: scrubZero}}}
	require.Equal(t, record.BackendLoop, n.mustCreate(r).Backend)
	r.ID, r.Backend = "pvc-2", record.BackendDirectory
	_, err := n.create(r)
	reason, refused := Reason(err)
	require.Equal(t, "Unsupported", reason)
	require.True(t, refused)
}
