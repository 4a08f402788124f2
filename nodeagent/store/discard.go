package store

import (
	"context"
	"errors"
	"io/fs"
	"strconv"
	"time"

	"github.com/quarry-storage/quarry/nodeagent/beneath"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// discard notes what deletion means and renames the directory t.id of parent
// into the trash. The rename is the commit: from then on the volume is in the
// trash, even if an error is returned, and what the ledger kept for key is the
// entry's.
func (s *Store) discard(r *disk.Root, parent, dir *beneath.Dir, t *trashed, key string) error {
	data, err := record.EncodeTrash(&t.trash)
	if err != nil {
		return err
	}
	if err := s.fault("write trash record"); err != nil {
		return err
	}

	suffix := ""
	err = dir.WriteFile(record.TrashedFile, data, 0o600)
	if disk.IsFull(err) && t.left() == 0 && t.trash.Deletion.Scrub != scrubZero {
		// A full disk has no block for a note, and freeing this volume helps
		// it, so the volume goes where no note is needed.
		suffix, err = disk.FreeingSuffix, nil
	}

	if err != nil {
		return err
	}

	trash, err := r.Sub(record.TrashDir)
	if err != nil {
		return err
	}
	defer trash.Close()

	if err := s.fault("rename into trash"); err != nil {
		return err
	}

	for at := time.Now().Unix(); ; at++ {
		t.entry = t.id + "@" + strconv.FormatInt(at, 10) + suffix
		err := parent.Rename(t.id, trash, t.entry)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return err
		}

		break
	}

	s.enterTrash(t, key)
	if err := s.fault("sync trash"); err != nil {
		return err
	}

	return errors.Join(trash.Sync(), parent.Sync())
}

// enterTrash registers the entry, and forgets the volume of its id if that is
// what it was.
func (s *Store) enterTrash(t *trashed, key string) {
	s.mu.Lock()
	if v := s.volumes[t.id]; v != nil && v.pool.key(v.id) == key {
		delete(s.volumes, t.id)
	}
	s.trash[t.key()] = t
	s.mu.Unlock()

	space := t.pool.books()
	if space == nil || t.rec == nil {
		return
	}

	space.move(key, t.key(), t.rec)

	// What a crash left in tmp had no promise and no owner yet in this process.
	space.own(t.key(), t.rec)
	t.pool.promise(space, t.key(), t.rec.Owed())
}

// scrapLocked clears away a volume that was never committed: unmounted,
// detached and renamed into the trash, to be freed at once. Nothing ever used
// it: no path led there. A second call finishes what the first could not; with
// nothing there it does nothing. It is called with the volume's lock held.
func (s *Store) scrapLocked(ctx context.Context, p *pool, r *disk.Root, tmp *beneath.Dir,
	id string) error {
	dir, err := tmp.OpenDir(id)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer dir.Close()

	if err := disk.UnlinkPrepared(tmp, dir, id); err != nil {
		return err
	}
	if err := s.backends.Release(ctx, dir); err != nil {
		return err
	}

	t := &trashed{
		pool:  p,
		id:    id,
		since: time.Now(),
		trash: record.Trash{DeletedAt: time.Now().UTC().Truncate(time.Millisecond), Purge: true},
	}
	if rec, err := disk.ReadEntry(tmp, id, id); err == nil {
		t.rec = rec
	}

	if err := s.discard(r, tmp, dir, t, tmpKey(p, id)); err != nil {
		return err
	}

	s.freer.wake()
	return nil
}

// scrapTmpLocked clears away what an unfinished create left of volume id. It is
// called with the volume's lock held.
func (s *Store) scrapTmpLocked(ctx context.Context, p *pool, id string) error {
	return p.with(func(r *disk.Root) error {
		tmp, err := r.Sub(record.TmpDir)
		if err != nil {
			return err
		}
		defer tmp.Close()
		return s.scrapLocked(ctx, p, r, tmp, id)
	})
}

// deletedNow returns the time to note for a deletion. Restore takes the latest
// of several entries of one id, so this time is later than theirs, whatever the
// clock did meanwhile.
func (s *Store) deletedNow(id string) time.Time {
	at := time.Now().UTC().Truncate(time.Millisecond)
	for _, t := range s.entriesOf(id) {
		if !at.After(t.trash.DeletedAt) {
			at = t.trash.DeletedAt.Add(time.Millisecond)
		}
	}
	return at
}
