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

// alive returns why the filesystem below an open pool cannot be used, or nil.
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
	s.log.InfoContext(ctx, "the pool's disk has room again, and what it can do is known", "pool",
		p.name(), "features", features)
	s.notify()
}

// refuseFailed makes a refusal of an error that the disk below the admission's
// pool gave, so that another disk is tried, and has the pool looked at.
// Nothing is refused where adopted data was moved already: it is only here.
func (s *Store) refuseFailed(a *Admission, err error) error {
	var offline *disk.OfflineError
	if !disk.HasFailed(err) || errors.As(err, &offline) || s.lookup(a.req.ID) != nil ||
		errors.Is(err, fs.ErrNotExist) {
		return err
	}
	a.pool.doubt()
	return disk.OfflineFor(a.pool.name(), err)
}

// refresh looks whether the pool's disk is there, and takes in what changed. It
// returns true when the disk came, or another filesystem is below the pool now;
// then the pool is Loading until load has read it.
func (p *pool) refresh(ctx context.Context, s *Store) (came bool) {
	p.mu.Lock()
	want, space := p.expect, p.space
	loading := p.loading || p.came
	wasOnline := space != nil &&
		(p.offline == nil || loading && p.offline.Reason == disk.OfflineLoading)
	p.mu.Unlock()

	r, identity, err := disk.Open(&p.cfg, &want)
	var offline *disk.OfflineError
	if err != nil {
		offline = disk.OfflineFor(p.name(), err)
	} else {
		defer r.Close()
		s.awaitThaw(ctx, p, r)
		var key string
		if key, err = disk.FilesystemKey(r.File()); err == nil && wasOnline && space.key == key {
			if loading {
				err = p.alive(r)
			} else {
				err = s.look(ctx, p, r, space)
			}
			if err == nil {
				return false
			}
		} else if err == nil {
			err = p.alive(r)
			if err == nil {
				err = s.hold(p, identity)
			}
			if err == nil {
				identity, err = disk.SignHolder(r, identity, want.By)
			}
		}
		if err == nil {
			if wasOnline {
				s.forgetPool(p, false) // the same pool, now on another device: a copied disk
			}
			var features disk.Features
			space := s.spaceOf(key) // not under p.mu, which is taken under Store.mu
			space.probing.Lock()
			features, err = p.probe(r)
			space.probing.Unlock()
			if err == nil {
				s.forgetVolumes(p, identity.UID)
				p.forgetKept(space)
				reserve, why := disk.ReserveOf(&p.cfg, r, s.opts.KubeletDir)
				s.log.InfoContext(ctx, "what the pool never promises", "pool", p.name(), "reserve",
					reserve.String(), "because", why)
				p.mu.Lock()
				p.reserve = reserve
				p.features, p.space, p.identity = features, space, identity
				p.offline = &disk.OfflineError{Pool: p.name(), Reason: disk.OfflineLoading,
					Err: errors.New("what is on its disk is being read")}
				// From now on it must be this disk, whatever was known before.
				p.expect.UID = identity.UID
				p.mu.Unlock()
				return true
			}
		}
		offline = disk.OfflineFor(p.name(), err)
	}
	p.mu.Lock()
	changed := p.offline == nil || p.offline.Reason != offline.Reason
	p.offline = offline
	p.mu.Unlock()
	if changed {
		s.log.WarnContext(ctx, "pool is offline", "pool", p.name(), "reason", offline.Reason,
			"error", offline.Err)
		s.forgetPool(p, space != nil && p.isOn(space.key))
		if offline.IsElsewhere() {
			s.unhold(p)
		}
	}
	p.mu.Lock()
	kept := p.kept
	p.mu.Unlock()
	if kept != nil && !p.isOn(kept.key) {
		p.forgetKept(nil)
		s.notify()
	}
	return false
}
