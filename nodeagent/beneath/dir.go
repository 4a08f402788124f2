package beneath

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

const resolve = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS

// NameError is returned for a name that is not one path element: empty, ".",
// "..", or with a slash or a NUL byte.
type NameError struct{ Name string }

func (e *NameError) Error() string { return fmt.Sprintf("%q is not the name of a file", e.Name) }

// CheckName returns a *NameError unless name is one path element that every
// Linux filesystem can hold.
func CheckName(name string) error {
	if name == "" || name == "." || name == ".." || len(name) > 255 ||
		strings.ContainsAny(name, "/\x00") {
		return &NameError{Name: name}
	}
	return nil
}

// Dir is a directory held by a descriptor. It must be closed.
type Dir struct {
	f *os.File
	// noCross makes every open below refuse to cross a mount point.
	noCross bool
}

// Open opens the directory at path, which is the administrator's (a pool's
// path) and so may lead over symlinks. It is the only function that takes a
// path from the root.
func Open(path string) (*Dir, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return &Dir{f: os.NewFile(uintptr(fd), path)}, nil
}

// File is the descriptor, for calls that take one (quotas, mounts). It is
// closed with the Dir.
func (d *Dir) File() *os.File { return d.f }

// Path is where the directory was when it was opened, for messages only.
func (d *Dir) Path() string { return d.f.Name() }

// Close lets go of the descriptor. A second call does nothing.
func (d *Dir) Close() error {
	if err := d.f.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

// Sync makes the directory's entries durable (fsync(2): a new name is durable
// only once its directory is).
func (d *Dir) Sync() error { return d.f.Sync() }

func (d *Dir) fd() int { return int(d.f.Fd()) }

func (d *Dir) wrap(op, name string, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: op, Path: path.Join(d.Path(), name), Err: err}
}

// OpenFile opens the file name, a relative path of one or more elements, with
// the flags of open(2). A last element that is a symlink is refused with ELOOP,
// also with O_PATH.
func (d *Dir) OpenFile(name string, flags int, perm os.FileMode) (*os.File, error) {
	how := unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC | unix.O_NOFOLLOW), Resolve: resolve}
	if flags&unix.O_CREAT != 0 {
		how.Mode = uint64(perm.Perm())
	}
	if d.noCross {
		how.Resolve |= unix.RESOLVE_NO_XDEV
	}
	for {
		fd, err := unix.Openat2(d.fd(), name, &how)
		// EAGAIN: a rename or mount raced with the resolution (openat2(2)); the
		// kernel could not prove it stayed beneath.
		if err == unix.EINTR || err == unix.EAGAIN {
			continue
		}
		if err != nil {
			return nil, d.wrap("openat2", name, err)
		}
		return os.NewFile(uintptr(fd), path.Join(d.Path(), name)), nil
	}
}

// OpenDir opens the directory name, a relative path of one or more elements.
func (d *Dir) OpenDir(name string) (*Dir, error) {
	f, err := d.OpenFile(name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	return &Dir{f: f, noCross: d.noCross}, nil
}

// NoCross opens the directory again so that nothing below it is reached over a
// mount point.
func (d *Dir) NoCross() (*Dir, error) {
	n, err := d.OpenDir(".")
	if err != nil {
		return nil, err
	}
	n.noCross = true
	return n, nil
}

// Mkdir makes the directory name. perm is not narrowed by the umask.
func (d *Dir) Mkdir(name string, perm os.FileMode) error {
	if err := CheckName(name); err != nil {
		return err
	}
	if err := unix.Mkdirat(d.fd(), name, uint32(perm.Perm())); err != nil {
		return d.wrap("mkdirat", name, err)
	}
	if err := unix.Fchmodat(d.fd(), name, uint32(perm.Perm()), 0); err != nil {
		return d.wrap("fchmodat", name, err)
	}
	return nil
}

// EnsureDir opens the directory name and makes it first where it is not there.
func (d *Dir) EnsureDir(name string, perm os.FileMode) (*Dir, error) {
	if err := d.Mkdir(name, perm); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	return d.OpenDir(name)
}

// Stat describes name without following it.
func (d *Dir) Stat(name string) (unix.Stat_t, error) {
	var st unix.Stat_t
	if err := CheckName(name); err != nil {
		return st, err
	}
	err := unix.Fstatat(d.fd(), name, &st, unix.AT_SYMLINK_NOFOLLOW)
	return st, d.wrap("fstatat", name, err)
}

// Exists reports whether there is anything called name.
func (d *Dir) Exists(name string) (bool, error) {
	_, err := d.Stat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// Names lists the directory from its start, in no order.
func (d *Dir) Names() ([]string, error) {
	// A second descriptor: the offset of the first is shared by everybody who
	// uses the Dir.
	f, err := d.OpenFile(".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Readdirnames(-1)
}

// Rename moves name to newName in another directory of the same filesystem, and
// refuses to replace anything (EEXIST). It is durable once both directories are
// synced.
func (d *Dir) Rename(name string, to *Dir, newName string) error {
	if err := errors.Join(CheckName(name), CheckName(newName)); err != nil {
		return err
	}
	err := unix.Renameat2(d.fd(), name, to.fd(), newName, unix.RENAME_NOREPLACE)
	return d.wrap("renameat2", name, err)
}

// Exchange makes name lead to what newName of another directory of the same
// filesystem leads to, and the other way round, in one step. It is durable once
// both directories are synced.
func (d *Dir) Exchange(name string, with *Dir, newName string) error {
	if err := errors.Join(CheckName(name), CheckName(newName)); err != nil {
		return err
	}
	err := unix.Renameat2(d.fd(), name, with.fd(), newName, unix.RENAME_EXCHANGE)
	return d.wrap("renameat2", name, err)
}

// Unlink removes the file (not directory) name. Gone already is not an error.
func (d *Dir) Unlink(name string) error { return d.unlink(name, 0) }

// Rmdir removes the empty directory name. Gone already is not an error.
func (d *Dir) Rmdir(name string) error { return d.unlink(name, unix.AT_REMOVEDIR) }

func (d *Dir) unlink(name string, flags int) error {
	if err := CheckName(name); err != nil {
		return err
	}
	err := unix.Unlinkat(d.fd(), name, flags)
	if err == unix.ENOENT {
		return nil
	}
	return d.wrap("unlinkat", name, err)
}

// Symlink makes name a symlink to target, which is not looked at.
func (d *Dir) Symlink(target, name string) error {
	if err := CheckName(name); err != nil {
		return err
	}
	return d.wrap("symlinkat", name, unix.Symlinkat(target, d.fd(), name))
}

// Readlink returns what the symlink name points at.
func (d *Dir) Readlink(name string) (string, error) {
	if err := CheckName(name); err != nil {
		return "", err
	}
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(d.fd(), name, buf)
	if err != nil {
		return "", d.wrap("readlinkat", name, err)
	}
	return string(buf[:n]), nil
}

// ReadFile reads the regular file name, at most max bytes of it; a larger file,
// or anything that is not a regular file, is an error.
func (d *Dir) ReadFile(name string, max int64) ([]byte, error) {
	// O_NONBLOCK: a FIFO somebody put there must not make the open wait.
	f, err := d.OpenFile(name, unix.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, d.wrap("read", name, errors.New("not a regular file"))
	}
	b, err := io.ReadAll(io.LimitReader(f, max+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > max {
		return nil, d.wrap("read", name, fmt.Errorf("larger than %d bytes", max))
	}
	return b, nil
}

// Temporary is the name of the file in which WriteFile prepares the file name.
func Temporary(name string) string { return "." + name + ".tmp" }

// WriteFile puts data into the file name so that after a crash at any instant
// name holds either its former content or all of data: a temporary file in the
// same directory is written and synced, renamed over name, and the directory
// synced. A temporary file that a crash leaves behind is overwritten by the
// next call.
func (d *Dir) WriteFile(name string, data []byte, perm os.FileMode) error {
	if err := CheckName(name); err != nil {
		return err
	}
	tmp := Temporary(name)
	// Not O_EXCL: the left-over of a crash is ours; O_NOFOLLOW keeps a link
	// from being written through.
	f, err := d.OpenFile(tmp, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC, perm)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", path.Join(d.Path(), name), err)
	}
	if err := unix.Renameat(d.fd(), tmp, d.fd(), name); err != nil {
		return d.wrap("renameat", name, err)
	}
	return d.Sync()
}
