package store

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/nodeagent/backend"
	"github.com/quarry-storage/quarry/nodeagent/beneath"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// upAdopted gives an adopted image whole blocks and, if it is thick, all of
// them, and brings it up.
func (s *Store) upAdopted(ctx context.Context, v *volume, r *disk.Root, dir *beneath.Dir) error {
	image, err := dir.OpenFile(record.ImageFile, unix.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer image.Close()

	st, err := image.Stat()
	if err != nil {
		return err
	}
	if err := s.fault("adopt: allocate"); err != nil {
		return err
	}
	if st.Size() < v.rec.SizeBytes {
		if err := image.Truncate(v.rec.SizeBytes); err != nil {
			return err
		}
	}

	if v.rec.Allocation == record.AllocationThick {
		if err := ownBlocks(ctx, image, v.rec.SizeBytes); errors.Is(err, unix.ENOSPC) {
			return &disk.CapacityError{Pool: v.pool.name(), Need: v.rec.SizeBytes}
		} else if err != nil {
			return fmt.Errorf("allocate the image: %w", err)
		}
	}

	if err := image.Sync(); err != nil {
		return err
	}

	return s.upLocked(ctx, v, &backend.Volume{Pool: v.pool.name(), Rec: &v.rec, Root: r, Dir: dir})
}

// ownBlocksStep is how many bytes of an image are allocated at once: for a
// call, xfs wants as much free space as the range could take at most, even if
// all of it is allocated already.
const ownBlocksStep = 8 << 20

// ownBlocks allocates what the file lacks. Where the filesystem can share
// blocks between files it also unshares them, so that a thick image never waits
// for space.
func ownBlocks(ctx context.Context, image *os.File, size int64) error {
	mode := uint32(unix.FALLOC_FL_UNSHARE_RANGE) // it fills holes too
	for at := int64(0); at < size; {
		if err := ctx.Err(); err != nil {
			return err
		}

		err := unix.Fallocate(int(image.Fd()), mode, at, min(ownBlocksStep, size-at))
		switch {
		case err == unix.EINTR:
		case mode != 0 && (err == unix.EOPNOTSUPP || err == unix.EINVAL):
			mode = 0 // nothing can be shared here
		case err != nil:
			return err
		default:
			at += ownBlocksStep
		}
	}

	return nil
}

// stagingName is a name that no directory of a user would have.
func stagingName(id string) string { return ".quarry-" + id }

// checkMovable returns an error unless everything in the root of an adopted
// image's filesystem can be moved: what is immutable cannot be
// (ioctl_iflags(2)).
func checkMovable(dir *beneath.Dir, rec *record.Volume) error {
	if rec.VolumeMode == record.ModeBlock {
		return nil
	}

	mounted, err := dir.OpenDir(record.MountDir)
	if err != nil {
		return err
	}
	defer mounted.Close()

	inner, err := mounted.NoCross()
	if err != nil {
		return err
	}
	defer inner.Close()

	names, err := inner.Names()
	if err != nil {
		return err
	}

	for _, name := range append(names, ".") {
		if name == stagingName(rec.ID) {
			return notAdoptable("its root has an entry %q, which is not one of its users'", name)
		}
		if st, err := inner.Stat(name); name != "." && (err != nil ||
			st.Mode&unix.S_IFMT != unix.S_IFREG && st.Mode&unix.S_IFMT != unix.S_IFDIR) {
			continue
		}

		f, err := inner.OpenFile(name, unix.O_RDONLY|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}

		flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
		f.Close()
		if err == nil && flags&(fsImmutable|fsAppendOnly) != 0 {
			return notAdoptable("%q in its root is immutable or append-only and cannot be moved; "+
				"take the flag off (chattr -i -a)", name)
		}
	}

	return nil
}

// FS_IMMUTABLE_FL and FS_APPEND_FL of linux/fs.h.
const fsImmutable, fsAppendOnly = 0x10, 0x20
