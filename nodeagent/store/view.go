package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/quarry-storage/quarry/nodeagent/backend"
	"github.com/quarry-storage/quarry/nodeagent/config"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// View is the little of a store that package verify looks through, and puts
// things right with. Verifying a store that does not run needs no more of it
// than Expect.
type View struct{ s *Store }

// View returns the view of the store.
func (s *Store) View() View { return View{s} }

// Pools implements verify.Disks.
func (v View) Pools() []config.Pool {
	out := make([]config.Pool, len(v.s.pools))
	for i, p := range v.s.pools {
		out[i] = p.cfg
	}
	return out
}

// Expected implements verify.Disks.
func (v View) Expected(pool string) disk.Expectation {
	p := v.pool(pool)
	if p == nil {
		return disk.Expectation{}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.expect
}

// Open implements verify.Disks.
func (v View) Open(pool string) (*disk.Root, error) {
	p := v.pool(pool)
	if p == nil {
		return nil, errNoPool(pool)
	}
	return p.open()
}

// Backends implements verify.Disks.
func (v View) Backends() *backend.Backends { return v.s.backends }

// Lock implements verify.Running.
func (v View) Lock(ctx context.Context, id string) (unlock func(), err error) {
	return v.s.locks.Lock(ctx, id)
}

// TryLock implements verify.Running.
func (v View) TryLock(id string) (unlock func(), err error) { return v.s.locks.TryLock(id) }

// IsDrawn implements verify.Running.
func (v View) IsDrawn(pool string, id uint32) bool {
	p := v.pool(pool)
	if p == nil {
		return false
	}
	_, space, err := p.state()
	return err == nil && space.ledger.Owner(id) != ""
}

// Scrap implements verify.Repairs.
func (v View) Scrap(ctx context.Context, pool, id string) error {
	p := v.pool(pool)
	if p == nil {
		return errNoPool(pool)
	}
	return v.s.scrapTmpLocked(ctx, p, id)
}

// EnsureLink implements verify.Repairs.
func (v View) EnsureLink(r *disk.Root, rec *record.Volume) error { return v.s.ensureLink(r, rec) }

// FinishAdoption implements verify.Repairs.
func (v View) FinishAdoption(ctx context.Context, pool string, found *backend.Volume) error {
	known := v.s.lookup(found.Rec.ID)
	if known == nil {
		p := v.pool(pool)
		if p == nil {
			return errNoPool(pool)
		}
		known = &volume{id: found.Rec.ID, pool: p, rec: *found.Rec}
	}
	if known.rec.Adopting == "" {
		return nil
	}
	if !known.pool.online() {
		return errors.New("the agent finishes it when it brings the volume up")
	}
	return v.s.finishAdoptionLocked(ctx, known, found.Root, found.Dir)
}

// pool returns the pool of that name, or nil.
func (v View) pool(name string) *pool {
	for _, p := range v.s.pools {
		if p.name() == name {
			return p
		}
	}
	return nil
}

func errNoPool(name string) error { return fmt.Errorf("there is no pool %q", name) }
