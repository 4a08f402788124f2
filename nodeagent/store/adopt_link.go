package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/nodeagent/beneath"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// spot is a name in a directory of a pool, reached over no link and no mount.
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

// linkTarget is what the link at an adopted volume's old path says: the way from there to its data. It is relative, so that
// it holds wherever the pool is mounted.
func linkTarget(rec *record.Volume) string {
	return path.Join(strings.Repeat("../", strings.Count(rec.AdoptedFrom, "/")), rec.ID, adoptedName(rec))
}

// linkState is what is at an adopted volume's old path.
type linkState int

const (
	linkOurs    linkState = iota
	linkMissing           // nothing is there
	linkTaken             // something else is there, or the path can not be reached any more
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

// atOldPath calls f with the place of an adopted volume's link. A place that is not there any more, or not to be reached
// without following links, is as if something else were there.
func atOldPath(r *root, rec *record.Volume, f func(*spot, linkState) error) error {
	sp, err := openSpot(r, rec.AdoptedFrom)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.EXDEV) {
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

// ensureLink makes the link at an adopted volume's old path where nothing is. What else may be there is left alone; Verify
// tells of it.
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
		if err := sp.parent.Symlink(linkTarget(rec), sp.name); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		return sp.parent.Sync()
	})
}

// removeLink removes the link at an adopted volume's old path if it still is that link.
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

// adoption looks at the link of an adopted volume. unfinished: its adoption is not, and nothing else of it can hold.
func (at *place) adoption() (unfinished bool) {
	if at.rec.Adopting != "" {
		unmoved, err := isUnmoved(at.root.Dir, at.rec)
		switch {
		case err != nil:
			at.error("how far its adoption is: %v", err)
		case unmoved:
			at.add(Finding{Severity: SeverityNote, Pool: at.pool.name(), Volume: at.rec.ID,
				What: "an adoption that has moved nothing, under way or left by a crash; the agent clears it away at its next start"})
		default:
			at.repairable(SeverityError, "finish it", finishFound, "the adoption of %s is not finished", at.rec.AdoptedFrom)
		}
		return true
	}
	if at.rec.AdoptedFrom == "" {
		return false
	}
	err := atOldPath(at.root, at.rec, func(_ *spot, state linkState) error {
		switch state {
		case linkMissing:
			at.repairable(SeverityWarning, "make the link", func(_ context.Context, at *place) error { return at.store.ensureLink(at.root, at.rec) },
				"the link at %s, where its data was before it was adopted, is gone", at.rec.AdoptedFrom)
		case linkTaken:
			at.add(Finding{Severity: SeverityWarning, Pool: at.pool.name(), Volume: at.rec.ID,
				What: fmt.Sprintf("what is at %s, where its data was before it was adopted, is not its link", at.rec.AdoptedFrom)})
		}
		return nil
	})
	if err != nil {
		at.error("the link at %s: %v", at.rec.AdoptedFrom, err)
	}
	return false
}

// finishFound is the repair of an adoption that is not finished.
func finishFound(ctx context.Context, at *place) error {
	s := at.store
	v := s.lookup(at.rec.ID)
	if v == nil {
		v = &volume{id: at.rec.ID, pool: at.pool, rec: *at.rec}
	}
	if v.rec.Adopting == "" {
		return nil
	}
	if v.pool.online() {
		return s.finishAdoption(ctx, v, at.root, at.dir)
	}
	return fmt.Errorf("the agent finishes it when it brings the volume up")
}
