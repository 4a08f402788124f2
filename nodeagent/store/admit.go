package store

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"time"

	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

const (
	// measuredAge is how old a measurement of a filesystem may be to admit by
	// it.
	measuredAge = time.Second
	// admitTries is how many fresh measurements have to agree before a request
	// is refused: one that was taken while a volume was being allocated shows
	// too little room.
	admitTries = 3
)

// Admission is space promised to a volume that is not made yet. Exactly one of
// Create and Cancel ends it.
type Admission struct {
	req   Request
	pool  *pool // nil: the volume was there already
	space *filesystemSpace
	plan  plan
	// key is the admission's own in the ledger, so that taking it back never
	// takes another one's promise.
	key   string
	store *Store
	// fate is that of the volume while Create makes it.
	fate fate
}

// fate decides once between a volume's commit and its being given up.
type fate struct{ state atomic.Int32 }

var admissions atomic.Int64

// Cancel takes the promise back. A second call, and one after Create, does
// nothing.
func (a *Admission) Cancel() {
	if a.pool != nil && a.space.ledger.Release(a.key) {
		a.store.notifyOf() // somebody may wait for the room
	}
}

// open reports whether neither Create nor Cancel has ended the admission yet.
func (a *Admission) open() bool { return a.space.ledger.Has(a.key) }

// Admit promises space to all of the requests or to none: the claims of one pod
// are of use only together. It chooses the pools. Volumes that are there
// already need no promise; they are admitted as they are. Data that is to be
// adopted is examined, which may mean reading a whole tree.
//
// If not all fit, the error is that of the first request that did not: a
// *CapacityError if room was all that lacked. Where a pool allows it, trash is
// then freed before its time, so that a later call finds room.
func (s *Store) Admit(ctx context.Context, requests ...Request) ([]*Admission, error) {
	for i := range requests {
		if err := requests[i].normalize(); err != nil {
			return nil, err
		}
	}

	for i := range requests {
		if err := s.examine(ctx, &requests[i]); err != nil {
			return nil, err
		}
	}

	maxAge, patience := measuredAge, time.Now().Add(freedWait)
	for try := 1; ; try++ {
		// Before the lock is taken, so that nobody waits for a disk under it.
		s.measurePools(maxAge, requests)
		admitted, err := s.admitAll(requests)
		var full *disk.CapacityError
		if !errors.As(err, &full) {
			return admitted, err
		}

		if try == admitTries || ctx.Err() != nil {
			s.relieve(ctx, requests)
			if ctx.Err() != nil || !s.awaitFreed(ctx, patience, full, requests) {
				return nil, err
			}
			try--
		}

		maxAge = 0
	}
}

// measurePools measures the filesystems of the pools that the requests may be
// carved from.
func (s *Store) measurePools(maxAge time.Duration, requests []Request) {
	measured := map[*filesystemSpace]bool{}
	for _, p := range s.pools {
		if !slices.ContainsFunc(requests, func(r Request) bool { return r.wants(p, s.opts.Node) }) {
			continue
		}
		if _, space, err := p.state(); err == nil && !measured[space] {
			_, err := s.capacity(p, space, maxAge)
			measured[space] = err == nil
		}
	}
}

func (s *Store) admitAll(requests []Request) ([]*Admission, error) {
	s.admission.Lock()
	defer s.admission.Unlock()

	s.spreading = slices.DeleteFunc(s.spreading, func(a *Admission) bool { return !a.open() })
	var admitted []*Admission
	for _, r := range requests {
		a, err := s.admitLocked(r)
		if err != nil {
			for _, earlier := range admitted {
				if earlier.pool != nil {
					earlier.space.ledger.Release(earlier.key) // nobody has seen it taken
				}
			}

			return nil, err
		}

		admitted = append(admitted, a)
	}

	return admitted, nil
}

func newRecord(a *Admission) *record.Volume {
	r := &a.req
	rec := &record.Volume{
		ID: r.ID, CreatedAt: time.Now().UTC().Truncate(time.Second), PoolUID: a.pool.uid(),
		Backend: a.plan.backend, Enforcement: r.Enforcement, VolumeMode: r.VolumeMode,
		SizeBytes: r.SizeBytes, Source: r.Source, Origin: r.Origin,
		Owner: r.Owner, Group: r.Group, Mode: r.Mode,
	}
	a.plan.describe(rec, r)

	if r.found != nil {
		r.found.describe(rec)
	}

	return rec
}
