package nodeagent

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/internal/testroot"
)

// TestLanes: one pool's volumes leave workers free for the others', however
// many of them wait.
func TestLanes(t *testing.T) {
	var woken []string
	l := lanes{wake: func(volume string) { woken = append(woken, volume) }}
	var leave []func()
	for range lanesOfPool {
		out, ok := l.enter("pool1", "in")
		require.True(t, ok)
		leave = append(leave, out)
	}
	for range 2 {
		for _, volume := range []string{"a", "b", "c"} {
			_, ok := l.enter("pool1", volume)
			require.False(t, ok)
		}
	}
	_, ok := l.enter("pool2", "in")
	require.True(t, ok)
	_, ok = l.enter("", "in")
	require.True(t, ok, "whose pool is not known has a worker, of which no pool can have all")
	require.Greater(t, workersFor(3), 3*lanesOfPool)
	require.Empty(t, woken)
	leave[0]()
	leave[0]()
	require.Equal(t, []string{"a"}, woken, "who waits longest is woken, once")
	_, ok = l.enter("pool1", "a")
	require.True(t, ok)
	_, ok = l.enter("pool1", "d")
	require.False(t, ok, "a lane is given back once")
	leave[1]()
	leave[2]()
	require.Equal(t, []string{"a", "b", "c", "d"}, woken, "for each lane that nobody took one more")
	leave[3]()
	require.Len(t, woken, 4)
}

// A volume that waits for a lane is not looked at until it has one, and nothing
// is said of it.
func TestVolumeWaitsForALane(t *testing.T) {
	b := newBench(t)
	var leave []func()
	for range lanesOfPool {
		out, ok := b.lanes.enter("default", "other")
		require.True(t, ok)
		leave = append(leave, out)
	}

	b.want("data", 16<<20, directory)
	b.workOn(t.Context(), "data")
	v, err := b.volumeObject(t.Context(), "data")
	require.NoError(t, err)
	require.Zero(t, v.Status)
	require.Zero(t, b.queue.Len())

	leave[0]()
	require.Equal(t, 1, b.queue.Len())
	name, _ := b.queue.Get()
	b.workOn(t.Context(), name)
	b.queue.Done(name)
	v, err = b.volumeObject(t.Context(), "data")
	require.NoError(t, err)
	require.Equal(t, v1alpha1.VolumeReady, v.Status.Phase)
}

// Where those that have the lanes wait for a disk that does not answer, who has
// not begun is refused, and can go elsewhere.
func TestWhoWaitsForALaneOfAHungPoolIsRefused(t *testing.T) {
	b := newBench(t)
	for range lanesOfPool {
		_, ok := b.lanes.enter("default", "other")
		require.True(t, ok)
	}

	b.want("data", 16<<20, directory)
	b.workOn(t.Context(), "data")
	testroot.Run(t, "fsfreeze", "--freeze", b.pool)
	t.Cleanup(func() { testroot.Run(t, "fsfreeze", "--unfreeze", b.pool) })
	go b.store.Glance(t.Context())
	require.Eventually(t, func() bool { return b.store.Pools()[0].Offline != nil },
		time.Minute, 10*time.Millisecond)
	b.workOn(t.Context(), "data")
	v, err := b.volumeObject(t.Context(), "data")
	require.NoError(t, err)
	require.Equal(t, v1alpha1.VolumeRefused, v.Status.Phase, "%+v", v.Status)
	require.False(t, b.store.Abandoned("data"))
}
