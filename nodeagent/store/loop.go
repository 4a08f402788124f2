package store

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/filesystem"
	"github.com/quarry-storage/quarry/nodeagent/loop"
	"github.com/quarry-storage/quarry/nodeagent/mount"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// fsNoCOW is FS_NOCOW_FL of linux/fs.h: btrfs overwrites such a file in place. It must be set while the file is empty.
const fsNoCOW = 0x00800000

// loop builds a loop volume: the image, unless it is raw the filesystem in it, the device over it, and the mount. All of it
// is done under tmp; the mount and the device are carried along by the rename. This is the only place that formats anything.
//
// mkfs writes to the image and not to the device, which is made ready meanwhile: each takes as long as the other. The
// device gets the image when nobody writes to it any other way, so that neither has anything old in its cache.
func (b *building) loop(ctx context.Context) error {
	heavy := b.store.heavy(b.adm.space)
	if err := heavy.Acquire(ctx, 1); err != nil {
		return fmt.Errorf("wait for other volumes that are being made: %w", err)
	}
	defer heavy.Release(1)

	if err := b.store.fault("create image"); err != nil {
		return err
	}
	image, err := b.dir.OpenFile(record.ImageFile, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer image.Close()
	if err := b.store.fault("allocate"); err != nil {
		return err
	}
	if err := b.allocate(image); err != nil {
		return err
	}
	b.rec.LogicalBlockSize = loop.BlockSize(image)
	opts := attachOptions(b.rec, b.directIO())
	if err := b.store.fault("prepare device"); err != nil {
		return err
	}
	spare := loop.Prepare(ctx, opts)
	defer spare.Release()
	if b.rec.VolumeMode == record.ModeFilesystem {
		if err := b.format(ctx, image); err != nil {
			return err
		}
	}
	if err := b.writeRecord(); err != nil {
		return err
	}
	if err := b.store.fault("attach"); err != nil {
		return err
	}
	opts.Before = b.store.dropLinkTo
	dev, err := spare.Attach(ctx, image, opts)
	if err != nil {
		return err
	}
	if b.rec.VolumeMode == record.ModeFilesystem {
		if err := b.mount(ctx, dev); err != nil {
			return err
		}
	}
	if err := image.Sync(); err != nil {
		return err
	}
	return b.checkReserved(image)
}

func (b *building) directIO() bool {
	features, _, err := b.adm.pool.state()
	return err == nil && features.DirectIO
}

// allocate gives the image its size. A thick one gets all its blocks now: unwritten extents, which read as zeros.
func (b *building) allocate(image *os.File) error {
	fd := int(image.Fd())
	if features, _, err := b.adm.pool.state(); err == nil && features.Filesystem == "btrfs" {
		// Copy-on-write would give a thick image new blocks at each write, and break direct I/O's checksums.
		if err := unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, fsNoCOW); err != nil {
			return fmt.Errorf("switch copy-on-write off for the image: %w", err)
		}
	}
	var err error
	if b.rec.Allocation == record.AllocationThin {
		err = unix.Ftruncate(fd, b.rec.SizeBytes)
	} else {
		err = disk.Allocate(image, b.rec.SizeBytes)
	}
	if err != nil {
		// ext4 keeps what it could allocate, down to the last block of the disk, and clearing away needs one.
		err = errors.Join(err, unix.Ftruncate(fd, 0))
	}
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EFBIG) {
		return &CapacityError{Pool: b.adm.pool.name(), Need: b.rec.SizeBytes}
	}
	if err != nil {
		return fmt.Errorf("allocate %d bytes for the image: %w", b.rec.SizeBytes, err)
	}
	return nil
}

// checkReserved refuses a thick image whose room was not taken.
func (b *building) checkReserved(image *os.File) error {
	if b.rec.Allocation != record.AllocationThick {
		return nil
	}
	if err := b.store.fault("look at blocks"); err != nil {
		return err
	}
	taken, err := disk.Reserves(image, b.rec.SizeBytes)
	if err == nil && !taken {
		return refuseUnreserved()
	}
	return err
}

func refuseUnreserved() error {
	return refuse(v1alpha1.ReasonUnsupported,
		"the pool's filesystem does not take the room that is preallocated (as ZFS does not), so a thick image would be a promise only; use allocation thin")
}

// checkGrown is checkReserved for an image that grew.
func checkGrown(pool string, image *os.File, size int64) error {
	taken, err := disk.Reserves(image, size)
	if err == nil && !taken {
		return fmt.Errorf("%w: the pool's filesystem does not take the room that is preallocated", &CapacityError{Pool: pool, Need: size})
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

// format makes the filesystem in the image, and the directory where it will be mounted.
func (b *building) format(ctx context.Context, image *os.File) error {
	b.rec.FSUUID = uuid.NewString()
	if err := b.store.fault("mkfs"); err != nil {
		return err
	}
	// A new image reads as zeros whether its blocks are allocated or not.
	err := filesystem.Make(ctx, image, filesystem.MakeOptions{
		Type: filesystem.Type(b.rec.FSType), UUID: b.rec.FSUUID, Inodes: uint64(b.rec.Inodes), Zeroed: true,
		SectorSize: b.rec.LogicalBlockSize, ExtraArgs: b.rec.MkfsOptions,
	})
	if err != nil {
		return err
	}
	// mkfs zeroes parts of a file by making holes, where the pool's filesystem has no better way.
	var st unix.Stat_t
	if err := unix.Fstat(int(image.Fd()), &st); err != nil {
		return err
	}
	if b.rec.Allocation == record.AllocationThick && st.Blocks*512 < b.rec.SizeBytes {
		if err := b.allocate(image); err != nil {
			return err
		}
	}
	if err := b.store.fault("mkdir mount"); err != nil {
		return err
	}
	return b.dir.Mkdir(record.MountDir, 0o700)
}

// mount mounts the new filesystem and makes the directory in it that the user will see.
func (b *building) mount(ctx context.Context, dev loop.Device) error {
	if err := b.store.fault("mount"); err != nil {
		return err
	}
	if err := mountImage(ctx, b.dir, b.rec, dev); err != nil {
		return err
	}
	if err := b.store.fault("mkdir data"); err != nil {
		return err
	}
	inner, err := b.dir.OpenDir(record.MountDir)
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
	if err := b.store.fault("chown"); err != nil {
		return err
	}
	if err := chownRoot(data.File(), b.rec); err != nil {
		return err
	}
	// The filesystem's own journal must be on the image before the image is declared whole.
	return unix.Syncfs(int(data.File().Fd()))
}

func (s *Store) growLoop(ctx context.Context, v *volume, size int64) error {
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
	if err := s.activateLocked(ctx, v); err != nil {
		return err
	}
	image, err := dir.OpenFile(record.ImageFile, unix.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer image.Close()
	st, err := image.Stat()
	if err != nil {
		return err
	}
	if st.Size() < size {
		if v.rec.Allocation == record.AllocationThin {
			err = unix.Ftruncate(int(image.Fd()), size)
		} else if err = allocateGrown(v.pool.name(), image, size); err != nil {
			// What was allocated is given back. Not down to the record's size: an earlier growth may have come as far as its
			// filesystem, which is in use.
			err = errors.Join(err, unix.Ftruncate(int(image.Fd()), st.Size()))
		}
		if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EFBIG) {
			return &CapacityError{Pool: v.pool.name(), Need: size - v.rec.SizeBytes}
		}
		if err != nil {
			return err
		}
		if err := image.Sync(); err != nil {
			return err
		}
	}
	if err := s.fault("grow: device"); err != nil {
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
		if v.rec.VolumeMode == record.ModeBlock {
			continue
		}
		if err := s.fault("grow: filesystem"); err != nil {
			return err
		}
		inner, err := dir.OpenDir(record.MountDir)
		if err != nil {
			return err
		}
		defer inner.Close()
		// A descriptor beneath the mount would grow the pool's own filesystem.
		if ok, err := mount.IsDeviceMountedAt(inner.File(), dev.Dev); err != nil || !ok {
			return errors.Join(&disk.MismatchError{ID: v.rec.ID, Detail: "it is not mounted in its place"}, err)
		}
		device, err := os.OpenFile(dev.Path, os.O_RDONLY, 0)
		if err != nil {
			return err
		}
		_, err = filesystem.Grow(ctx, inner.File(), device)
		if err := errors.Join(err, device.Close()); err != nil {
			return err
		}
	}
	return nil
}
