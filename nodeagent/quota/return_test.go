package quota

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/nodeagent/internal/testroot"
)

// However short a slice is, the walk comes further, and finds and gives back
// everything: xfs keeps project ids also where it does not enforce them.
func TestReturnInSlices(t *testing.T) {
	testroot.RequireRoot(t)
	fs := testroot.NewFilesystem(t, "xfs", 512*testroot.MiB)
	require.NoError(t, os.Mkdir(fs+"/tree", 0o755))
	tree := open(t, fs+"/tree")
	require.NoError(t, SetProject(tree, testID, true))
	deep := fs + "/tree"
	for i := range 20 {
		deep += fmt.Sprint("/d", i)
		require.NoError(t, os.Mkdir(deep, 0o755))
		for j := range 20 {
			require.NoError(t, os.WriteFile(fmt.Sprint(deep, "/f", j), nil, 0o644))
		}
	}
	lost := []string{fs + "/tree/d0/f3", deep + "/f19", deep}
	for i, path := range lost {
		require.NoError(t, SetProject(open(t, path), testID+uint32(i), false))
	}
	require.NoError(t, SetProject(open(t, lost[0]), 0, false))

	var at Cursor
	var found, inodes uint64
	slices := 0
	for ; !at.Done(); slices++ {
		require.Less(t, slices, 10_000, "it ends")
		r, err := Return(t.Context(), tree, testID, &at, time.Nanosecond, nil)
		require.NoError(t, err)
		require.Equal(t, int(r.Changed), len(r.Strays))
		found += r.Changed
		inodes += r.Inodes
	}
	require.EqualValues(t, 1+20+400, inodes, "each is looked at once")
	require.Greater(t, slices, 20)
	require.EqualValues(t, 3, found)
	for _, path := range lost {
		id, inherit, err := GetProject(open(t, path))
		require.NoError(t, err)
		require.Equal(t, testID, id)
		require.Equal(t, path == deep, inherit)
	}
	r, err := Return(t.Context(), tree, testID, new(Cursor), time.Hour, nil)
	require.NoError(t, err)
	require.Zero(t, r.Changed)
}

// With more strays than are named, all are given back.
func TestReturnNamesAFew(t *testing.T) {
	testroot.RequireRoot(t)
	fs := testroot.NewFilesystem(t, "xfs", 512*testroot.MiB)
	require.NoError(t, os.Mkdir(fs+"/tree", 0o755))
	tree := open(t, fs+"/tree")
	require.NoError(t, SetProject(tree, testID+1, true))
	for i := range 3 * maxStrays {
		require.NoError(t, os.WriteFile(fmt.Sprint(tree.Name(), "/f", i), nil, 0o644))
	}
	require.NoError(t, SetProject(tree, testID, true))
	var at Cursor
	r, err := Return(t.Context(), tree, testID, &at, time.Hour, nil)
	require.NoError(t, err)
	require.True(t, at.Done())
	require.Len(t, r.Strays, maxStrays)
	require.EqualValues(t, 3*maxStrays, r.Changed)
}

// A way down of any length costs a bounded amount of memory, and it is said
// that its end was not looked at.
func TestReturnInADeepTree(t *testing.T) {
	testroot.RequireRoot(t)
	fs := testroot.NewFilesystem(t, "xfs", 512*testroot.MiB)
	require.NoError(t, os.Mkdir(fs+"/tree", 0o755))
	tree := open(t, fs+"/tree")
	require.NoError(t, SetProject(tree, testID, true))
	at, err := unix.Dup(int(tree.Fd()))
	require.NoError(t, err)
	for range returnDepth + 50 {
		require.NoError(t, unix.Mkdirat(at, "d", 0o755))
		next, err := unix.Openat(at, "d", openDir, 0)
		require.NoError(t, err)
		unix.Close(at)
		at = next
	}
	unix.Close(at)
	require.NoError(t, os.WriteFile(fs+"/tree/lost", nil, 0o644))
	require.NoError(t, SetProject(open(t, fs+"/tree/lost"), testID+1, false))

	var cursor Cursor
	var sum Report
	for !cursor.Done() {
		r, err := Return(t.Context(), tree, testID, &cursor, time.Hour, nil)
		require.NoError(t, err)
		require.LessOrEqual(t, len(cursor.frames), returnDepth)
		sum.TooDeep += r.TooDeep
		sum.Changed += r.Changed
	}
	require.EqualValues(t, 1, sum.TooDeep)
	require.EqualValues(t, 1, sum.Changed)
}
