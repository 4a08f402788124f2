package quota

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Report counts what a walk met.
type Report struct {
	Inodes uint64 // directories and regular files looked at, the top included
	// That they take on the disk; a file with several names counts as often,
	// but for Measure.
	Bytes   uint64
	Changed uint64 // of them given the id, by Assign
	// Of them left, by Assign: the kernel refuses while the flag is set; by
	// Measure: all that are so.
	Immutable uint64
	HardLinks uint64 // regular files with a second name, which may be elsewhere
	Special   uint64 // links, FIFOs, sockets and devices: skipped, opening them is not safe
	Mounts    uint64 // mount points: skipped
	Busy      uint64 // files with a lease (fcntl(2)): skipped, try again
	TooDeep   uint64 // directories not entered, by Return: thousands of levels down
	Strays    []Stray
}

// Stray is an inode whose project is not the volume's.
type Stray struct {
	Path      string // relative to the volume; for people, shortened if very long
	Inode     uint64
	ID        uint32 // its project
	Directory bool   // a directory may also just have lost its inherit flag
}

// maxStrays is how many Check reports of one call: enough to say what happened.
const maxStrays = 64

// Assign gives every directory and regular file of a tree the project id, and
// every directory the inherit flag, the top first, so that what is made from
// then on has it. It is for the adoption of a tree nobody uses meanwhile: a new
// volume needs SetProject on its empty directory only.
//
// It can be repeated after a crash and changes only what is not right yet. A
// hard link to an inode outside the tree takes that inode along; Report counts
// them. Special files keep their id: they occupy an inode and no space.
func Assign(ctx context.Context, tree *os.File, id uint32) (Report, error) {
	return walk(ctx, tree, new(Cursor), bound{}, func(in inode, count *Report) error {
		return in.assign(id, count)
	})
}

func (in inode) assign(id uint32, count *Report) error {
	changed, err := setProject(in.fd, id, in.isDir())
	if errors.Is(err, unix.EPERM) && isImmutable(in.fd) {
		count.Immutable++
		return nil
	}
	if err != nil {
		return fmt.Errorf("set project id %d on %q: %w", id, in.path(), err)
	}
	if changed {
		count.Changed++
	}
	return nil
}

// AssignFiles is Assign for the regular files of a tree that is in use. Once a
// directory has the inherit flag, the kernel refuses to rename a file of
// another project into it or within it (EXDEV, rename(2)): a program that
// writes a temporary file and renames it would fail until its files were
// reached. With the files done first, only those made meanwhile are left to the
// Assign that has to follow.
func AssignFiles(ctx context.Context, tree *os.File, id uint32) (Report, error) {
	return walk(ctx, tree, new(Cursor), bound{}, func(in inode, count *Report) error {
		if in.isDir() {
			return nil
		}
		return in.assign(id, count)
	})
}

// Measure counts what is in a tree, up to budget entries (all if 0) from the
// cursor on, and changes nothing. Immutable are the inodes that Assign could
// not give an id.
func Measure(ctx context.Context, tree *os.File, at *Cursor, budget int) (Report, error) {
	type number struct{ dev, ino uint64 }
	linked := map[number]bool{}
	return walk(ctx, tree, at, bound{entries: budget}, func(in inode, count *Report) error {
		if !in.isDir() && in.stat.Nlink > 1 {
			n := number{in.stat.Dev, in.stat.Ino}
			if linked[n] {
				count.Bytes -= uint64(in.stat.Blocks) * 512
				return nil
			}
			linked[n] = true
		}
		if isImmutable(in.fd) {
			count.Immutable++
		}
		return nil
	})
}

// Check looks for inodes of a volume that are not in its project: a tenant may
// have moved them out of its quota. It looks at up to budget entries (all if 0)
// from the cursor on and leaves the cursor where the next call goes on, so that
// a volume of any size is checked in small steps; the cursor says when it is
// done. It changes nothing: what to do about it is the caller's to decide.
func Check(ctx context.Context, tree *os.File, id uint32, at *Cursor, budget int) (Report, error) {
	return walk(ctx, tree, at, bound{entries: budget}, func(in inode, count *Report) error {
		attr, err := getFSXattr(in.fd)
		if err != nil {
			return fmt.Errorf("get project id of %q: %w", in.path(), err)
		}
		if attr.ProjectID != id || attr.inherits() != in.isDir() {
			count.stray(in, attr)
		}
		return nil
	})
}

// stray notes an inode, if there is room for one more to be named.
func (r *Report) stray(in inode, attr fsxattr) {
	if len(r.Strays) < maxStrays {
		r.Strays = append(r.Strays, Stray{
			Path:      in.path(),
			Inode:     in.stat.Ino,
			ID:        attr.ProjectID,
			Directory: in.isDir(),
		})
	}
}

// Return is Check for a slice of time, and gives each inode that is not in the
// volume's project back to it at once, by the descriptor it was found with:
// what it costs is the look. Changed counts all of them, Strays names the
// first. It can be repeated after a crash at any point; the journal keeps what
// an inode loses for a moment. Without one an immutable inode is left as it is.
//
// Directories more than 4096 levels down are looked at and not entered: a
// tenant can make a million of them.
//
// The slice begins when the walk is back at the cursor, and is as long as that
// took if it is shorter.
func Return(ctx context.Context, tree *os.File, id uint32, at *Cursor, slice time.Duration,
	journal Journal) (Report, error) {
	return walk(ctx, tree, at, bound{time: slice, depth: returnDepth},
		func(in inode, count *Report) error {
			attr, err := getFSXattr(in.fd)
			if err != nil {
				return fmt.Errorf("get project id of %q: %w", in.path(), err)
			}
			if attr.ProjectID == id && attr.inherits() == in.isDir() {
				return nil
			}
			count.stray(in, attr)
			return in.takeBack(id, count, journal)
		})
}

// takeBack is assign for an inode that may have been made immutable, which
// keeps its project id as well: the flag is off for the moment of the change.
func (in inode) takeBack(id uint32, count *Report, journal Journal) error {
	_, err := setProject(in.fd, id, in.isDir())
	if errors.Is(err, unix.EPERM) && isImmutable(in.fd) {
		if journal == nil {
			count.Immutable++
			return nil
		}
		err = withoutFlags(in.fd, journal, func() error {
			_, err := setProject(in.fd, id, in.isDir())
			return err
		})
		if errors.Is(err, errFlagsStay) {
			count.Immutable++
			return nil
		}
	}
	if err != nil {
		return fmt.Errorf("set project id %d on %q: %w", id, in.path(), err)
	}
	count.Changed++
	return nil
}

func (in inode) isDir() bool { return in.stat.Mode&unix.S_IFMT == unix.S_IFDIR }

func isImmutable(fd int) bool {
	attr, err := getFSXattr(fd)
	return err == nil && attr.XFlags&(xflagImmutable|xflagAppend) != 0
}
