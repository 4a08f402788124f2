package store

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/nodeagent/beneath"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/loop"
	"github.com/quarry-storage/quarry/nodeagent/mount"
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
		f, err = openProven(v, dir)
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
		f, d, err := deviceOf(v, dir)
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
func (s *Store) Usage(ctx context.Context, id string) (Usage, error) {
	var u Usage
	err := s.withVolume(ctx, id, func(v *volume, r *disk.Root, _ *beneath.Dir) (err error) {
		if v.rec.Backend == record.BackendDirectory {
			u, err = directoryUsage(r, &v.rec)
		}
		return err
	})
	if err != nil {
		return Usage{}, fmt.Errorf("usage of volume %s: %w", id, err)
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

func openProven(v *volume, dir *beneath.Dir) (*os.File, error) {
	switch {
	case v.rec.Backend == record.BackendDirectory:
		return openData(v, dir)
	case v.rec.VolumeMode == record.ModeBlock:
		f, _, err := deviceOf(v, dir)
		return f, err
	}

	_, dev, err := deviceOf(v, dir)
	if err != nil {
		return nil, err
	}

	inner, err := dir.OpenDir(record.MountDir)
	if err != nil {
		return nil, &InactiveError{ID: v.rec.ID, Detail: err.Error()}
	}
	defer inner.Close()

	if ok, err := mount.IsDeviceMountedAt(inner.File(), dev.Dev); err != nil {
		return nil, err
	} else if !ok {
		return nil, &InactiveError{ID: v.rec.ID, Detail: "its filesystem is not mounted"}
	}

	return openData(v, inner)
}

// openData opens the data directory in parent, which must not be a mount of its
// own.
func openData(v *volume, parent *beneath.Dir) (*os.File, error) {
	p, err := parent.NoCross()
	if err != nil {
		return nil, err
	}
	defer p.Close()

	f, err := p.OpenFile(record.DataDir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, &disk.MismatchError{ID: v.rec.ID, Detail: fmt.Sprintf("its data directory: %v", err)}
	}

	return f, nil
}

// deviceOf returns the loop device over the volume's image. For a Block volume
// it is returned open as well.
func deviceOf(v *volume, dir *beneath.Dir) (f *os.File, dev loop.Device, err error) {
	image, err := dir.OpenFile(record.ImageFile, unix.O_PATH, 0)
	if err != nil {
		return nil, dev, &disk.MismatchError{ID: v.rec.ID, Detail: fmt.Sprintf("its image: %v", err)}
	}
	defer image.Close()

	if dev, err = deviceOver(v, image); err != nil || v.rec.VolumeMode != record.ModeBlock {
		return nil, dev, err
	}
	if f, err = os.Open(dev.Path); err != nil {
		return nil, dev, err
	}

	// Asked again, now that nobody can give the device another image.
	again, err := deviceOver(v, image)
	if err == nil && again.Dev != dev.Dev {
		err = &InactiveError{ID: v.rec.ID, Detail: "its device changed"}
	}

	if number, e := mount.BlockDevice(f); err == nil && (e != nil || number != dev.Dev) {
		err = errors.Join(&InactiveError{ID: v.rec.ID, Detail: dev.Path + " is another device"}, e)
	}

	if err != nil {
		return nil, dev, errors.Join(err, f.Close())
	}

	return f, dev, nil
}

func deviceOver(v *volume, image *os.File) (loop.Device, error) {
	found, err := loop.Find(image)
	if err != nil {
		return loop.Device{}, err
	}
	if len(found) != 1 {
		return loop.Device{}, &InactiveError{ID: v.rec.ID,
			Detail: fmt.Sprintf("%d loop devices are over its image", len(found))}
	}

	return found[0], nil
}
