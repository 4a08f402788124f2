package nodeagent

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// TestLanes: one pool's volumes leave workers free for the others', however
// many of them wait.
func TestLanes(t *testing.T) {
	var l lanes
	var leave []func()
	for range lanesOfPool {
		out, ok := l.enter("pool1")
		require.True(t, ok)
		leave = append(leave, out)
	}
	_, ok := l.enter("pool1")
	require.False(t, ok)
	_, ok = l.enter("pool2")
	require.True(t, ok)
	_, ok = l.enter("")
	require.True(t, ok, "whose pool is not known has a worker, of which no pool can have all")
	require.Greater(t, workersFor(3), 3*lanesOfPool)
	leave[0]()
	leave[0]()
	_, ok = l.enter("pool1")
	require.True(t, ok)
	_, ok = l.enter("pool1")
	require.False(t, ok, "a lane is given back once")
}
