package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/quarry-storage/quarry/nodeagent/disk"
)

// Every few seconds each pool that is online is looked at. That writes nothing,
// unless something failed on its disk since: then it is tried to write.

// doubt makes the next look at the pool write to it: something failed there.
func (p *pool) doubt() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.doubted = true
}

func (p *pool) inDoubt() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.doubted
}

// alive returns why the filesystem below an open pool can not be used, or nil.
func (p *pool) alive(r *disk.Root) error {
	if err := disk.CheckHealth(&p.cfg, r); err != nil || !p.inDoubt() {
		return err
	}
	if err := disk.TryToWrite(r); err != nil {
		return fmt.Errorf("write to %s: %w", p.cfg.Path, err)
	}
	p.mu.Lock()
	p.doubted = false
	p.mu.Unlock()
	return nil
}

// look is what is looked at of a pool that is online, every few seconds.
func (s *Store) look(ctx context.Context, p *pool, r *disk.Root, space *filesystemSpace) error {
	if err := p.alive(r); err != nil {
		return err
	}
	s.probeAgain(ctx, p, r, space)
	if s.roomMoved(p, r, space) {
		s.notifyOf()
	}
	return nil
}

// probeAgain probes what could not be probed when the pool came, for its disk
// was full.
func (s *Store) probeAgain(ctx context.Context, p *pool, r *disk.Root, space *filesystemSpace) {
	p.mu.Lock()
	unprobed := p.features.Unprobed
	p.mu.Unlock()
	if !unprobed {
		return
	}
	space.probing.Lock()
	features, err := disk.Probe(r, p.cfg.EnableQuota)
	space.probing.Unlock()
	if err != nil || features.Unprobed {
		return
	}
	p.mu.Lock()
	p.features = features
	p.mu.Unlock()
	s.log.InfoContext(ctx, "the pool's disk has room again, and what it can do is known", "pool", p.name(), "features", features)
	s.notify()
}

// refuseFailed makes a refusal of an error that the disk below the admission's
// pool gave, so that another disk is tried, and has the pool looked at.
// Nothing is refused where adopted data was moved already: it is only here.
func (s *Store) refuseFailed(a *Admission, err error) error {
	var offline *disk.OfflineError
	if !disk.HasFailed(err) || errors.As(err, &offline) || s.lookup(a.req.ID) != nil || errors.Is(err, fs.ErrNotExist) {
		return err
	}
	a.pool.doubt()
	return disk.OfflineFor(a.pool.name(), err)
}
