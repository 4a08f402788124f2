package backend

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/nodeagent/beneath"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/filesystem"
	"github.com/quarry-storage/quarry/nodeagent/loop"
	"github.com/quarry-storage/quarry/nodeagent/mount"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// IsMounted reports whether anything is mounted in a volume's mount directory.
func IsMounted(dir *beneath.Dir) (bool, error) {
	target, err := OpenMount(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer target.Close()

	_, err = mount.At(target)
	if errors.Is(err, mount.ErrNotMountpoint) {
		return false, nil
	}

	return err == nil, err
}

// OpenMount opens the directory a volume's filesystem is mounted at, or the
// mount there.
func OpenMount(dir *beneath.Dir) (*os.File, error) {
	return dir.OpenFile(record.MountDir, unix.O_PATH|unix.O_DIRECTORY, 0)
}

// mountImage mounts the device at <dir>/mount, unless it is mounted there
// already. Anything else there is a *MismatchError.
func mountImage(ctx context.Context, dir *beneath.Dir, rec *record.Volume, dev loop.Device) error {
	opts, err := mount.ParseOptions(rec.FSType, rec.Allocation == record.AllocationThick,
		rec.MountOptions)
	if err != nil {
		return err
	}

	target, err := OpenMount(dir)
	if err != nil {
		return err
	}
	defer target.Close()

	if mounted, err := MountedAt(target, rec.ID, dev); err != nil || mounted != nil {
		return err
	}

	source, err := os.OpenFile(dev.Path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer source.Close()

	return mount.Device(ctx, source, target, rec.FSType, opts)
}

// MountedAt returns the mount of the device at target, nil if nothing is
// mounted there. Another mount there is a *MismatchError.
func MountedAt(target *os.File, id string, dev loop.Device) (*mount.Info, error) {
	info, err := mount.At(target)
	switch {
	case errors.Is(err, mount.ErrNotMountpoint):
		return nil, nil
	case err != nil:
		return nil, err
	}

	// Nothing is asked of the filesystem, which may be dead.
	ours := info.Root == "/" && info.Dev == dev.Dev
	if info.FSType == "btrfs" {
		ours, err = mount.IsDeviceMountedAt(target, dev.Dev)
	}

	if err == nil && !ours {
		err = &disk.MismatchError{ID: id, Detail: "something else is mounted in its place"}
	}

	if err != nil {
		return nil, err
	}

	return &info, nil
}

// thaw ends a freeze that outlived the mount it was made through: a filesystem
// stays frozen when it is unmounted, and each write to the next mount of it
// would hang. What is not frozen says EINVAL.
func thaw(dir *beneath.Dir) error {
	inner, err := dir.OpenDir(record.MountDir)
	if err != nil {
		return err
	}
	defer inner.Close()

	const fiThaw = 0xc0045878 // _IOWR('X', 120, int)
	err = unix.IoctlSetInt(int(inner.File().Fd()), fiThaw, 0)
	if err == nil || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) ||
		errors.Is(err, unix.EPERM) {
		return nil
	}

	return fmt.Errorf("thaw %s: %w", filepath.Join(dir.Path(), record.MountDir), err)
}

// openImage opens the image of a volume, proven to be large enough.
func openImage(rec *record.Volume, dir *beneath.Dir) (*os.File, error) {
	image, err := dir.OpenFile(record.ImageFile, unix.O_RDWR, 0)
	if err != nil {
		return nil, &disk.MismatchError{ID: rec.ID, Detail: fmt.Sprintf("its image: %v", err)}
	}

	st, err := image.Stat()
	switch {
	case err != nil:
	case !st.Mode().IsRegular() || st.Size() < rec.SizeBytes:
		err = &disk.MismatchError{ID: rec.ID,
			Detail: fmt.Sprintf("its image is of %d bytes, not %d",
				st.Size(), rec.SizeBytes)}
	case rec.VolumeMode != record.ModeBlock && rec.EverRaw:
		err = &disk.MismatchError{ID: rec.ID,
			Detail: "its image was handed out as a block device once " +
				"and is not mounted as a filesystem any more"}
	}

	if err != nil {
		return nil, errors.Join(err, image.Close())
	}

	return image, nil
}

// identify proves that what is on the image is the filesystem that was made
// there.
func identify(image *os.File, rec *record.Volume) error {
	info, err := filesystem.Identify(image)
	if err != nil {
		return &disk.MismatchError{ID: rec.ID, Detail: fmt.Sprintf("its image: %v", err)}
	}
	if string(info.Type) != rec.FSType || info.UUID != rec.FSUUID {
		return &disk.MismatchError{ID: rec.ID,
			Detail: fmt.Sprintf("its image holds %s %s, not %s %s",
				info.Type, info.UUID, rec.FSType, rec.FSUUID)}
	}

	return nil
}

// IdentifySettled is identify for a mounted image: a superblock that is being
// written at this moment is read again.
func IdentifySettled(image *os.File, rec *record.Volume) (err error) {
	const tries = 5
	for range tries {
		_ = unix.Fadvise(int(image.Fd()), 0, 1<<20, unix.FADV_DONTNEED)
		if err = identify(image, rec); err == nil {
			return nil
		}
	}
	return err
}

func attachOptions(rec *record.Volume, directIO bool) loop.Options {
	return loop.Options{
		Name: deviceName(rec.ID), BlockSize: rec.LogicalBlockSize, DirectIO: directIO,
		Discard: rec.Allocation == record.AllocationThin,
	}
}

// DevicesOf returns the loop devices over the image in a volume's directory;
// none for a directory volume.
func DevicesOf(dir *beneath.Dir) ([]loop.Device, error) {
	devices, err := loop.FindOf(func() (*os.File, error) {
		return dir.OpenFile(record.ImageFile, unix.O_RDONLY, 0)
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}

	return devices, err
}

// HoldersText names who holds a device, for people.
func HoldersText(d loop.Device) string {
	holders, err := loop.Holders(d, loop.HolderOptions{})
	if err != nil || len(holders) == 0 {
		return ""
	}

	texts := make([]string, len(holders))
	for i, h := range holders {
		texts[i] = h.String()
	}

	return ", held by " + strings.Join(texts, "; ")
}
