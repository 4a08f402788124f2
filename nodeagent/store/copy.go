package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/quarry-storage/quarry/nodeagent/record"
)

// A volume's record names the pool that it was made on. That tells a copy on
// another pool (a backup that was put there, say) from the volume itself, even
// while the volume's own disk is away. Copies are left alone. A record that
// names no pool, written by a version before 0.2, is believed.

// CopyError means that the only directory there is of a volume has a record
// that names another pool than the one it lies in.
type CopyError struct {
	ID string
	// Pool is the pool that has it, and PoolUID its identity.
	Pool, PoolUID string
	// Of is the identity of the pool that the record names.
	Of string
}

func (e *CopyError) Error() string { return "volume " + e.ID + ": " + e.detail() }

// Unwrap makes it a *MismatchError.
func (e *CopyError) Unwrap() error { return &MismatchError{ID: e.ID, Detail: e.detail()} }

func (e *CopyError) detail() string {
	return fmt.Sprintf("what pool %s (%s) has of it is a copy, for its record names pool %s; "+
		"it is left alone "+
		"(docs/runbook.md, \"A copy of a volume\", says how it is made the volume)",
		e.Pool, e.PoolUID, e.Of)
}

// copyOn returns a *CopyError if the record found on the open pool names
// another one.
func copyOn(r *root, pool string, rec *record.Volume) error {
	if rec.PoolUID == "" || r.uid == "" || rec.PoolUID == r.uid {
		return nil
	}
	return &CopyError{ID: rec.ID, Pool: pool, PoolUID: r.uid, Of: rec.PoolUID}
}

// settle writes into a volume's record that it is on this pool now.
func (s *Store) settle(r *root, rec *record.Volume) error {
	dir, err := r.OpenDir(rec.ID)
	if err != nil {
		return err
	}
	defer dir.Close()

	if err := s.fault("settle"); err != nil {
		return err
	}

	next := *rec
	next.PoolUID = r.uid
	if err := writeVolume(dir, &next); err != nil {
		return err
	}

	*rec = next
	return nil
}

// next is the record of a volume as it is to be written next.
func (v *volume) next() record.Volume {
	rec := v.rec
	if v.poolUID != "" {
		rec.PoolUID = v.poolUID
	}
	return rec
}

// wasMoved reports whether a directory whose record names another pool is the
// volume known as v: somebody moved it since it was seen there.
func (s *Store) wasMoved(v *volume, rec *record.Volume) bool {
	return v != nil && v.poolUID == rec.PoolUID && v.rec.CreatedAt.Equal(rec.CreatedAt) &&
		s.isMissing(v)
}

// mayBeOn reports whether the pool with identity uid may be one of those that
// could not be looked at.
func (s *Store) mayBeOn(uid string, unseen []*OfflineError) bool {
	for _, off := range unseen {
		for _, p := range s.pools {
			p.mu.Lock()
			known := p.expect.uid
			p.mu.Unlock()

			if p.name() == off.Pool && off.Reason != OfflineDuplicate &&
				(known == "" || known == uid) {
				return true
			}
		}
	}

	return false
}

// TakeCopy makes the volume of a copy, and writes that down. The caller has to
// know that the volume was moved there, or that there is no other any more. The
// error is a *CopyError if that cannot be true: the pool that the record names
// has the volume, has it in its trash, or cannot be looked at. A volume that is
// there already is left as it is.
func (s *Store) TakeCopy(ctx context.Context, id string) error {
	if err := record.CheckID(id); err != nil {
		return err
	}

	unlock, err := s.locks.Lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()

	v, unseen, err := s.seekAllLocked(ctx, id)
	var copied *CopyError
	switch {
	case err == nil && v == nil:
		return &NotFoundError{ID: id, Unseen: unseen}
	case !errors.As(err, &copied) || len(s.entriesOf(id)) > 0:
		return err
	}

	for _, p := range s.pools {
		if p.name() == copied.Pool {
			return s.takeCopyLocked(ctx, p, id)
		}
	}

	return err
}

func (s *Store) takeCopyLocked(ctx context.Context, p *pool, id string) error {
	_, space, err := p.state()
	if err != nil {
		return err
	}

	err = p.with(func(r *root) error {
		rec, err := readEntry(r.Dir, id, id)
		if err != nil {
			return err
		}
		if copyOn(r, p.name(), rec) != nil {
			if err := s.settle(r, rec); err != nil {
				return err
			}
		}

		_, err = s.scanVolumeLocked(p, r, space, id)
		return err
	})
	if err != nil {
		return fmt.Errorf("take volume %s, moved to pool %s: %w", id, p.name(), err)
	}

	s.log.WarnContext(ctx, "a volume was moved from another pool", "pool", p.name(), "volume", id)
	s.notify()
	return nil
}
