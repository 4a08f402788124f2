package filesystem_test

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/nodeagent/filesystem"
	"github.com/quarry-storage/quarry/nodeagent/internal/testroot"
	"github.com/quarry-storage/quarry/nodeagent/option"
)

// A filesystem that is made in an image is what the device over it wants,
// whatever sectors that has, and reads the same past its cache. The image keeps
// its size and what is reserved for it.
func TestMakeForSectors(t *testing.T) {
	testroot.RequireRoot(t)
	for _, fstype := range filesystem.Types() {
		for _, sector := range []int{512, 4096} {
			t.Run(string(fstype)+" "+strconv.Itoa(sector), func(t *testing.T) {
				imageSize := 320*testroot.MiB + int64(sector)
				image := testroot.NewThickImage(t, imageSize)
				before := testroot.AllocatedBytes(t, image)
				makeOn(t, image, filesystem.MakeOptions{Type: fstype, Zeroed: true, SectorSize: uint32(sector)})
				require.Equal(t, imageSize, size(t, image))
				require.GreaterOrEqual(t, testroot.AllocatedBytes(t, image), before)

				device := newDevice(t, image, sector)
				fromImage, err := filesystem.Identify(image)
				require.NoError(t, err)
				fromDevice, err := filesystem.Identify(device)
				require.NoError(t, err)
				require.Equal(t, fromImage, fromDevice)
				target := mountDevice(t, device)
				require.NoError(t, os.WriteFile(filepath.Join(target, "file"), []byte("x"), 0o600))
				syncfs(t, target)
				require.NoError(t, unix.Unmount(target, 0))
				again := mountDevice(t, device)
				require.FileExists(t, filepath.Join(again, "file"))
			})
		}
	}
}

// What mkfs would refuse on a device is refused in an image: it could not be
// mounted with that device.
func TestMakeBelowSectorSize(t *testing.T) {
	testroot.RequireRoot(t)
	image := testroot.NewImage(t, 320*testroot.MiB)
	for _, test := range []struct {
		fstype filesystem.Type
		args   []string
	}{
		{filesystem.Ext4, []string{"-b", "1024"}},
		{filesystem.XFS, []string{"-b", "size=1k"}},
		{filesystem.XFS, []string{"-s", "size=512"}},
	} {
		err := filesystem.Make(t.Context(), image, filesystem.MakeOptions{Type: test.fstype, UUID: newUUID(),
			SectorSize: 4096, ExtraArgs: test.args})
		var refused *option.Error
		require.True(t, errors.As(err, &refused), "%v: %v", test.args, err)
		require.Contains(t, refused.Reason, "4096")
		require.NoError(t, filesystem.CheckBlank(image))
	}
	// More than a sector is no problem.
	makeOn(t, image, filesystem.MakeOptions{Type: filesystem.XFS, SectorSize: 512, ExtraArgs: []string{"-s", "size=4k",
		"-b", "size=4k"}})
	mountDevice(t, newDevice(t, image, 512))
}
