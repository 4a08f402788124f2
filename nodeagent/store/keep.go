package store

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/nodeagent/backend"
)

const (
	// DefaultRecheckEvery is how often the limits of directory volumes are
	// looked at.
	DefaultRecheckEvery = 10 * time.Minute
	// LookWithin is the time within which all of a directory volume is looked
	// at, as long as its filesystem can be read so fast.
	LookWithin = time.Hour
	// restFactor is how long the look at a filesystem rests, in multiples of
	// the time that it worked, while it is not late.
	restFactor = 3
	// lockPatience is how long an operation on a volume is waited for before
	// the next volume's turn.
	lockPatience = time.Second
)

// KeepEnforced looks at the directory volumes until ctx ends, as Recheck does:
// every one's limit each time the interval has passed, and the tree of each
// within LookWithin. Each filesystem has a worker of its own, with idle
// priority, so that a disk that hangs or a tree of ten million files costs
// other filesystems nothing; and on one filesystem the volumes take turns, so
// that a large one costs the others no more than a slice.
func (s *Store) KeepEnforced(ctx context.Context, every time.Duration) {
	var workers sync.WaitGroup
	defer workers.Wait()

	var mu sync.Mutex
	busy := map[*filesystemSpace]bool{}
	ticker := time.NewTicker(every)
	defer ticker.Stop()

	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}

		for space, ids := range s.heldByQuota() {
			mu.Lock()
			taken := busy[space]
			busy[space] = true
			mu.Unlock()

			if taken {
				continue // it goes on where it is
			}

			until := time.Now().Add(every)
			workers.Go(func() {
				s.recheckFilesystem(ctx, ids, until)
				mu.Lock()
				delete(busy, space)
				mu.Unlock()
			})
		}
	}
}

// heldByQuota lists the volumes that are held by a quota and can be used, by
// filesystem, in an order that stays.
func (s *Store) heldByQuota() map[*filesystemSpace][]string {
	out := map[*filesystemSpace][]string{}
	s.mu.Lock()
	defer s.mu.Unlock()

	for id, v := range s.volumes {
		if v.unavailable != nil || v.rec.Adopting != "" || !backend.IsHeldByQuota(&v.rec) {
			continue
		}

		if _, space, err := v.pool.state(); err == nil {
			if v.round.looked.IsZero() {
				v.round.looked = time.Now()
			}
			out[space] = append(out[space], id)
		}
	}

	for _, ids := range out {
		slices.Sort(ids)
	}

	return out
}

// recheckFilesystem looks at volumes of one filesystem, a slice of each in
// turn, until all were looked at or the time is up. Each gets one slice at
// least; what was not finished goes on the next time.
func (s *Store) recheckFilesystem(ctx context.Context, ids []string, until time.Time) {
	// Priorities belong to threads; this one is given up with the goroutine.
	runtime.LockOSThread()
	if err := idle(); err != nil {
		s.log.WarnContext(ctx, "volumes are looked at with normal priority", "error", err)
	}

	for first := true; len(ids) > 0 && (first || time.Now().Before(until)); first = false {
		var unfinished []string
		for _, id := range ids {
			started := time.Now()
			if !s.recheckTurn(ctx, id) {
				unfinished = append(unfinished, id)
			}

			if ctx.Err() != nil {
				return
			}
			if !s.isLate(ids) {
				pause(ctx, restFactor*time.Since(started))
			}
		}

		ids = unfinished
	}
}

// recheckTurn is one volume's slice. done is true if there is nothing more to
// look at in it for now.
func (s *Store) recheckTurn(ctx context.Context, id string) (done bool) {
	patient, cancel := context.WithTimeout(ctx, lockPatience)
	defer cancel()

	done, err := s.recheckSlice(patient, id)
	var (
		lost *backend.EnforcementError
		gone *NotFoundError
	)
	switch {
	case err == nil || errors.As(err, &gone):
	case errors.As(err, &lost):
		if done {
			s.log.WarnContext(ctx, "a volume's size was not enforced", "volume", id, "error", lost)
		}
	case errors.Is(err, context.DeadlineExceeded):
		return false // an operation has its lock
	default:
		s.log.WarnContext(ctx, "look whether a volume's size is enforced", "volume", id,
			"error", err)
		return true
	}

	return done
}

// isLate reports whether one of the volumes was not looked at whole for half of
// the time in which it has to be.
func (s *Store) isLate(ids []string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range ids {
		if v := s.volumes[id]; v != nil && time.Since(v.round.looked) > LookWithin/2 {
			return true
		}
	}
	return false
}

// OldestLook returns for each pool how long ago a volume that is held by a
// quota was last looked at whole, of all its volumes the longest. Pools without
// such volumes are not in it.
func (s *Store) OldestLook() map[string]time.Duration {
	out := map[string]time.Duration{}
	s.mu.Lock()
	defer s.mu.Unlock()

	for _, v := range s.volumes {
		if backend.IsHeldByQuota(&v.rec) && !v.round.looked.IsZero() {
			out[v.pool.name()] = max(out[v.pool.name()], time.Since(v.round.looked))
		}
	}

	return out
}

func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// idle gives the calling thread the lowest priority for CPU and disk.
func idle() error {
	const whoProcess, classIdle = 1, 3 << 13 // ioprio_set(2)
	err := unix.Setpriority(unix.PRIO_PROCESS, 0, 19)
	if _, _, errno := unix.Syscall(unix.SYS_IOPRIO_SET, whoProcess, 0, classIdle); errno != 0 {
		err = errors.Join(err, errno)
	}
	return err
}
