package loop_test

import (
	"os"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/nodeagent/internal/testroot"
	"github.com/quarry-storage/quarry/nodeagent/loop"
)

// A reserved image stays reserved, whatever its user does to the device.
func TestThickStaysThick(t *testing.T) {
	testroot.RequireRoot(t)
	image := testroot.NewThickImage(t, 64*testroot.MiB)
	allocated := testroot.AllocatedBytes(t, image)
	dev := attach(t, image, loop.Options{DirectIO: true})

	f, err := os.OpenFile(dev.Path, os.O_RDWR, 0)
	require.NoError(t, err)
	defer f.Close()
	require.Error(t, exec.Command("blkdiscard", "--force", dev.Path).Run())
	for name, mode := range map[string]uint32{
		"punch hole":    unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE,
		"discard stale": unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE | 0x04,
	} {
		require.Error(t, unix.Fallocate(int(f.Fd()), mode, 0, 16*testroot.MiB), name)
	}
	require.NoError(t, unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, 0,
		16*testroot.MiB))
	testroot.Run(t, "blkdiscard", "--zeroout", dev.Path)
	require.NoError(t, f.Sync())
	require.NoError(t, f.Close())

	testroot.Mkfs(t, "ext4", dev.Path)
	target := t.TempDir()
	testroot.Mount(t, dev.Path, target, "-o", "discard")
	require.NoError(t, os.WriteFile(target+"/file", make([]byte, 8*testroot.MiB), 0o600))
	unix.Sync()
	require.NoError(t, os.Remove(target+"/file"))
	require.Error(t, exec.Command("fstrim", target).Run())
	unix.Sync()
	require.GreaterOrEqual(t, testroot.AllocatedBytes(t, image), allocated)
}

// Since Linux 6.8 the setting outlives the image: whoever gets the number next
// must not find it.
func TestDiscardSettingDoesNotLeak(t *testing.T) {
	testroot.RequireRoot(t)
	image := testroot.NewThickImage(t, 16*testroot.MiB)
	dev := attach(t, image, loop.Options{})
	require.False(t, dev.Discard)
	require.NoError(t, loop.Detach(t.Context(), dev, image))

	// The same number, attached by somebody else.
	testroot.Run(t, "losetup", dev.Path, image.Name())
	found, err := loop.Find(image)
	require.NoError(t, err)
	require.Len(t, found, 1)
	require.Equal(t, dev.Path, found[0].Path)
	require.True(t, found[0].Discard)
	testroot.Run(t, "blkdiscard", dev.Path)
	require.Less(t, testroot.AllocatedBytes(t, image), testroot.MiB)
}

// And what others have left is put right: once off, the kernel is particular
// about what switches it on again.
func TestDiscardOnAgain(t *testing.T) {
	testroot.RequireRoot(t)
	image := testroot.NewThickImage(t, 16*testroot.MiB)
	for _, want := range []bool{false, true, false, true} {
		dev := attach(t, image, loop.Options{Discard: want})
		require.Equal(t, want, dev.Discard)
	}
	dev := attach(t, image, loop.Options{Discard: true})
	testroot.Run(t, "blkdiscard", dev.Path)
	require.Less(t, testroot.AllocatedBytes(t, image), testroot.MiB)
}
