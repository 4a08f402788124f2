package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/quarry-storage/quarry/nodeagent/beneath"
	"github.com/quarry-storage/quarry/nodeagent/btrfs"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/quota"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

const (
	// retryFreeing is how long an entry that could not be freed is left alone.
	retryFreeing = 30 * time.Second
	// retryKernel is how long the kernel is left to free a deleted btrfs
	// subvolume before it is asked again.
	retryKernel = 2 * time.Second
	// noteRetention is how often it is written down how much of a retention has
	// passed.
	noteRetention = time.Hour
)

// kernelBusyError says that the kernel is still freeing a subvolume, which is
// not a failure.
type kernelBusyError struct{ subvolume uint64 }

func (e *kernelBusyError) Error() string {
	return fmt.Sprintf("the kernel is still freeing subvolume %d", e.subvolume)
}

// Freed returns how many bytes of images and how many files were freed since
// the store was opened.
func (s *Store) Freed() (bytes, files int64) { return s.freer.bytes.Load(), s.freer.files.Load() }

func (s *Store) freeOrRetry(ctx context.Context, space *filesystemSpace, t *trashed) {
	others := func() bool {
		next, _ := s.freer.next(space, time.Now())
		return next != nil && next != t
	}
	s.mu.Lock()
	t.served = time.Now()
	s.mu.Unlock()

	err := s.freer.free(&turn{Context: ctx, others: others}, t)
	if err == nil || ctx.Err() != nil || errors.Is(err, errSlice) {
		return
	}

	retry := retryFreeing
	if _, ok := errors.AsType[*kernelBusyError](err); ok {
		retry = retryKernel
	} else {
		s.log.WarnContext(ctx, "free trash", "pool", t.pool.name(), "entry", t.entry, "error", err)
	}

	s.mu.Lock()
	t.retry = time.Now().Add(retry)
	s.mu.Unlock()
}

// Drain does what was left for later and is due now, adoptions and trash. It is
// for tests and for programs that end.
func (s *Store) Drain(ctx context.Context) error {
	s.sweepLeftovers(ctx)
	for _, v := range s.List() {
		if v.Unavailable != nil && v.Adopting != "" {
			if _, err := s.Activate(ctx, v.ID); err != nil {
				return err
			}
		}
	}

	for {
		t := s.freer.nextOfAll(time.Now())
		if t == nil {
			return nil
		}

		err := s.freer.free(ctx, t)
		if busy, ok := errors.AsType[*kernelBusyError](err); ok {
			err = t.pool.with(func(r *disk.Root) error {
				return btrfs.WaitFreed(ctx, r.File(), busy.subvolume)
			})
		}

		if err != nil {
			return fmt.Errorf("free %s: %w", t.entry, err)
		}
	}
}

// next returns the entry of a filesystem whose turn it is, or how long to wait
// for one. Of the entries that are due it is the one whose last turn is longest
// ago; of those that had none, the one that was deleted first.
func (f *freer) next(space *filesystemSpace, now time.Time) (*trashed, time.Duration) {
	s := f.store
	s.mu.Lock()
	defer s.mu.Unlock()

	var due *trashed
	wait := noteRetention
	for _, t := range s.trash {
		if t.pool.books() != space {
			continue
		}

		left := max(t.remaining(now), t.retry.Sub(now))
		if left > 0 {
			wait = min(wait, left)
			continue
		}
		if due == nil || t.before(due) {
			due = t
		}
	}

	return due, wait
}

// before reports whether t's turn comes before other's.
func (t *trashed) before(other *trashed) bool {
	if !t.served.Equal(other.served) {
		return t.served.Before(other.served)
	}
	return t.trash.DeletedAt.Before(other.trash.DeletedAt)
}

// nextOfAll is next over all filesystems, for Drain.
func (f *freer) nextOfAll(now time.Time) *trashed {
	for _, space := range f.store.allSpaces() {
		if t, _ := f.next(space, now); t != nil {
			return t
		}
	}
	return nil
}

// toNote returns the entries of a filesystem of whose retention so much passed
// since it was last written down that it is to be written down again.
func (s *Store) toNote(space *filesystemSpace, now time.Time) []*trashed {
	s.mu.Lock()
	defer s.mu.Unlock()

	var waiting []*trashed
	for _, t := range s.trash {
		if t.pool.books() == space && t.remaining(now) > 0 && now.Sub(t.since) >= noteRetention &&
			now.Sub(t.noted) >= noteRetention {
			waiting = append(waiting, t)
		}
	}

	return waiting
}

// noteRetention writes down how much of each retention on a filesystem has
// passed.
func (s *Store) noteRetention(ctx context.Context, space *filesystemSpace, now time.Time) {
	for _, t := range s.toNote(space, now) {
		s.mu.Lock()
		t.noted = now
		s.mu.Unlock()

		err := s.changeTrash(ctx, t, func(note *record.Trash) {
			note.ElapsedSeconds = int64(t.elapsed(now) / time.Second)
		})
		if err != nil {
			s.log.WarnContext(ctx, "note a trash entry's retention", "entry", t.entry, "error", err)
		}
	}
}

func (f *freer) free(ctx context.Context, t *trashed) error {
	space := t.pool.books()
	if space == nil {
		return t.pool.gone()
	}

	space.one.Lock()
	defer space.one.Unlock()

	s := f.store
	r, err := t.pool.open()
	if err != nil {
		return err
	}
	defer r.Close()

	trash, err := r.Sub(record.TrashDir)
	if err != nil {
		return err
	}
	defer trash.Close()

	if gone, err := f.pointOfNoReturn(ctx, t, trash); err != nil || gone {
		return err
	}
	if err := f.freeEntry(ctx, t, r, trash); err != nil {
		return err
	}
	if features, _, err := t.pool.state(); err == nil {
		if err := settleFreed(r, features.Filesystem); err != nil {
			return err
		}
	}

	s.mu.Lock()
	delete(s.trash, t.key())
	s.mu.Unlock()

	if space := t.pool.books(); space != nil {
		space.ledger.Release(t.key())
		if t.rec != nil {
			space.ledger.Disown(t.key(), uint32(t.rec.QuotaID))
		}
		space.expire()
	}

	s.notifyOf(t.id)
	return nil
}

// pointOfNoReturn renames the entry so that it cannot be restored any more.
// gone is true if somebody restored it meanwhile.
func (f *freer) pointOfNoReturn(ctx context.Context, t *trashed, trash *beneath.Dir) (gone bool,
	err error) {
	s := f.store
	unlock, err := s.locks.Lock(ctx, t.id)
	if err != nil {
		return false, err
	}
	defer unlock()

	s.mu.Lock()
	there := s.trash[t.key()] == t
	s.mu.Unlock()

	if !there {
		return true, nil
	}
	if disk.IsFreeing(t.entry) {
		return false, nil
	}
	if err := s.fault("free: point of no return"); err != nil {
		return false, err
	}

	return false, s.beginFreeingLocked(t, trash)
}

// freeEntry empties an entry and removes it. Its records go last, since they
// say what else has to be given back.
func (f *freer) freeEntry(ctx context.Context, t *trashed, r *disk.Root, trash *beneath.Dir) error {
	s := f.store
	opened, err := trash.OpenDir(t.entry)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // an earlier process removed it and was ended right after
	}
	if err != nil {
		return err
	}
	defer opened.Close()

	if err := s.backends.Release(ctx, opened); err != nil {
		return err
	}

	entry, err := opened.NoCross()
	if err != nil {
		return err
	}
	defer entry.Close()

	if err := f.loosen(t, r, entry); err != nil {
		return err
	}

	scrub := t.trash.Deletion.Scrub
	if err := f.freeImage(ctx, entry, scrub); err != nil {
		return err
	}
	if err := f.freeTree(ctx, entry, scrub); err != nil {
		return err
	}
	if err := s.fault("free: quota"); err != nil {
		return err
	}
	if err := f.releaseQuota(t, r); err != nil {
		return err
	}

	for _, name := range []string{record.VolumeFile, record.TrashedFile} {
		if err := s.fault("free: record"); err != nil {
			return err
		}
		if err := errors.Join(entry.Unlink(name),
			entry.Unlink(beneath.Temporary(name))); err != nil {
			return err
		}
	}

	if err := s.fault("free: last"); err != nil {
		return err
	}

	return trash.Rmdir(t.entry)
}

// releaseQuota gives a directory volume's quota back, once no file carries it
// any more.
func (f *freer) releaseQuota(t *trashed, r *disk.Root) error {
	if t.rec == nil || t.rec.QuotaKind == "" {
		return nil
	}

	space := t.pool.books()
	if space == nil {
		return fmt.Errorf("pool %s is not there", t.pool.name())
	}

	id := uint32(t.rec.QuotaID)

	// The record may name another volume's quota id, or one that is not ours:
	// their limits must stay.
	if !quota.IsOurs(id) || !space.owns(t.key(), t.rec) {
		return nil
	}

	switch t.rec.QuotaKind {
	case record.QuotaProject:
		return quota.Clear(r.File(), id)
	case record.QuotaBtrfs:
		err := btrfs.RemoveGroup(r.File(), id)
		var used *btrfs.ErrGroupInUse
		if errors.As(err, &used) && used.Usage > 0 {
			// The subvolume is gone, and its count is read as of the last
			// commit.
			if err := btrfs.Sync(r.File()); err != nil {
				return err
			}
		}

		// The volume is gone all the same if something else is in its group.
		if errors.As(err, &used) && !used.Deleted {
			f.store.log.Info("a deleted volume's qgroup is dissolved with what is not the "+
				"volume's in it", "entry", t.entry, "found", used)
			err = btrfs.DissolveGroup(r.File(), id)
		}

		// The kernel's cleaner thread frees subvolumes later. Until then the
		// group is in use and the space is taken.
		if errors.As(err, &used) && used.Deleted {
			return &kernelBusyError{used.Subvolume}
		}

		return err
	}

	return nil
}
