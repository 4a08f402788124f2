package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/quarry-storage/quarry/nodeagent/backend"
	"github.com/quarry-storage/quarry/nodeagent/disk"
)

const (
	// hangAfter is how long a look at a pool may take before the pool is out.
	hangAfter = 45 * time.Second
	// doubtAfter is how long an operation may take before the look tries
	// whether the disk takes writes at all. Many take longer: to free a large
	// tree, to repair a filesystem.
	doubtAfter = 15 * time.Second
	// freezeAfter is how long a filesystem may be frozen before its pool is
	// out. What makes a snapshot of a machine is done before.
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
	return &disk.OfflineError{Pool: p.name(), Reason: disk.OfflineHung,
		Err: errors.New("its disk takes long to answer")}
}

// isMissing reports whether a volume's pool is there without its directory.
func (s *Store) isMissing(v *volume) bool {
	missing := false
	if !v.pool.online() {
		return false
	}

	err := s.ask(v.pool, func(r *disk.Root) error {
		there, err := r.Exists(v.id)
		missing = err == nil && !there
		return err
	})
	return err == nil && missing
}

// awaitThaw waits while the filesystem of an open pool is frozen, and takes the
// pool out where that lasts.
func (s *Store) awaitThaw(ctx context.Context, p *pool, r *disk.Root) {
	if !disk.CanFreeze(r) {
		return
	}

	since := time.Now()
	told := time.AfterFunc(s.patience.freeze, func() {
		s.takeOut(ctx, p, disk.OfflineFrozen, fmt.Errorf("the filesystem below %s is frozen "+
			"(fsfreeze, a backup of the machine): who writes has waited since %s; it is used "+
			"again once that ends", p.cfg.Path, since.UTC().Format(time.RFC3339)))
	})
	defer told.Stop()
	disk.AwaitWrites(int(r.File().Fd()))
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
		s.log.ErrorContext(ctx, "pool is offline", "pool", other.name(), "reason", reason,
			"error", why)
		s.forgetPool(other, true) // its directory is where it was, as far as anybody can say
		s.notify()
	}
}
