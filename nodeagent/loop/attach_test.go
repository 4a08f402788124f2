package loop_test

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/nodeagent/internal/testroot"
	"github.com/quarry-storage/quarry/nodeagent/loop"
)

func attach(t *testing.T, image *os.File, opts loop.Options) loop.Device {
	t.Helper()
	dev, err := loop.Attach(t.Context(), image, opts)
	require.NoError(t, err)
	return dev
}

func TestAttach(t *testing.T) {
	testroot.RequireRoot(t)
	image := testroot.NewThickImage(t, 8*testroot.MiB)
	backing, err := loop.BackingOf(image)
	require.NoError(t, err)

	dev := attach(t, image, loop.Options{Name: "quarry: default/data", BlockSize: 4096, DirectIO: true})
	require.Equal(t, backing, dev.Backing)
	require.Equal(t, "quarry: default/data", dev.Name)
	require.Equal(t, image.Name(), dev.BackingPath)
	require.EqualValues(t, 4096, dev.BlockSize)
	require.EqualValues(t, 8*testroot.MiB, dev.SizeBytes)
	require.False(t, dev.ReadOnly)
	require.False(t, dev.Autoclear, "it must stay when its last user closes it")
	require.False(t, dev.Discard)
	require.False(t, dev.Deleted)
	require.True(t, dev.DirectIO, "the disk under the test's directory has direct I/O")
	require.Equal(t, []string{dev.Path}, testroot.LoopsOver(t, image.Name()), "losetup sees it as well")

	again := attach(t, image, loop.Options{BlockSize: 4096, DirectIO: true})
	require.Equal(t, dev, again)

	require.NoError(t, loop.Detach(t.Context(), dev, image))
	require.Empty(t, testroot.LoopsOver(t, image.Name()))
	require.NoError(t, loop.Detach(t.Context(), dev, image), "detaching again is fine")
}

func TestAttachRefuses(t *testing.T) {
	testroot.RequireRoot(t)
	image := testroot.NewImage(t, testroot.MiB)
	readOnly, err := os.Open(image.Name())
	require.NoError(t, err)
	defer readOnly.Close()
	odd := testroot.NewImage(t, testroot.MiB+512)
	dir, err := os.Open(t.TempDir())
	require.NoError(t, err)
	defer dir.Close()
	for name, test := range map[string]struct {
		image *os.File
		opts  loop.Options
	}{
		"not writable":               {readOnly, loop.Options{}},
		"a directory":                {dir, loop.Options{}},
		"a block size that is none":  {image, loop.Options{BlockSize: 1000}},
		"a block size of two pages":  {image, loop.Options{BlockSize: uint32(2 * os.Getpagesize())}},
		"half a block at the end":    {odd, loop.Options{BlockSize: 4096}},
		"a block size that is small": {image, loop.Options{BlockSize: 256}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := loop.Attach(t.Context(), test.image, test.opts)
			require.Error(t, err)
			require.Empty(t, testroot.LoopsOver(t, test.image.Name()))
		})
	}
}

func TestAttachReadOnly(t *testing.T) {
	testroot.RequireRoot(t)
	image := testroot.NewImage(t, testroot.MiB)
	dev := attach(t, image, loop.Options{ReadOnly: true})
	require.True(t, dev.ReadOnly)
	f, err := os.OpenFile(dev.Path, os.O_RDWR, 0)
	if err == nil {
		_, err = f.Write(make([]byte, 4096))
		f.Close()
	}
	require.Error(t, err)
	// In use by nobody, so it may be attached anew for writing.
	dev = attach(t, image, loop.Options{})
	require.False(t, dev.ReadOnly)
	require.Len(t, testroot.LoopsOver(t, image.Name()), 1)
}

// A device is known by what is beneath it: a file that has taken the name of an
// image is not the image.
func TestNamesDeceive(t *testing.T) {
	testroot.RequireRoot(t)
	image := testroot.NewImage(t, testroot.MiB)
	dev := attach(t, image, loop.Options{})
	path := image.Name()
	require.NoError(t, os.Rename(path, path+".moved"))
	t.Cleanup(func() { testroot.DetachAll(t, path+".moved") })
	impostor, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	require.NoError(t, err)
	defer impostor.Close()
	require.NoError(t, impostor.Truncate(testroot.MiB))

	found, err := loop.Find(impostor)
	require.NoError(t, err)
	require.Empty(t, found)
	require.NoError(t, loop.Detach(t.Context(), dev, impostor), "the device is not the impostor's, which "+
		"is not attached")
	found, err = loop.Find(image)
	require.NoError(t, err)
	require.Len(t, found, 1, "so it is still attached")
	require.Equal(t, path+".moved", found[0].BackingPath)

	other := attach(t, impostor, loop.Options{Name: path})
	require.NotEqual(t, dev.Path, other.Path)
	_, err = loop.Resize(dev, impostor)
	require.ErrorContains(t, err, "another file")

	// A name that looks as if it were deleted, and one that is.
	tricky := path + " (deleted)"
	require.NoError(t, os.Rename(path, tricky))
	t.Cleanup(func() { testroot.DetachAll(t, tricky) })
	found, err = loop.Find(impostor)
	require.NoError(t, err)
	require.False(t, found[0].Deleted)
	require.NoError(t, os.Remove(path+".moved"))
	found, err = loop.Find(image)
	require.NoError(t, err)
	require.True(t, found[0].Deleted)
	require.NoError(t, loop.DetachBacking(t.Context(), found[0]))
	found, err = loop.Find(image)
	require.NoError(t, err)
	require.Empty(t, found)
}

// Many images at once fight for the same free numbers.
func TestAttachManyAtOnce(t *testing.T) {
	testroot.RequireRoot(t)
	const n = 64
	dir := t.TempDir()
	images := make([]*os.File, n)
	devices := make([]loop.Device, n)
	errs := make([]error, n)
	for i := range images {
		images[i] = testroot.NewImageIn(t, dir, testroot.MiB)
	}
	inParallel(n, func(i int) {
		devices[i], errs[i] = loop.Attach(t.Context(), images[i], loop.Options{Name: strconv.Itoa(i)})
	})
	numbers := map[int]bool{}
	for i, dev := range devices {
		require.NoError(t, errs[i])
		require.False(t, numbers[dev.Number], "%s was given out twice", dev.Path)
		numbers[dev.Number] = true
		found, err := loop.Find(images[i])
		require.NoError(t, err)
		require.Equal(t, []loop.Device{dev}, found)
	}
	inParallel(n, func(i int) { errs[i] = loop.Detach(t.Context(), devices[i], images[i]) })
	for i := range images {
		require.NoError(t, errs[i])
		require.Empty(t, testroot.LoopsOver(t, images[i].Name()))
	}
}

// One image gets one device, however many ask for it.
func TestAttachOneImageManyTimes(t *testing.T) {
	testroot.RequireRoot(t)
	const n = 32
	image := testroot.NewImage(t, testroot.MiB)
	devices := make([]loop.Device, n)
	errs := make([]error, n)
	inParallel(n, func(i int) { devices[i], errs[i] = loop.Attach(t.Context(), image, loop.Options{}) })
	for i := range devices {
		require.NoError(t, errs[i])
		require.Equal(t, devices[0], devices[i])
	}
	require.Len(t, testroot.LoopsOver(t, image.Name()), 1)
}

func inParallel(n int, f func(i int)) {
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { f(i) })
	}
	wg.Wait()
}

// A waiter for an image's lock gives up when its context ends.
func TestAttachCancelled(t *testing.T) {
	testroot.RequireRoot(t)
	image := testroot.NewImage(t, testroot.MiB)
	locked, err := os.Open(image.Name())
	require.NoError(t, err)
	defer locked.Close()
	require.NoError(t, unix.Flock(int(locked.Fd()), unix.LOCK_EX))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		_, err := loop.Attach(ctx, image, loop.Options{})
		done <- err
	}()
	cancel()
	require.ErrorIs(t, <-done, context.Canceled)
	require.Empty(t, testroot.LoopsOver(t, image.Name()))
	require.NoError(t, locked.Close())
	attach(t, image, loop.Options{}) // nobody has kept the lock
}

// Spare devices go, devices in use stay, and two in use are an error.
func TestAttachFindsOthers(t *testing.T) {
	testroot.RequireRoot(t)
	image := testroot.NewImage(t, 16*testroot.MiB)
	testroot.Run(t, "mkfs.ext4", "-q", "-F", "-b", "4096", image.Name())
	first := testroot.NewLoop(t, image.Name(), "--sector-size", "512")
	second := testroot.NewLoop(t, image.Name(), "--sector-size", "4096")
	require.NotEqual(t, first, second)

	dev := attach(t, image, loop.Options{BlockSize: 4096})
	require.Equal(t, second, dev.Path, "the one that fits is kept")
	require.Equal(t, []string{second}, testroot.LoopsOver(t, image.Name()))
	require.False(t, dev.Discard, "losetup had left discards on")

	testroot.Mount(t, dev.Path, t.TempDir())
	require.Equal(t, dev, attach(t, image, loop.Options{BlockSize: 4096}))
	_, err := loop.Attach(t.Context(), image, loop.Options{BlockSize: 512})
	var mismatch *loop.MismatchError
	require.ErrorAs(t, err, &mismatch)
	require.Equal(t, []string{"block size"}, mismatch.Differs)

	third := testroot.NewLoop(t, image.Name(), "--read-only")
	holder, err := os.Open(third)
	require.NoError(t, err)
	defer holder.Close()
	_, err = loop.Attach(t.Context(), image, loop.Options{BlockSize: 4096})
	var ambiguous *loop.AmbiguousError
	require.ErrorAs(t, err, &ambiguous)
	require.Len(t, ambiguous.Devices, 2)
	require.NoError(t, holder.Close())
	require.Equal(t, dev, attach(t, image, loop.Options{BlockSize: 4096}))
	require.Equal(t, []string{dev.Path}, testroot.LoopsOver(t, image.Name()))
}

// A crash in the middle of an attach leaves a device marked to go; if it is
// still there, the next attach keeps it.
func TestAttachTakesOverMarkedDevice(t *testing.T) {
	testroot.RequireRoot(t)
	image := testroot.NewImage(t, testroot.MiB)
	path := testroot.NewLoop(t, image.Name(), "--sector-size", "4096")
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	testroot.Run(t, "losetup", "--detach", path) // f is open: only marked
	require.Len(t, testroot.LoopsOver(t, image.Name()), 1)
	dev := attach(t, image, loop.Options{BlockSize: 4096})
	require.Equal(t, path, dev.Path)
	require.False(t, dev.Autoclear)
	require.NoError(t, f.Close())
	require.Equal(t, []string{path}, testroot.LoopsOver(t, image.Name()))
}

// The node of a device that the kernel has just made is missing where /dev is
// not a devtmpfs.
func TestAttachMakesMissingNode(t *testing.T) {
	testroot.RequireRoot(t)
	image := testroot.NewImage(t, testroot.MiB)
	dev := attach(t, image, loop.Options{})
	var before unix.Stat_t
	require.NoError(t, unix.Stat(dev.Path, &before))
	aside := filepath.Join("/dev", "quarry-test-node-"+strconv.Itoa(os.Getpid()))
	require.NoError(t, os.Rename(dev.Path, aside))
	t.Cleanup(func() {
		if os.Rename(aside, dev.Path) != nil {
			t.Errorf("cleanup: %s is gone", dev.Path)
		}
	})
	require.Equal(t, dev, attach(t, image, loop.Options{}))
	var after unix.Stat_t
	require.NoError(t, unix.Stat(dev.Path, &after))
	require.Equal(t, before.Rdev, after.Rdev)
}

func TestResize(t *testing.T) {
	testroot.RequireRoot(t)
	image := testroot.NewImage(t, testroot.MiB)
	dev := attach(t, image, loop.Options{})
	require.NoError(t, image.Truncate(4*testroot.MiB))
	for range 2 {
		size, err := loop.Resize(dev, image)
		require.NoError(t, err)
		require.EqualValues(t, 4*testroot.MiB, size)
	}
	found, err := loop.Find(image)
	require.NoError(t, err)
	require.Len(t, found, 1)
	require.False(t, found[0].Discard, "still off")
	require.Equal(t, "4194304\n", testroot.Run(t, "blockdev", "--getsize64", dev.Path))
}
