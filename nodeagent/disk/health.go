package disk

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/nodeagent/config"
	"github.com/quarry-storage/quarry/nodeagent/mount"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// A disk that was there a moment ago can be read-only, dead or full now, and
// no mount has to change for it. What is looked at here is looked at every few
// seconds, so it costs a few system calls and writes nothing; only where
// something failed on the disk since, TryToWrite tries to write.

// HasFailed reports whether err is of a kind that another disk would not
// have given: this one does not take writes, answers with errors, or is gone.
func HasFailed(err error) bool {
	var mounting *mount.Error
	if errors.Is(err, unix.ENODEV) && errors.As(err, &mounting) {
		return false // the kernel does not know a filesystem's type
	}
	for _, errno := range []unix.Errno{
		unix.EROFS, unix.EIO, unix.ENODEV, unix.EUCLEAN, unix.EBADMSG, unix.ESHUTDOWN, unix.ESTALE,
	} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}

// CheckHealth returns why the filesystem below an open pool cannot be used, or
// nil. It writes nothing.
func CheckHealth(cfg *config.Pool, r *Root) error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(r.File().Fd()), &st); err != nil {
		return fmt.Errorf("statfs %s: %w", r.Path(), err)
	}
	readOnly := func(why string) error {
		return &OfflineError{Pool: cfg.Name, Reason: OfflineReadOnly,
			Err: fmt.Errorf("%s is on a filesystem that %s", cfg.Path, why)}
	}
	const stReadOnly = 1 // ST_RDONLY of statfs(2): of this mount or of the filesystem
	if st.Flags&stReadOnly != 0 {
		return readOnly("is read-only: an administrator mounted it so, or the kernel did " +
			"after an error (see the kernel's log)")
	}

	// Some filesystems say only here that they stopped after an error.
	if info, err := mount.Of(r.File()); err == nil {
		for _, word := range []string{"ro", "emergency_ro", "shutdown"} {
			if slices.Contains(info.SuperOptions, word) {
				return readOnly("takes no writes any more (" + word +
					"): the kernel stopped it after an error (see the kernel's log)")
			}
		}
	}
	return nil
}

// TryToWrite writes a file of a pool and takes it away. A full disk is alive.
func TryToWrite(r *Root) (err error) {
	const name = ".probe-write"
	tmp, err := r.Sub(record.TmpDir)
	if IsFull(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer tmp.Close()

	f, err := tmp.OpenFile(name, unix.O_RDWR|unix.O_CREAT|unix.O_TRUNC, 0o600)
	if IsFull(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.Write(make([]byte, probeSize))
	if err == nil {
		err = f.Sync()
	}
	if IsFull(err) {
		err = nil
	}
	return errors.Join(err, tmp.Unlink(name))
}

// longerThanAny is a name that no file of any filesystem here can have.
var longerThanAny = strings.Repeat("x", unix.NAME_MAX+1)

// CanFreeze reports whether the filesystem of an open pool can be asked whether
// it is frozen ([AwaitWrites]). What is read of a frozen filesystem, and what it
// says of itself, looks as ever. What other machines serve is not asked: their
// names may be longer, and they may not answer at all.
func CanFreeze(r *Root) bool {
	var st unix.Statfs_t
	return unix.Fstatfs(int(r.File().Fd()), &st) == nil && sharedBy(&st) == ""
}

// AwaitWrites waits until the filesystem with the directory root, which may be
// open O_PATH, takes writes, and writes nothing.
//
// Nothing in sysfs, procfs, statfs(2) or statmount(2) tells that a filesystem is
// frozen, and FIFREEZE, which says EBUSY then, would freeze the one that is not.
// What a frozen one does is to hold whoever is about to write. So something is
// begun that cannot be: the kernel waits for the filesystem to take writes
// (mnt_want_write in filename_create of fs/namei.c) before the filesystem is
// asked for the name, which is refused for its length before any block is looked
// at. That asks no disk, takes microseconds, and hangs as long as a freeze lasts
// and for nothing else. What it says does not matter: it has come back.
func AwaitWrites(root int) { _ = unix.Mkdirat(root, longerThanAny, 0) }
