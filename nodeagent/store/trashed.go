package store

import (
	"context"
	"time"

	"github.com/quarry-storage/quarry/nodeagent/beneath"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// trashed is one entry of a pool's trash.
type trashed struct {
	pool  *pool
	entry string // <id>@<time>, or with disk.FreeingSuffix
	id    string
	// rec is nil for an attempt that was never committed and has no record.
	rec   *record.Volume
	trash record.Trash
	// since is when this process began to watch the retention pass, by the
	// monotonic clock, which does not jump.
	since time.Time
	// retry is when freeing may be tried again after an error. noted is when
	// the passing of the retention was last to be written down.
	retry, noted time.Time
	// served is when its last turn at being freed began.
	served time.Time
}

func (t *trashed) key() string { return t.pool.key(t.entry) }

// elapsed is how much of the retention was seen to pass.
func (t *trashed) elapsed(now time.Time) time.Duration {
	return disk.Seconds(t.trash.ElapsedSeconds) + now.Sub(t.since)
}

// remaining is how long the entry is still kept; zero or less: it is due.
func (t *trashed) remaining(now time.Time) time.Duration {
	if t.left() == 0 {
		return 0
	}
	return disk.Seconds(t.trash.Deletion.RetentionSeconds) - t.elapsed(now)
}

// left is remaining by the note on the disk alone, without the time that this
// process saw pass.
func (t *trashed) left() time.Duration { return disk.KeptFor(t.entry, &t.trash) }

func (s *Store) entriesOf(id string) []*trashed {
	s.mu.Lock()
	defer s.mu.Unlock()

	var out []*trashed
	for _, t := range s.trash {
		if t.id == id {
			out = append(out, t)
		}
	}

	return out
}

// beginFreeingLocked renames the entry so that it cannot be restored any more.
// It is called with the volume's lock held.
func (s *Store) beginFreeingLocked(t *trashed, trash *beneath.Dir) error {
	to := t.entry + disk.FreeingSuffix
	if err := trash.Rename(t.entry, trash, to); err != nil {
		return err
	}

	from := t.key()
	s.mu.Lock()
	delete(s.trash, from)
	t.entry = to
	s.trash[t.key()] = t
	s.mu.Unlock()

	if space := t.pool.books(); space != nil {
		space.move(from, t.key(), t.rec)
	}

	return trash.Sync()
}

// changeTrash rewrites an entry's note under the volume's lock, unless it was
// restored or is being freed by now.
func (s *Store) changeTrash(ctx context.Context, t *trashed, change func(*record.Trash)) error {
	unlock, err := s.locks.Lock(ctx, t.id)
	if err != nil {
		return err
	}
	defer unlock()

	s.mu.Lock()
	there, next := s.trash[t.key()] == t, t.trash
	s.mu.Unlock()

	if !there || disk.IsFreeing(t.entry) {
		return nil
	}

	change(&next)
	return s.writeTrash(t, next)
}

func (s *Store) writeTrash(t *trashed, next record.Trash) error {
	r, err := t.pool.open()
	if err != nil {
		return err
	}
	defer r.Close()

	dir, err := r.Meta.OpenDir(record.TrashDir + "/" + t.entry)
	if err != nil {
		return err
	}
	defer dir.Close()

	data, err := record.EncodeTrash(&next)
	if err != nil {
		return err
	}
	if err := dir.WriteFile(record.TrashedFile, data, 0o600); err != nil {
		return err
	}

	s.mu.Lock()
	defer s.mu.Unlock()

	t.trash, t.since = next, time.Now()
	return nil
}
