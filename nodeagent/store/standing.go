package store

import (
	"context"
	"errors"

	"github.com/quarry-storage/quarry/nodeagent/backend"
	"github.com/quarry-storage/quarry/nodeagent/loop"
)

// upLocked has the backend bring the volume up, and keeps what it stands on. It
// is called with the volume's lock held.
func (s *Store) upLocked(ctx context.Context, v *volume, open *backend.Volume) error {
	s.setStanding(v, nil)
	up, err := s.backends.Of(open.Rec).Up(ctx, open, v.pool.directIO)
	if lost, is := errors.AsType[*backend.EnforcementError](err); is {
		// A limit that cannot be had does not take the data away from its pod;
		// it is said, and looked at again (Recheck).
		s.setNotEnforced(v, lost)
		return nil
	}
	if err != nil || up == nil {
		return err
	}

	s.leaveFormer(v, up.Device)
	s.setStanding(v, up)
	return nil
}

// leaveFormer lets go of the device that the volume was up on before, if it is
// up on another one now: an image that was taken away and put back is another
// file. What the former one is over stays until somebody detaches it; we are
// not who keeps it.
func (s *Store) leaveFormer(v *volume, now loop.Device) {
	s.mu.Lock()
	defer s.mu.Unlock()

	former := v.device
	v.device = &now
	if former == nil || former.Number == now.Number {
		return
	}

	for _, other := range s.volumes {
		if other.device != nil && other.device.Number == former.Number {
			return // it was detached meanwhile, and is another volume's
		}
	}

	loop.Unpin(former.Number)
}

func (s *Store) setStanding(v *volume, up *backend.Standing) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v.up = up
}
