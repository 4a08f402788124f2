package store

import (
	"context"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/nodeagent/beneath"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// Untouched reports whether nothing was ever put into the volume, or all of it was taken away again: no name in what its user
// sees, no block of a raw image written. It brings the volume up to look. A volume that is not there is a *NotFoundError; one
// that cannot be looked at is an error, and nothing is known of it.
func (s *Store) Untouched(ctx context.Context, id string) (bool, error) {
	unlock, err := s.locks.Lock(ctx, id)
	if err != nil {
		return false, err
	}
	defer unlock()
	v := s.lookup(id)
	if v == nil {
		return false, &NotFoundError{ID: id}
	}
	if err := s.activate(ctx, v); err != nil {
		return false, err
	}
	r, err := v.pool.open()
	if err != nil {
		return false, err
	}
	defer r.Close()
	dir, err := r.OpenDir(id)
	if err != nil {
		return false, err
	}
	defer dir.Close()

	var untouched bool
	switch {
	case v.rec.VolumeMode == record.ModeBlock:
		untouched, err = isUnwritten(dir)
	case v.rec.Backend == record.BackendLoop:
		untouched, err = isEmpty(dir, record.MountDir, record.DataDir)
	default:
		untouched, err = isEmpty(dir, record.DataDir)
	}
	if err != nil {
		return false, fmt.Errorf("look whether volume %s holds anything: %w", id, err)
	}
	return untouched, nil
}

// isEmpty reports whether the directory at the end of names has no entries.
func isEmpty(dir *beneath.Dir, names ...string) (bool, error) {
	for i, name := range names {
		next, err := dir.OpenDir(name)
		if i > 0 {
			err = errors.Join(err, dir.Close())
		}
		if err != nil {
			return false, err
		}
		dir = next
	}
	defer dir.Close()
	_, err := dir.File().Readdirnames(1)
	if errors.Is(err, io.EOF) {
		return true, nil
	}
	return false, err
}

// isUnwritten reports whether an image has no data: unwritten extents and holes read as zeros and are none.
func isUnwritten(dir *beneath.Dir) (bool, error) {
	image, err := dir.OpenFile(record.ImageFile, unix.O_RDONLY, 0)
	if err != nil {
		return false, err
	}
	defer image.Close()
	if err := image.Sync(); err != nil { // what is still in a cache is no extent yet
		return false, err
	}
	_, err = unix.Seek(int(image.Fd()), 0, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		return true, nil
	}
	return false, err
}
