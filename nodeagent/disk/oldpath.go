package disk

import (
	"errors"
	"io/fs"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/nodeagent/beneath"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// OldPath is an entry of a directory of a pool, reached without crossing a link or
// a mount: where adopted data is, or was.
type OldPath struct {
	Parent *beneath.Dir
	Name   string
}

func OpenOldPath(r *Root, from string) (*OldPath, error) {
	top, err := r.NoCross()
	if err != nil {
		return nil, err
	}
	defer top.Close()

	parent, err := top.OpenDir(path.Dir(from))
	if err != nil {
		return nil, err
	}

	return &OldPath{Parent: parent, Name: path.Base(from)}, nil
}

func (old *OldPath) Close() error { return old.Parent.Close() }

// Open opens what is there, O_PATH.
func (old *OldPath) Open() (*os.File, error) {
	return old.Parent.OpenFile(old.Name, unix.O_PATH, 0)
}

// LinkTarget is the content of the link at an adopted volume's old path: the
// way from there to its data. It is relative, so that it holds wherever the
// pool is mounted.
func LinkTarget(rec *record.Volume) string {
	return path.Join(strings.Repeat("../", strings.Count(rec.AdoptedFrom, "/")), rec.ID,
		DataName(rec))
}

// LinkState is what is at an adopted volume's old path.
type LinkState int

const (
	LinkOurs    LinkState = iota
	LinkMissing           // nothing is there
	LinkTaken             // something else is there, or the path cannot be reached any more
)

func (old *OldPath) link(rec *record.Volume) (LinkState, error) {
	to, err := old.Parent.Readlink(old.Name)
	switch {
	case err == nil && to == LinkTarget(rec):
		return LinkOurs, nil
	case errors.Is(err, fs.ErrNotExist):
		return LinkMissing, nil
	case err == nil, errors.Is(err, unix.EINVAL): // another link, or no link
		return LinkTaken, nil
	}

	return LinkTaken, err
}

// AtOldPath calls f with an adopted volume's old path and what is there. A path
// that does not exist any more, or cannot be reached without following links,
// counts as taken by something else; f is given nil for it.
func AtOldPath(r *Root, rec *record.Volume, f func(*OldPath, LinkState) error) error {
	old, err := OpenOldPath(r, rec.AdoptedFrom)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ELOOP) ||
		errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.EXDEV) {
		return f(nil, LinkTaken)
	}
	if err != nil {
		return err
	}
	defer old.Close()

	state, err := old.link(rec)
	if err != nil {
		return err
	}

	return f(old, state)
}

// IsUnmoved reports whether the record in parent is of an adoption that was not
// committed: the link is still where the data belongs.
func IsUnmoved(parent *beneath.Dir, rec *record.Volume) (bool, error) {
	if rec.Adopting != record.AdoptionMoving {
		return false, nil
	}

	dir, err := parent.OpenDir(rec.ID)
	if err != nil {
		return false, err
	}
	defer dir.Close()

	st, err := dir.Stat(DataName(rec))
	if errors.Is(err, os.ErrNotExist) {
		return true, nil // the link was removed already
	}

	return err == nil && st.Mode&unix.S_IFMT == unix.S_IFLNK, err
}

// UnlinkPrepared removes the links that an adoption made under tmp, so that
// what is left is like any other unfinished volume. Adopted data that somebody
// put there is a *MismatchError, and nothing clears it away.
func UnlinkPrepared(tmp, dir *beneath.Dir, id string) error {
	rec, err := ReadEntry(tmp, id, id)
	adopting := err == nil && rec.Adopting != ""
	for _, name := range []string{record.DataDir, record.ImageFile} {
		st, err := dir.Stat(name)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}

		if st.Mode&unix.S_IFMT != unix.S_IFLNK {
			if adopting {
				return &MismatchError{ID: id, Detail: "adopted data is below " + record.TmpDir +
					"; it is left alone"}
			}
			continue
		}
		if err := dir.Unlink(name); err != nil {
			return err
		}
	}

	return nil
}
