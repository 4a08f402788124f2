package store

import (
	"context"
	"runtime"
	"sync"
	"time"
)

// Run frees the trash in the background until ctx ends: each filesystem's by a
// goroutine of its own, while there is any, so that a disk that hangs and a
// tree that takes hours hold up no other disk.
func (s *Store) Run(ctx context.Context) {
	s.freer.running.Add(1)
	defer s.freer.running.Add(-1)

	var busy sync.WaitGroup
	sweepAt := time.Now().Add(retryFreeing)
	for ctx.Err() == nil {
		now := time.Now()

		// Not by the timer: it starts anew whenever something is deleted.
		sweep := now.After(sweepAt)
		if sweep {
			sweep = s.freer.sweepAgain.Swap(false)
			sweepAt = now.Add(retryFreeing)
		}

		wait := noteRetention
		for _, space := range s.allSpaces() {
			if sweep {
				space.sweep.Store(true)
			}

			if left := s.freer.idleFor(space, now); left > 0 {
				wait = min(wait, left)
			} else if space.freeing.CompareAndSwap(false, true) {
				busy.Go(func() { s.freeFilesystem(ctx, space) })
			}
		}

		if s.freer.sweepAgain.Load() {
			wait = min(wait, time.Until(sweepAt))
		}

		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-s.freer.poke:
		case <-timer.C:
		}

		timer.Stop()
	}

	s.waitFor(&busy)
}

// waitFor waits for the work that is under way, but not for a disk that hangs.
func (s *Store) waitFor(busy *sync.WaitGroup) {
	done := make(chan struct{})
	go func() { busy.Wait(); close(done) }()
	timer := time.NewTimer(s.patience.look)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
	}
}

// idleFor is how long nothing is to be done on a filesystem; zero or less:
// something is.
func (f *freer) idleFor(space *filesystemSpace, now time.Time) time.Duration {
	if space.sweep.Load() || len(f.store.toNote(space, now)) > 0 {
		return 0
	}
	t, wait := f.next(space, now)
	if t != nil {
		return 0
	}
	return wait
}

// freeFilesystem frees what is due on one filesystem, entry by entry in turns,
// until nothing is.
func (s *Store) freeFilesystem(ctx context.Context, space *filesystemSpace) {
	defer func() {
		space.freeing.Store(false)
		s.freer.wake() // something may have come meanwhile
	}()

	// Priorities belong to threads; this one is given up with the goroutine.
	runtime.LockOSThread()
	if err := idle(); err != nil {
		s.log.WarnContext(ctx, "the trash is freed with normal I/O priority", "error", err)
	}

	for ctx.Err() == nil {
		now := time.Now()
		s.noteRetention(ctx, space, now)
		if space.sweep.Swap(false) {
			s.sweepFilesystem(ctx, space)
		}

		t, _ := s.freer.next(space, now)
		if t == nil {
			return
		}

		s.freeOrRetry(ctx, space, t)
	}
}
