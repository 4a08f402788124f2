package store

import (
	"errors"

	"github.com/quarry-storage/quarry/nodeagent/disk"
)

// What a volume that is being made can come to.
const (
	stillBuilt int32 = iota
	committed
	abandoned
)

// errAbandoned says that nobody wants the volume any more that was being made.
var errAbandoned = errors.New("it was given up while its disk did not answer")

// Pool is the pool the volume was admitted to; empty: it was there already.
func (a *Admission) Pool() string {
	if a.pool == nil {
		return ""
	}
	return a.pool.name()
}

// Hung returns why the admission's pool does not answer, an *OfflineError, or
// nil when it does.
func (a *Admission) Hung() error {
	if a.pool == nil {
		return nil
	}
	a.pool.mu.Lock()
	defer a.pool.mu.Unlock()
	if off := a.pool.offline; off != nil && off.IsSilent() {
		return off
	}
	return nil
}

// Abandon gives up a volume that Create is making, and reports whether that
// was in time: then it will never be there, whenever its disk answers. Data
// that is adopted is not given up.
func (a *Admission) Abandon() bool {
	if a.pool == nil || a.req.adopts() || !a.fate.state.CompareAndSwap(stillBuilt, abandoned) {
		return false
	}
	a.store.abandoned.Store(a.req.ID, a.pool)
	a.Cancel()
	return true
}

// Withdraw is Abandon for a volume that no Create has begun to make, and that
// none will: it only lets go of what was promised.
func (a *Admission) Withdraw() {
	if a.pool != nil && a.fate.state.CompareAndSwap(stillBuilt, abandoned) {
		a.Cancel()
	}
}

// stillAbandoned refuses to make a volume while an earlier try waits for its
// disk, with the volume's lock held.
func (s *Store) stillAbandoned(id string) error {
	p, _ := s.abandoned.Load(id)
	where, ok := p.(*pool)
	if !ok {
		return errAbandoned // its disk answered just now
	}
	return &disk.OfflineError{Pool: where.name(), Reason: disk.OfflineHung, Err: errAbandoned}
}

// Abandoned reports whether the volume was given up, and its disk has not
// answered since: nothing of it will stay there, and whoever waits for its
// lock waits for the disk.
func (s *Store) Abandoned(id string) bool {
	_, is := s.abandoned.Load(id)
	return is
}
