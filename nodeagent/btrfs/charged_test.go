package btrfs

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// However short a slice is, the look comes further, finds everything and ends.
func TestChargedInSlices(t *testing.T) {
	fs := newSimple(t)
	volume := newVolume(t, fs, limit)
	id, err := ID(volume)
	require.NoError(t, err)
	path := volume.Name()
	for i := range 20 {
		require.NoError(t, CreateSubvolume(open(t, path), "deep", NoGroup))
		require.NoError(t, CreateSubvolume(volume, fmt.Sprint("wide-", i), NoGroup))
		path = filepath.Join(path, "deep")
	}
	deepest, err := ID(open(t, path))
	require.NoError(t, err)
	require.NoError(t, Expel(fs, deepest, testGroup))
	nowhere := nest(t, fs, volume, "nowhere")
	require.NoError(t, CreateSubvolume(fs, "neighbour", NoGroup))
	neighbour, err := ID(open(t, filepath.Join(fs.Name(), "neighbour")))
	require.NoError(t, err)
	require.NoError(t, AddMember(fs, neighbour, testGroup))

	var strays []Stray
	var foreign []uint64
	slices := 0
	for at := (Cursor{}); !at.Done(); slices++ {
		require.Less(t, slices, 10_000, "it ends")
		s, f, err := Charged(fs, id, testGroup, &at, time.Nanosecond)
		require.NoError(t, err)
		strays, foreign = append(strays, s...), append(foreign, f...)
	}
	require.Greater(t, slices, 20)
	require.ElementsMatch(t, []Stray{{Subvolume: deepest, Outside: true}, {Subvolume: nowhere, Outside: true}}, strays)
	require.Equal(t, []uint64{neighbour}, foreign)

	at := Cursor{}
	s, f, err := Charged(fs, id, testGroup, &at, time.Hour)
	require.NoError(t, err)
	require.True(t, at.Done())
	require.ElementsMatch(t, strays, s)
	require.Equal(t, foreign, f)
}

// A subvolume that is moved about while it is looked at leads in no circle.
func TestChargedWhileSubvolumesMove(t *testing.T) {
	fs := newSimple(t)
	volume := newVolume(t, fs, limit)
	id, err := ID(volume)
	require.NoError(t, err)
	one, two := filepath.Join(volume.Name(), "one"), filepath.Join(volume.Name(), "two")
	require.NoError(t, CreateSubvolume(volume, "one", NoGroup))
	require.NoError(t, CreateSubvolume(volume, "two", NoGroup))
	ids := []uint64{id}
	for _, path := range []string{one, two} {
		sub, err := ID(open(t, path))
		require.NoError(t, err)
		ids = append(ids, sub)
	}
	at := Cursor{}
	meets := func(want uint64) {
		t.Helper()
		s, found, err := at.within(fs, id, testGroup)
		require.NoError(t, err)
		require.True(t, found)
		require.Equal(t, want, s.Subvolume)
	}
	meets(ids[0])
	meets(ids[1])
	require.NoError(t, os.Rename(two, filepath.Join(one, "two")))
	meets(ids[2])
	require.NoError(t, os.Rename(filepath.Join(one, "two"), two))
	require.NoError(t, os.Rename(one, filepath.Join(two, "one")))
	meets(ids[2]) // where it is now; what it holds was on the way to it before
	meets(ids[1])
	_, found, err := at.within(fs, id, testGroup)
	require.NoError(t, err)
	require.False(t, found)
}
