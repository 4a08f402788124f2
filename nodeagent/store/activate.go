package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/quarry-storage/quarry/nodeagent/backend"
	"github.com/quarry-storage/quarry/nodeagent/disk"
)

// Activate brings the volume up so that its path can be used: after a reboot,
// say. A second call changes nothing.
func (s *Store) Activate(ctx context.Context, id string) (Volume, error) {
	unlock, err := s.locks.Lock(ctx, id)
	if err != nil {
		return Volume{}, err
	}
	defer unlock()

	v, unseen, err := s.seekAllLocked(ctx, id)
	if err != nil {
		return Volume{}, fmt.Errorf("activate volume %s: %w", id, err)
	}
	if v == nil {
		return Volume{}, &NotFoundError{ID: id, Unseen: unseen}
	}
	if err := s.activateLocked(ctx, v); err != nil {
		return Volume{}, err
	}

	return s.Get(id)
}

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

// upLocked has the backend bring the volume up, and keeps what it stands on. It
// is called with the volume's lock held.
func (s *Store) upLocked(ctx context.Context, v *volume, open *backend.Volume) error {
	s.setStanding(v, nil)
	up, err := s.backends.Of(open.Rec).Up(ctx, open, v.pool.directIO)
	var lost *backend.EnforcementError
	if errors.As(err, &lost) {
		// A limit that can not be had does not take the data away from its pod;
		// it is said, and looked at again (Recheck).
		s.setNotEnforced(v, lost)
		return nil
	}
	if err != nil || up == nil {
		return err
	}

	s.leaveFormer(v, up.Device)
	s.setStanding(v, up)
	return nil
}
