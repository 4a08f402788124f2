package store

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/quarry-storage/quarry/api/v1alpha1"
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

// choice is a pool that a request may be carved from.
type choice struct {
	alike int   // how many volumes of the request's spread group it has
	room  int64 // how much more it could promise
}

// before reports whether c is preferred to other.
func (c choice) before(other choice) bool {
	if c.alike != other.alike {
		return c.alike < other.alike
	}
	return c.room > other.room
}

// admitLocked chooses the pool with the fewest volumes of the request's spread
// group, and among those the one with the most room. It is called with
// admission held.
func (s *Store) admitLocked(r Request) (*Admission, error) {
	if v := s.lookup(r.ID); v != nil {
		return &Admission{req: r}, nil
	}

	var (
		alike     = s.alikeLocked(r.Origin.SpreadGroup)
		best      *Admission
		bestOf    choice
		within    int64 // the capacity that best was found with
		most      int64
		refusal   error
		offline   error
		candidate bool
		full      bool
	)
	for _, p := range s.pools {
		if !r.wants(p, s.opts.Node) {
			continue
		}

		candidate = true
		features, space, err := p.state()
		if err != nil {
			offline = err
			continue
		}

		how, err := planFor(&r, features, p.cfg.DefaultFilesystem)
		if err != nil {
			refusal = err
			continue
		}

		// Measured just now, and nothing is measured with the lock held.
		capacity, err := s.lastCapacity(p, space)
		if err != nil {
			offline = err
			continue
		}

		full = true
		capacity += r.occupied()
		room := capacity - space.ledger.Promised()
		most = max(most, room)

		if room < r.SizeBytes {
			continue
		}
		if this := (choice{alike: len(alike[p]), room: room}); best == nil || this.before(bestOf) {
			best = &Admission{req: r, pool: p, space: space, plan: how, store: s}
			bestOf, within = this, capacity
		}
	}

	switch {
	case best != nil:
		best.key = best.pool.key(r.ID + admissionMark + strconv.FormatInt(admissions.Add(1), 10))

		// Growths reserve without the lock held here: what was room above may
		// be theirs by now.
		if _, ok := best.space.ledger.Reserve(best.key, r.SizeBytes, within); !ok {
			return s.admitLocked(r)
		}
		if r.Origin.SpreadGroup != "" {
			s.spreading = append(s.spreading, best)
		}

		return best, nil
	case !candidate && r.Pool != "":
		return nil, refuse(v1alpha1.ReasonPoolNotFound, "this node has no pool %q", r.Pool)
	case !candidate:
		return nil, refuse(v1alpha1.ReasonPoolNotFound,
			"this node has no pool whose labels match %q", r.PoolSelector)
	case full:
		return nil, &disk.CapacityError{Pool: r.Pool, Need: r.SizeBytes, Available: most}
	case refusal != nil:
		return nil, refusal
	default:
		return nil, offline
	}
}

// alikeLocked are the ids of the volumes of a spread group, by pool: made,
// being made, or admitted. It is called with admission held.
func (s *Store) alikeLocked(group string) map[*pool]map[string]bool {
	if group == "" {
		return nil
	}

	out := map[*pool]map[string]bool{}
	count := func(p *pool, id string, o *record.Origin) {
		if o.SpreadGroup != group {
			return
		}
		if out[p] == nil {
			out[p] = map[string]bool{}
		}

		out[p][id] = true
	}

	// Before the volumes: one that becomes a volume meanwhile is counted once,
	// not never.
	for _, a := range s.spreading {
		if a.open() {
			count(a.pool, a.req.ID, &a.req.Origin)
		}
	}

	s.mu.Lock()
	defer s.mu.Unlock()

	for _, known := range []map[string]*volume{s.builds, s.volumes} {
		for id, v := range known {
			count(v.pool, id, &v.rec.Origin)
		}
	}

	return out
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
