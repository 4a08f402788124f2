package provisioner

import (
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestRecentIsBounded(t *testing.T) {
	var r recentKeys
	require.False(t, r.has("0"))
	for i := range 10 * recentLimit {
		r.add(strconv.Itoa(i))
		require.True(t, r.has(strconv.Itoa(max(0, i-recentLimit+1))))
		require.LessOrEqual(t, len(r.new)+len(r.old), 2*recentLimit)
	}
	require.False(t, r.has("0"))
}
