package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"

	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/nodeagent/beneath"
	"github.com/quarry-storage/quarry/nodeagent/btrfs"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/quota"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// Freeing what a tenant left. Everything in it is hostile: a tree may be as
// deep or as wide as the disk allows, files may be immutable, and links may
// lead anywhere. Nothing is followed, and nothing waits.

// freeStep is how many bytes of a file are given back at once, so that one
// deletion never holds up the filesystem's journal for long.
const freeStep = 256 << 20

// freeImage shrinks the image from its end, step by step, and unlinks it.
func (f *freer) freeImage(ctx context.Context, entry *beneath.Dir, scrub string) error {
	image, err := entry.OpenFile(record.ImageFile, unix.O_RDWR|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer image.Close()

	st, err := image.Stat()
	if err != nil {
		return err
	}

	for size := st.Size(); size > 0; {
		if err := errors.Join(ctx.Err(), f.store.fault("free: image step")); err != nil {
			return err
		}

		next := max(size-freeStep, 0)
		if err := scrubRange(unbroken(ctx), image, next, size, scrub); err != nil {
			return err
		}
		if err := image.Truncate(next); err != nil {
			return err
		}

		f.bytes.Add(size - next)
		size = next
	}

	if err := f.store.fault("free: image"); err != nil {
		return err
	}

	return entry.Unlink(record.ImageFile)
}

// freeTree empties the entry but for its records. It needs two descriptors,
// however deep a tenant's tree is: a directory found in another one is moved up
// into the entry, and emptied from there.
func (f *freer) freeTree(ctx context.Context, entry *beneath.Dir, scrub string) error {
	keep := map[string]bool{
		record.VolumeFile: true, beneath.Temporary(record.VolumeFile): true,
		record.TrashedFile: true, beneath.Temporary(record.TrashedFile): true,
	}
	for {
		// The records are too few to fill one reading.
		names, err := disk.SomeNames(entry)
		if err != nil {
			return err
		}

		work := 0
		for _, name := range names {
			if keep[name] {
				continue
			}

			work++
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := f.freeChild(ctx, entry, entry, name, scrub); err != nil {
				return err
			}
		}

		if work == 0 {
			return nil
		}
	}
}

// freeChild removes one name of dir: a file is unlinked, a subvolume destroyed,
// a directory of the entry emptied into the entry and removed, a directory
// further down moved up into the entry.
func (f *freer) freeChild(ctx context.Context, entry, dir *beneath.Dir, name, scrub string) error {
	if err := f.store.fault("free: file"); err != nil {
		return err
	}

	st, err := dir.Stat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return f.freeFile(ctx, dir, name, st, scrub)
	}

	const subvolumeInode = 256 // BTRFS_FIRST_FREE_OBJECTID
	if st.Ino == subvolumeInode {
		if sub, err := dir.OpenDir(name); err == nil {
			isSubvolume, err := btrfs.IsSubvolume(sub.File())
			sub.Close()
			if err == nil && isSubvolume {
				f.files.Add(1)
				return deleteSubvolume(ctx, dir, name)
			}
		}
	}

	if dir != entry {
		return f.moveUp(dir, name, st, entry)
	}

	child, err := dir.OpenDir(name)
	if err != nil {
		return err
	}
	defer child.Close()

	for {
		names, err := disk.SomeNames(child)
		if err != nil {
			return err
		}
		if len(names) == 0 {
			break
		}

		for _, n := range names {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := f.freeChild(ctx, entry, child, n, scrub); err != nil {
				return err
			}
		}
	}

	f.files.Add(1)
	return retryMutable(dir, name, st, func() error { return dir.Rmdir(name) })
}

// deleteSubvolume deletes a subvolume that a tenant made, or one without a
// group of its own. It may be in another volume's group that is full, and then
// has to leave it first.
func deleteSubvolume(ctx context.Context, dir *beneath.Dir, name string) error {
	err := btrfs.DeleteSubvolume(ctx, dir.File(), name)
	if !errors.Is(err, unix.EDQUOT) {
		return err
	}

	sub, openErr := dir.OpenDir(name)
	if openErr != nil {
		return errors.Join(err, openErr)
	}

	id, idErr := btrfs.ID(sub.File())
	sub.Close()
	if idErr != nil {
		return errors.Join(err, idErr)
	}
	if e := btrfs.Loosen(dir.File(), id, btrfs.NoGroup); e != nil {
		return errors.Join(err, e)
	}

	return btrfs.DeleteSubvolume(ctx, dir.File(), name)
}

// moveUp renames a directory into the entry under a name of its own.
func (f *freer) moveUp(dir *beneath.Dir, name string, st unix.Stat_t, entry *beneath.Dir) error {
	err := retryMutable(dir, name, st, func() error { return renameAnew(dir, name, entry) })
	if !errors.Is(err, unix.EXDEV) {
		return err
	}

	// The pool lies in a project of the administrator's, whose inherit flag
	// keeps directories of other projects out.
	project, _, projectErr := quota.GetProject(entry.File())
	if projectErr == nil {
		projectErr = quota.SetProject(entry.File(), project, false)
	}

	if projectErr != nil {
		return errors.Join(err, projectErr)
	}

	return renameAnew(dir, name, entry)
}

// renameAnew moves name to another directory, under a name that is free there.
func renameAnew(dir *beneath.Dir, name string, to *beneath.Dir) error {
	for {
		err := dir.Rename(name, to, fmt.Sprintf("d%016x", rand.Uint64()))
		if !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
}

func (f *freer) freeFile(ctx context.Context, dir *beneath.Dir, name string, st unix.Stat_t,
	scrub string) error {
	if (scrub == scrubZero || scrub == scrubDiscard) && st.Mode&unix.S_IFMT == unix.S_IFREG &&
		st.Blocks > 0 {
		err := retryMutable(dir, name, st, func() error {
			file, err := dir.OpenFile(name, unix.O_RDWR|unix.O_NONBLOCK, 0)
			if err != nil {
				return err
			}
			defer file.Close()
			return scrubFile(ctx, file, st.Size, scrub)
		})
		if err != nil {
			return err
		}
	}

	f.files.Add(1)
	return retryMutable(dir, name, st, func() error { return dir.Unlink(name) })
}

// scrubFile scrubs a file from its end, and shortens it step by step, so that
// after an interruption it does not begin anew.
func scrubFile(ctx context.Context, file *os.File, size int64, scrub string) error {
	for size > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}

		next := max(size-freeStep, 0)
		if err := scrubRange(unbroken(ctx), file, next, size, scrub); err != nil {
			return err
		}
		if err := file.Truncate(next); err != nil {
			return err
		}

		size = next
	}

	return nil
}

// retryMutable tries again after it took the immutable and append-only flags
// off the file and its directory, either of which refuses the removal (EPERM,
// ioctl_iflags(2)).
func retryMutable(dir *beneath.Dir, name string, st unix.Stat_t, try func() error) error {
	err := try()
	if !errors.Is(err, unix.EPERM) {
		return err
	}

	clearFlags(dir.File())
	if kind := st.Mode & unix.S_IFMT; kind == unix.S_IFREG || kind == unix.S_IFDIR {
		if f, e := dir.OpenFile(name, unix.O_RDONLY|unix.O_NONBLOCK, 0); e == nil {
			clearFlags(f)
			f.Close()
		}
	}

	return try()
}

// clearFlags is best effort: flags that could not be cleared show at the next
// try.
func clearFlags(f *os.File) {
	const immutable, appendOnly = 0x10, 0x20 // FS_IMMUTABLE_FL, FS_APPEND_FL of linux/fs.h
	fd := int(f.Fd())
	flags, err := unix.IoctlGetInt(fd, unix.FS_IOC_GETFLAGS)
	if err == nil && flags&(immutable|appendOnly) != 0 {
		_ = unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, flags&^(immutable|appendOnly))
	}
}

// scrubRange makes what a file holds from one byte to another unreadable, as
// the class asks: zeros over every block that holds data, durably, or the
// blocks given back (and discarded, where the pool's filesystem is mounted to
// do so). Blocks that were never written read as zeros and are passed over.
func scrubRange(ctx context.Context, file *os.File, from, to int64, scrub string) error {
	if scrub != scrubZero && scrub != scrubDiscard {
		return nil
	}

	fd := int(file.Fd())
	zeros := make([]byte, 1<<20)
	for at := from; at < to; {
		start, err := unix.Seek(fd, at, unix.SEEK_DATA)
		if err == unix.ENXIO || err == nil && start >= to {
			break
		}
		if err != nil {
			return fmt.Errorf("scrub: %w", err)
		}

		end, err := unix.Seek(fd, start, unix.SEEK_HOLE)
		if err != nil {
			return fmt.Errorf("scrub: %w", err)
		}

		end = min(end, to)
		for at = start; at < end; {
			if err := ctx.Err(); err != nil {
				return err
			}

			n := min(end-at, int64(len(zeros)))
			if scrub == scrubDiscard {
				n = end - at
				err = unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, at, n)
			} else {
				_, err = file.WriteAt(zeros[:n], at)
			}

			if err != nil {
				return fmt.Errorf("scrub: %w", err)
			}

			at += n
		}
	}

	return file.Sync()
}
