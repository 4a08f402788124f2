package loop_test

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/quarry-storage/quarry/nodeagent/internal/testroot"
	"github.com/quarry-storage/quarry/nodeagent/loop"
)

// A device that is kept open can be marked, and not taken away: its number
// stays the image's.
func TestPin(t *testing.T) {
	testroot.RequireRoot(t)
	image := testroot.NewThickImage(t, 16*testroot.MiB)
	dev := attach(t, image, loop.Options{})
	require.NoError(t, loop.Pin(dev))
	require.NoError(t, loop.Pin(dev))
	require.Len(t, held(t), 1)

	testroot.Run(t, "losetup", "--detach", dev.Path)
	requireOver(t, image, dev.Path)
	table, err := loop.Look()
	require.NoError(t, err)
	require.Equal(t, []loop.Seen{{Number: dev.Number, Backing: dev.Backing, Path: image.Name(), Autoclear: true}},
		table[dev.Backing])

	require.NoError(t, loop.TakeBack(dev))
	found, err := loop.Find(image)
	require.NoError(t, err)
	require.Equal(t, []loop.Device{dev}, found)

	// It is no use of the device, for those who attach and detach it.
	holders, err := loop.Holders(dev, loop.HolderOptions{IncludeSelf: true})
	require.NoError(t, err)
	require.Empty(t, holders)
	require.Equal(t, dev, attach(t, image, loop.Options{}))
	require.NoError(t, loop.Detach(t.Context(), dev, image))
	require.False(t, loop.IsPinned(dev.Number))
	requireOver(t, image)
	require.Empty(t, held(t))
}

// A device that stays because it is in use is kept as before.
func TestPinOfBusyDevice(t *testing.T) {
	testroot.RequireRoot(t)
	image := testroot.NewThickImage(t, 16*testroot.MiB)
	dev := attach(t, image, loop.Options{})
	require.NoError(t, loop.Pin(dev))
	user, err := os.Open(dev.Path)
	require.NoError(t, err)
	var busy *loop.BusyError
	require.ErrorAs(t, loop.Detach(t.Context(), dev, image), &busy)
	require.Len(t, busy.Holders, 1)
	require.True(t, loop.IsPinned(dev.Number))
	require.NoError(t, user.Close())
	require.NoError(t, loop.Detach(t.Context(), dev, image))
}

// What is over another image, or over none, is not kept.
func TestPinOfAnother(t *testing.T) {
	testroot.RequireRoot(t)
	a, b := testroot.NewThickImage(t, 16*testroot.MiB), testroot.NewThickImage(t, 16*testroot.MiB)
	dev := attach(t, a, loop.Options{})
	other := attach(t, b, loop.Options{})
	wrong := dev
	wrong.Number, wrong.Path = other.Number, other.Path
	require.ErrorContains(t, loop.Pin(wrong), "over another file")
	require.NoError(t, loop.Detach(t.Context(), dev, a))
	require.Error(t, loop.Pin(dev))
	require.Empty(t, held(t))
}

// A read-only device, over another one or over an image that cannot be written,
// is kept as any other is.
func TestPinOfReadOnlyDevices(t *testing.T) {
	testroot.RequireRoot(t)
	image := testroot.NewThickImage(t, 16*testroot.MiB)
	dev := attach(t, image, loop.Options{})
	over, err := loop.AttachReadOnly(t.Context(), dev, "pvc-1")
	require.NoError(t, err)
	unwritable, err := os.Open(testroot.NewThickImage(t, 16*testroot.MiB).Name())
	require.NoError(t, err)
	defer unwritable.Close()
	alone := attach(t, unwritable, loop.Options{ReadOnly: true})

	for _, ro := range []loop.Device{over, alone} {
		require.True(t, ro.ReadOnly)
		require.NoError(t, loop.Pin(ro))
		testroot.Run(t, "losetup", "--detach", ro.Path)
		seen := func() []loop.Seen {
			table, err := loop.Look()
			require.NoError(t, err)
			return table[ro.Backing]
		}
		require.Len(t, seen(), 1, "it stays")
		require.True(t, seen()[0].Autoclear)
		require.NoError(t, loop.TakeBack(ro))
		require.Len(t, seen(), 1)
		require.False(t, seen()[0].Autoclear, "and would stay without us")
		f, err := os.OpenFile(ro.Path, os.O_RDWR, 0)
		if err == nil { // Linux lets it be opened, and refuses what is written
			_, err = f.WriteAt(make([]byte, 4096), 0)
			require.NoError(t, f.Close())
		}
		require.Error(t, err)
	}

	var busy *loop.BusyError
	require.ErrorAs(t, loop.Detach(t.Context(), dev, image), &busy, "the device over it has it")
	require.NoError(t, loop.DetachReadOnly(t.Context(), over))
	require.False(t, loop.IsPinned(over.Number))
	require.NoError(t, loop.Detach(t.Context(), dev, image))
	require.NoError(t, loop.Detach(t.Context(), alone, unwritable))
	require.False(t, loop.IsPinned(alone.Number))
	require.Empty(t, held(t))
}
