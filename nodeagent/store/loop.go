package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/nodeagent/beneath"
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
	if err := b.store.heavy.Acquire(ctx, 1); err != nil {
		return fmt.Errorf("wait for other volumes that are being made: %w", err)
	}
	defer b.store.heavy.Release(1)

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
	dev, err := spare.Attach(ctx, image, opts)
	if err != nil {
		return err
	}
	if b.rec.VolumeMode == record.ModeFilesystem {
		if err := b.mount(ctx, dev); err != nil {
			return err
		}
	}
	return image.Sync()
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
		err = fallocate(fd, b.rec.SizeBytes)
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

func fallocate(fd int, size int64) error {
	for {
		err := unix.Fallocate(fd, 0, 0, size)
		if err != unix.EINTR {
			return err
		}
	}
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

func attachOptions(rec *record.Volume, directIO bool) loop.Options {
	return loop.Options{
		Name: "quarry:" + rec.ID, BlockSize: rec.LogicalBlockSize, DirectIO: directIO,
		Discard: rec.Allocation == record.AllocationThin,
	}
}

// mountImage mounts the device at <dir>/mount, unless it is mounted there already. Anything else there is a *MismatchError.
func mountImage(ctx context.Context, dir *beneath.Dir, rec *record.Volume, dev loop.Device) error {
	opts, err := mount.ParseOptions(rec.FSType, rec.Allocation == record.AllocationThick, rec.MountOptions)
	if err != nil {
		return err
	}
	target, err := openMount(dir)
	if err != nil {
		return err
	}
	defer target.Close()
	if mounted, err := mountedAt(target, rec.ID, dev); err != nil || mounted {
		return err
	}
	source, err := os.OpenFile(dev.Path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer source.Close()
	return mount.Device(ctx, source, target, rec.FSType, opts)
}

// openMount opens the directory a volume's filesystem is mounted at, or the mount there.
func openMount(dir *beneath.Dir) (*os.File, error) {
	return dir.OpenFile(record.MountDir, unix.O_PATH|unix.O_DIRECTORY, 0)
}

// mountedAt tells whether the device is mounted at target. Another mount there is a *MismatchError.
func mountedAt(target *os.File, id string, dev loop.Device) (bool, error) {
	switch _, err := mount.At(target); {
	case errors.Is(err, mount.ErrNotMountpoint):
		return false, nil
	case err != nil:
		return false, err
	}
	ours, err := mount.IsDeviceMountedAt(target, dev.Dev)
	if err == nil && !ours {
		err = &MismatchError{ID: id, Detail: "something else is mounted in its place"}
	}
	return ours, err
}

// identify proves that what is on the image is the filesystem that was made there.
func identify(image *os.File, rec *record.Volume) error {
	info, err := filesystem.Identify(image)
	if err != nil {
		return &MismatchError{ID: rec.ID, Detail: fmt.Sprintf("its image: %v", err)}
	}
	if string(info.Type) != rec.FSType || info.UUID != rec.FSUUID {
		return &MismatchError{ID: rec.ID, Detail: fmt.Sprintf("its image holds %s %s, not %s %s", info.Type, info.UUID, rec.FSType, rec.FSUUID)}
	}
	return nil
}

// activateLoop attaches the image, verified, and mounts it or links its device. A second call changes nothing.
func (s *Store) activateLoop(ctx context.Context, v *volume, dir *beneath.Dir, directIO bool) error {
	rec := &v.rec
	image, err := dir.OpenFile(record.ImageFile, unix.O_RDWR, 0)
	if err != nil {
		return &MismatchError{ID: rec.ID, Detail: fmt.Sprintf("its image: %v", err)}
	}
	defer image.Close()
	st, err := image.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() || st.Size() < rec.SizeBytes {
		return &MismatchError{ID: rec.ID, Detail: fmt.Sprintf("its image is of %d bytes, not %d", st.Size(), rec.SizeBytes)}
	}
	raw := rec.VolumeMode == record.ModeBlock
	if !raw && rec.EverRaw {
		return &MismatchError{ID: rec.ID, Detail: "its image was handed out as a block device once and is not mounted as a filesystem any more"}
	}
	if err := s.fault("attach again"); err != nil {
		return err
	}
	dev, err := loop.Attach(ctx, image, attachOptions(rec, directIO))
	if err != nil {
		return err
	}
	if raw {
		return s.linkDevice(rec.ID, dev)
	}
	target, err := openMount(dir)
	if err != nil {
		return err
	}
	mounted, err := mountedAt(target, rec.ID, dev)
	target.Close()
	if err != nil || mounted {
		return err
	}
	if err := identify(image, rec); err != nil {
		return err
	}
	device, err := os.OpenFile(dev.Path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	repaired, err := filesystem.Check(ctx, device)
	if err := errors.Join(err, device.Close()); err != nil {
		return err
	}
	if repaired {
		s.log.WarnContext(ctx, "the filesystem of a volume was repaired before it was mounted", "volume", rec.ID)
	}
	if err := s.fault("mount again"); err != nil {
		return err
	}
	return mountImage(ctx, dir, rec, dev)
}

// linkDevice makes the link that a Block volume's path is. It is made after the device was verified, and replaced in one step.
func (s *Store) linkDevice(id string, dev loop.Device) error {
	if err := os.MkdirAll(s.opts.DeviceDir, 0o755); err != nil {
		return err
	}
	link := filepath.Join(s.opts.DeviceDir, id)
	if to, err := os.Readlink(link); err == nil && to == dev.Path {
		return nil
	}
	if err := s.fault("link device"); err != nil {
		return err
	}
	tmp := link + ".new" // no id has a dot
	if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.Symlink(dev.Path, tmp); err != nil {
		return err
	}
	if err := s.fault("rename link"); err != nil {
		return err
	}
	return os.Rename(tmp, link)
}

func (s *Store) unlinkDevice(id string) error {
	if err := s.fault("unlink device"); err != nil {
		return err
	}
	link := filepath.Join(s.opts.DeviceDir, id)
	for _, name := range []string{link + ".new", link} { // the first if linkDevice was ended in between
		if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}
