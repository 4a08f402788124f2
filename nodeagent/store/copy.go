package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// settle writes into a volume's record that it is on this pool now.
func (s *Store) settle(r *disk.Root, rec *record.Volume) error {
	dir, err := r.OpenDir(rec.ID)
	if err != nil {
		return err
	}
	defer dir.Close()

	if err := s.fault("settle"); err != nil {
		return err
	}

	next := *rec
	next.PoolUID = r.UID
	if err := disk.WriteVolume(dir, &next); err != nil {
		return err
	}

	*rec = next
	return nil
}

// next is the record of a volume as it is to be written next.
func (v *volume) next() record.Volume {
	rec := v.rec
	if v.poolUID != "" {
		rec.PoolUID = v.poolUID
	}
	return rec
}

// wasMoved reports whether a directory whose record names another pool is the
// volume known as v: somebody moved it since it was seen there.
func (s *Store) wasMoved(v *volume, rec *record.Volume) bool {
	return v != nil && v.poolUID == rec.PoolUID && v.rec.CreatedAt.Equal(rec.CreatedAt) &&
		s.isMissing(v)
}

// mayBeOn reports whether the pool with identity uid may be one of those that
// could not be looked at.
func (s *Store) mayBeOn(uid string, unseen []*disk.OfflineError) bool {
	for _, off := range unseen {
		for _, p := range s.pools {
			p.mu.Lock()
			known := p.expect.UID
			p.mu.Unlock()

			if p.name() == off.Pool && off.Reason != disk.OfflineDuplicate &&
				(known == "" || known == uid) {
				return true
			}
		}
	}

	return false
}

// TakeCopy makes the volume of a copy, and writes that down. The caller has to
// know that the volume was moved there, or that there is no other any more. The
// error is a *CopyError if that cannot be true: the pool that the record names
// has the volume, has it in its trash, or cannot be looked at. A volume that is
// there already is left as it is.
func (s *Store) TakeCopy(ctx context.Context, id string) error {
	if err := record.CheckID(id); err != nil {
		return err
	}

	unlock, err := s.locks.Lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()

	v, unseen, err := s.seekAllLocked(ctx, id)
	var copied *disk.CopyError
	switch {
	case err == nil && v == nil:
		return &NotFoundError{ID: id, Unseen: unseen}
	case !errors.As(err, &copied) || len(s.entriesOf(id)) > 0:
		return err
	}

	for _, p := range s.pools {
		if p.name() == copied.Pool {
			return s.takeCopyLocked(ctx, p, id)
		}
	}

	return err
}

func (s *Store) takeCopyLocked(ctx context.Context, p *pool, id string) error {
	_, space, err := p.state()
	if err != nil {
		return err
	}

	err = p.with(func(r *disk.Root) error {
		rec, err := disk.ReadEntry(r.Dir, id, id)
		if err != nil {
			return err
		}
		if disk.CopyOn(r, p.name(), rec) != nil {
			if err := s.settle(r, rec); err != nil {
				return err
			}
		}

		_, err = s.scanVolumeLocked(p, r, space, id)
		return err
	})
	if err != nil {
		return fmt.Errorf("take volume %s, moved to pool %s: %w", id, p.name(), err)
	}

	s.log.WarnContext(ctx, "a volume was moved from another pool", "pool", p.name(), "volume", id)
	s.notify()
	return nil
}
