package store

import (
	"context"
	"errors"
	"math"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

const (
	// measuredAge is how old a measurement of a filesystem may be to admit by it.
	measuredAge = time.Second
	// admitTries is how many fresh measurements have to agree before a request is refused: one that was taken while a volume
	// was being allocated shows too little room.
	admitTries = 3
)

// Admission is space promised to a volume that is not made yet. Exactly one of Create and Cancel ends it.
type Admission struct {
	req   Request
	pool  *pool // nil: the volume was there already
	space *filesystemSpace
	plan  plan
	// key is the admission's own in the ledger, so that taking it back never takes another one's promise.
	key   string
	store *Store
	// fate is that of the volume while Create makes it.
	fate fate
}

var admissions atomic.Int64

// admissionMark is in the ledger's keys of admissions. No id has it.
const admissionMark = "#"

// Cancel takes the promise back. A second call, and one after Create, does nothing.
func (a *Admission) Cancel() {
	if a.pool != nil && a.space.ledger.release(a.key) {
		a.store.notifyOf() // somebody may wait for the room
	}
}

// open tells whether neither Create nor Cancel has ended the admission yet.
func (a *Admission) open() bool { return a.space.ledger.has(a.key) }

// Admit promises space to all of the requests or to none: the claims of one pod are of use only together. It chooses the
// pools. Volumes that are there already need no promise; they are admitted as they are. What is to be adopted is looked at,
// which may mean to read a whole tree.
//
// When not all fit, the error is the one of the first request that did not; it is a *CapacityError if room is all that lacked.
// Where a pool allows it, trash is then freed before its time, so that a later call finds room.
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
		// Before the lock is taken, so that nobody waits for a disk under it. What fails here fails again below.
		s.measurePools(maxAge, requests)
		admitted, err := s.admitAll(requests)
		var full *CapacityError
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

// measurePools measures the filesystems of the pools that the requests may be carved from.
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
		a, err := s.admit(r)
		if err != nil {
			for _, earlier := range admitted {
				if earlier.pool != nil {
					earlier.space.ledger.release(earlier.key) // nobody has seen it taken
				}
			}
			return nil, err
		}
		admitted = append(admitted, a)
	}
	return admitted, nil
}

// wants tells whether the request may be carved from the pool.
func (r *Request) wants(p *pool, node string) bool {
	if r.Pool != "" {
		return p.name() == r.Pool
	}
	return r.PoolSelector == nil || r.PoolSelector.Matches(labels.Set(PoolLabels(node, &p.cfg)))
}

// admit chooses the pool with the fewest volumes of the request's spread group, and among those the one with the most room.
// It is called with admission held.
func (s *Store) admit(r Request) (*Admission, error) {
	if v := s.lookup(r.ID); v != nil {
		return &Admission{req: r}, nil
	}
	var (
		alike     = s.alike(r.Origin.SpreadGroup)
		best      *Admission
		bestRoom  int64
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
		capacity, err := s.capacity(p, space, time.Hour) // measured just now
		if err != nil {
			offline = err
			continue
		}
		full = true
		capacity += r.occupied()
		room := capacity - space.ledger.promised()
		most = max(most, room)
		if room < r.SizeBytes {
			continue
		}
		if best == nil || len(alike[p]) < len(alike[best.pool]) || len(alike[p]) == len(alike[best.pool]) && room > bestRoom {
			best, bestRoom, within = &Admission{req: r, pool: p, space: space, plan: how, store: s}, room, capacity
		}
	}
	switch {
	case best != nil:
		best.key = best.pool.key(r.ID + admissionMark + strconv.FormatInt(admissions.Add(1), 10))
		// Growths reserve without the lock held here: what was room above may be theirs by now.
		if _, ok := best.space.ledger.reserve(best.key, r.SizeBytes, within); !ok {
			return s.admit(r)
		}
		if r.Origin.SpreadGroup != "" {
			s.spreading = append(s.spreading, best)
		}
		return best, nil
	case !candidate && r.Pool != "":
		return nil, refuse(v1alpha1.ReasonPoolNotFound, "this node has no pool %q", r.Pool)
	case !candidate:
		return nil, refuse(v1alpha1.ReasonPoolNotFound, "this node has no pool whose labels match %q", r.PoolSelector)
	case full:
		return nil, &CapacityError{Pool: r.Pool, Need: r.SizeBytes, Available: most}
	case refusal != nil:
		return nil, refusal
	default:
		return nil, offline
	}
}

// alike are the ids of the volumes of a spread group, by pool: made, being made, or admitted. It is called with admission held.
func (s *Store) alike(group string) map[*pool]map[string]bool {
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
	for _, a := range s.spreading { // before the volumes: one that becomes a volume meanwhile is counted once, not never
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

// relieve makes trash due before its time, the oldest first, on pools that allow it (purgeUnderPressure), if that makes room
// for the requests that are not met yet; else nothing is touched.
func (s *Store) relieve(ctx context.Context, requests []Request) {
	var unmet []Request
	for i := range requests {
		if s.lookup(requests[i].ID) == nil {
			unmet = append(unmet, requests[i])
		}
	}
	var victims []*trashed
	for _, space := range s.allSpaces() {
		// Only those count that may go to this filesystem: another's lack of room is none of its trash's.
		var here, elsewhere []Request
		var need int64
		for _, r := range unmet {
			if slices.ContainsFunc(s.pools, func(p *pool) bool { return p.on(space) && r.wants(p, s.opts.Node) }) {
				here = append(here, r)
				need += r.SizeBytes - r.occupied()
			} else {
				elsewhere = append(elsewhere, r)
			}
		}
		wanted := func(p *pool) bool {
			return slices.ContainsFunc(here, func(r Request) bool { return r.wants(p, s.opts.Node) })
		}
		if oldest, enough := s.victims(space, need, wanted); len(here) > 0 && enough {
			victims, unmet = append(victims, oldest...), elsewhere
		}
	}
	if len(unmet) == 0 {
		s.giveWay(ctx, victims)
	}
}

// makeRoom makes so much trash due that need bytes can be promised on one of a filesystem's pools that are wanted, once it is
// freed; if that is not possible, nothing is touched.
func (s *Store) makeRoom(ctx context.Context, space *filesystemSpace, need int64, wanted func(*pool) bool) {
	if victims, enough := s.victims(space, need, wanted); enough {
		s.giveWay(ctx, victims)
	}
}

// giveWay makes trash due before its time.
func (s *Store) giveWay(ctx context.Context, victims []*trashed) {
	for _, t := range victims {
		s.log.InfoContext(ctx, "trash is freed before its time, since the pool is full", "pool", t.pool.name(), "entry", t.entry)
		if err := s.purgeOne(ctx, t); err != nil {
			s.log.WarnContext(ctx, "free trash before its time", "pool", t.pool.name(), "entry", t.entry, "error", err)
		}
	}
	if len(victims) > 0 {
		s.freer.wake()
	}
}

// victims are the oldest entries of a filesystem's trash that have to go so that need bytes can be promised on one of its
// wanted pools, and whether that is enough; none if it is not, if what is being freed already is, or if no wanted pool is there.
func (s *Store) victims(space *filesystemSpace, need int64, wanted func(*pool) bool) (oldest []*trashed, enough bool) {
	room := int64(math.MinInt64)
	able := map[*pool]bool{}
	for _, p := range s.pools {
		if _, sp, err := p.state(); err != nil || sp != space {
			continue
		}
		able[p] = p.cfg.PurgeUnderPressure
		if !wanted(p) {
			continue
		}
		if capacity, err := s.capacity(p, space, time.Hour); err == nil {
			room = max(room, capacity-space.ledger.promised())
		}
	}
	if room == math.MinInt64 {
		return nil, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var kept []*trashed
	now := time.Now()
	for _, t := range s.trash {
		_, sp, err := t.pool.state()
		if err != nil || sp != space || t.rec == nil {
			continue
		}
		if t.remaining(now) <= 0 {
			room += t.rec.Owed()
		} else if able[t.pool] {
			kept = append(kept, t)
		}
	}
	// By the time that was seen to pass: the clock may have been wrong when something was deleted.
	slices.SortFunc(kept, func(a, b *trashed) int {
		if by := b.elapsed(now).Truncate(noteRetention) - a.elapsed(now).Truncate(noteRetention); by != 0 {
			return int(by / noteRetention)
		}
		return a.trash.DeletedAt.Compare(b.trash.DeletedAt)
	})
	for i, t := range kept {
		if room >= need {
			return kept[:i], true
		}
		room += t.rec.Owed()
	}
	if room >= need {
		return kept, true
	}
	return nil, false
}

// purgeable is how many bytes of a filesystem are promised to trash that may be freed before its time.
func (s *Store) purgeable(space *filesystemSpace) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	var bytes int64
	for _, t := range s.trash {
		if _, sp, err := t.pool.state(); err == nil && sp == space && t.rec != nil && t.pool.cfg.PurgeUnderPressure {
			bytes += t.rec.Owed()
		}
	}
	return bytes
}
