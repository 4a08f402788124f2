package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/quarry-storage/quarry/nodeagent/backend"
	"github.com/quarry-storage/quarry/nodeagent/beneath"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// Create makes the volume that was admitted, ready for use when it returns. If
// the volume is there already it is brought up and returned; a volume of
// another mode under the same id is a *ConflictError.
//
// On an error nothing is left, or what is left is in tmp and the next Create or
// the sweep clears it away. Only adopted data that was moved already stays
// moved: then the volume is there, and another Create or Activate finishes it.
// One that is there and could not be brought up is a *KeptError.
func (s *Store) Create(ctx context.Context, a *Admission) (Volume, error) {
	id := a.req.ID
	if s.Abandoned(id) && a.fate.state.Load() != abandoned {
		a.Cancel()
		return Volume{}, s.stillAbandoned(id)
	}

	unlock, err := s.locks.Lock(ctx, id)
	if err != nil {
		return Volume{}, err
	}
	defer unlock()
	defer s.abandoned.Delete(id)

	v, err := s.seekLocked(ctx, id)
	var mismatch *disk.MismatchError
	unreadable := errors.As(err, &mismatch)

	// An adoption goes on: what cannot be read may be the very directory that
	// it is of.
	if err != nil && !(unreadable && a.req.adopts()) {
		a.Cancel()
		if copied := (*disk.CopyError)(nil); errors.As(err, &copied) {
			err = &ConflictError{ID: id, Detail: copied.Detail()}
		} else if unreadable {
			err = &ConflictError{ID: id,
				Detail: "its directory is not a volume that can be read: " + mismatch.Detail}
		}

		return Volume{}, err
	}

	if v != nil {
		a.Cancel()
		if v.rec.VolumeMode != a.req.VolumeMode {
			return Volume{}, &ConflictError{ID: id, Detail: "its volumeMode is " + v.rec.VolumeMode}
		}

		// The call that made it may have ended before that was durable.
		if err := v.pool.with(func(r *disk.Root) error { return r.Sync() }); err != nil {
			return Volume{}, &KeptError{Err: fmt.Errorf("create volume %s: %w", id, err)}
		}
		if err := s.activateLocked(ctx, v); err != nil {
			return Volume{}, &KeptError{Err: err}
		}

		return s.Get(id)
	}

	if a.pool == nil {
		// It was there when it was admitted, and was deleted since.
		return Volume{}, &NotFoundError{ID: id}
	}

	build := s.buildLocked
	if a.req.adopts() {
		build = s.adoptLocked
	}

	v, err = build(ctx, a)
	if err != nil && v != nil && !a.req.adopts() {
		s.notifyOf(id)
		return Volume{}, &KeptError{Err: fmt.Errorf("create volume %s in pool %s: %w",
			id, a.pool.name(), err)}
	}

	if err != nil {
		a.Cancel()
		var full *disk.CapacityError

		// Not where adopted data was moved already: a refusal would say that
		// nothing is on disk.
		if space := a.pool.books(); space != nil && s.lookup(id) == nil &&
			(disk.IsFull(err) || errors.As(err, &full)) {
			// There is less room than was measured, and the next request is to
			// know.
			space.expire()
			if full == nil {
				err = fmt.Errorf("%w (%v)",
					&disk.CapacityError{Pool: a.pool.name(), Need: a.req.SizeBytes}, err)
			}
		}

		err = s.refuseFailed(a, err)
		return Volume{}, fmt.Errorf("create volume %s in pool %s: %w", id, a.pool.name(), err)
	}

	s.notifyOf(id)
	if err := s.activateLocked(ctx, v); err != nil {
		return Volume{}, &KeptError{Err: err}
	}

	s.indexClaim(ctx, v, true)
	return s.Get(id)
}

// building is a volume under tmp.
type building struct {
	store *Store
	adm   *Admission
	root  *disk.Root
	tmp   *beneath.Dir // .quarry/tmp
	dir   *beneath.Dir // .quarry/tmp/<id>
	rec   *record.Volume
}

// buildLocked makes the volume under tmp and commits it. It is called with the
// volume's lock held.
func (s *Store) buildLocked(ctx context.Context, a *Admission) (_ *volume, err error) {
	r, err := a.pool.open()
	if err != nil {
		return nil, err
	}
	defer r.Close()

	// A directory of this name that is no volume we know of: somebody's, or one
	// with a record that cannot be read.
	if there, err := r.Exists(a.req.ID); err != nil {
		return nil, err
	} else if there {
		return nil, &ConflictError{ID: a.req.ID,
			Detail: "its directory is not a volume that can be read"}
	}

	tmp, err := r.Sub(record.TmpDir)
	if err != nil {
		return nil, err
	}
	defer tmp.Close()

	if err := s.scrapLocked(ctx, a.pool, r, tmp, a.req.ID); err != nil {
		return nil, fmt.Errorf("clear away an earlier attempt: %w", err)
	}
	if err := s.fault("mkdir tmp"); err != nil {
		return nil, err
	}

	dir, err := tmp.EnsureDir(a.req.ID, 0o700)
	if err != nil {
		return nil, err
	}
	defer dir.Close()

	b := &building{store: s, adm: a, root: r, tmp: tmp, dir: dir, rec: newRecord(a)}

	// What it takes of the disk from here on is part of what it was promised.
	s.mu.Lock()
	s.builds[a.req.ID] = &volume{id: a.req.ID, pool: a.pool, rec: *b.rec}
	s.mu.Unlock()

	defer func() {
		s.mu.Lock()
		delete(s.builds, a.req.ID)
		s.mu.Unlock()
	}()

	stays := false
	defer func() {
		if err != nil && !stays {
			// The caller's context may be what ended the work; clearing away
			// must not end with it.
			if e := s.scrapLocked(context.WithoutCancel(ctx), a.pool, r, tmp, a.req.ID); e != nil {
				s.freer.sweepAgain.Store(true)
				err = errors.Join(err, fmt.Errorf("clear away: %w", e))
			}

			if b.rec.QuotaKind != "" {
				// Unless it went into the trash with what has it.
				a.space.ledger.Disown(tmpKey(a.pool, a.req.ID), uint32(b.rec.QuotaID))
			}
		}
	}()

	if err = b.make(ctx); err != nil {
		return nil, err
	}
	if stays, err = b.commit(); err != nil && !stays {
		return nil, err
	}

	v := &volume{
		id:          b.rec.ID,
		pool:        a.pool,
		rec:         *b.rec,
		unavailable: errNotUp,
		poolUID:     a.pool.uid(),
	}
	s.mu.Lock()
	s.volumes[v.id] = v
	s.mu.Unlock()

	key := a.pool.key(v.id)

	// The volume's promise comes before the admission's end, so that its space
	// is at no time anybody else's.
	a.pool.promise(a.space, key, b.rec.Owed())
	a.space.ledger.Release(a.key)
	a.space.move(tmpKey(a.pool, v.id), key, b.rec)
	a.space.own(key, b.rec)

	return v, err
}

// make has the backend make the volume's data, and its record complete.
func (b *building) make(ctx context.Context) error {
	pool, space := b.adm.pool, b.adm.space
	m := &backend.Making{
		Volume:    backend.Volume{Pool: pool.name(), Rec: b.rec, Root: b.root, Dir: b.dir},
		QuotaKind: b.adm.plan.quotaKind,
		Features: func() (disk.Features, error) {
			features, _, err := pool.state()
			return features, err
		},
		DrawID: func(free func(id uint32) (bool, error)) (uint32, error) {
			return space.ledger.Draw(tmpKey(pool, b.rec.ID), free)
		},
		Heavy: func(ctx context.Context) (done func(), err error) {
			heavy := b.store.heavy(space)
			if err := heavy.Acquire(ctx, 1); err != nil {
				return nil, err
			}
			return func() { heavy.Release(1) }, nil
		},
	}
	err := b.store.backends.Of(b.rec).Make(ctx, m)
	if errors.Is(err, backend.ErrUnreserved) {
		return refuseUnreserved()
	}
	return err
}

// commit renames the volume, with its record, into place. After the rename it
// is there, whole. there reports whether it is, or may be, which can be so even
// after an error: when what was done could not be taken back.
func (b *building) commit() (there bool, err error) {
	if err := b.store.fault("commit"); err != nil {
		return false, err
	}
	if !b.adm.fate.state.CompareAndSwap(stillBuilt, committed) {
		return false, errAbandoned
	}
	if err := b.tmp.Rename(b.rec.ID, b.root.Dir, b.rec.ID); err != nil {
		return false, err
	}
	if err := b.store.fault("sync commit"); err != nil {
		return b.uncommit(err)
	}
	if err := errors.Join(b.root.Sync(), b.tmp.Sync()); err != nil {
		return b.uncommit(err)
	}

	return true, nil
}

// uncommit takes back a commit that may not be durable, so that "an error"
// means "not there". If the disk does not take that either, the volume is there
// as far as anybody can say.
func (b *building) uncommit(cause error) (there bool, err error) {
	if err := b.root.Rename(b.rec.ID, b.tmp, b.rec.ID); err != nil {
		return true, errors.Join(cause, fmt.Errorf("take it back: %w", err))
	}
	return false, cause
}
