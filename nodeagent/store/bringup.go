package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/quarry-storage/quarry/nodeagent/backend"
	"github.com/quarry-storage/quarry/nodeagent/disk"
)

// activateLocked is called with the volume's lock held. What it finds is kept
// as the volume's availability.
func (s *Store) activateLocked(ctx context.Context, v *volume) error {
	err := s.bringUpLocked(ctx, v)
	if err != nil {
		err = fmt.Errorf("activate volume %s: %w", v.rec.ID, err)
	}

	s.mu.Lock()
	changed := (v.unavailable == nil) != (err == nil)
	v.unavailable = err
	s.mu.Unlock()

	if changed {
		s.notifyOf(v.id)
	}

	return err
}

// bringUpLocked proves that a volume is what its record says, and does what it
// lacks to be used. It is called with the volume's lock held.
func (s *Store) bringUpLocked(ctx context.Context, v *volume) error {
	r, err := v.pool.open()
	if err != nil {
		return err
	}
	defer r.Close()

	dir, err := r.OpenDir(v.rec.ID)
	s.setGone(v, errors.Is(err, fs.ErrNotExist))
	if err != nil {
		return &disk.MismatchError{ID: v.rec.ID, Detail: fmt.Sprintf("its directory: %v", err)}
	}
	defer dir.Close()

	if v.rec.Adopting != "" {
		if err := s.finishAdoptionLocked(ctx, v, r, dir); err != nil {
			return err
		}
	}

	if err := s.ensureLink(r, &v.rec); err != nil {
		return err
	}

	return s.upLocked(ctx, v, &backend.Volume{Pool: v.pool.name(), Rec: &v.rec, Root: r, Dir: dir})
}
