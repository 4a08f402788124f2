package store

import (
	"slices"

	"github.com/quarry-storage/quarry/nodeagent/disk"
)

// leaveLinksOfOthers lets go of devices whose volumes are in no pool of ours,
// once all of ours were looked at: another process of this machine has other
// pools, and keeps open what its links lead to.
func (s *Store) leaveLinksOfOthers() {
	for _, p := range s.pools {
		p.mu.Lock()
		offline := p.offline
		p.mu.Unlock()

		if offline != nil && offline.Reason != disk.OfflineInUse {
			return
		}
	}

	s.backends.LeaveLinks(func(id string) bool { return s.lookup(id) != nil || s.isUnread(id) })
}

// isUnread reports whether a pool of ours has something under that id that
// could not be read.
func (s *Store) isUnread(id string) bool {
	return slices.ContainsFunc(s.pools, func(p *pool) bool { return s.isBroken(p, id) })
}
