package store

import (
	"fmt"
	"path"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/nodeagent/beneath"
	"github.com/quarry-storage/quarry/nodeagent/btrfs"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/quota"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// A directory whose record cannot be read is broken: it is reported and left
// alone. Its data is there all the same, and so is the promise to its user. The
// ledger keeps both, by the last record that was read, or by the size of the
// image or the quota's limit.

// markBroken remembers that a directory of a pool cannot be read, and promises
// it what it most likely takes. name is that of a volume, or the path of an
// entry of the trash below the pool's own directory.
func (s *Store) markBroken(p *pool, r *disk.Root, space *filesystemSpace, name string,
	cause error) {
	key := p.key(name)
	s.mu.Lock()
	known := s.volumes[name]
	if known != nil && known.pool != p {
		known = nil
	}
	former, guessed := s.guesses[key]
	s.mu.Unlock()

	g := guess{pool: p, image: name + "/" + record.ImageFile}
	parent := r.Dir
	if known == nil && path.Dir(name) == record.TrashDir {
		parent, g.image = r.Meta, record.MetaDir+"/"+g.image
	}
	switch {
	case known != nil:
		g.rec = known.rec
	case guessed:
		g = former
	default:
		g.rec = p.guess(r, parent, name)
	}
	if known == nil && g.rec.QuotaKind != "" && !space.own(key, &g.rec) {
		g.rec = record.Volume{} // its quota is another volume's
	}

	s.mu.Lock()
	s.broken[key] = cause
	if known != nil {
		known.unavailable, known.gone = &disk.MismatchError{ID: name, Detail: cause.Error()}, false
	}
	if g.rec.Owed() > 0 {
		s.guesses[key] = g
	}
	s.mu.Unlock()

	if g.rec.Owed() > 0 {
		p.promise(space, key, g.rec.Owed())
	}
}

// unmarkBroken forgets that a directory was broken: it can be read again, or is
// gone. Its promise ends with that, unless it is a volume's now.
func (s *Store) unmarkBroken(p *pool, name string) {
	key := p.key(name)
	s.mu.Lock()
	g, guessed := s.guesses[key]
	v := s.volumes[name]
	delete(s.broken, key)
	delete(s.guesses, key)
	s.mu.Unlock()

	space := p.books()
	if !guessed || space == nil || v != nil && v.pool == p {
		return
	}

	space.ledger.Release(key)
	space.ledger.Disown(key, uint32(g.rec.QuotaID))
}

// guess returns a record of what a directory without a readable one takes: the
// size of its image, or the limit of the quota that is on its data. If it has
// neither, the record is owed nothing.
func (p *pool) guess(r *disk.Root, parent *beneath.Dir, name string) record.Volume {
	p.mu.Lock()
	features := p.features
	p.mu.Unlock()

	rec := record.Volume{ID: path.Base(name), Allocation: record.AllocationThin}
	dir, err := parent.OpenDir(name)
	if err != nil {
		return rec
	}
	defer dir.Close()

	st, err := dir.Stat(record.ImageFile)
	if err == nil && st.Mode&unix.S_IFMT == unix.S_IFREG {
		rec.Backend, rec.SizeBytes = record.BackendLoop, roundUp(st.Size)
		return rec
	}

	data, err := dir.OpenDir(record.DataDir)
	if err != nil {
		return rec
	}
	defer data.Close()

	rec.Backend = record.BackendDirectory
	switch {
	case features.ProjectQuota:
		id, _, err := quota.GetProject(data.File())
		if err != nil || !quota.IsOurs(id) {
			return rec
		}

		limits, _, err := quota.GetLimits(r.File(), id)
		if err == nil && limits.Bytes > 0 {
			rec.QuotaKind, rec.QuotaID, rec.SizeBytes = record.QuotaProject, uint64(id),
				int64(limits.Bytes)
		}
	case features.SimpleQuota:
		id, err := btrfs.ID(data.File())
		if err != nil {
			return rec
		}

		groups, err := btrfs.Groups(r.File())
		if err != nil {
			return rec
		}

		for _, g := range groups {
			if slices.Contains(g.Members, id) && quota.IsOurs(uint32(g.Number)) && g.Limit > 0 {
				rec.QuotaKind, rec.QuotaID, rec.SizeBytes = record.QuotaBtrfs, g.Number,
					int64(g.Limit)
			}
		}
	}

	return rec
}

// unreadable is the error for a volume whose directory is there and cannot be
// read. An error of the disk stays one: the record itself may be as good as
// ever.
func unreadable(id string, p *pool, cause error) error {
	if disk.IsUnreadable(cause) {
		return &disk.MismatchError{ID: id, Detail: fmt.Sprintf("in pool %s: %v; it is left alone",
			p.name(), cause)}
	}
	return fmt.Errorf("the record of volume %s in pool %s cannot be read: %w", id, p.name(), cause)
}

func (s *Store) isBroken(p *pool, name string) bool { return s.brokenCause(p, name) != nil }

func (s *Store) brokenCause(p *pool, name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.broken[p.key(name)]
}

// inTrash is the error for an entry of the trash that cannot be read, and says
// what can be done. An error of the disk stays one.
func inTrash(entry string, cause error) error {
	err := fmt.Errorf("its entry %s in the trash cannot be read, and is kept (to have it freed "+
		"rename it to %s%s): %w", entry, entry, disk.FreeingSuffix, cause)
	if disk.IsUnreadable(cause) {
		return &record.UnreadableError{Reason: err.Error()}
	}
	return err
}
