package store

import (
	"context"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/nodeagent/disk"
)

// What is deleted is not free at once: a tree is emptied file by file, and the
// kernel frees a btrfs subvolume in its own time. It counts as promised until
// then. A request for room that is on its way waits for it for some seconds,
// and if that was in vain its error says how much is on its way.

const (
	// freedWait is how long a request waits for room that is being freed.
	freedWait = 5 * time.Second
	// freedWaiters is how many requests wait for it at once: each holds up a
	// worker of its caller.
	freedWaiters = 4
)

// freeing is how many bytes are promised to trash that is due, on the
// filesystem with the most of it among those that the requests may go to.
func (s *Store) freeing(requests []Request) int64 {
	spaces := map[*filesystemSpace]bool{}
	for _, p := range s.pools {
		if _, space, err := p.state(); err == nil &&
			slices.ContainsFunc(requests, func(r Request) bool {
				return r.wants(p, s.opts.Node)
			}) {
			spaces[space] = true
		}
	}

	due := map[*filesystemSpace]int64{}
	most := int64(0)
	s.mu.Lock()
	defer s.mu.Unlock()

	now := time.Now()
	for _, t := range s.trash {
		if _, space, err := t.pool.state(); err == nil && spaces[space] && t.rec != nil &&
			t.remaining(now) <= 0 {
			due[space] += t.rec.Owed()
			most = max(most, due[space])
		}
	}

	return most
}

// awaitFreed waits until something changes while the room that the requests
// lack is being freed. It returns false if it is not, if it takes too long, or
// if this process does not free trash. It notes in full how much is being
// freed.
func (s *Store) awaitFreed(ctx context.Context, until time.Time, full *disk.CapacityError,
	requests []Request) bool {
	changed := s.Changed()
	full.Freeing = s.freeing(requests)
	if full.Freeing == 0 || full.Need > full.Available+full.Freeing || s.freer.running.Load() == 0 {
		return false
	}
	if !s.awaiting.TryAcquire(1) {
		return false
	}
	defer s.awaiting.Release(1)

	s.freer.wake()

	timer := time.NewTimer(time.Until(until))
	defer timer.Stop()

	select {
	case <-changed:
		return true
	case <-timer.C:
	case <-ctx.Done():
	}

	return false
}

// settleFreed has the kernel give back what was freed, before it counts as
// free: btrfs does that when a transaction is committed, up to 30 seconds
// later.
func settleFreed(r *disk.Root, filesystem string) error {
	if filesystem != "btrfs" {
		return nil
	}
	return unix.Syncfs(int(r.File().Fd()))
}
