package store

import (
	"context"
	"math"
	"slices"
	"time"
)

// relieve makes trash due before its time, the oldest first, on pools that
// allow it (purgeUnderPressure), if that makes room for the requests that are
// not met yet; else nothing is touched.
func (s *Store) relieve(ctx context.Context, requests []Request) {
	var unmet []Request
	for i := range requests {
		if s.lookup(requests[i].ID) == nil {
			unmet = append(unmet, requests[i])
		}
	}

	var victims []*trashed
	for _, space := range s.allSpaces() {
		// Only requests that may go to this filesystem count: its trash does
		// not give way for others.
		var here, elsewhere []Request
		var need int64
		for _, r := range unmet {
			if slices.ContainsFunc(s.pools, func(p *pool) bool {
				return p.on(space) && r.wants(p, s.opts.Node)
			}) {
				here = append(here, r)
				need += r.SizeBytes - r.occupied()
			} else {
				elsewhere = append(elsewhere, r)
			}
		}

		wanted := func(p *pool) bool {
			return slices.ContainsFunc(here, func(r Request) bool {
				return r.wants(p, s.opts.Node)
			})
		}
		if oldest, enough := s.victims(space, need, wanted); len(here) > 0 && enough {
			victims, unmet = append(victims, oldest...), elsewhere
		}
	}

	if len(unmet) == 0 {
		s.giveWay(ctx, victims)
	}
}

// makeRoom makes so much trash due that, once it is freed, need bytes can be
// promised on one of the filesystem's wanted pools. If there is not enough
// trash for that, it touches nothing.
func (s *Store) makeRoom(ctx context.Context, space *filesystemSpace, need int64,
	wanted func(*pool) bool) {
	if victims, enough := s.victims(space, need, wanted); enough {
		s.giveWay(ctx, victims)
	}
}

// giveWay makes trash due before its time.
func (s *Store) giveWay(ctx context.Context, victims []*trashed) {
	for _, t := range victims {
		s.log.InfoContext(ctx, "trash is freed before its time, since the pool is full", "pool",
			t.pool.name(), "entry", t.entry)
		if err := s.purgeOne(ctx, t); err != nil {
			s.log.WarnContext(ctx, "free trash before its time", "pool", t.pool.name(), "entry",
				t.entry, "error", err)
		}
	}

	if len(victims) > 0 {
		s.freer.wake()
	}
}

// victims returns the oldest entries of a filesystem's trash that have to go so
// that need bytes can be promised on one of its wanted pools. There are none if
// all trash would not be enough (enough is false), if what is being freed
// already is, or if no wanted pool is online.
func (s *Store) victims(space *filesystemSpace, need int64,
	wanted func(*pool) bool) (oldest []*trashed, enough bool) {
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
		if capacity, err := s.lastCapacity(p, space); err == nil {
			room = max(room, capacity-space.ledger.Promised())
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

	return oldestEnough(kept, room, need, now)
}

// oldestEnough returns as many of the entries, the oldest first, as have to go
// so that there is room for need bytes; none, with enough false, if all of them
// are too little. It sorts kept in place.
func oldestEnough(kept []*trashed, room, need int64, now time.Time) (oldest []*trashed,
	enough bool) {
	// By the time that was seen to pass: the clock may have been wrong when
	// something was deleted.
	slices.SortFunc(kept, func(a, b *trashed) int {
		ofA, ofB := a.elapsed(now).Truncate(noteRetention), b.elapsed(now).Truncate(noteRetention)
		if ofA != ofB {
			return int((ofB - ofA) / noteRetention)
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

// purgeable is how many bytes of a filesystem are promised to trash that may be
// freed before its time.
func (s *Store) purgeable(space *filesystemSpace) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()

	var bytes int64
	for _, t := range s.trash {
		if _, sp, err := t.pool.state(); err == nil && sp == space && t.rec != nil &&
			t.pool.cfg.PurgeUnderPressure {
			bytes += t.rec.Owed()
		}
	}

	return bytes
}
