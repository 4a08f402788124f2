package store

import (
	"context"
	"fmt"
	"os"

	"github.com/quarry-storage/quarry/nodeagent/backend"
	"github.com/quarry-storage/quarry/nodeagent/beneath"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/loop"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// Open returns what the volume's user is to see, open and proven to be this
// volume: the data directory (O_PATH), or for a Block volume its loop device
// (O_RDONLY, so that the device cannot become another's while it is open). It
// changes nothing: a volume that is not up is an *InactiveError.
//
// Package publish binds this descriptor, and so no path that could mean
// something else by now (Kubernetes issue 120853). The caller has to close it
// soon: while it is open the volume cannot be taken down.
func (s *Store) Open(ctx context.Context, id string) (*os.File, error) {
	var f *os.File
	err := s.withVolume(ctx, id, func(v *volume, r *disk.Root, dir *beneath.Dir) (err error) {
		f, err = s.backends.Of(&v.rec).Open(
			&backend.Volume{Pool: v.pool.name(), Rec: &v.rec, Root: r, Dir: dir})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open volume %s: %w", id, err)
	}

	return f, nil
}

// Device returns the loop device of a Block volume that is up.
func (s *Store) Device(ctx context.Context, id string) (loop.Device, error) {
	var dev loop.Device
	err := s.withVolume(ctx, id, func(v *volume, _ *disk.Root, dir *beneath.Dir) error {
		f, d, err := backend.DeviceOf(&v.rec, dir)
		if f != nil {
			defer f.Close()
		}

		dev = d
		return err
	})
	if err != nil {
		return loop.Device{}, fmt.Errorf("device of volume %s: %w", id, err)
	}

	return dev, nil
}

// Usage returns what the volume's quota counts. Known is false for volumes
// without one, which are as full as their filesystem says.
func (s *Store) Usage(ctx context.Context, id string) (backend.Usage, error) {
	var u backend.Usage
	err := s.withVolume(ctx, id, func(v *volume, r *disk.Root, _ *beneath.Dir) (err error) {
		u, err = s.backends.Of(&v.rec).Usage(r, &v.rec)
		return err
	})
	if err != nil {
		return backend.Usage{}, fmt.Errorf("usage of volume %s: %w", id, err)
	}

	return u, nil
}

// withVolume calls f with the volume's lock held and its pool and directory
// open.
func (s *Store) withVolume(ctx context.Context, id string,
	f func(*volume, *disk.Root, *beneath.Dir) error) error {
	if err := record.CheckID(id); err != nil {
		return err
	}

	unlock, err := s.locks.Lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()

	v, unseen, err := s.seekAllLocked(ctx, id)
	if err != nil {
		return err
	}
	if v == nil {
		return &NotFoundError{ID: id, Unseen: unseen}
	}

	r, err := v.pool.open()
	if err != nil {
		return err
	}
	defer r.Close()

	dir, err := r.OpenDir(id)
	if err != nil {
		return &disk.MismatchError{ID: id, Detail: fmt.Sprintf("its directory: %v", err)}
	}
	defer dir.Close()

	return f(v, r, dir)
}
