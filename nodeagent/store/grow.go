package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/backend"
	"github.com/quarry-storage/quarry/nodeagent/disk"
)

// Grow makes the volume size bytes large, rounded up to a multiple of 4096,
// while it is in use. A volume that is as large already is left as it is:
// volumes do not shrink. If the pool has no room the error is a *CapacityError
// and nothing changed; where the pool allows it, trash is then freed before its
// time, so that a later call finds room.
func (s *Store) Grow(ctx context.Context, id string, size int64) (Volume, error) {
	grown, err := s.lockAndGrow(ctx, id, size)
	var full *disk.CapacityError
	if v := s.lookup(id); v != nil && errors.As(err, &full) {
		// Without the lock: the trash may hold an entry of the same id.
		if _, space, err := v.pool.state(); err == nil {
			s.makeRoom(ctx, space, full.Need, func(p *pool) bool { return p == v.pool })
		}
	}

	return grown, err
}

func (s *Store) lockAndGrow(ctx context.Context, id string, size int64) (Volume, error) {
	unlock, err := s.locks.Lock(ctx, id)
	if err != nil {
		return Volume{}, err
	}
	defer unlock()

	v, unseen, err := s.seekAllLocked(ctx, id)
	if err != nil {
		return Volume{}, fmt.Errorf("grow volume %s: %w", id, err)
	}
	if v == nil {
		return Volume{}, &NotFoundError{ID: id, Unseen: unseen}
	}
	if size <= 0 || size > 1<<62 {
		return Volume{}, refuse(v1alpha1.ReasonInvalidOptions, "a size of %d bytes is not one a "+
			"volume can have", size)
	}

	size = roundUp(size)
	if v.rec.SizeBytes >= size && v.rec.GrowingTo == 0 {
		return s.Get(id)
	}
	if err := s.growLocked(ctx, v, max(size, v.rec.GrowingTo)); err != nil {
		return Volume{}, fmt.Errorf("grow volume %s to %s: %w", id, disk.BytesText(size), err)
	}

	s.notifyOf(id)
	return s.Get(id)
}

// growLocked is called with the volume's lock held. It notes the new size in
// the record before it changes anything, so that after a crash the growth is
// carried on, and its space is promised to nobody else.
func (s *Store) growLocked(ctx context.Context, v *volume, size int64) error {
	r, err := v.pool.open()
	if err != nil {
		return err
	}
	defer r.Close()

	_, space, err := v.pool.state()
	if err != nil {
		return err
	}

	key, former := v.pool.key(v.rec.ID), v.rec.Owed()
	if err := s.reserveGrowth(v, space, size); err != nil {
		return err
	}

	dir, err := r.OpenDir(v.rec.ID)
	if err != nil {
		v.pool.promise(space, key, former)
		return err
	}
	defer dir.Close()

	next := v.next()
	next.GrowingTo = size
	if err := s.fault("grow: note"); err != nil {
		v.pool.promise(space, key, former)
		return err
	}
	if err := disk.WriteVolume(dir, &next); err != nil {
		v.pool.promise(space, key, former)
		return err
	}

	s.setRecord(v, next)
	if err := s.fault("grow: backend"); err != nil {
		return err
	}

	open := &backend.Volume{Pool: v.pool.name(), Rec: &next, Root: r, Dir: dir}
	err = s.backends.Of(&next).Grow(ctx, open, size, func(ctx context.Context) error {
		return s.activateLocked(ctx, v)
	})
	if err != nil {
		return s.growFailed(v, space, key, err)
	}
	if err := s.fault("grow: done"); err != nil {
		return err
	}

	next.SizeBytes, next.GrowingTo, next.Inodes = size, 0, backend.InodesAt(&next, size)
	if err := disk.WriteVolume(dir, &next); err != nil {
		return err
	}

	s.setRecord(v, next)
	return nil
}

// reserveGrowth promises the volume what it lacks to be size bytes large, or
// returns a *CapacityError. For a directory without a limit it makes sure that
// there is room, as when the volume was made, and promises nothing
// (record.Volume.Owed).
func (s *Store) reserveGrowth(v *volume, space *filesystemSpace, size int64) error {
	former := v.rec.Promise()
	if size <= former {
		return nil
	}

	capacity, err := s.capacity(v.pool, space, 0)
	if err != nil {
		return err
	}

	available, ok := int64(0), false
	if v.rec.Owed() == 0 {
		available = max(capacity-space.ledger.Promised(), 0)
		ok = size-former <= available
	} else {
		available, ok = space.ledger.Reserve(v.pool.key(v.rec.ID), size, capacity)
		available = max(available-former, 0)
	}

	if !ok {
		return &disk.CapacityError{Pool: v.pool.name(), Need: size - former, Available: available}
	}

	return nil
}

// growFailed takes the new size out of the record if the disk turned out to be
// full, so that the pool does not owe it for ever. An image that an earlier
// growth made larger stays that large, and so does its size in the record.
func (s *Store) growFailed(v *volume, space *filesystemSpace, key string, cause error) error {
	if _, ok := errors.AsType[*disk.CapacityError](cause); !ok {
		return cause // carried on at the next call or start
	}

	r, err := v.pool.open()
	if err != nil {
		return cause
	}
	defer r.Close()

	dir, err := r.OpenDir(v.rec.ID)
	if err != nil {
		return cause
	}
	defer dir.Close()

	next := v.next()
	next.GrowingTo = 0
	open := &backend.Volume{Pool: v.pool.name(), Rec: &next, Root: r, Dir: dir}
	reached, err := s.backends.Of(&next).Reached(open)
	if err != nil {
		return errors.Join(cause, err)
	}
	if reached > next.SizeBytes {
		next.GrowingTo = reached
	}

	if err := disk.WriteVolume(dir, &next); err != nil {
		return errors.Join(cause, err)
	}

	s.setRecord(v, next)
	v.pool.promise(space, key, next.Owed())
	return cause
}
