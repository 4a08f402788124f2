package ledger

import (
	"errors"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/quarry-storage/quarry/nodeagent/quota"
)

// TestReserve is what of a capacity of 100 is promised to key, where others
// have what they have.
func TestReserve(t *testing.T) {
	cases := []struct {
		name      string
		has       map[string]int64
		bytes     int64
		available int64
		ok        bool
	}{
		{name: "all of it", bytes: 100, available: 100, ok: true},
		{name: "more than all", bytes: 101, available: 100},
		{name: "nothing", bytes: 0, available: 100, ok: true},
		{name: "nothing, where there is no room", has: map[string]int64{"other": 100}, bytes: 0,
			available: 0, ok: true},
		{name: "what others left", has: map[string]int64{"other": 60}, bytes: 40, available: 40, ok: true},
		{name: "more than others left", has: map[string]int64{"other": 60}, bytes: 41, available: 40},
		{name: "the same again", has: map[string]int64{"key": 60, "other": 40}, bytes: 60, available: 60, ok: true},
		{name: "growing", has: map[string]int64{"key": 60, "other": 30}, bytes: 70, available: 70, ok: true},
		{name: "growing too far", has: map[string]int64{"key": 60, "other": 30}, bytes: 71, available: 70},
		{name: "shrinking", has: map[string]int64{"key": 60, "other": 30}, bytes: 10, available: 70, ok: true},
		{name: "more was promised than there is", has: map[string]int64{"other": 110}, bytes: 1, available: 0},
		{name: "shrinking, and still too much", has: map[string]int64{"key": 60, "other": 70}, bytes: 40,
			available: 30},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			l := New()
			others := int64(0)
			for key, bytes := range c.has {
				l.Set(key, bytes)
				if key != "key" {
					others += bytes
				}
			}
			before, had := l.Promises(), l.Has("key")

			available, ok := l.Reserve("key", c.bytes, 100)
			require.Equal(t, c.available, available)
			require.Equal(t, c.ok, ok)
			if !ok {
				require.Equal(t, before, l.Promises(), "a refusal changes nothing")
				require.Equal(t, had, l.Has("key"))
				return
			}
			require.Equal(t, c.bytes, l.Promises()["key"])
			require.Equal(t, others+c.bytes, l.Promised())
		})
	}
}

// TestPromises follows promises from key to key.
func TestPromises(t *testing.T) {
	l := New()
	l.Set("a", 60)
	l.Set("b", 40)
	l.Set("b", 50)
	require.EqualValues(t, 110, l.Promised(), "what is on disk is promised, room or not")

	l.Move("b", "trash/b", 0)
	l.Move("b", "trash/b", 0)
	require.Equal(t, map[string]int64{"a": 60, "trash/b": 50}, l.Promises(), "a second move changes nothing")
	l.Move("trash/b", "a", 0)
	require.Equal(t, map[string]int64{"a": 50}, l.Promises(), "what the other key was promised is replaced")
	require.EqualValues(t, 50, l.Promised())

	require.True(t, l.Release("a"))
	require.False(t, l.Release("a"))
	require.False(t, l.Has("a"))
	require.Zero(t, l.Promised())
}

// TestOwners follows quota ids from key to key.
func TestOwners(t *testing.T) {
	const id = quota.FirstID
	l := New()
	require.True(t, l.Own("a", id))
	require.True(t, l.Own("a", id), "a second call changes nothing")
	require.False(t, l.Own("b", id), "two volumes under one id share one limit")
	require.Equal(t, "a", l.Owner(id))

	l.Move("b", "c", id)
	require.Equal(t, "a", l.Owner(id), "it was not b's to give")
	l.Move("a", "c", id)
	require.Equal(t, map[uint32]string{id: "c"}, l.Owners())

	l.Disown("a", id)
	require.Equal(t, "c", l.Owner(id), "it is not a's any more")
	l.Disown("c", id)
	require.Empty(t, l.Owner(id))
	require.True(t, l.Own("b", id), "it is free again")
}

// TestDraw gives out ids that nobody has, by the books and on the disk.
func TestDraw(t *testing.T) {
	l := New()
	var asked []uint32
	id, err := l.Draw("a", func(id uint32) (bool, error) {
		asked = append(asked, id)
		return len(asked) == 3, nil
	})
	require.NoError(t, err)
	require.Equal(t, asked[2], id)
	require.Equal(t, map[uint32]string{id: "a"}, l.Owners(), "what was not free is nobody's")
	require.False(t, l.Own("b", id))

	broken := errors.New("the disk says no")
	_, err = l.Draw("b", func(uint32) (bool, error) { return false, broken })
	require.ErrorIs(t, err, broken)
	require.Len(t, l.Owners(), 1)
}

// TestForget drops by key, promises and ids apart.
func TestForget(t *testing.T) {
	l := New()
	for i, key := range []string{"gone/a", "gone/b", "other/c"} {
		l.Set(key, 10)
		require.True(t, l.Own(key, quota.FirstID+uint32(i)))
	}
	l.Forget(
		func(key string) bool { return strings.HasPrefix(key, "gone/") },
		func(key string) bool { return key == "gone/a" },
	)
	require.Equal(t, map[string]int64{"other/c": 10}, l.Promises())
	require.EqualValues(t, 10, l.Promised())
	require.Equal(t, map[uint32]string{quota.FirstID + 1: "gone/b", quota.FirstID + 2: "other/c"}, l.Owners())
	require.True(t, l.Own("new", quota.FirstID), "its id is free again")
}
