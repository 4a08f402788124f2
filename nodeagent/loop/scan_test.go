package loop_test

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/nodeagent/internal/testroot"
	"github.com/quarry-storage/quarry/nodeagent/loop"
)

func requireOver(t *testing.T, image *os.File, want ...string) {
	t.Helper()
	found, err := loop.Find(image)
	require.NoError(t, err)
	var paths []string
	for _, d := range found {
		paths = append(paths, d.Path)
	}
	require.Equal(t, want, paths)
}

// A device that was seen over one image is found over the next.
func TestFindAfterChange(t *testing.T) {
	testroot.RequireRoot(t)
	a, b := testroot.NewImage(t, testroot.MiB), testroot.NewImage(t, testroot.MiB)
	path := testroot.NewLoop(t, a.Name(), "--read-only")
	t.Cleanup(func() { testroot.DetachAll(t, b.Name()) })
	requireOver(t, a, path)
	requireOver(t, b)

	t.Run("without being detached", func(t *testing.T) {
		f, err := os.Open(path)
		require.NoError(t, err)
		defer f.Close()
		for _, to := range []*os.File{b, a, b} {
			require.NoError(t, unix.IoctlSetInt(int(f.Fd()), 0x4C06 /* LOOP_CHANGE_FD */, int(to.Fd())))
			for _, image := range []*os.File{a, b} {
				if image == to {
					requireOver(t, image, path)
				} else {
					requireOver(t, image)
				}
			}
		}
	})
	t.Run("after being detached", func(t *testing.T) {
		for _, to := range []*os.File{a, b, b, a} {
			testroot.Run(t, "losetup", "--detach", path)
			requireOver(t, a)
			requireOver(t, b)
			testroot.Run(t, "losetup", path, to.Name())
			requireOver(t, to, path)
		}
	})
}

// What nobody has open is over no device. Whoever has it, and however, it is
// looked for.
func TestFindOf(t *testing.T) {
	testroot.RequireRoot(t)
	image := testroot.NewImage(t, testroot.MiB)
	path := image.Name()
	require.NoError(t, image.Close())

	requireOf := func(t *testing.T, want ...string) {
		t.Helper()
		found, err := loop.FindOf(func() (*os.File, error) { return os.Open(path) })
		require.NoError(t, err)
		var paths []string
		for _, d := range found {
			paths = append(paths, d.Path)
		}
		require.Equal(t, want, paths)
	}
	requireOf(t)

	for name, flags := range map[string][]string{
		"read-write": nil,
		"read-only":  {"--read-only"},
		"a part":     {"--offset", "4096"},
	} {
		t.Run(name, func(t *testing.T) {
			device := testroot.NewLoop(t, path, flags...)
			requireOf(t, device)
			testroot.Run(t, "losetup", "--detach", device)
			requireOf(t)
		})
	}

	t.Run("open in this process", func(t *testing.T) {
		for _, how := range []int{os.O_RDONLY, os.O_WRONLY, os.O_RDWR} {
			f, err := os.OpenFile(path, how, 0)
			require.NoError(t, err)
			requireOf(t)
			require.NoError(t, f.Close())
		}
	})

	t.Run("attached here", func(t *testing.T) {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		require.NoError(t, err)
		device, err := loop.Attach(t.Context(), f, loop.Options{})
		require.NoError(t, err)
		requireOf(t, device.Path)
		require.NoError(t, f.Close())
		requireOf(t, device.Path)

		f, err = os.Open(path)
		require.NoError(t, err)
		require.NoError(t, loop.Detach(t.Context(), device, f))
		require.NoError(t, f.Close())
		requireOf(t)
	})

	_, err := loop.FindOf(func() (*os.File, error) { return os.Open(path + "-not") })
	require.ErrorIs(t, err, os.ErrNotExist)
}

// Many at once are served by few scans, and each by one that began after it
// asked: what it attached before, it finds.
func TestFindManyAtOnce(t *testing.T) {
	testroot.RequireRoot(t)
	const n = 32
	images := make([]*os.File, n)
	errs := make([]error, n)
	missed := make([]bool, n)
	dir := t.TempDir()
	for i := range images {
		images[i] = testroot.NewImageIn(t, dir, testroot.MiB)
		t.Cleanup(func() { testroot.DetachAll(t, images[i].Name()) })
	}
	inParallel(n, func(i int) {
		dev, err := loop.Attach(t.Context(), images[i], loop.Options{})
		if err != nil {
			errs[i] = err
			return
		}
		found, err := loop.Find(images[i])
		if err != nil {
			errs[i] = err
			return
		}
		missed[i] = len(found) != 1 || found[0] != dev
		errs[i] = loop.Detach(t.Context(), dev, images[i])
	})
	for i := range images {
		require.NoError(t, errs[i])
		require.False(t, missed[i])
		requireOver(t, images[i])
	}
}
