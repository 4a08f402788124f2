package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// Trash lists the trash of all pools.
func (s *Store) Trash() []disk.Trashed {
	s.mu.Lock()
	defer s.mu.Unlock()

	now := time.Now()
	out := make([]disk.Trashed, 0, len(s.trash))
	for _, t := range s.trash {
		out = append(out, disk.Trashed{
			Pool:      t.pool.name(),
			Entry:     t.entry,
			Trash:     t.trash,
			Volume:    t.rec,
			Remaining: max(t.remaining(now), 0),
		})
	}

	return out
}

// deleteTrashedLocked makes a volume's entries of the trash due when it is
// deleted for good. It is called with the volume's lock held.
func (s *Store) deleteTrashedLocked(id string, how record.Deletion) error {
	for _, t := range s.entriesOf(id) {
		// The call that put it there may have ended before that was durable.
		if err := t.pool.with(func(r *disk.Root) error {
			trash, err := r.Sub(record.TrashDir)
			if err != nil {
				return err
			}
			defer trash.Close()
			return errors.Join(trash.Sync(), r.Sync())
		}); err != nil {
			return fmt.Errorf("delete volume %s: %w", id, err)
		}
		if how.OnDelete == "trash" {
			continue
		}
		if err := s.purgeLocked(t); err != nil {
			return fmt.Errorf("purge %s: %w", t.entry, err)
		}
	}

	s.freer.wake()
	return nil
}

// purgeLocked notes durably that an entry is due, whatever is left of its
// retention. It is called with the volume's lock held.
func (s *Store) purgeLocked(t *trashed) error {
	s.mu.Lock()
	next := t.trash
	s.mu.Unlock()

	if next.Purge || disk.IsFreeing(t.entry) {
		return nil
	}

	next.Purge = true
	if err := s.fault("purge"); err != nil {
		return err
	}

	err := s.writeTrash(t, next)
	if !disk.IsFull(err) {
		return err
	}

	// A full disk has no block for the note, but room for another name.
	return t.pool.with(func(r *disk.Root) error {
		trash, err := r.Sub(record.TrashDir)
		if err != nil {
			return err
		}
		defer trash.Close()
		return s.beginFreeingLocked(t, trash)
	})
}

// purgeOne is purgeLocked for one that may have been restored or freed by now.
func (s *Store) purgeOne(ctx context.Context, t *trashed) error {
	unlock, err := s.locks.Lock(ctx, t.id)
	if err != nil {
		return err
	}
	defer unlock()

	s.mu.Lock()
	there := s.trash[t.key()] == t
	s.mu.Unlock()

	if !there {
		return nil
	}

	return s.purgeLocked(t)
}

// Restore brings a volume back from the trash, the one that was deleted last if
// there are several of its id. The error is a *NotFoundError if there is none,
// or if its space is being freed already.
func (s *Store) Restore(ctx context.Context, id string) (Volume, error) {
	if err := record.CheckID(id); err != nil {
		return Volume{}, err
	}

	unlock, err := s.locks.Lock(ctx, id)
	if err != nil {
		return Volume{}, err
	}
	defer unlock()

	if v := s.lookup(id); v != nil {
		if err := s.activateLocked(ctx, v); err != nil {
			return Volume{}, err
		}
		s.indexClaim(ctx, v, false)
		return s.Get(id)
	}

	// What is in the trash may have come there without us.
	v, unseen, err := s.seekAllLocked(ctx, id)
	if copied := (*disk.CopyError)(nil); errors.As(err, &copied) && len(s.entriesOf(id)) > 0 {
		err = nil // it is the volume that comes back, not the copy
	}

	if err != nil {
		return Volume{}, fmt.Errorf("restore volume %s: %w", id, err)
	} else if v != nil {
		if err := s.activateLocked(ctx, v); err != nil {
			return Volume{}, err
		}
		return s.Get(id)
	}

	var last *trashed
	for _, t := range s.entriesOf(id) {
		if t.rec != nil && !disk.IsFreeing(t.entry) && (last == nil ||
			t.trash.DeletedAt.After(last.trash.DeletedAt)) {
			last = t
		}
	}

	if last == nil {
		return Volume{}, &NotFoundError{ID: id, Unseen: unseen}
	}

	v, err = s.restoreLocked(last)
	if err != nil {
		return Volume{}, fmt.Errorf("restore volume %s: %w", id, err)
	}

	s.notifyOf(id)
	if err := s.activateLocked(ctx, v); err != nil {
		return Volume{}, err
	}

	s.indexClaim(ctx, v, false)
	return s.Get(id)
}

// restoreLocked is called with the volume's lock held.
func (s *Store) restoreLocked(t *trashed) (*volume, error) {
	// The freer renames an entry before it frees it; one of the two renames is
	// first.
	r, err := t.pool.open()
	if err != nil {
		return nil, err
	}
	defer r.Close()

	trash, err := r.Sub(record.TrashDir)
	if err != nil {
		return nil, err
	}
	defer trash.Close()

	if err := s.fault("rename out of trash"); err != nil {
		return nil, err
	}

	if err := trash.Rename(t.entry, r.Dir, t.id); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, &NotFoundError{ID: t.id}
		}
		return nil, err
	}

	v := &volume{id: t.id, pool: t.pool, rec: *t.rec, unavailable: errNotUp, poolUID: t.pool.uid()}
	s.mu.Lock()
	delete(s.trash, t.key())
	s.volumes[t.id] = v
	s.mu.Unlock()

	if space := t.pool.books(); space != nil {
		space.move(t.key(), t.pool.key(t.id), t.rec)
		// Needed also if the pool was just read anew.
		t.pool.promise(space, t.pool.key(t.id), t.rec.Owed())
	}

	if err := s.fault("sync restore"); err != nil {
		return nil, err
	}
	if err := errors.Join(r.Sync(), trash.Sync()); err != nil {
		return nil, err
	}

	dir, err := r.OpenDir(t.id)
	if err != nil {
		return nil, err
	}
	defer dir.Close()

	if err := s.fault("remove trash record"); err != nil {
		return nil, err
	}

	// It is only a note by now: what counts is where the directory is.
	return v, dir.Unlink(record.TrashedFile)
}
