package btrfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// DeleteSubvolume deletes the subvolume name in the directory parent with every
// subvolume inside it, however deep, read-only or immutable: all of that a
// tenant can make. It returns when they are gone from sight; the kernel frees
// their space afterwards (see WaitFreed).
//
// It finds directories by their numbers and follows no path inside the volume.
// A name that is not there is no error, so it can be repeated after a crash at
// any point; a directory that is no subvolume is ErrNotSubvolume and left
// alone.
func DeleteSubvolume(ctx context.Context, parent *os.File, name string) error {
	f, err := openBeneath(parent, name)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	is, err := IsSubvolume(f)
	if err != nil {
		return err
	}
	if !is {
		return &os.PathError{Op: "delete subvolume", Path: f.Name(), Err: ErrNotSubvolume}
	}
	id, err := ID(f)
	if err != nil {
		return err
	}
	if err := deleteTree(ctx, parent, id); err != nil {
		return fmt.Errorf("delete subvolume %s: %w", f.Name(), err)
	}
	return nil
}

// deleteTree deletes a subvolume after those inside it. It keeps the way down
// as a list and not on the stack: a tenant can nest thousands of them.
func deleteTree(ctx context.Context, fs *os.File, id uint64) error {
	way := []uint64{id}
	if err := makeWritable(fs, id); err != nil {
		return err
	}
	for len(way) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		last := way[len(way)-1]
		inside, err := firstNested(fs, last)
		if err != nil {
			return err
		}
		if inside != 0 {
			if err := makeWritable(fs, inside); err != nil {
				return err
			}
			way = append(way, inside)
			continue
		}
		at, live, err := placeOf(fs, last)
		if err != nil {
			return err
		}
		if !live {
			way = way[:len(way)-1]
			continue
		}
		err = destroy(fs, last, at)
		// Renamed, or one more made inside it, meanwhile: look again.
		if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTEMPTY) {
			return fmt.Errorf("destroy subvolume %d: %w", last, err)
		}
	}
	return nil
}

// firstNested returns the id of one subvolume inside, or 0. Ids below topInode
// are the filesystem's own trees and never the end of a ROOT_REF.
func firstNested(fs *os.File, id uint64) (inside uint64, err error) {
	err = search(fs, rootTree, rootRef, one(id), anyNumber, func(it item) bool {
		inside = it.Offset
		return false
	})
	return inside, err
}

// makeWritable takes the read-only flag off a subvolume, without which nothing
// inside it can be deleted (EROFS). One that is gone already is no error.
func makeWritable(fs *os.File, id uint64) error {
	top, err := openByID(fs, id, topInode)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	defer top.Close()
	return SetReadOnly(top, false)
}

// destroy deletes the subvolume id, which is at the given place. The ioctl can
// find a subvolume by its id as well, but fails where the path to it is longer
// than PATH_MAX, which a tenant can see to.
func destroy(fs *os.File, id uint64, at place) error {
	dir, err := openByID(fs, at.subvolume, at.inode)
	if err != nil {
		return err
	}
	defer dir.Close()
	var args volArgs
	copy(args.Name[:len(args.Name)-1], at.name)
	err = ioctl(dir, iocSnapDestroyV2, unsafe.Pointer(&args))
	if !errors.Is(err, unix.EPERM) {
		return err
	}
	// A tenant with CAP_LINUX_IMMUTABLE may have set chattr +i or +a on it or
	// on the directory it is in.
	top, err := openByID(fs, id, topInode)
	if err != nil {
		return err
	}
	defer top.Close()
	if err := errors.Join(clearFlags(dir), clearFlags(top)); err != nil {
		return err
	}
	return ioctl(dir, iocSnapDestroyV2, unsafe.Pointer(&args))
}

// From linux/fs.h; see ioctl_iflags(2).
const (
	flagImmutable = 0x10
	flagAppend    = 0x20
)

// clearFlags takes chattr's +i and +a off a directory.
func clearFlags(dir *os.File) error {
	return control(dir, func(fd int) error {
		flags, err := unix.IoctlGetInt(fd, unix.FS_IOC_GETFLAGS)
		if err != nil {
			return err
		}
		clean := flags &^ (flagImmutable | flagAppend)
		if clean == flags {
			return nil
		}
		return unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, clean)
	})
}

// freedPoll is how often WaitFreed looks. The kernel's own wait
// (BTRFS_IOC_SUBVOL_SYNC_WAIT, Linux 6.13) cannot be broken off.
const freedPoll = 50 * time.Millisecond

// WaitFreed waits until the kernel has freed the deleted subvolume id, however
// long that takes, or until ctx ends. A descriptor that is still open on
// anything in it keeps it from being freed.
func WaitFreed(ctx context.Context, fs *os.File, id uint64) error {
	tick := time.NewTicker(freedPoll)
	defer tick.Stop()
	for {
		state, err := stateOf(fs, id)
		if err != nil {
			return err
		}
		switch state {
		case rootGone:
			return nil
		case rootLive:
			return fmt.Errorf("wait for subvolume %d to be freed: it is not deleted", id)
		}
		// The cleaner runs after each commit, every 30 seconds by itself.
		var transaction uint64
		if err := ioctl(fs, iocStartSync, unsafe.Pointer(&transaction)); err != nil {
			return fmt.Errorf("start btrfs commit: %w", err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for subvolume %d to be freed: %w", id, ctx.Err())
		case <-tick.C:
		}
	}
}
