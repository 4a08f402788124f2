package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/beneath"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/loop"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// Activate brings the volume up so that its path can be used: after a reboot,
// say. A second call changes nothing.
func (s *Store) Activate(ctx context.Context, id string) (Volume, error) {
	unlock, err := s.locks.Lock(ctx, id)
	if err != nil {
		return Volume{}, err
	}
	defer unlock()

	v, unseen, err := s.seekAllLocked(ctx, id)
	if err != nil {
		return Volume{}, fmt.Errorf("activate volume %s: %w", id, err)
	}
	if v == nil {
		return Volume{}, &NotFoundError{ID: id, Unseen: unseen}
	}
	if err := s.activateLocked(ctx, v); err != nil {
		return Volume{}, err
	}

	return s.Get(id)
}

// activateLocked is called with the volume's lock held. What it finds is kept
// as the volume's availability.
func (s *Store) activateLocked(ctx context.Context, v *volume) error {
	err := s.bringUpLocked(ctx, v)
	if err != nil {
		err = fmt.Errorf("activate volume %s: %w", v.rec.ID, err)
	}

	s.mu.Lock()
	changed := (v.unavailable == nil) != (err == nil)
	v.unavailable = err
	s.mu.Unlock()

	if changed {
		s.notifyOf(v.id)
	}

	return err
}

// bringUpLocked proves that a volume is what its record says, and does what is
// missing for its use. It is called with the volume's lock held.
func (s *Store) bringUpLocked(ctx context.Context, v *volume) error {
	r, err := v.pool.open()
	if err != nil {
		return err
	}
	defer r.Close()

	dir, err := r.OpenDir(v.rec.ID)
	s.setGone(v, errors.Is(err, fs.ErrNotExist))
	if err != nil {
		return &disk.MismatchError{ID: v.rec.ID, Detail: fmt.Sprintf("its directory: %v", err)}
	}
	defer dir.Close()

	if v.rec.Adopting != "" {
		if err := s.finishAdoptionLocked(ctx, v, r, dir); err != nil {
			return err
		}
	}

	if err := s.ensureLink(r, &v.rec); err != nil {
		return err
	}

	if v.rec.Backend == record.BackendDirectory {
		// A limit that cannot be put in force does not take the data away from
		// its pod: the volume's state says so, and Recheck looks at it again.
		err := enforced(r, &v.rec, false)
		if lost, ok := errors.AsType[*EnforcementError](err); ok {
			s.setNotEnforced(v, lost)
			return nil
		}
		return err
	}

	features, _, err := v.pool.state()
	if err != nil {
		return err
	}

	return s.activateLoop(ctx, v, dir, features.DirectIO)
}

// takeDown unmounts and detaches what activate made, verified. It does not ask
// whether somebody uses the volume; the kernel does, for what it can see: a
// busy mount or a held device is an *InUseError, and nothing was forced.
func (s *Store) takeDown(ctx context.Context, id string, dir *beneath.Dir) error {
	if err := s.unlinkDevice(id); err != nil {
		return err
	}

	err := s.release(ctx, dir)
	var busy *loop.BusyError
	switch {
	case errors.As(err, &busy):
		return &InUseError{ID: id, Reason: v1alpha1.ReasonDeviceHeld, By: holderTexts(busy)}
	case errors.Is(err, unix.EBUSY):
		return &InUseError{ID: id, Reason: v1alpha1.ReasonMounted,
			By: []string{"a process with an open file or its working directory in it"}}
	}

	return err
}
