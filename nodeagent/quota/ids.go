package quota

import (
	"errors"
	"fmt"
	"sync"
)

// Project ids are allocated from a range of their own, far from 0 (no project)
// and from the small numbers people write into /etc/projid. Administrators who
// use project quotas on a pool's filesystem keep out of it.
const (
	ProbeID uint32 = 0x51000000 // Probe's; never a volume's
	FirstID uint32 = 0x51000001
	LastID  uint32 = 0x51ffffff
)

// ErrNoFreeID says that every id of the range is taken.
var ErrNoFreeID = errors.New("no free quota id")

// IsOurs reports whether id is from the range that belongs to volumes.
func IsOurs(id uint32) bool { return FirstID <= id && id <= LastID }

// An Allocator gives out the quota ids of one filesystem, project ids on ext4
// and xfs, numbers of level-1 groups on btrfs. There must be one per filesystem,
// shared by all pools on it: two volumes under one id would share one limit. It
// is safe for concurrent use.
type Allocator struct {
	first, last uint32 // the range

	mu    sync.Mutex
	taken map[uint32]struct{}
	next  uint32 // where the search begins
}

// NewAllocator returns an allocator that knows the ids in taken, those of all
// the records on the filesystem, trash included.
func NewAllocator(taken []uint32) *Allocator {
	return newAllocator(FirstID, LastID, taken)
}

func newAllocator(first, last uint32, taken []uint32) *Allocator {
	a := &Allocator{first: first, last: last, taken: make(map[uint32]struct{}, len(taken)), next: first}
	for _, id := range taken {
		a.Reserve(id)
	}
	return a
}

// Reserve marks an id found in a record as taken. It reports false if the id
// was taken already: then two records name it.
func (a *Allocator) Reserve(id uint32) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, ok := a.taken[id]; ok {
		return false
	}
	a.taken[id] = struct{}{}
	if a.first <= id && id <= a.last && id >= a.next {
		a.next = a.after(id)
	}
	return true
}

// Acquire returns an id that no record has and that free, asked about one id
// after the other, says nobody else has either: Free for project quotas. The id
// is the caller's until Release. Ids go round the range, so that a released one
// is not met again soon. It returns ErrNoFreeID when the range is exhausted.
func (a *Allocator) Acquire(free func(id uint32) (bool, error)) (uint32, error) {
	for {
		id, err := a.take()
		if err != nil {
			return 0, err
		}
		// Outside the lock: a slow disk delays this caller only.
		ok, err := free(id)
		if err != nil {
			a.Release(id)
			return 0, fmt.Errorf("prove quota id %d free: %w", id, err)
		}
		if ok {
			return id, nil
		}
		// A leak or somebody else's. It stays taken while this process
		// lives; verify reports it.
	}
}

// Release makes an id free again, after its limits were cleared and nothing
// carries it any more. A second call changes nothing.
func (a *Allocator) Release(id uint32) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.taken, id)
}

func (a *Allocator) take() (uint32, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	id := a.next
	for {
		if _, ok := a.taken[id]; !ok {
			a.taken[id] = struct{}{}
			a.next = a.after(id)
			return id, nil
		}
		if id = a.after(id); id == a.next {
			return 0, ErrNoFreeID
		}
	}
}

func (a *Allocator) after(id uint32) uint32 {
	if id >= a.last {
		return a.first
	}
	return id + 1
}
