package store

import (
	"fmt"

	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// hold makes the pool with this identity p's, or returns an *OfflineError that
// says whose it is. A second call changes nothing.
func (s *Store) hold(p *pool, identity *record.Pool) error {
	s.holding.Lock()
	defer s.holding.Unlock()
	for _, other := range s.pools {
		if other != p && other.heldUID == identity.UID {
			return &disk.OfflineError{Pool: p.name(), Reason: disk.OfflineDuplicate,
				Err: fmt.Errorf(
					"%s is the same directory as %s, which is pool %s, or a copy of it", p.cfg.Path,
					other.cfg.Path, other.name())}
		}
	}
	if p.heldUID == identity.UID {
		return nil
	}
	s.letGoLocked(p)
	if s.opts.LockDir != "" {
		lock, err := disk.Lock(&p.cfg, identity.UID, s.opts.LockDir, s.opts.Node, s.log)
		if err != nil {
			return err
		}
		p.lock = lock
	}
	p.heldUID = identity.UID
	return nil
}

// unhold lets go of a pool that is not p's any more.
func (s *Store) unhold(p *pool) {
	s.holding.Lock()
	defer s.holding.Unlock()
	s.letGoLocked(p)
}

// letGoLocked is called with holding held.
func (s *Store) letGoLocked(p *pool) {
	if p.lock != nil {
		p.lock.Close()
	}
	p.lock, p.heldUID = nil, ""
}

// Close lets go of the store's pools, so that another one can have them. It is
// for programs that go on; a process that ends needs no Close. Nothing may be
// under way.
func (s *Store) Close() {
	for _, p := range s.pools {
		s.unhold(p)
	}
}
