package backend

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/filesystem"
	"github.com/quarry-storage/quarry/nodeagent/loop"
	"github.com/quarry-storage/quarry/nodeagent/mount"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// loopImage is the backend whose volumes are image files with a loop device
// over each, and unless they are Block a filesystem in it.
type loopImage struct{ *Backends }

// ErrUnreserved says that preallocation took no room of the pool's filesystem,
// so that a thick image would be a promise only.
var ErrUnreserved = errors.New("the pool's filesystem does not take the room that is preallocated")

// Make implements Backend.
func (l loopImage) Make(ctx context.Context, m *Making) error {
	m.backends = l.Backends
	return m.loop(ctx)
}

// Open implements Backend.
func (l loopImage) Open(v *Volume) (*os.File, error) { return openProven(v.Rec, v.Dir) }

// Usage implements Backend: nothing counts it. It is as full as its filesystem
// says.
func (l loopImage) Usage(*disk.Root, *record.Volume) (Usage, error) { return Usage{}, nil }

// Taken implements Backend: by the blocks of the image.
func (l loopImage) Taken(r *disk.Root, _ *record.Volume, image string) (int64, error) {
	f, err := r.OpenFile(image, unix.O_PATH, 0)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return 0, err
	}
	return st.Blocks * 512, nil // st_blocks is in units of 512 bytes (stat(2))
}

// IsEmpty implements Backend.
func (l loopImage) IsEmpty(v *Volume) (bool, error) {
	if v.Rec.VolumeMode == record.ModeBlock {
		return isUnwritten(v.Dir)
	}
	return isEmpty(v.Dir, record.MountDir, record.DataDir)
}

// Reached implements Backend: the image's size. It is not made smaller, for
// what is in it may be in use.
func (l loopImage) Reached(v *Volume) (int64, error) {
	st, err := v.Dir.Stat(record.ImageFile)
	return st.Size, err
}

// Grow implements Backend: the file, then the device, then the filesystem.
func (l loopImage) Grow(ctx context.Context, v *Volume, size int64,
	up func(context.Context) error) error {
	if err := up(ctx); err != nil {
		return err
	}
	image, err := v.Dir.OpenFile(record.ImageFile, unix.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer image.Close()
	if err := l.enlarge(v, image, size); err != nil {
		return err
	}

	if err := l.Fault("grow: device"); err != nil {
		return err
	}
	devices, err := loop.Find(image)
	if err != nil {
		return err
	}
	for _, dev := range devices {
		if _, err := loop.Resize(dev, image); err != nil {
			return err
		}
		if v.Rec.VolumeMode == record.ModeBlock {
			continue
		}
		if err := l.Fault("grow: filesystem"); err != nil {
			return err
		}
		if err := growFilesystem(ctx, v, dev); err != nil {
			return err
		}
	}
	return nil
}

// enlarge gives the image at least size bytes, durably.
func (l loopImage) enlarge(v *Volume, image *os.File, size int64) error {
	st, err := image.Stat()
	if err != nil || st.Size() >= size {
		return err
	}
	if v.Rec.Allocation == record.AllocationThin {
		err = unix.Ftruncate(int(image.Fd()), size)
	} else if err = allocateGrown(v.Pool, image, size); err != nil {
		// What was allocated is given back. Not down to the record's size: an
		// earlier growth may have come as far as its filesystem, which is in
		// use.
		err = errors.Join(err, unix.Ftruncate(int(image.Fd()), st.Size()))
	}
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EFBIG) {
		return &disk.CapacityError{Pool: v.Pool, Need: size - v.Rec.SizeBytes}
	}
	if err != nil {
		return err
	}
	return image.Sync()
}

func growFilesystem(ctx context.Context, v *Volume, dev loop.Device) error {
	inner, err := v.Dir.OpenDir(record.MountDir)
	if err != nil {
		return err
	}
	defer inner.Close()
	// A descriptor beneath the mount would grow the pool's own filesystem.
	if ok, err := mount.IsDeviceMountedAt(inner.File(), dev.Dev); err != nil || !ok {
		return errors.Join(&disk.MismatchError{ID: v.Rec.ID,
			Detail: "it is not mounted in its place"}, err)
	}
	device, err := os.OpenFile(dev.Path, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	_, err = filesystem.Grow(ctx, inner.File(), device)
	return errors.Join(err, device.Close())
}

// FsNoCOW is FS_NOCOW_FL of linux/fs.h: btrfs overwrites such a file in place.
// It must be set while the file is empty.
const FsNoCOW = 0x00800000

// loop builds a loop volume: the image, unless it is raw the filesystem in it,
// the device over it, and the mount. All of it is done under tmp; the mount and
// the device are carried along by the rename. This is the only place that
// formats anything.
//
// mkfs writes to the image and not to the device, which is made ready
// meanwhile: each takes as long as the other. The device gets the image when
// nobody writes to it any other way, so that neither has anything old in its
// cache.
func (m *Making) loop(ctx context.Context) error {
	done, err := m.Heavy(ctx)
	if err != nil {
		return fmt.Errorf("wait for other volumes that are being made: %w", err)
	}
	defer done()

	if err := m.backends.Fault("create image"); err != nil {
		return err
	}

	image, err := m.Dir.OpenFile(record.ImageFile, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer image.Close()
	if err := m.backends.Fault("allocate"); err != nil {
		return err
	}
	if err := m.allocate(image); err != nil {
		return err
	}

	m.Rec.LogicalBlockSize = loop.BlockSize(image)
	opts := attachOptions(m.Rec, m.directIO())
	if err := m.backends.Fault("prepare device"); err != nil {
		return err
	}

	spare := loop.Prepare(ctx, opts)
	defer spare.Release()
	if m.Rec.VolumeMode == record.ModeFilesystem {
		if err := m.format(ctx, image); err != nil {
			return err
		}
	}
	if err := m.writeRecord(); err != nil {
		return err
	}
	if err := m.backends.Fault("attach"); err != nil {
		return err
	}

	opts.Before = m.backends.dropLinkTo
	dev, err := spare.Attach(ctx, image, opts)
	if err != nil {
		return err
	}

	if m.Rec.VolumeMode == record.ModeFilesystem {
		if err := m.mount(ctx, dev); err != nil {
			return err
		}
	}
	if err := image.Sync(); err != nil {
		return err
	}
	return m.checkReserved(image)
}

func (m *Making) directIO() bool {
	features, err := m.Features()
	return err == nil && features.DirectIO
}

// allocate gives the image its size. A thick one gets all its blocks now:
// unwritten extents, which read as zeros.
func (m *Making) allocate(image *os.File) error {
	fd := int(image.Fd())
	if features, err := m.Features(); err == nil && features.Filesystem == "btrfs" {
		// Copy-on-write would give a thick image new blocks at each write, and
		// break direct I/O's checksums.
		if err := unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, FsNoCOW); err != nil {
			return fmt.Errorf("switch copy-on-write off for the image: %w", err)
		}
	}
	var err error
	if m.Rec.Allocation == record.AllocationThin {
		err = unix.Ftruncate(fd, m.Rec.SizeBytes)
	} else {
		err = disk.Allocate(image, m.Rec.SizeBytes)
	}
	if err != nil {
		// ext4 keeps what it could allocate, down to the last block of the
		// disk, and clearing away needs one.
		err = errors.Join(err, unix.Ftruncate(fd, 0))
	}
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EFBIG) {
		return &disk.CapacityError{Pool: m.Pool, Need: m.Rec.SizeBytes}
	}
	if err != nil {
		return fmt.Errorf("allocate %d bytes for the image: %w", m.Rec.SizeBytes, err)
	}
	return nil
}

// checkReserved returns ErrUnreserved for a thick image whose room was not
// taken.
func (m *Making) checkReserved(image *os.File) error {
	if m.Rec.Allocation != record.AllocationThick {
		return nil
	}
	if err := m.backends.Fault("look at blocks"); err != nil {
		return err
	}

	taken, err := disk.Reserves(image, m.Rec.SizeBytes)
	if err == nil && !taken {
		return ErrUnreserved
	}
	return err
}

// format makes the filesystem in the image, and the directory where it will be
// mounted.
func (m *Making) format(ctx context.Context, image *os.File) error {
	m.Rec.FSUUID = uuid.NewString()
	if err := m.backends.Fault("mkfs"); err != nil {
		return err
	}

	// A new image reads as zeros whether its blocks are allocated or not.
	err := filesystem.Make(ctx, image, filesystem.MakeOptions{
		Type: filesystem.Type(m.Rec.FSType), UUID: m.Rec.FSUUID, Inodes: uint64(m.Rec.Inodes),
		Zeroed:     true,
		SectorSize: m.Rec.LogicalBlockSize, ExtraArgs: m.Rec.MkfsOptions,
	})
	if err != nil {
		return err
	}

	// mkfs zeroes parts of a file by making holes, where the pool's filesystem
	// has no better way.
	var st unix.Stat_t
	if err := unix.Fstat(int(image.Fd()), &st); err != nil {
		return err
	}

	if m.Rec.Allocation == record.AllocationThick && st.Blocks*512 < m.Rec.SizeBytes {
		if err := m.allocate(image); err != nil {
			return err
		}
	}
	if err := m.backends.Fault("mkdir mount"); err != nil {
		return err
	}
	return m.Dir.Mkdir(record.MountDir, 0o700)
}

// mount mounts the new filesystem and makes the directory in it that the user
// will see.
func (m *Making) mount(ctx context.Context, dev loop.Device) error {
	if err := m.backends.Fault("mount"); err != nil {
		return err
	}
	if err := mountImage(ctx, m.Dir, m.Rec, dev); err != nil {
		return err
	}
	if err := m.backends.Fault("mkdir data"); err != nil {
		return err
	}

	inner, err := m.Dir.OpenDir(record.MountDir)
	if err != nil {
		return err
	}
	defer inner.Close()
	if err := inner.Mkdir(record.DataDir, 0o700); err != nil {
		return err
	}

	data, err := inner.OpenDir(record.DataDir)
	if err != nil {
		return err
	}
	defer data.Close()
	if err := m.backends.Fault("chown"); err != nil {
		return err
	}
	if err := chownRoot(data.File(), m.Rec); err != nil {
		return err
	}

	// The filesystem's own journal must be on the image before the image is
	// declared whole.
	return unix.Syncfs(int(data.File().Fd()))
}

// checkGrown is checkReserved for an image that grew.
func checkGrown(pool string, image *os.File, size int64) error {
	taken, err := disk.Reserves(image, size)
	if err == nil && !taken {
		return fmt.Errorf("%w: the pool's filesystem does not take the room that is preallocated",
			&disk.CapacityError{Pool: pool, Need: size})
	}
	return err
}

// allocateGrown gives a thick image its new size, all of it.
func allocateGrown(pool string, image *os.File, size int64) error {
	if err := disk.Allocate(image, size); err != nil {
		return err
	}
	return checkGrown(pool, image, size)
}
