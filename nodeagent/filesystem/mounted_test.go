package filesystem

import (
	"context"
	"io"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/quarry-storage/quarry/nodeagent/internal/testroot"
)

// changing reads as a superblock does that the kernel is changing: for some
// reads its checksum does not fit what is in it.
type changing struct {
	io.ReaderAt
	left int
}

func (c *changing) ReadAt(p []byte, offset int64) (int, error) {
	n, err := c.ReaderAt.ReadAt(p, offset)
	if c.left > 0 {
		c.left--
		p[extOffset+0x10]++ // the number of free inodes
	}
	return n, err
}

func TestIdentifyMountedWaitsForTheChecksum(t *testing.T) {
	testroot.RequireRoot(t)
	image := testroot.NewImage(t, 16*testroot.MiB)
	const id = "0b5c1d6a-37b4-4f0c-9a52-9b1f6d3f0c11"
	require.NoError(t, Make(t.Context(), image, MakeOptions{Type: Ext4, UUID: id, Zeroed: true}))

	between := &changing{ReaderAt: image, left: 3}
	_, err := Identify(between)
	require.ErrorAs(t, err, new(*CorruptError), "what it is about")
	info, err := identifyMounted(t.Context(), between)
	require.NoError(t, err)
	require.Equal(t, id, info.UUID)
	require.Zero(t, between.left)

	// One that stays wrong is damage, and so is whatever else it may be.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = identifyMounted(ctx, &changing{ReaderAt: image, left: 1 << 30})
	require.ErrorAs(t, err, new(*CorruptError))
	require.ErrorIs(t, err, context.Canceled)
	closed, err := os.Open(image.Name())
	require.NoError(t, err)
	require.NoError(t, closed.Close())
	_, err = identifyMounted(t.Context(), closed)
	require.ErrorIs(t, err, os.ErrClosed)
}
