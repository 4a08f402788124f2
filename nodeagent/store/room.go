package store

import (
	"time"

	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/nodeagent/disk"
)

// Room comes and goes without us: an image is pulled, a log is cut off. When it
// has moved by more than a step from what was reported, Changed fires, so that
// it is reported anew.

const (
	// roomStepShare of a filesystem's size, or roomStepBytes where that is
	// less, is how far a pool's room has to move to be told.
	roomStepShare = 100
	roomStepBytes = 1 << 30
	// measuredForReport is how old a measurement may be if nothing suggests
	// that it has changed.
	measuredForReport = time.Minute
)

// Told remembers what was reported of the pools: Changed fires once a pool's
// room moved from there by more than 1% of its filesystem or 1 GiB.
func (s *Store) Told(pools []Pool) {
	for _, p := range s.pools {
		for i := range pools {
			if pools[i].Name == p.name() && pools[i].Offline == nil {
				p.mu.Lock()
				p.told, p.wasTold = pools[i].Available, true
				p.mu.Unlock()
			}
		}
	}
}

// roomMoved reports whether the room of a pool differs by more than a step from
// what was told. What volumes take is measured only if the filesystem's free
// space moved.
func (s *Store) roomMoved(p *pool, r *disk.Root, space *filesystemSpace) bool {
	p.mu.Lock()
	told, wasTold := p.told, p.wasTold
	p.mu.Unlock()

	var st unix.Statfs_t
	if !wasTold || unix.Fstatfs(int(r.File().Fd()), &st) != nil {
		return false
	}

	step := max(min(int64(st.Blocks)*st.Frsize/roomStepShare, roomStepBytes), 1)
	space.mu.Lock()
	moved := distance(int64(st.Bavail)*st.Frsize, space.free) >= step
	space.mu.Unlock()

	if moved {
		space.expire()
	}

	capacity, err := s.capacity(p, space, measuredForReport)
	if err != nil {
		return false
	}

	return distance(max(capacity-space.ledger.Promised(), 0), told) >= step
}

func distance(a, b int64) int64 { return max(a-b, b-a) }
