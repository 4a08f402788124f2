package store

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

// spot is an entry of a directory of a pool, reached without crossing a link or
// a mount: where adopted data is, or was.
type spot struct {
	parent *beneath.Dir
	name   string
}

func openSpot(r *root, from string) (*spot, error) {
	top, err := r.NoCross()
	if err != nil {
		return nil, err
	}
	defer top.Close()

	parent, err := top.OpenDir(path.Dir(from))
	if err != nil {
		return nil, err
	}

	return &spot{parent: parent, name: path.Base(from)}, nil
}

func (sp *spot) Close() error { return sp.parent.Close() }

// open opens what is there, O_PATH.
func (sp *spot) open() (*os.File, error) { return sp.parent.OpenFile(sp.name, unix.O_PATH, 0) }

// linkTarget is the content of the link at an adopted volume's old path: the
// way from there to its data. It is relative, so that it holds wherever the
// pool is mounted.
func linkTarget(rec *record.Volume) string {
	return path.Join(strings.Repeat("../", strings.Count(rec.AdoptedFrom, "/")), rec.ID,
		adoptedName(rec))
}

// linkState is what is at an adopted volume's old path.
type linkState int

const (
	linkOurs    linkState = iota
	linkMissing           // nothing is there
	linkTaken             // something else is there, or the path cannot be reached any more
)

func (sp *spot) link(rec *record.Volume) (linkState, error) {
	to, err := sp.parent.Readlink(sp.name)
	switch {
	case err == nil && to == linkTarget(rec):
		return linkOurs, nil
	case errors.Is(err, fs.ErrNotExist):
		return linkMissing, nil
	case err == nil, errors.Is(err, unix.EINVAL): // another link, or no link
		return linkTaken, nil
	}

	return linkTaken, err
}

// atOldPath calls f with an adopted volume's old path and what is there. A path
// that does not exist any more, or cannot be reached without following links,
// counts as taken by something else; f is given nil for it.
func atOldPath(r *root, rec *record.Volume, f func(*spot, linkState) error) error {
	sp, err := openSpot(r, rec.AdoptedFrom)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ELOOP) ||
		errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.EXDEV) {
		return f(nil, linkTaken)
	}
	if err != nil {
		return err
	}
	defer sp.Close()

	state, err := sp.link(rec)
	if err != nil {
		return err
	}

	return f(sp, state)
}

// ensureLink makes the link at an adopted volume's old path if nothing is
// there. Anything else there is left alone; Verify reports it.
func (s *Store) ensureLink(r *root, rec *record.Volume) error {
	if rec.AdoptedFrom == "" {
		return nil
	}

	return atOldPath(r, rec, func(sp *spot, state linkState) error {
		if state != linkMissing {
			return nil
		}
		if err := s.fault("adopt: make link"); err != nil {
			return err
		}
		if err := sp.parent.Symlink(linkTarget(rec), sp.name); err != nil &&
			!errors.Is(err, fs.ErrExist) {
			return err
		}

		return sp.parent.Sync()
	})
}

// removeLink removes the link at an adopted volume's old path if it still is
// that link.
func (s *Store) removeLink(r *root, rec *record.Volume) error {
	if rec.AdoptedFrom == "" {
		return nil
	}

	return atOldPath(r, rec, func(sp *spot, state linkState) error {
		if state != linkOurs {
			return nil
		}
		if err := s.fault("adopt: remove link"); err != nil {
			return err
		}
		if err := sp.parent.Unlink(sp.name); err != nil {
			return err
		}

		return sp.parent.Sync()
	})
}

// adoptedName is the name of the adopted data in its volume's directory.
func adoptedName(rec *record.Volume) string {
	if rec.Backend == record.BackendLoop {
		return record.ImageFile
	}
	return record.DataDir
}

// isUnmoved reports whether the record in parent is of an adoption that was not
// committed: the link is still where the data belongs.
func isUnmoved(parent *beneath.Dir, rec *record.Volume) (bool, error) {
	if rec.Adopting != record.AdoptionMoving {
		return false, nil
	}

	dir, err := parent.OpenDir(rec.ID)
	if err != nil {
		return false, err
	}
	defer dir.Close()

	st, err := dir.Stat(adoptedName(rec))
	if errors.Is(err, os.ErrNotExist) {
		return true, nil // the link was removed already
	}

	return err == nil && st.Mode&unix.S_IFMT == unix.S_IFLNK, err
}

// unlinkPrepared removes the links that an adoption made under tmp, so that
// what is left is like any other unfinished volume. Adopted data that somebody
// put there is a *MismatchError, and nothing clears it away.
func unlinkPrepared(tmp, dir *beneath.Dir, id string) error {
	rec, err := readEntry(tmp, id, id)
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
