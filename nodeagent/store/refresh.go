package store

import (
	"context"
	"time"
)

// Refresh looks at every pool's disk. Pools that came online are swept of what
// a crash left, and their volumes are brought up. It returns once all of that
// is done. It is called at start and whenever a mount of the node changed.
func (s *Store) Refresh(ctx context.Context) { s.lookAtPools(ctx, bringUpWait) }

// Glance is Refresh for callers that come again soon: it does not wait for
// volumes to come up, nor long for a disk that does not answer.
func (s *Store) Glance(ctx context.Context) { s.lookAtPools(ctx, 0) }

func (s *Store) lookAtPools(ctx context.Context, wait time.Duration) {
	s.backends.TakeOverLinks(ctx)
	s.glanceAll(ctx)
	s.load(ctx, s.arrived(), wait)
	s.takeFound(ctx, wait)
	s.awaitBegun(ctx, wait) // what another look found in between
	s.leaveLinksOfOthers()
}
