package quota

import (
	"errors"
	"math"
	"os"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

func anyID(uint32) (bool, error) { return true, nil }

func TestUnits(t *testing.T) {
	const block = 4096
	for _, c := range []struct{ bytes, want uint64 }{
		{0, 0},
		{1, block},
		{block, block},
		{block + 1, 2 * block},
		{1_000_000_000, 244_141 * block}, // 1G
		{1 << 30, 1 << 30},               // 1Gi
		{1<<30 - 1, 1 << 30},
		{1<<30 + 1, 1<<30 + block},
		{5_000_000_000_000, 1_220_703_125 * block},
		{8 << 40, 8 << 40},
	} {
		blocks, err := toBasicBlocks(c.bytes, block)
		require.NoError(t, err)
		require.Equal(t, c.want, fromBasicBlocks(blocks), "%d bytes", c.bytes)
	}
	_, err := toBasicBlocks(math.MaxUint64, block)
	require.ErrorIs(t, err, unix.ERANGE)
}

func TestAllocator(t *testing.T) {
	a := NewAllocator([]uint32{FirstID, FirstID + 2, 42})
	require.False(t, a.Reserve(FirstID), "two records with one id are noticed")
	first, err := a.Acquire(anyID)
	require.NoError(t, err)
	require.True(t, IsOurs(first))
	require.False(t, a.Reserve(first))
	a.Release(first)
	a.Release(first)
	require.True(t, a.Reserve(first))

	// What cannot be asked is not taken.
	failed := errors.New("disk on fire")
	var asked uint32
	_, err = a.Acquire(func(id uint32) (bool, error) { asked = id; return false, failed })
	require.ErrorIs(t, err, failed)
	require.True(t, a.Reserve(asked))
}

// From one id nobody learns the next: they are spread over the range.
func TestAllocatorIsNotGuessable(t *testing.T) {
	a := NewAllocator(nil)
	const many = 256
	near := 0
	last := FirstID
	for range many {
		id, err := a.Acquire(anyID)
		require.NoError(t, err)
		require.True(t, IsOurs(id))
		if d := int64(id) - int64(last); -1000 < d && d < 1000 {
			near++
		}
		last = id
	}
	require.Less(t, near, 8, "one in 8000 by chance")
}

// However many ids somebody else has in use, the question ends, and leaves
// nothing behind.
func TestAllocatorAsksAFewTimes(t *testing.T) {
	a := NewAllocator([]uint32{FirstID})
	asked := 0
	_, err := a.Acquire(func(uint32) (bool, error) { asked++; return false, nil })
	require.ErrorIs(t, err, ErrNoFreeID)
	require.Equal(t, tries, asked)
	require.Len(t, a.taken, 1)
	_, err = a.Acquire(anyID)
	require.NoError(t, err, "it is asked anew")
}

func TestAllocatorExhausted(t *testing.T) {
	const first, last = 10, 12
	a := newAllocator(first, last, []uint32{10, 11, 12})
	_, err := a.Acquire(anyID)
	require.ErrorIs(t, err, ErrNoFreeID)
	a.Release(11)
	id, err := a.Acquire(anyID)
	require.NoError(t, err)
	require.Equal(t, uint32(11), id)
	_, err = a.Acquire(anyID)
	require.ErrorIs(t, err, ErrNoFreeID)
}

func TestAllocatorInParallel(t *testing.T) {
	a := NewAllocator(nil)
	const many = 1000
	var mu sync.Mutex
	seen := make(map[uint32]bool)
	var work errgroup.Group
	for range many {
		work.Go(func() error {
			id, err := a.Acquire(func(id uint32) (bool, error) { return id%7 != 0, nil })
			mu.Lock()
			defer mu.Unlock()
			if seen[id] || id%7 == 0 {
				t.Errorf("id %d given twice, or not free", id)
			}
			seen[id] = true
			return err
		})
	}
	require.NoError(t, work.Wait())
	require.Len(t, seen, many)
}

// Ids that the kernel knows are not given out, whoever made them.
func TestAcquireProvesIDsFree(t *testing.T) {
	forEach(t, func(t *testing.T, fs *os.File) {
		require.NoError(t, SetLimits(fs, FirstID, Limits{Inodes: 1}))
		require.NoError(t, os.Mkdir(fs.Name()+"/theirs", 0o755))
		require.NoError(t, SetProject(open(t, fs.Name()+"/theirs"), FirstID+1, true))
		free := func(id uint32) (bool, error) { return Free(fs, id) }
		id, err := newAllocator(FirstID, FirstID+2, nil).Acquire(free)
		require.NoError(t, err)
		require.Equal(t, FirstID+2, id)
		_, err = newAllocator(FirstID, FirstID+1, nil).Acquire(free)
		require.ErrorIs(t, err, ErrNoFreeID)
	})
}
