package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/quarry-storage/quarry/nodeagent/backend"
	"github.com/quarry-storage/quarry/nodeagent/disk"
)

// A disk can stop answering without an error: a hung controller, a frozen
// filesystem, a server that is gone. Whoever calls it waits in the kernel and
// cannot be called back. So nobody who serves other disks too calls it
// directly: each pool is looked at by a goroutine of its own, of which there is
// one, and each filesystem is freed, measured and worked on by its own. A look
// that does not return in time takes its pool out until it does.

const (
	// hangAfter is how long a look at a pool may take before the pool is out.
	hangAfter = 45 * time.Second
	// doubtAfter is how long an operation may take before the look tries whether
	// the disk takes writes at all. Many take longer: to free a large tree, to
	// repair a filesystem.
	doubtAfter = 15 * time.Second
	// freezeAfter is how long a filesystem may be frozen before its pool is out.
	// What makes a snapshot of a machine is done before.
	freezeAfter = backend.AnswerWithin
	// lookWait is how long a caller waits for a look that is late for the first
	// time, and measureWait for a measurement.
	lookWait    = 10 * time.Second
	measureWait = 5 * time.Second
)

// patience are the times above, which tests make short.
type patience struct{ hang, doubt, freeze, look, measure time.Duration }

func (o *Options) patience() patience {
	if o.HangAfter <= 0 {
		return patience{hangAfter, doubtAfter, freezeAfter, lookWait, measureWait}
	}
	third := o.HangAfter / 3
	return patience{o.HangAfter, third, third, third, third}
}

// underWay are the operations on a pool that have not come back yet.
type underWay struct {
	mu    sync.Mutex
	last  int
	since map[int]time.Time
}

// begin notes an operation and returns what ends it. A second call of that
// does nothing.
func (u *underWay) begin() (end func()) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.since == nil {
		u.since = map[int]time.Time{}
	}
	u.last++
	id := u.last
	u.since[id] = time.Now()
	return func() {
		u.mu.Lock()
		defer u.mu.Unlock()
		delete(u.since, id)
	}
}

// longest is how long the oldest operation has been under way.
func (u *underWay) longest() time.Duration {
	u.mu.Lock()
	defer u.mu.Unlock()
	var longest time.Duration
	for _, since := range u.since {
		longest = max(longest, time.Since(since))
	}
	return longest
}

// glance is one look at a pool that is under way.
type glance struct {
	since time.Time
	done  chan struct{}
}

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
			// The first time in their order: of two names of one directory it is always the same that is a pool.
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
		"its disk has not answered for %s; it is used again once it does", since.Round(time.Second)))
}

// awaitThaw waits while the filesystem of an open pool is frozen, and takes the
// pool out where that lasts.
func (s *Store) awaitThaw(ctx context.Context, p *pool, r *disk.Root) {
	since := time.Now()
	told := time.AfterFunc(s.patience.freeze, func() {
		s.takeOut(ctx, p, disk.OfflineFrozen, fmt.Errorf("the filesystem below %s is frozen "+
			"(fsfreeze, a backup of the machine): who writes has waited since %s; it is used "+
			"again once that ends", p.cfg.Path, since.UTC().Format(time.RFC3339)))
	})
	defer told.Stop()
	disk.AwaitThaw(r)
}

// takeOut takes a pool out that does not answer, and with it the others of its
// filesystem, until a look at it returns.
func (s *Store) takeOut(ctx context.Context, p *pool, reason string, why error) {
	space := p.books()
	for _, other := range s.pools {
		other.mu.Lock()
		shared := other == p || space != nil && other.space == space
		known := other.offline != nil && other.offline.IsSilent()
		if shared && !known {
			other.offline = &disk.OfflineError{Pool: other.name(), Reason: reason, Err: why}
			other.came = false
			other.doubted = true // a look has to write before it is back
		}
		other.mu.Unlock()
		if !shared || known {
			continue
		}
		s.log.ErrorContext(ctx, "pool is offline", "pool", other.name(), "reason", reason, "error", why)
		s.forgetPool(other, true) // its directory is where it was, as far as anybody can say
		s.notify()
	}
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

// ask reads from a pool's disk, and waits for that only so long: then it is an
// *OfflineError. While one who asked still waits, no other one does. What read
// sets must not be looked at after an error.
func (s *Store) ask(p *pool, read func(*disk.Root) error) error {
	if p.silent.Load() > 0 {
		return p.late()
	}
	done := make(chan error, 1)
	go func() { done <- p.with(read) }()
	wait := time.NewTimer(s.patience.look)
	defer wait.Stop()
	select {
	case err := <-done:
		return err
	case <-wait.C:
	}
	p.silent.Add(1)
	go func() {
		<-done
		p.silent.Add(-1)
		s.notify() // those who were told so look again
	}()
	return p.late()
}

func (p *pool) late() error {
	return &disk.OfflineError{Pool: p.name(), Reason: disk.OfflineHung, Err: errors.New("its disk takes long to answer")}
}

func isClosed(done <-chan struct{}) bool {
	select {
	case <-done:
		return true
	default:
		return false
	}
}
