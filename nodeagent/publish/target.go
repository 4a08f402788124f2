package publish

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/mount"
	"github.com/quarry-storage/quarry/nodeagent/translate"
)

const (
	// Of what is made at a target; the mount hides it.
	targetDirMode  = 0o750
	targetFileMode = 0o600
)

// target is a path to publish at: an entry of a directory that is held open.
// The directories above it are the caller's, and may be reached over links
// (kubelet's root directory is one on some systems); the entry itself is never
// followed.
type target struct {
	path   string
	name   string
	parent *os.File
}

// openTarget opens the directory that path lies in. If there is none the error
// is an fs.ErrNotExist.
func openTarget(path string) (*target, error) {
	parent, err := os.OpenFile(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, translate.Errorf(v1alpha1.ReasonInvalidTarget,
			"the directory that %s is to be in, which the caller makes where this "+
				"process sees it: %w", path, err)
	}
	return &target{path: path, name: filepath.Base(path), parent: parent}, nil
}

func (t *target) Close() error { return t.parent.Close() }

// open opens what is at the target: the topmost mount, where something is
// mounted.
func (t *target) open() (*os.File, error) {
	fd, err := unix.Openat(int(t.parent.Fd()), t.name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC,
		0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: t.path, Err: err}
	}
	return os.NewFile(uintptr(fd), t.path), nil
}

// mounted opens what is mounted at the target. The error wraps
// mount.ErrNotMountpoint when that is nothing.
func (t *target) mounted() (*os.File, error) {
	f, err := t.open()
	if err != nil {
		return nil, err
	}
	if _, err := mount.At(f); err != nil {
		f.Close()
		return nil, err
	}

	return f, nil
}

// ensure makes what a mount of source needs at the target, and refuses what is
// there and is not that: a link, a file for a directory, or anything with
// content, which the mount would hide. made is true when it was not there
// before.
func (t *target) ensure(source *os.File) (made bool, err error) {
	var src unix.Stat_t
	if err := unix.Fstat(int(source.Fd()), &src); err != nil {
		return false, err
	}

	dir := src.Mode&unix.S_IFMT == unix.S_IFDIR
	if dir {
		err = unix.Mkdirat(int(t.parent.Fd()), t.name, targetDirMode)
	} else {
		var fd int
		fd, err = unix.Openat(int(t.parent.Fd()), t.name,
			unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, targetFileMode)
		if err == nil {
			err = unix.Close(fd)
		}
	}

	switch {
	case err == nil:
		return true, nil
	case !errors.Is(err, unix.EEXIST):
		return false, translate.Errorf(v1alpha1.ReasonFailed, "make %s: %w", t.path, err)
	}

	return false, t.checkEmpty(dir)
}

func (t *target) checkEmpty(dir bool) error {
	refuse := func(what string) error {
		return translate.Errorf(v1alpha1.ReasonInvalidTarget, "%s is %s; it was left as it is",
			t.path, what)
	}
	f, err := t.open()
	if err != nil {
		return translate.Errorf(v1alpha1.ReasonFailed, "look at the target: %w", err)
	}
	defer f.Close()

	st, err := f.Stat()
	if err != nil {
		return translate.Errorf(v1alpha1.ReasonFailed, "look at the target: %w", err)
	}

	switch {
	case dir && !st.IsDir():
		return refuse("not a directory but " + kindOf(st.Mode()))
	case !dir && !st.Mode().IsRegular():
		return refuse("not a plain file but " + kindOf(st.Mode()))
	case !dir && st.Size() > 0:
		return refuse("a file with content")
	case !dir:
		return nil
	}

	list, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	if err != nil {
		return translate.Errorf(v1alpha1.ReasonFailed, "look at the target: %w", err)
	}
	defer list.Close()

	if _, err := list.Readdirnames(1); !errors.Is(err, io.EOF) {
		return refuse("a directory that is not empty")
	}

	return nil
}

func kindOf(mode os.FileMode) string {
	switch {
	case mode.IsDir():
		return "a directory"
	case mode.IsRegular():
		return "a file"
	case mode&os.ModeSymlink != 0:
		return "a symbolic link"
	}

	return mode.Type().String()
}

// bind mounts source at the target and proves that it is what is seen there
// then. After an error nothing is left.
func (t *target) bind(ctx context.Context, source *os.File, opts options) (err error) {
	made, err := t.ensure(source)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil && made {
			err = errors.Join(err, t.remove())
		}
	}()

	place, err := t.open()
	if err != nil {
		return translate.Errorf(v1alpha1.ReasonFailed, "open the target: %w", err)
	}

	err = mount.Bind(ctx, source, place, opts.BindOptions)
	place.Close()
	if err != nil {
		return translate.Errorf(v1alpha1.ReasonFailed, "publish: %w", err)
	}

	there, err := t.mounted()
	if err == nil {
		defer there.Close()
		var same bool
		if same, err = isSame(there, source); err == nil && same {
			return nil
		}
	}

	return errors.Join(translate.Errorf(v1alpha1.ReasonFailed,
		"what is seen at %s is not what was mounted there: %w", t.path, err), t.unmount(ctx))
}

// unmount takes the topmost mount away.
func (t *target) unmount(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}

	err := unix.Unmount(fmt.Sprintf("/proc/self/fd/%d/%s", t.parent.Fd(), t.name),
		unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EBUSY) {
		return translate.Errorf(v1alpha1.ReasonTargetBusy, "something still uses %s: %w", t.path,
			err)
	}
	if err != nil {
		return translate.Errorf(v1alpha1.ReasonFailed, "unmount %s: %w", t.path, err)
	}

	return nil
}

// remove removes the directory or file at the target, unless it has content,
// which is not ours. Nothing there is fine.
func (t *target) remove() error {
	f, err := t.open()
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return translate.Errorf(v1alpha1.ReasonFailed, "remove the target: %w", err)
	}

	st, err := f.Stat()
	f.Close()
	if err != nil {
		return translate.Errorf(v1alpha1.ReasonFailed, "remove the target: %w", err)
	}

	flags := 0
	switch {
	case st.IsDir():
		flags = unix.AT_REMOVEDIR
	case !st.Mode().IsRegular() || st.Size() > 0:
		return translate.Errorf(v1alpha1.ReasonInvalidTarget,
			"%s is %s, or has content; it was left as it is", t.path, kindOf(st.Mode()))
	}

	err = unix.Unlinkat(int(t.parent.Fd()), t.name, flags)
	switch {
	case err == nil, errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, unix.ENOTEMPTY):
		return translate.Errorf(v1alpha1.ReasonInvalidTarget,
			"%s is not empty; it was left as it is", t.path)
	}

	return translate.Errorf(v1alpha1.ReasonFailed, "remove %s: %w", t.path, err)
}

// isSame reports whether two descriptors are of one directory, or of nodes of
// one block device.
func isSame(a, b *os.File) (bool, error) {
	var x, y unix.Stat_t
	if err := unix.Fstat(int(a.Fd()), &x); err != nil {
		return false, &fs.PathError{Op: "stat", Path: a.Name(), Err: err}
	}
	if err := unix.Fstat(int(b.Fd()), &y); err != nil {
		return false, &fs.PathError{Op: "stat", Path: b.Name(), Err: err}
	}
	if x.Mode&unix.S_IFMT == unix.S_IFBLK && y.Mode&unix.S_IFMT == unix.S_IFBLK {
		return x.Rdev == y.Rdev, nil
	}

	return x.Mode&unix.S_IFMT == y.Mode&unix.S_IFMT && x.Dev == y.Dev && x.Ino == y.Ino, nil
}
