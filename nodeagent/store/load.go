package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"time"

	"github.com/quarry-storage/quarry/nodeagent/beneath"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// bringUpAtOnce is how many volumes are brought up at the same time after a
// reboot.
const bringUpAtOnce = 8

// bringUpWait is how long a start waits for volumes to come up. One whose
// filesystem has to be repaired may take hours; the others are served
// meanwhile.
const bringUpWait = time.Minute

// load reads what is on the pools whose disks came, clears away what a crash
// left, and brings the volumes up, each filesystem by itself: one that hangs
// holds up no other. It waits for that no longer than wait; what is left goes
// on in the background.
//
// The pools are read in the order of the configuration, as long as none takes
// long, so that of a volume and a copy of it on another disk the same one is
// served each time.
func (s *Store) load(ctx context.Context, came [][]*pool, wait time.Duration) {
	if len(came) == 0 {
		return
	}

	s.soon(ctx, wait, func() {
		var wg sync.WaitGroup
		before := make(chan struct{})
		close(before)

		for _, pools := range came {
			turn, read := before, make(chan struct{})
			wg.Go(func() { s.loadFilesystem(ctx, pools, turn, read) })
			before = read
		}

		wg.Wait()
	})
}

// soon begins work in the background, and waits until it is done, and all that
// earlier calls began; for each no longer than wait after it began.
func (s *Store) soon(ctx context.Context, wait time.Duration, work func()) {
	began := &begun{since: time.Now(), done: make(chan struct{})}
	s.mu.Lock()
	s.begun = append(s.begun, began)
	s.mu.Unlock()

	s.background.Go(func() {
		defer close(began.done)
		work()
	})
	s.awaitBegun(ctx, wait)
}

// awaitBegun waits for what has been under way for less than wait.
func (s *Store) awaitBegun(ctx context.Context, wait time.Duration) {
	s.mu.Lock()
	s.begun = slices.DeleteFunc(s.begun, func(b *begun) bool { return isClosed(b.done) })
	all := slices.Clone(s.begun)
	s.mu.Unlock()

	if wait == 0 {
		return
	}

	for _, b := range all {
		left := wait - time.Since(b.since)
		if left <= 0 {
			continue
		}

		timer := time.NewTimer(left)
		select {
		case <-b.done:
		case <-timer.C:
			s.log.WarnContext(ctx,
				"some volumes take long to come up; the others are served meanwhile")
		}

		timer.Stop()
	}
}

// loadFilesystem is load for the pools of one filesystem. None of them goes
// online before all volumes and promises of all of them are known, since they
// share the filesystem: nobody must be told that a volume is not there, or be
// promised its space. It begins at its turn, or without it if that takes long,
// and closes done when it has read the pools.
func (s *Store) loadFilesystem(ctx context.Context, pools []*pool, turn <-chan struct{},
	done chan<- struct{}) {
	patience := time.NewTimer(s.patience.look)
	defer patience.Stop()

	select {
	case <-turn:
	case <-patience.C:
	}

	vols, read := s.scanAll(ctx, pools)
	close(done)
	for _, p := range read {
		if !p.loaded() {
			continue // its disk went away meanwhile
		}

		p.mu.Lock()
		uid, features := p.identity.UID, p.features
		p.mu.Unlock()

		s.log.InfoContext(ctx, "pool is online", "pool", p.name(), "uid", uid, "filesystem",
			features.Filesystem, "features", features)
		if err := p.with(func(r *disk.Root) error {
			s.sweepClaims(ctx, p, r)
			return s.sweepTmp(ctx, p, r)
		}); err != nil {
			s.log.WarnContext(ctx, "clear away what was left", "pool", p.name(), "error", err)
			s.freer.sweepAgain.Store(true)
		}
	}

	s.notify()
	s.bringAllUp(ctx, vols)
	s.freer.wake()
}

// scanAll registers what is on the pools, and returns the volumes and the pools
// that could be read.
func (s *Store) scanAll(ctx context.Context, pools []*pool) (vols []*volume, read []*pool) {
	for _, p := range pools {
		found, err := s.scan(ctx, p)
		if err == nil {
			vols, read = append(vols, found...), append(read, p)
			continue
		}

		s.log.ErrorContext(ctx, "read pool", "pool", p.name(), "error", err)
		p.mu.Lock()
		p.loading = false
		if p.offline == nil || p.offline.Reason == disk.OfflineLoading {
			p.offline = disk.OfflineFor(p.name(), err)
		}
		p.mu.Unlock()

		s.forgetPool(p, true)
		s.notify()
	}

	return vols, read
}

// loaded makes a pool online once all of it was read, and reports whether it
// is: its disk may have gone meanwhile.
func (p *pool) loaded() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.loading = false
	if p.offline == nil || p.offline.Reason != disk.OfflineLoading || p.space == nil {
		return false
	}
	p.offline = nil
	return true
}

func (s *Store) bringAllUp(ctx context.Context, vols []*volume) {
	var wg sync.WaitGroup
	slots := make(chan struct{}, bringUpAtOnce)
	for _, v := range vols {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			if err := s.comeBack(ctx, v); err != nil {
				s.log.ErrorContext(ctx, "bring volume up", "volume", v.id, "error", err)
			}
		})
	}

	wg.Wait()
}

// comeBack brings one volume up after a start, and carries on with its growth
// if that was under way.
func (s *Store) comeBack(ctx context.Context, v *volume) error {
	unlock, err := s.locks.Lock(ctx, v.id)
	if err != nil {
		return err
	}
	defer unlock()

	if s.lookup(v.id) != v {
		return nil // deleted meanwhile
	}

	if v.rec.Adopting != "" && v.rec.QuotaKind == record.QuotaProject {
		// Not all files of an adopted directory have their quota id. That may
		// take long, and no other volume waits for it: Create, Activate or
		// Drain finishes it. Its data is in its place meanwhile.
		return nil
	}
	if err := s.activateLocked(ctx, v); err != nil {
		return err
	}

	s.indexClaim(ctx, v, false)
	if v.rec.GrowingTo > v.rec.SizeBytes {
		return s.growLocked(ctx, v, v.rec.GrowingTo)
	}

	return nil
}

// scan registers the pool's volumes and trash.
func (s *Store) scan(ctx context.Context, p *pool) ([]*volume, error) {
	r, err := p.open()
	if err != nil {
		return nil, err
	}
	defer r.Close()

	p.mu.Lock()
	space := p.space
	p.mu.Unlock()

	if space == nil {
		return nil, p.gone()
	}

	vols, err := s.scanVolumes(ctx, p, r, space)
	if err != nil {
		return nil, err
	}
	if err := s.scanTrash(ctx, p, r, space); err != nil {
		return nil, err
	}

	s.dropStale(p, space)
	space.expire()
	return vols, nil
}

func (s *Store) scanVolumes(ctx context.Context, p *pool, r *disk.Root,
	space *filesystemSpace) ([]*volume, error) {
	names, err := r.Names()
	if err != nil {
		return nil, err
	}

	slices.Sort(names) // of two that name one quota id the same one is served each time
	var vols []*volume
	found := map[string]bool{}
	for _, name := range names {
		if record.CheckID(name) != nil || disk.IsLink(r.Dir, name) {
			// Not ours: lost+found, an administrator's own directory, the link
			// that an adoption left.
			continue
		}

		v, err := s.scanVolume(ctx, p, r, space, name)
		if errors.Is(err, fs.ErrNotExist) {
			continue // deleted since its name was read
		}

		if err != nil {
			s.markBroken(p, r, space, name, err)
			s.log.ErrorContext(ctx, "a directory of the pool cannot be read as a volume and is "+
				"left alone", "pool", p.name(), "name", name, "error", err)
			continue
		}

		if v == nil {
			continue // an adoption that moved nothing; it is in tmp now
		}

		found[name] = true
		vols = append(vols, v)
	}

	// Volumes that were known and are not there any more stay known, as not
	// available: that is how a loss is noticed.
	s.mu.Lock()
	defer s.mu.Unlock()

	for id, v := range s.volumes {
		if v.pool == p && !found[id] && s.broken[p.key(id)] == nil {
			v.unavailable = &disk.MismatchError{ID: id, Detail: "its directory is gone"}
			v.gone = true
		}
	}

	return vols, nil
}

// scanVolume registers one volume, and returns nil for an adoption that moved
// nothing, which it renames into tmp. It takes the volume's lock: the pool may
// have come back while an operation on the volume was under way.
func (s *Store) scanVolume(ctx context.Context, p *pool, r *disk.Root, space *filesystemSpace,
	name string) (*volume, error) {
	unlock, err := s.locks.Lock(ctx, name)
	if err != nil {
		return nil, err
	}
	defer unlock()
	return s.scanVolumeLocked(p, r, space, name)
}

// scanVolumeLocked is scanVolume with the volume's lock held.
func (s *Store) scanVolumeLocked(p *pool, r *disk.Root, space *filesystemSpace,
	name string) (*volume, error) {
	rec, err := disk.ReadEntry(r.Dir, name, name)
	if err != nil {
		return nil, err
	}

	if unmoved, err := disk.IsUnmoved(r.Dir, rec); err != nil {
		return nil, err
	} else if unmoved {
		tmp, err := r.Sub(record.TmpDir)
		if err != nil {
			return nil, err
		}
		defer tmp.Close()
		return nil, s.uncommitAdoption(r, tmp, rec)
	}

	s.mu.Lock()
	v := s.volumes[name]
	s.mu.Unlock()

	if copied := disk.CopyOn(r, p.name(), rec); copied != nil {
		if !s.wasMoved(v, rec) {
			return nil, copied
		}
		if err := s.settle(r, rec); err != nil {
			return nil, err
		}
	}

	if v != nil && v.pool != p {
		// Also while that pool is offline: its disk comes back, and what is
		// here may be a copy, older than the volume.
		if !s.hasLeft(v, p) {
			return nil, &record.UnreadableError{Reason: "pool " + v.pool.name() +
				" has a volume of this id too"}
		}

		s.forgetMoved(v)
		v = nil
	}

	if !space.own(p.key(name), rec) {
		return nil, &record.UnreadableError{Reason: fmt.Sprintf("its quota id %d is another "+
			"volume's too", rec.QuotaID)}
	}

	s.unmarkBroken(p, name)
	s.mu.Lock()
	defer s.mu.Unlock()

	if v == nil {
		v = &volume{id: name, pool: p}
		s.volumes[name] = v
	}

	v.rec, v.unavailable, v.gone, v.poolUID = *rec, errNotUp, false, r.UID
	p.promise(space, p.key(name), rec.Owed())
	return v, nil
}

func (s *Store) scanTrash(ctx context.Context, p *pool, r *disk.Root,
	space *filesystemSpace) error {
	trash, err := r.Sub(record.TrashDir)
	if disk.IsFull(err) {
		return nil // there is none yet, and a full disk has no room for one
	}
	if err != nil {
		return err
	}
	defer trash.Close()

	names, err := trash.Names()
	if err != nil {
		return err
	}

	for _, name := range names {
		id, ok := disk.TrashID(name)
		if !ok {
			continue
		}

		// The pool may have come back while an operation on this volume was
		// under way, which renames entries.
		unlock, err := s.locks.Lock(ctx, id)
		if err != nil {
			return err
		}

		s.scanTrashEntryLocked(p, r, space, trash, name, id)
		unlock()
	}

	return nil
}

// scanTrashEntryLocked registers one entry of the trash. It is called with the
// volume's lock held.
func (s *Store) scanTrashEntryLocked(p *pool, r *disk.Root, space *filesystemSpace,
	trash *beneath.Dir, name, id string) {
	t := &trashed{pool: p, entry: name, id: id, since: time.Now()}
	where := record.TrashDir + "/" + name
	note, err := disk.ReadNote(trash, name)
	switch {
	case err == nil:
		t.trash = *note
	case errors.Is(err, fs.ErrNotExist):
		return // it was restored or freed since its name was read
	case !disk.IsFreeing(name):
		// Nobody can say when it may be freed: it is kept, and reported.
		s.markBroken(p, r, space, where, err)
		return
	}

	rec, err := disk.ReadEntry(trash, name, id)
	if err == nil && !disk.IsFreeing(name) {
		if copied := disk.CopyOn(r, p.name(), rec); copied != nil {
			// Somebody copied it here, and nobody asked for its end.
			s.markBroken(p, r, space, where, copied)
			return
		}
	}

	s.unmarkBroken(p, where)
	owed := int64(0)
	if err == nil {
		t.rec = rec
		space.own(t.key(), rec)
		owed = rec.Owed()
	} else {
		rec := p.guess(r, r.Meta, where)
		owed = rec.Owed()
	}

	s.mu.Lock()
	if s.trash[t.key()] == nil {
		s.trash[t.key()] = t
	}
	s.mu.Unlock()

	if owed > 0 || t.rec != nil {
		p.promise(space, t.key(), owed)
	}
}

// hasLeft reports whether a volume is not on the pool where it was found
// before, now that pool p has one of its id: its disk is mounted in p's place
// (two disks were swapped, or put right), or a person moved its directory.
func (s *Store) hasLeft(v *volume, p *pool) bool {
	if v.poolUID != "" && v.poolUID == p.uid() {
		return true
	}
	return s.isMissing(v)
}

// forgetMoved takes a volume out of the ledger of its former pool's filesystem.
func (s *Store) forgetMoved(v *volume) {
	s.mu.Lock()
	if s.volumes[v.id] == v {
		delete(s.volumes, v.id)
	}
	s.mu.Unlock()

	if space := v.pool.books(); space != nil {
		key := v.pool.key(v.id)
		space.ledger.Release(key)
		space.ledger.Disown(key, uint32(v.rec.QuotaID))
	}
}
