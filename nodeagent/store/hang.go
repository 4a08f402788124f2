package store

import (
	"context"
	"fmt"
	"time"

	"github.com/quarry-storage/quarry/nodeagent/disk"
)

// A disk can stop answering without an error: a hung controller, a frozen
// filesystem, a server that is gone. Whoever calls it waits in the kernel and
// cannot be called back. So nobody who serves other disks too calls it
// directly: each pool is looked at by a goroutine of its own, of which there is
// one, and each filesystem is freed, measured and worked on by its own. A look
// that does not return in time takes its pool out until it does.

// glanceAll looks at every pool, each in a goroutine, and waits for those that
// are in time. Several may call it at once: of each pool there is one look, and
// what one that began earlier may have missed is looked at again.
func (s *Store) glanceAll(ctx context.Context) {
	until := time.Now().Add(s.patience.look)
	looks := make([]*glance, len(s.pools))
	var again []*pool
	for i, p := range s.pools {
		g, joined, first := s.glanceOf(ctx, p)
		if first {
			// The first time in their order: of two names of one directory it
			// is always the same that is a pool.
			s.await(g, until)
		}
		if looks[i] = g; joined {
			again = append(again, p)
		}
	}
	for i, p := range s.pools {
		if s.await(looks[i], until) {
			continue
		}
		if since := time.Since(looks[i].since); since > s.patience.hang {
			s.hung(ctx, p, since)
		}
	}
	looks = looks[:0]
	for _, p := range again {
		g, _, _ := s.glanceOf(ctx, p)
		looks = append(looks, g)
	}
	for _, g := range looks {
		s.await(g, until)
	}
}

// glanceOf returns the look at a pool, a new one if none is under way that it
// joins, and whether it is the first.
func (s *Store) glanceOf(ctx context.Context, p *pool) (g *glance, joined, first bool) {
	s.refreshing.Lock()
	defer s.refreshing.Unlock()
	if p.glance != nil {
		return p.glance, true, !p.lookedAt
	}
	g = &glance{since: time.Now(), done: make(chan struct{})}
	p.glance = g
	s.background.Go(func() { s.glanceAt(context.WithoutCancel(ctx), p, g.done) })
	return g, false, !p.lookedAt
}

// await waits for a look that is in time, and reports whether it has ended.
func (s *Store) await(g *glance, until time.Time) bool {
	intime := g.since.Add(s.patience.look)
	if intime.Before(until) {
		until = intime
	}
	wait := time.NewTimer(time.Until(until))
	defer wait.Stop()
	select {
	case <-g.done:
	case <-wait.C:
	}
	return isClosed(g.done)
}

func (s *Store) glanceAt(ctx context.Context, p *pool, done chan struct{}) {
	defer func() {
		s.refreshing.Lock()
		defer s.refreshing.Unlock()
		p.glance, p.lookedAt = nil, true
		close(done)
	}()
	before := p.offlineText()
	_ = s.fault("look at " + p.name()) // nothing is changed that could fail
	if p.ops.longest() > s.patience.doubt {
		p.doubt()
	}
	if p.refresh(ctx, s) {
		p.mu.Lock()
		p.came = true
		p.mu.Unlock()
		return
	}
	if before != p.offlineText() {
		s.notify()
	}
	s.lookAgain(ctx, p)
}

// hung takes a pool out whose look does not return.
func (s *Store) hung(ctx context.Context, p *pool, since time.Duration) {
	s.takeOut(ctx, p, disk.OfflineHung, fmt.Errorf(
		"its disk has not answered for %s; it is used again once it does",
		since.Round(time.Second)))
}

// arrived returns the pools whose disks came since it was called last, those of
// one filesystem together, in the order of the configuration.
func (s *Store) arrived() [][]*pool {
	var came [][]*pool
	at := map[*filesystemSpace]int{}
	for _, p := range s.pools {
		p.mu.Lock()
		if p.came && p.space != nil {
			i, known := at[p.space]
			if !known {
				i = len(came)
				at[p.space] = i
				came = append(came, nil)
			}
			came[i] = append(came[i], p)
			p.loading = true
		}
		p.came = false
		p.mu.Unlock()
	}
	return came
}
