package store

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// freeze makes every write of a filesystem wait, as a disk does that hangs,
// and returns what thaws it.
func freeze(t *testing.T, path string) (thaw func()) {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	const fiFreeze, fiThaw = 0xC0045877, 0xC0045878 // FIFREEZE, FITHAW
	require.NoError(t, unix.IoctlSetInt(int(f.Fd()), fiFreeze, 0))
	frozen := true
	thaw = func() {
		if frozen {
			frozen = false
			require.NoError(t, unix.IoctlSetInt(int(f.Fd()), fiThaw, 0))
			require.NoError(t, f.Close())
		}
	}
	t.Cleanup(thaw)
	return thaw
}

func comesTrue(t *testing.T, so func() bool, what string) {
	t.Helper()
	require.Eventually(t, so, testPatience, 5*time.Millisecond, what)
}

// TestHungPoolBesideAHealthyOne: everything that a healthy disk's volumes need
// goes on while another disk hangs, the hung one is said to be, and it comes
// back by itself, with what was under way on it.
func TestHungPoolBesideAHealthyOne(t *testing.T) {
	hung, healthy := onExt4.make(t, gib), onExt4.make(t, gib)
	n := newNode(t, hung, healthy)
	n.start(func(o *Options) { o.HangAfter = 300 * time.Millisecond })
	none := func(id, pool string) Request {
		return Request{ID: id, Pool: pool, Enforcement: record.EnforcementNone, SizeBytes: 16 * mib}
	}
	old := n.mustCreate(none("old-1", "pool1"))
	mark(t, old, "kept")
	n.mustCreate(none("gone-1", "pool1"))
	n.mustCreate(none("gone-2", "pool2"))
	require.NoError(t, n.store.Delete(t.Context(), "gone-1", purge))

	thaw := freeze(t, hung)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); n.store.Run(ctx) }()
	defer func() { cancel(); <-ended }()
	made := make(chan error, 1)
	adm, err := n.store.Admit(t.Context(), none("stuck-1", "pool1"))
	require.NoError(t, err)
	go func() { _, err := n.store.Create(context.Background(), adm[0]); made <- err }()
	require.NoError(t, n.store.Delete(t.Context(), "gone-2", purge))

	comesTrue(t, func() bool {
		n.store.Glance(t.Context())
		p := n.store.Pools()[0]
		return p.Offline != nil && p.Offline.IsSilent()
	}, "the pool is out")
	require.Nil(t, n.store.Pools()[1].Offline)
	comesTrue(t, func() bool { return len(n.store.Trash()) == 0 }, "the healthy disk's trash is freed")
	_, err = n.create(none("new-1", "pool1"))
	reason, refused := Reason(err)
	require.Equal(t, v1alpha1.ReasonPoolOffline, reason, "%v", err)
	require.True(t, refused)
	v := n.mustCreate(none("new-1", ""))
	require.Equal(t, "pool2", v.Pool)
	_, err = n.store.Open(t.Context(), "old-1")
	require.Error(t, err, "who goes there does not come back")
	require.NoError(t, n.store.Delete(t.Context(), "new-1", purge))
	comesTrue(t, func() bool { return len(n.store.Trash()) == 0 }, "and freed again")

	require.Error(t, adm[0].Hung())
	require.True(t, adm[0].Abandon())
	require.True(t, n.store.Abandoned("stuck-1"))

	thaw()
	require.ErrorIs(t, <-made, errAbandoned)
	require.False(t, n.store.Abandoned("stuck-1"))
	comesTrue(t, func() bool {
		n.store.Glance(t.Context())
		got, err := n.store.Get("old-1")
		return err == nil && got.Unavailable == nil && n.store.Pools()[0].Offline == nil
	}, "the pool is back")
	require.Equal(t, "kept", marked(t, old))
	comesTrue(t, func() bool { return len(n.store.Trash()) == 0 }, "and its trash is freed")
	require.NotContains(t, n.ids(), "stuck-1")
}

// TestFrozenPoolIsSeen freezes the filesystem of a pool that nobody does
// anything on, which reads as ever: it is told all the same, its volumes and
// new ones are refused there, and it is back by itself.
func TestFrozenPoolIsSeen(t *testing.T) {
	for _, kind := range []poolKind{onExt4, onXFS, onBtrfs} {
		t.Run(kind.name, func(t *testing.T) {
			frozen, healthy := kind.make(t, gib), onExt4.make(t, gib)
			n := newNode(t, frozen, healthy)
			n.store.patience.freeze = 300 * time.Millisecond
			directory := n.mustCreate(Request{ID: "pvc-1", Pool: "pool1",
				Enforcement: record.EnforcementNone, SizeBytes: 16 * mib})
			image := n.mustCreate(Request{ID: "pvc-2", Pool: "pool1",
				Backend: record.BackendLoop, FSType: "ext4", SizeBytes: 64 * mib})
			raw := func(id, pool string) Request {
				return Request{ID: id, Pool: pool, SizeBytes: 16 * mib, VolumeMode: record.ModeBlock}
			}
			mark(t, directory, "one")
			mark(t, image, "two")
			n.store.Glance(t.Context())
			require.Nil(t, n.store.Pools()[0].Offline)

			thaw := freeze(t, frozen)
			looked := make(chan struct{})
			go func() { defer close(looked); n.store.Glance(context.Background()) }()
			comesTrue(t, func() bool { return n.store.Pools()[0].Offline != nil }, "the pool is out")
			offline(t, n, disk.OfflineFrozen)
			require.Nil(t, n.store.Pools()[1].Offline)
			for _, id := range []string{directory.ID, image.ID} {
				var off *disk.OfflineError
				require.ErrorAs(t, n.availability(id), &off)
			}
			_, err := n.create(raw("pvc-3", "pool1"))
			reason, refused := Reason(err)
			require.Equal(t, v1alpha1.ReasonPoolOffline, reason, "%v", err)
			require.True(t, refused, "so that the claim goes elsewhere")
			require.Equal(t, "pool2", n.mustCreate(raw("pvc-3", "")).Pool)

			thaw()
			<-looked
			comesTrue(t, func() bool {
				n.store.Glance(t.Context())
				return n.store.Pools()[0].Offline == nil && n.availability(directory.ID) == nil &&
					n.availability(image.ID) == nil
			}, "the pool is back")
			require.Equal(t, "one", marked(t, directory))
			require.Equal(t, "two", marked(t, image))
			n.mustCreate(raw("pvc-4", "pool1"))
		})
	}
}

// TestFreezeThatEndsIsNotTold freezes a pool for less than is waited: nobody is
// told, and nothing is read anew.
func TestFreezeThatEndsIsNotTold(t *testing.T) {
	path := onExt4.make(t, gib)
	n := newNode(t, path)
	v := n.mustCreate(Request{ID: "pvc-1", Enforcement: record.EnforcementNone, SizeBytes: 16 * mib})
	n.store.Told(n.store.Pools())
	thaw := freeze(t, path)
	changed := n.store.Changed()
	looked := make(chan struct{})
	go func() { defer close(looked); n.store.Glance(context.Background()) }()
	comesTrue(t, func() bool {
		n.store.refreshing.Lock()
		defer n.store.refreshing.Unlock()
		return n.store.pools[0].glance != nil
	}, "it is looked at")
	thaw()
	<-looked
	select {
	case <-changed:
		t.Fatal("a short freeze was told")
	default:
	}
	require.NoError(t, n.availability(v.ID))
}

// TestEmptyVolumeDoesNotWaitForATree: entries of one filesystem take turns,
// and other filesystems do not wait at all.
func TestEmptyVolumeDoesNotWaitForATree(t *testing.T) {
	n := newNode(t, onExt4.make(t, gib), onExt4.make(t, gib))
	begun, goOn := make(chan struct{}, 1), make(chan struct{})
	n.start(func(o *Options) {
		o.Fault = func(step string) error {
			if step == "free: file" {
				select {
				case begun <- struct{}{}:
				default:
				}
				<-goOn
			}
			return nil
		}
	})
	big := n.mustCreate(Request{ID: "big-1", Pool: "pool1", Enforcement: record.EnforcementNone, SizeBytes: 64 * mib})
	for i := range 100 {
		require.NoError(t, os.WriteFile(filepath.Join(big.Path, fmt.Sprint(i)), nil, 0o600))
	}
	other := n.mustCreate(Request{ID: "other-1", Pool: "pool2", Backend: record.BackendLoop,
		VolumeMode: record.ModeBlock, SizeBytes: 16 * mib})
	require.NoError(t, n.store.Delete(t.Context(), big.ID, purge))
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); n.store.Run(ctx) }()
	defer func() { cancel(); <-ended }()
	<-begun
	require.NoError(t, n.store.Delete(t.Context(), other.ID, purge))
	comesTrue(t, func() bool {
		return len(n.store.Trash()) == 1
	}, "another disk's does not wait for a step that takes long")
	close(goOn)
	comesTrue(t, func() bool { return len(n.store.Trash()) == 0 }, "all is freed")
}

// TestTurns: an entry whose time is over goes on after those that wait, and
// only if any do.
func TestTurns(t *testing.T) {
	waiting := false
	turn := &turn{Context: t.Context(), others: func() bool { return waiting }}
	require.NoError(t, turn.Err(), "each turn takes a step")
	turn.until = time.Now().Add(-time.Second)
	require.NoError(t, turn.Err(), "nobody waits")
	waiting = true
	require.ErrorIs(t, turn.Err(), errSlice)
	require.NoError(t, unbroken(turn).Err())

	n := newNode(t, onExt4.make(t, gib))
	for _, id := range []string{"a-1", "b-1"} {
		n.mustCreate(Request{ID: id, Enforcement: record.EnforcementNone, SizeBytes: mib})
		require.NoError(t, n.store.Delete(t.Context(), id, purge))
	}
	space := n.store.pools[0].books()
	first, _ := n.store.freer.next(space, time.Now())
	first.served = time.Now()
	second, _ := n.store.freer.next(space, time.Now())
	require.NotEqual(t, first, second)
	second.served = time.Now()
	again, _ := n.store.freer.next(space, time.Now())
	require.Equal(t, first, again)
}

// TestLookThatDoesNotReturn holds up the look at one pool: it is out after a
// while, what others need goes on, and it is back by itself.
func TestLookThatDoesNotReturn(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("a store needs root")
	}
	n := newNode(t, t.TempDir(), t.TempDir())
	n.dirty = true
	var stuck atomic.Bool
	goOn := make(chan struct{})
	n.start(func(o *Options) {
		o.HangAfter = 200 * time.Millisecond
		o.Fault = func(step string) error {
			if stuck.Load() && (step == "look at pool1" || step == "commit") {
				<-goOn
			}
			return nil
		}
	})
	none := func(id, pool string) Request {
		return Request{ID: id, Pool: pool, Enforcement: record.EnforcementNone, SizeBytes: mib}
	}
	v := n.mustCreate(none("old-1", "pool1"))
	mark(t, v, "kept")
	require.NoError(t, n.store.Delete(t.Context(), n.mustCreate(none("gone-1", "pool2")).ID, purge))
	adm, err := n.store.Admit(t.Context(), none("stuck-1", "pool1"))
	require.NoError(t, err)
	stuck.Store(true)
	made := make(chan error, 1)
	go func() { _, err := n.store.Create(context.Background(), adm[0]); made <- err }()
	comesTrue(t, func() bool {
		n.store.Glance(t.Context())
		return adm[0].Hung() != nil
	}, "the pool is hung")
	offline(t, n, disk.OfflineHung)
	require.True(t, adm[0].Abandon())
	require.False(t, adm[0].Abandon())
	require.True(t, n.store.Abandoned("stuck-1"))

	stuck.Store(false)
	close(goOn)
	require.ErrorIs(t, <-made, errAbandoned)
	require.False(t, n.store.Abandoned("stuck-1"))
	comesTrue(t, func() bool {
		n.store.Glance(t.Context())
		got, err := n.store.Get("old-1")
		pools := n.store.Pools()
		return err == nil && got.Unavailable == nil && pools[0].Offline == nil && pools[1].Offline == nil
	}, "the pools are back")
	require.Equal(t, "kept", marked(t, v))
	require.NoError(t, n.store.Drain(t.Context()))
	require.Empty(t, n.store.Trash())
	require.NotContains(t, n.ids(), "stuck-1")
}

// TestSearchDoesNotWaitForADiskThatHangs looks for volumes while a disk does
// not answer, before that pool is known to be hung: whoever asks is told that
// the disk was not seen, and what is on another disk or given up needs no
// answer.
func TestSearchDoesNotWaitForADiskThatHangs(t *testing.T) {
	n := newNode(t, onExt4.make(t, gib), onExt4.make(t, gib))
	var stuck atomic.Bool
	atCommit, goOn := make(chan struct{}), make(chan struct{})
	commit := sync.OnceFunc(func() { stuck.Store(true); close(atCommit); <-goOn })
	n.start(func(o *Options) {
		o.HangAfter = 6 * time.Second
		o.Fault = func(step string) error {
			switch {
			case step == "commit" && !stuck.Load():
				commit()
			case step == "seek in pool1" && stuck.Load():
				<-goOn
			}
			return nil
		}
	})
	adm, err := n.store.Admit(t.Context(), Request{ID: "stuck-1", Pool: "pool1", Enforcement: record.EnforcementNone,
		SizeBytes: mib})
	require.NoError(t, err)
	stuckAtCommit := make(chan error, 1)
	go func() { _, err := n.store.Create(context.Background(), adm[0]); stuckAtCommit <- err }()
	<-atCommit
	require.True(t, adm[0].Abandon())

	var missing *NotFoundError
	for range 3 {
		_, err := n.store.Find(t.Context(), "pvc-1")
		require.ErrorAs(t, err, &missing)
		require.Len(t, missing.Unseen, 1)
		require.Equal(t, "pool1", missing.Unseen[0].Pool)
		require.Equal(t, disk.OfflineHung, missing.Unseen[0].Reason)
	}
	var unseen *UnseenError
	require.ErrorAs(t, n.store.Delete(t.Context(), "pvc-1", purge), &unseen)
	require.EqualValues(t, 1, n.store.pools[0].silent.Load(), "no more than one waits for the disk")
	v := n.mustCreate(Request{ID: "pvc-2", Pool: "pool2", Enforcement: record.EnforcementNone, SizeBytes: mib})
	require.Equal(t, "pool2", v.Pool)

	// The one that was given up is not there, and its lock is not waited for.
	_, err = n.store.Find(t.Context(), "stuck-1")
	require.ErrorAs(t, err, &missing)
	_, err = n.create(Request{ID: "stuck-1", Pool: "pool2", Enforcement: record.EnforcementNone, SizeBytes: mib})
	var hung *disk.OfflineError
	require.ErrorAs(t, err, &hung)
	require.Equal(t, "pool1", hung.Pool)

	stuck.Store(false)
	close(goOn)
	require.ErrorIs(t, <-stuckAtCommit, errAbandoned)
	comesTrue(t, func() bool { return n.store.pools[0].silent.Load() == 0 }, "the disk answers")
	_, err = n.store.Find(t.Context(), "pvc-1")
	require.ErrorAs(t, err, &missing)
	require.Empty(t, missing.Unseen)
	n.mustCreate(Request{ID: "stuck-1", Pool: "pool2", Enforcement: record.EnforcementNone, SizeBytes: mib})
}

// TestALookIsNotWaitedForByOthers holds up a volume that comes up at a start:
// that waits for it, and another look does not wait for the start.
func TestALookIsNotWaitedForByOthers(t *testing.T) {
	path := onExt4.make(t, gib)
	n := newNode(t, path)
	v := n.mustCreate(block("pvc-1"))
	n.reboot()
	stuck, goOn := make(chan struct{}), make(chan struct{})
	s := n.prepare(func(o *Options) {
		once := sync.OnceFunc(func() { close(stuck); <-goOn })
		o.Fault = func(step string) error {
			if step == "attach again" {
				once()
			}
			return nil
		}
	})
	started := make(chan struct{})
	go func() { defer close(started); s.Refresh(context.Background()) }()
	<-stuck
	looked := make(chan struct{})
	go func() { defer close(looked); s.Glance(context.Background()) }()
	select {
	case <-looked:
	case <-started:
		t.Error("the start did not wait for its volume")
	case <-time.After(testPatience / 2):
		t.Error("a look waited for another's volume")
	}
	close(goOn)
	<-started
	<-looked
	got, err := s.Get(v.ID)
	require.NoError(t, err)
	require.NoError(t, got.Unavailable)
}

// TestNothingIsMeasuredUnderTheLockOfAdmission has a disk that does not say
// what room it has, from the moment on in which a choice among the pools
// begins.
func TestNothingIsMeasuredUnderTheLockOfAdmission(t *testing.T) {
	n := newNode(t, onExt4.make(t, gib), onExt4.make(t, gib))
	s := n.store
	s.Pools() // they were measured once
	slow, fast := s.pools[0], s.pools[1]
	measured := s.measuring
	s.measuring = func(p *pool, space *filesystemSpace) (int64, int64, error) {
		if !s.admission.TryLock() {
			t.Error("measured with the lock held")
		} else {
			s.admission.Unlock()
		}
		return measured(p, space)
	}
	for range 3 {
		slow.books().expire()
		fast.books().expire()
		requests := []Request{block("pvc-1"), block("pvc-2")}
		for i := range requests {
			require.NoError(t, requests[i].normalize())
		}
		admitted, err := s.admitAll(requests)
		require.NoError(t, err)
		for _, a := range admitted {
			a.Cancel()
		}
	}
}
