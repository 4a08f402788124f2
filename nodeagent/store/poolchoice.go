package store

import (
	"strconv"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

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
