package keylock

import (
	"context"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParallelHoldersExcludeEachOther(t *testing.T) {
	var (
		locks Set
		wg    sync.WaitGroup
		held  = map[string]*int{"a": new(int), "b": new(int)}
	)
	for range 100 {
		for key, count := range held {
			wg.Go(func() {
				unlock, err := locks.Lock(t.Context(), key)
				if err != nil {
					t.Error(err)
					return
				}
				*count++ // the race detector sees it if two are here
				unlock()
			})
		}
	}
	wg.Wait()
	require.Equal(t, 100, *held["a"])
	require.Equal(t, 100, *held["b"])
	require.Empty(t, locks.locks, "locks nobody holds are gone")
}

func TestWaitEndsWithItsContext(t *testing.T) {
	var locks Set
	unlock, err := locks.Lock(t.Context(), "a")
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = locks.Lock(ctx, "a")
	var busy *BusyError
	require.ErrorAs(t, err, &busy)
	require.ErrorIs(t, err, context.Canceled)
	_, err = locks.TryLock("a")
	require.ErrorAs(t, err, &busy)
	other, err := locks.TryLock("b")
	require.NoError(t, err, "another key")
	other()
	unlock()
	again, err := locks.TryLock("a")
	require.NoError(t, err)
	again()
	require.Empty(t, locks.locks)
}
