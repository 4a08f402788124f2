package quota

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A Cursor is a place in the walk of a tree, kept between calls without
// holding anything open. The zero Cursor is the beginning.
type Cursor struct {
	frames []frame // from the tree's top to the directory being read
	done   bool
}

// Done reports whether the walk has come to the end of the tree.
func (c *Cursor) Done() bool { return c.done }

// frame is one directory on the way from the top down.
type frame struct {
	name     string // in its parent; the top has none
	dev, ino uint64 // what it is, whatever its name leads to by now
	offset   int64  // of the first entry not yet seen
	rest     []byte // entries read and not yet seen; nil: read again from offset
}

// keepEntries is the depth down to which read entries are kept while their
// subdirectories are walked. It spares a wide directory from being read again
// for each of them; below, a tree 10,000 levels deep costs no memory to speak
// of.
const keepEntries = 64

// returnDepth is how deep Return goes. A way down costs memory, and has to be
// gone again at each slice; no program makes one so long.
const returnDepth = 4096

// direntBuffer is how much of a directory is read at once.
const direntBuffer = 16 << 10

// resolveInside keeps a walk in the volume it began in, whatever its user does
// meanwhile: no link is followed and no mount entered. See openat2(2).
const resolveInside = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS |
	unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV

// openDir never blocks and has no side effects: what is not a directory is
// refused. NOATIME, because looking is not using.
const openDir = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_NOATIME | unix.O_CLOEXEC

// walker visits directories and regular files of a hostile tree, a directory
// before what is in it. It holds one directory open, however deep the tree: it
// goes up by ".." and believes it only if that is the directory it came from.
type walker struct {
	at    *Cursor
	top   int // the tree's descriptor, the caller's
	dir   int // the directory of the last frame
	buf   []byte
	count Report
	visit visitor
	depth int // how many levels are entered at the most; 0: all
}

// inode is a directory or a regular file met by a walk.
type inode struct {
	fd   int // open for reading
	stat *unix.Stat_t
	path func() string // relative to the tree, for people
}

type visitor func(inode, *Report) error

// bound is where a walk stops for now. The zero bound is the end of the tree.
type bound struct {
	entries int
	time    time.Duration
	depth   int // below it directories are not entered, and are counted
}

// from returns what tells, after so many entries, whether the bound is reached.
// Coming back to the cursor took a while already: with that the walk takes
// twice as long at the most, and always comes further.
func (b bound) from(resumed time.Duration) func(entries int) bool {
	end := time.Now().Add(max(b.time, resumed))
	return func(entries int) bool {
		return b.entries > 0 && entries >= b.entries ||
			b.time > 0 && entries > 0 && time.Now().After(end)
	}
}

// walk continues at the cursor and goes on until the bound. What is moved about
// in the tree meanwhile may be missed.
func walk(ctx context.Context, tree *os.File, at *Cursor, until bound,
	visit visitor) (Report, error) {
	w := &walker{at: at, buf: make([]byte, direntBuffer), dir: -1, visit: visit, depth: until.depth}
	err := control(tree, func(fd int) error {
		w.top = fd
		return w.run(ctx, until)
	})
	if w.dir >= 0 {
		unix.Close(w.dir)
	}
	for i := range at.frames {
		at.frames[i].rest = nil
	}
	if err != nil {
		return w.count, fmt.Errorf("walk %s: %w", tree.Name(), err)
	}
	return w.count, nil
}

func (w *walker) run(ctx context.Context, until bound) error {
	if w.at.done {
		return nil
	}
	started := time.Now()
	if err := w.resume(); err != nil {
		return err
	}
	reached := until.from(time.Since(started))
	for seen := 0; !reached(seen); {
		if err := ctx.Err(); err != nil {
			return err
		}
		e, ok, err := w.next()
		switch {
		case err != nil:
			return err
		case ok:
			seen++
			if err := w.entry(e); err != nil {
				return err
			}
		case len(w.at.frames) == 1:
			w.at.done = true
			return nil
		default:
			if err := w.up(); err != nil {
				return err
			}
		}
	}
	return nil
}

// resume opens the directory the cursor is in, or the lowest one on the way
// there that is still what it was.
func (w *walker) resume() error {
	fd, err := openIn(w.top, ".", openDir)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return err
	}
	w.setDir(fd)
	if len(w.at.frames) == 0 {
		w.at.frames = []frame{{dev: st.Dev, ino: st.Ino}}
		if err := w.meet(fd, &st, ""); err != nil {
			return err
		}
	}
	for depth := 1; depth < len(w.at.frames); depth++ {
		f := &w.at.frames[depth]
		fd, err := openIn(w.dir, f.name, openDir)
		if err == nil && !isSame(fd, f) {
			unix.Close(fd)
			err = unix.ENOENT
		}
		if err != nil {
			w.at.frames = w.at.frames[:depth]
			break
		}
		w.setDir(fd)
	}
	return nil
}

// up goes back to the directory of the frame before the last.
func (w *walker) up() error {
	w.at.frames = w.at.frames[:len(w.at.frames)-1]
	parent := &w.at.frames[len(w.at.frames)-1]
	// BENEATH refuses ".."; that it leads where we came from is proven instead.
	fd, err := unix.Openat(w.dir, "..", openDir, 0)
	if err == nil && isSame(fd, parent) {
		w.setDir(fd)
		return nil
	}
	if err == nil {
		unix.Close(fd)
	}
	return w.resume() // the directory was moved or removed under us
}

func (w *walker) setDir(fd int) {
	if w.dir >= 0 {
		unix.Close(w.dir)
	}
	w.dir = fd
}

func isSame(fd int, f *frame) bool {
	var st unix.Stat_t
	return unix.Fstat(fd, &st) == nil && st.Dev == f.dev && st.Ino == f.ino
}

// entry looks at one directory entry.
func (w *walker) entry(e dirent) error {
	switch e.kind {
	case unix.DT_DIR, unix.DT_REG, unix.DT_UNKNOWN:
	default:
		w.count.Special++
		return nil
	}
	if e.kind == unix.DT_DIR {
		fd, err := openIn(w.dir, e.name, openDir)
		if err == nil {
			return w.down(fd, e.name)
		}
		if !errors.Is(err, unix.ENOTDIR) {
			return w.unreadable(e, err)
		}
	}
	return w.file(e)
}

// down makes the directory open as fd the current one.
func (w *walker) down(fd int, name string) error {
	var st unix.Stat_t
	err := unix.Fstat(fd, &st)
	if err == nil {
		err = w.meet(fd, &st, name)
	}
	if err != nil {
		unix.Close(fd)
		return err
	}
	if w.depth > 0 && len(w.at.frames) >= w.depth {
		w.count.TooDeep++
		return unix.Close(fd)
	}
	if len(w.at.frames) > keepEntries {
		w.at.frames[len(w.at.frames)-1].rest = nil
	}
	w.at.frames = append(w.at.frames, frame{name: name, dev: st.Dev, ino: st.Ino})
	w.setDir(fd)
	return nil
}

// file looks at an entry that is not a directory, or was not when it was
// listed. It is opened in two steps, because opening a device or a FIFO acts
// on it: O_PATH only finds the inode, and the open through /proc goes to that
// inode, once it is known to be a regular file.
func (w *walker) file(e dirent) error {
	handle, err := openIn(w.dir, e.name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC)
	if err != nil {
		return w.unreadable(e, err)
	}
	defer unix.Close(handle)
	var st unix.Stat_t
	if err := unix.Fstat(handle, &st); err != nil {
		return err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
	case unix.S_IFDIR:
		fd, err := openIn(handle, ".", openDir)
		if err != nil {
			return w.unreadable(e, err)
		}
		return w.down(fd, e.name)
	default:
		w.count.Special++
		return nil
	}
	// NONBLOCK: a lease on the file (fcntl(2), F_SETLEASE) would make us wait.
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", handle),
		unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOATIME|unix.O_CLOEXEC, 0)
	if err != nil {
		return w.unreadable(e, err)
	}
	defer unix.Close(fd)
	if st.Nlink > 1 {
		w.count.HardLinks++
	}
	return w.meet(fd, &st, e.name)
}

func (w *walker) meet(fd int, st *unix.Stat_t, name string) error {
	w.count.Inodes++
	w.count.Bytes += uint64(st.Blocks) * 512 // whatever the filesystem's blocks are (stat(2))
	return w.visit(inode{fd: fd, stat: st, path: func() string { return w.path(name) }}, &w.count)
}

// unreadable sorts out why an entry could not be opened.
func (w *walker) unreadable(e dirent, err error) error {
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil // removed meanwhile
	case errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENOTDIR):
		w.count.Special++ // replaced by a symbolic link meanwhile
	case errors.Is(err, unix.EXDEV):
		w.count.Mounts++
	case errors.Is(err, unix.EAGAIN):
		w.count.Busy++
	default:
		return fmt.Errorf("open %q: %w", w.path(e.name), err)
	}
	return nil
}

// path returns the path of an entry of the current directory, for people to
// read: cut short if it is very long, and never used to open anything.
func (w *walker) path(name string) string {
	var b strings.Builder
	for _, f := range w.at.frames[min(1, len(w.at.frames)):] {
		if b.Len() > unix.PathMax {
			b.WriteString(".../")
			break
		}
		b.WriteString(f.name + "/")
	}
	return b.String() + name
}

// dirent is what getdents64(2) says of an entry.
type dirent struct {
	name string
	kind uint8
	next int64 // the directory's offset after it
}

// next returns the next entry of the current directory.
func (w *walker) next() (e dirent, ok bool, err error) {
	f := &w.at.frames[len(w.at.frames)-1]
	for {
		if len(f.rest) == 0 {
			// The descriptor may be a new one, see up.
			if _, err := unix.Seek(w.dir, f.offset, unix.SEEK_SET); err != nil {
				return e, false, err
			}
			n, err := unix.Getdents(w.dir, w.buf)
			if errors.Is(err, unix.ENOENT) || n == 0 && err == nil {
				return e, false, nil // the end, or the directory was removed
			}
			if err != nil {
				return e, false, err
			}
			f.rest = bytes.Clone(w.buf[:n])
		}
		e, f.rest = parseDirent(f.rest)
		f.offset = e.next
		if e.name != "." && e.name != ".." {
			return e, true, nil
		}
	}
}

// parseDirent takes the first struct linux_dirent64 off b: inode (8 bytes),
// offset of the next (8), length (2), type (1), name.
func parseDirent(b []byte) (dirent, []byte) {
	length := binary.NativeEndian.Uint16(b[16:])
	name, _, _ := bytes.Cut(b[19:length], []byte{0})
	return dirent{
		name: string(name),
		kind: b[18],
		next: int64(binary.NativeEndian.Uint64(b[8:])),
	}, b[length:]
}

func openIn(dir int, name string, flags uint64) (int, error) {
	for {
		fd, err := unix.Openat2(dir, name, &unix.OpenHow{Flags: flags, Resolve: resolveInside})
		if !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}
