package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

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
