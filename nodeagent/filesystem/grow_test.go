package filesystem_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/nodeagent/filesystem"
	"github.com/quarry-storage/quarry/nodeagent/internal/testroot"
)

// From the least size upwards, in steps small and large, while mounted.
func TestGrow(t *testing.T) {
	testroot.RequireRoot(t)
	for _, fstype := range filesystem.Types() {
		t.Run(string(fstype), func(t *testing.T) {
			if fstype == filesystem.Ext4 && !testroot.HasCapability(t, unix.CAP_SYS_RESOURCE) {
				t.Skip("needs CAP_SYS_RESOURCE, which root has not on this machine: run `make test-vm`")
			}
			least := filesystem.MinimumSize(fstype)
			image := testroot.NewImage(t, least)
			device := newDevice(t, image, 4096)
			makeOn(t, device, filesystem.MakeOptions{Type: fstype, Zeroed: true})
			target := mountDevice(t, device)
			require.NoError(t, os.WriteFile(target+"/file", []byte("kept"), 0o600))
			dir, err := os.OpenFile(target, unix.O_PATH, 0)
			require.NoError(t, err)
			defer dir.Close()
			before := int64(0)
			for _, size := range []int64{least, least + testroot.MiB, least + 64*testroot.MiB, testroot.GiB,
				40 * testroot.GiB} {
				require.NoError(t, image.Truncate(size))
				testroot.Run(t, "losetup", "--set-capacity", device.Name())
				for range 2 {
					got, err := filesystem.Grow(t.Context(), dir, device)
					require.NoError(t, err)
					require.LessOrEqual(t, got, size)
					require.GreaterOrEqual(t, got, max(before, size-32*testroot.MiB))
					before = got
				}
			}
			var st unix.Statfs_t
			require.NoError(t, unix.Statfs(target, &st))
			require.Greater(t, int64(st.Blocks)*st.Bsize, 38*testroot.GiB)
			content, err := os.ReadFile(target + "/file")
			require.NoError(t, err)
			require.Equal(t, "kept", string(content))

			// Another device, and a smaller one.
			other := newDevice(t, testroot.NewImage(t, 50*testroot.GiB), 4096)
			_, err = filesystem.Grow(t.Context(), dir, other)
			require.ErrorContains(t, err, "not on")
			require.NoError(t, image.Truncate(30*testroot.GiB))
			testroot.Run(t, "losetup", "--set-capacity", device.Name())
			_, err = filesystem.Grow(t.Context(), dir, device)
			require.ErrorContains(t, err, "never shrunk")
			require.NoError(t, image.Truncate(40*testroot.GiB))
			testroot.Run(t, "losetup", "--set-capacity", device.Name())
			_, err = filesystem.Grow(t.Context(), dir, device)
			require.NoError(t, err)
		})
	}
}

func TestGrowElsewhere(t *testing.T) {
	testroot.RequireRoot(t)
	device := newDevice(t, testroot.NewImage(t, 16*testroot.MiB), 512)
	dir, err := os.Open(t.TempDir())
	require.NoError(t, err)
	defer dir.Close()
	_, err = filesystem.Grow(t.Context(), dir, device)
	require.Error(t, err)
	_, err = filesystem.Grow(t.Context(), dir, dir)
	require.ErrorIs(t, err, unix.ENOTBLK)
}

// A power cut leaves a journal behind, and nothing to check.
func TestCheckAfterPowerCut(t *testing.T) {
	testroot.RequireRoot(t)
	for _, fstype := range filesystem.Types() {
		t.Run(string(fstype), func(t *testing.T) {
			disk := testroot.NewImage(t, 320*testroot.MiB)
			device := newDevice(t, disk, 4096)
			makeOn(t, device, filesystem.MakeOptions{Type: fstype, Zeroed: true})
			target := mountDevice(t, device)
			require.NoError(t, os.WriteFile(target+"/file", []byte("x"), 0o600))
			syncfs(t, target)
			// What is on disk at this moment is what a power cut leaves.
			left := filepath.Join(t.TempDir(), "left")
			testroot.Run(t, "cp", "--sparse=always", disk.Name(), left)
			require.NoError(t, unix.Unmount(target, 0))
			image, err := os.OpenFile(left, os.O_RDWR, 0)
			require.NoError(t, err)
			defer image.Close()
			t.Cleanup(func() { testroot.DetachAll(t, left) })
			repaired, err := filesystem.Check(t.Context(), image, filesystem.CheckOptions{})
			require.NoError(t, err)
			require.False(t, repaired)
			again := mountDevice(t, newDevice(t, image, 4096))
			require.FileExists(t, again+"/file")
		})
	}
}

// An ext4 that has seen errors is repaired if that is safe, and said to be
// damaged if it is not.
func TestCheckExt4WithErrors(t *testing.T) {
	testroot.RequireRoot(t)
	newDamaged := func(t *testing.T, commands ...string) *os.File {
		image := testroot.NewImage(t, 64*testroot.MiB)
		makeOn(t, image, filesystem.MakeOptions{Type: filesystem.Ext4})
		for _, c := range append(commands, "set_super_value state 2") {
			testroot.Run(t, "debugfs", "-w", "-R", c, image.Name())
		}
		info, err := filesystem.Identify(image)
		require.NoError(t, err)
		require.True(t, info.HasErrors)
		require.False(t, info.Clean)
		return image
	}
	t.Run("repairable", func(t *testing.T) {
		image := newDamaged(t, "set_super_value free_blocks_count 1")
		repaired, err := filesystem.Check(t.Context(), image, filesystem.CheckOptions{})
		require.NoError(t, err)
		require.True(t, repaired)
		repaired, err = filesystem.Check(t.Context(), image, filesystem.CheckOptions{})
		require.NoError(t, err)
		require.False(t, repaired)
	})
	t.Run("not repairable", func(t *testing.T) {
		image := newDamaged(t, "clri <2>") // the root directory
		_, err := filesystem.Check(t.Context(), image, filesystem.CheckOptions{})
		var damaged *filesystem.DamagedError
		require.ErrorAs(t, err, &damaged)
		require.NotEmpty(t, damaged.Output)
	})
}
