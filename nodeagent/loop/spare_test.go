package loop_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/quarry-storage/quarry/nodeagent/internal/testroot"
	"github.com/quarry-storage/quarry/nodeagent/loop"
)

// held returns the loop devices that this process has open.
func held(t *testing.T) []string {
	t.Helper()
	links, err := filepath.Glob("/proc/self/fd/*")
	require.NoError(t, err)
	var devices []string
	for _, link := range links {
		to, err := os.Readlink(link)
		if err == nil && strings.HasPrefix(to, "/dev/loop") && to != "/dev/loop-control" {
			devices = append(devices, to)
		}
	}
	return devices
}

// attachSpare attaches an image with a device that is being prepared.
func attachSpare(t *testing.T, spare *loop.Spare, image *os.File, opts loop.Options) loop.Device {
	t.Helper()
	dev, err := spare.Attach(t.Context(), image, opts)
	require.NoError(t, err)
	t.Cleanup(func() { testroot.DetachAll(t, image.Name()) })
	return dev
}

func TestSpare(t *testing.T) {
	testroot.RequireRoot(t)
	for name, opts := range map[string]loop.Options{
		"thick":     {DirectIO: true},
		"thin":      {DirectIO: true, Discard: true},
		"read-only": {ReadOnly: true},
	} {
		t.Run(name, func(t *testing.T) {
			image := testroot.NewThickImage(t, 16*testroot.MiB)
			spare := loop.Prepare(t.Context(), opts)
			defer spare.Release()
			dev := attachSpare(t, spare, image, opts)
			require.Equal(t, opts.Discard, dev.Discard)
			require.Equal(t, opts.ReadOnly, dev.ReadOnly)
			require.False(t, dev.Autoclear)
			require.Empty(t, held(t))

			// It is used up; the next image gets another, and this one the
			// same.
			other := testroot.NewThickImage(t, 16*testroot.MiB)
			require.NotEqual(t, dev.Path, attachSpare(t, spare, other, opts).Path)
			require.Equal(t, dev, attachSpare(t, spare, image, opts))
		})
	}
}

// What was not needed is given back, and its discards with it.
func TestSpareReleased(t *testing.T) {
	testroot.RequireRoot(t)
	image := testroot.NewImage(t, 16*testroot.MiB)
	dev := attach(t, image, loop.Options{Discard: true})
	for range 3 {
		spare := loop.Prepare(t.Context(), loop.Options{})
		require.Equal(t, dev, attach(t, image, loop.Options{Discard: true}))
		spare.Release()
		spare.Release()
		require.Empty(t, held(t))
	}
	for range 2 {
		spare := loop.Prepare(t.Context(), loop.Options{})
		kept, err := spare.Attach(t.Context(), image, loop.Options{Discard: true})
		require.NoError(t, err)
		require.Equal(t, dev, kept, "an image that is attached needs none")
		spare.Release()
		require.Empty(t, held(t))
	}
	// Whoever gets a number next can discard.
	free := strings.TrimSpace(testroot.Run(t, "losetup", "--find"))
	next := testroot.NewThickImage(t, 16*testroot.MiB)
	t.Cleanup(func() { testroot.DetachAll(t, next.Name()) })
	testroot.Run(t, "losetup", free, next.Name())
	found, err := loop.Find(next)
	require.NoError(t, err)
	require.Len(t, found, 1)
	require.True(t, found[0].Discard)
}

// A device with its discards switched off goes to nobody else.
func TestSpareIsHeld(t *testing.T) {
	testroot.RequireRoot(t)
	spare := loop.Prepare(t.Context(), loop.Options{})
	defer spare.Release()
	image := testroot.NewThickImage(t, 16*testroot.MiB)
	stranger := testroot.NewThickImage(t, 16*testroot.MiB)
	var mine string
	require.Eventually(t, func() bool {
		devices := held(t)
		if len(devices) == 1 {
			mine = devices[0]
		}
		return mine != ""
	}, 10*time.Second, time.Millisecond)
	require.Error(t, exec.Command("losetup", mine, stranger.Name()).Run())
	require.Empty(t, testroot.LoopsOver(t, stranger.Name()))
	require.Equal(t, mine, attachSpare(t, spare, image, loop.Options{}).Path)
}

// Many at once get one each.
func TestSpareManyAtOnce(t *testing.T) {
	testroot.RequireRoot(t)
	const n = 16
	dir := t.TempDir()
	images := make([]*os.File, n)
	errs := make([]error, n)
	devices := make([]loop.Device, n)
	for i := range images {
		images[i] = testroot.NewImageIn(t, dir, testroot.MiB)
		t.Cleanup(func() { testroot.DetachAll(t, images[i].Name()) })
	}
	inParallel(n, func(i int) {
		spare := loop.Prepare(t.Context(), loop.Options{})
		defer spare.Release()
		devices[i], errs[i] = spare.Attach(t.Context(), images[i], loop.Options{Name: strconv.Itoa(i)})
	})
	seen := map[string]bool{}
	for i := range images {
		require.NoError(t, errs[i])
		require.False(t, devices[i].Discard)
		require.False(t, seen[devices[i].Path])
		seen[devices[i].Path] = true
	}
	require.Empty(t, held(t))
}
