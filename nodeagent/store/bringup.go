package store

import (
	"github.com/quarry-storage/quarry/nodeagent/backend"
	"github.com/quarry-storage/quarry/nodeagent/loop"
)

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
