package store

import (
	"context"
	"errors"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/nodeagent/backend"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// A look asks the filesystems of all volumes whether they are alive. Those of a
// healthy node answer in microseconds, so one goroutine asks them in turn. One
// that takes long does not hold up the others: another goroutine goes on with
// what is left, and the first one, whose thread is held in the kernel, is left
// behind.

const (
	// slowAfter is how long an answer may take before the others are asked
	// beside it.
	slowAfter = 50 * time.Millisecond
	// hangingAtOnce is how many filesystems of one pool may be without an
	// answer at the same time: each holds a thread of this process. Where a
	// backup freezes more, the others are asked when these have answered.
	hangingAtOnce = 64
)

// hanging counts the filesystems that are slow to answer, by pool, whichever
// look asked them.
type hanging struct {
	mu    sync.Mutex
	count map[*pool]int
	most  int // for tests; 0: hangingAtOnce
}

func (h *hanging) add(p *pool, n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.count == nil {
		h.count = map[*pool]int{}
	}
	h.count[p] += n
}

func (h *hanging) full(p *pool) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	most := h.most
	if most == 0 {
		most = hangingAtOnce
	}
	return h.count[p] >= most
}

// seen is one volume as the store knows it at the moment of a look.
type seen struct {
	v           *volume
	rec         record.Volume
	up          *backend.Standing
	unavailable error
}

// inquiry is one time that the filesystems are asked.
type inquiry struct {
	s        *Store
	patience time.Duration
	done     chan struct{} // closed when nothing is left

	mu   sync.Mutex
	left []*seen
	open map[*asked]struct{} // without an answer
	sick map[*volume]string
	over bool
}

type asked struct {
	*seen
	since time.Time
	// slow: another goroutine goes on with the others.
	slow bool
}

// lookAtFilesystems asks those filesystems that nothing is known to be wrong
// with, and writes down what is. It returns when all have answered, or were
// waited for as long as is waited for any of them.
func (s *Store) lookAtFilesystems(ctx context.Context, images []seen, wrong map[*volume]string) {
	q := &inquiry{s: s, patience: s.backends.Questions.Patience(), done: make(chan struct{}),
		open: map[*asked]struct{}{}, sick: wrong}
	for n := range images {
		if i := &images[n]; i.up != nil && i.up.Mounted != nil && wrong[i.v] == "" {
			q.left = append(q.left, i)
		}
	}
	go q.ask()
	ticker := time.NewTicker(min(slowAfter, q.patience))
	defer ticker.Stop()
	for {
		select {
		case <-q.done:
			return
		case <-ctx.Done():
			q.end()
			return
		case <-ticker.C:
			q.hurry()
		}
	}
}

// ask asks one filesystem after the other, as long as none is slow.
func (q *inquiry) ask() {
	for a := q.take(); a != nil; a = q.take() {
		err := q.s.backends.Questions.Hold(a.rec.ID,
			func() error { return backend.AnswersAt(a.up.Mounted.Mountpoint) })
		if q.answered(a, err) {
			return
		}
	}
}

// take takes the next one to be asked; nil: there is none.
func (q *inquiry) take() *asked {
	q.mu.Lock()
	defer q.mu.Unlock()
	for !q.over && len(q.left) > 0 {
		i := q.left[0]
		q.left = q.left[1:]
		if !q.s.watcher.hanging.full(i.v.pool) {
			a := &asked{seen: i, since: time.Now()}
			q.open[a] = struct{}{}
			return a
		}
	}
	q.endIfDoneLocked()
	return nil
}

// answered writes an answer down that somebody still waits for, and reports
// whether it was slow.
func (q *inquiry) answered(a *asked, err error) (slow bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if _, waited := q.open[a]; waited && !q.over {
		if sick := backend.Diagnose(&a.rec, err); sick != nil && !errors.Is(err, unix.ENOENT) {
			q.sick[a.v] = sick.Detail
		}
	}
	delete(q.open, a)
	if a.slow {
		q.s.watcher.hanging.add(a.v.pool, -1)
		q.endIfDoneLocked()
	}
	return a.slow
}

// hurry has those asked that wait behind one that is slow, and gives up what
// was waited for long enough.
func (q *inquiry) hurry() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for a := range q.open {
		took := time.Since(a.since)
		if took >= min(slowAfter, q.patience) && !a.slow {
			a.slow = true
			q.s.watcher.hanging.add(a.v.pool, 1)
			go q.ask()
		}
		if took >= q.patience {
			q.sick[a.v] = backend.Diagnose(&a.rec, backend.ErrNoAnswer).Detail
			delete(q.open, a)
		}
	}
	q.endIfDoneLocked()
}

// endIfDoneLocked ends the inquiry when nothing is left. It expects mu.
func (q *inquiry) endIfDoneLocked() {
	if len(q.left) == 0 && len(q.open) == 0 && !q.over {
		q.over = true
		close(q.done)
	}
}

// end leaves it. What answers from here on changes nothing.
func (q *inquiry) end() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.over = true
}
