package backend

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/nodeagent/beneath"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/loop"
	"github.com/quarry-storage/quarry/nodeagent/mount"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

func openProven(rec *record.Volume, dir *beneath.Dir) (*os.File, error) {
	switch {
	case rec.Backend == record.BackendDirectory:
		return openData(rec, dir)
	case rec.VolumeMode == record.ModeBlock:
		f, _, err := DeviceOf(rec, dir)
		return f, err
	}

	_, dev, err := DeviceOf(rec, dir)
	if err != nil {
		return nil, err
	}

	inner, err := dir.OpenDir(record.MountDir)
	if err != nil {
		return nil, &InactiveError{ID: rec.ID, Detail: err.Error()}
	}
	defer inner.Close()

	if ok, err := mount.IsDeviceMountedAt(inner.File(), dev.Dev); err != nil {
		return nil, err
	} else if !ok {
		return nil, &InactiveError{ID: rec.ID, Detail: "its filesystem is not mounted"}
	}

	return openData(rec, inner)
}

// openData opens the data directory in parent, which must not be a mount of its
// own.
func openData(rec *record.Volume, parent *beneath.Dir) (*os.File, error) {
	p, err := parent.NoCross()
	if err != nil {
		return nil, err
	}
	defer p.Close()

	f, err := p.OpenFile(record.DataDir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, &disk.MismatchError{ID: rec.ID,
			Detail: fmt.Sprintf("its data directory: %v", err)}
	}

	return f, nil
}

// DeviceOf returns the loop device over the volume's image. For a Block volume
// it is returned open as well.
func DeviceOf(rec *record.Volume, dir *beneath.Dir) (f *os.File, dev loop.Device, err error) {
	image, err := dir.OpenFile(record.ImageFile, unix.O_PATH, 0)
	if err != nil {
		return nil, dev, &disk.MismatchError{ID: rec.ID, Detail: fmt.Sprintf("its image: %v", err)}
	}
	defer image.Close()

	if dev, err = deviceOver(rec, image); err != nil || rec.VolumeMode != record.ModeBlock {
		return nil, dev, err
	}
	if f, err = os.Open(dev.Path); err != nil {
		return nil, dev, err
	}

	// again, now that nobody can give the device another image.
	again, err := deviceOver(rec, image)
	if err == nil && again.Dev != dev.Dev {
		err = &InactiveError{ID: rec.ID, Detail: "its device changed"}
	}

	if number, e := mount.BlockDevice(f); err == nil && (e != nil || number != dev.Dev) {
		err = errors.Join(&InactiveError{ID: rec.ID, Detail: dev.Path + " is another device"}, e)
	}

	if err != nil {
		return nil, dev, errors.Join(err, f.Close())
	}

	return f, dev, nil
}

func deviceOver(rec *record.Volume, image *os.File) (loop.Device, error) {
	found, err := loop.Find(image)
	if err != nil {
		return loop.Device{}, err
	}
	if len(found) != 1 {
		return loop.Device{}, &InactiveError{ID: rec.ID,
			Detail: fmt.Sprintf("%d loop devices are over its image", len(found))}
	}

	return found[0], nil
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
	devices, err := DevicesOf(dir)
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
