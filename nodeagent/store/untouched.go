package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/nodeagent/beneath"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// DeleteUntouched is Delete for a volume that nobody is known to have been
// given. It deletes only an empty one: no entry in the directory that its user
// sees, no block of a raw image written. Any other stays as it was, and the
// error is a *NotEmptyError; one that is in the trash because somebody asked
// for that stays there, too. This is decided with the volume's lock held, about
// whatever is found on any disk, before the proof that nothing uses the volume.
func (s *Store) DeleteUntouched(ctx context.Context, id string, how record.Deletion) error {
	return s.lockAndDelete(ctx, id, how, true)
}

// mustBeUntouchedLocked brings a volume up, to look into it. One that cannot be
// looked into is an error that says nothing of its content. It is called with
// the volume's lock held.
func (s *Store) mustBeUntouchedLocked(ctx context.Context, v *volume) error {
	if err := s.activateLocked(ctx, v); err != nil {
		if s.isGone(v) {
			return errNoDirectory
		}
		return err
	}

	r, err := v.pool.open()
	if err != nil {
		return err
	}
	defer r.Close()

	dir, err := r.OpenDir(v.rec.ID)
	if err != nil {
		return err
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
		return fmt.Errorf("look whether volume %s holds anything: %w", v.rec.ID, err)
	}
	if !untouched {
		return &NotEmptyError{ID: v.rec.ID, Why: "there is something in it"}
	}

	return nil
}

// mustBeDue refuses to end the retention of a volume in the trash: somebody
// asked for the retention, and nobody for its end.
func (s *Store) mustBeDue(id string) error {
	for _, t := range s.entriesOf(id) {
		if t.left() > 0 {
			return &NotEmptyError{ID: id,
				Why: "it is in the trash, and its retention has not ended"}
		}
	}
	return nil
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

// isUnwritten reports whether an image has no data: unwritten extents and holes
// read as zeros and do not count.
func isUnwritten(dir *beneath.Dir) (bool, error) {
	devices, err := devicesOf(dir)
	if err != nil {
		return false, err
	}

	for _, device := range devices { // what was written there may not have come to the image yet
		if err := flushDevice(device.Path); err != nil {
			return false, err
		}
	}

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

func flushDevice(path string) error {
	device, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(device.Sync(), device.Close())
}
