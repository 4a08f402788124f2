package backend

import (
	"testing"

	"github.com/stretchr/testify/require"
)

const (
	mib = 1 << 20
	gib = 1 << 30
)

func TestDefaultInodes(t *testing.T) {
	for size, want := range map[int64]int64{
		1 * mib:   1024,
		4 * mib:   1024,
		16 * mib:  4096,
		128 * mib: 32768,
		512 * mib: 32768,
		gib:       65536,
		100 * gib: 6553600,
	} {
		require.Equal(t, want, DefaultInodes(size), "%d bytes", size)
	}
	last := int64(0)
	for size := int64(mib); size < gib; size += mib {
		n := DefaultInodes(size)
		require.GreaterOrEqual(t, n, last)
		last = n
	}
}
