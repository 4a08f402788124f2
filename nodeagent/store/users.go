package store

import (
	"context"
)

// CheckUnused returns who uses the volume, in any mount namespace of the machine:
// an *InUseError, or nil when nobody does. What the agent itself holds (its mount
// of the filesystem, its loop device) does not count, and a volume that is not
// known has no users. It changes nothing.
func (s *Store) CheckUnused(ctx context.Context, id string) error {
	v := s.lookup(id)
	if v == nil {
		return nil
	}

	r, err := v.pool.open()
	if err != nil {
		return err
	}
	defer r.Close()

	dir, err := r.OpenDir(id)
	if err != nil {
		return err
	}
	defer dir.Close()

	return s.backends.CheckUnused(&v.rec, dir, true)
}
