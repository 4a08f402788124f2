package store

import (
	"context"
	"fmt"
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
