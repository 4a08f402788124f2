package quota

import (
	"crypto/rand"
	"encoding/binary"
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

// ErrNoFreeID says that none of the ids that were tried is free: the range is
// taken, or somebody charges files to so much of it that there is no telling.
var ErrNoFreeID = errors.New("no free quota id")

// tries is how many ids Acquire asks about. With half of the range in use by
// somebody else all of them are taken once in 2^64 times.
const tries = 64

// IsOurs reports whether id is from the range that belongs to volumes.
func IsOurs(id uint32) bool { return FirstID <= id && id <= LastID }

// An Allocator gives out the quota ids of one filesystem, project ids on ext4
// and xfs, numbers of level-1 groups on btrfs. There must be one per
// filesystem, shared by all pools on it: two volumes under one id would share
// one limit. It is safe for concurrent use, and remembers no more than what it
// gave out.
//
// Ids are drawn at random: from a volume's own id nobody learns another's.
type Allocator struct {
	first, last uint32 // the range

	mu    sync.Mutex
	taken map[uint32]struct{}
}

// NewAllocator returns an allocator that knows the ids in taken, those of all
// the records on the filesystem, trash included.
func NewAllocator(taken []uint32) *Allocator {
	return newAllocator(FirstID, LastID, taken)
}

func newAllocator(first, last uint32, taken []uint32) *Allocator {
	a := &Allocator{first: first, last: last, taken: make(map[uint32]struct{}, len(taken))}
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
	return a.mark(id)
}

// Acquire returns an id that no record has and that free, asked about one id
// after the other, says nobody else has either: Free for project quotas. The id
// is the caller's until Release. After a bounded number of tries it returns
// ErrNoFreeID; what it tried it forgets, so that a later call may find it free.
func (a *Allocator) Acquire(free func(id uint32) (bool, error)) (uint32, error) {
	for range tries {
		id, ok := a.take()
		if !ok {
			return 0, ErrNoFreeID
		}
		// Outside the lock: a slow disk delays this caller only.
		ok, err := free(id)
		if ok && err == nil {
			return id, nil
		}
		a.Release(id)
		if err != nil {
			return 0, fmt.Errorf("prove quota id %d free: %w", id, err)
		}
	}
	return 0, ErrNoFreeID
}

// Release makes an id free again, after its limits were cleared and nothing
// carries it any more. A second call changes nothing.
func (a *Allocator) Release(id uint32) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.taken, id)
}

// take marks an id as taken that was not.
func (a *Allocator) take() (id uint32, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	size := a.last - a.first + 1
	for range tries {
		if id = a.first + draw(size); a.mark(id) {
			return id, true
		}
	}
	// Nearly all are taken: the last free one is found as well.
	start := draw(size)
	for step := range size {
		if id = a.first + (start+step)%size; a.mark(id) {
			return id, true
		}
	}
	return 0, false
}

// mark is called with mu held.
func (a *Allocator) mark(id uint32) bool {
	if _, taken := a.taken[id]; taken {
		return false
	}
	a.taken[id] = struct{}{}
	return true
}

// draw returns a random number below n.
func draw(n uint32) uint32 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return uint32(binary.NativeEndian.Uint64(b[:]) % uint64(n))
}
