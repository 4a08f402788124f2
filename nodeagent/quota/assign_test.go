package quota

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/nodeagent/internal/testroot"
)

// hostile makes a tree with all that must not stop or mislead a walk, and
// returns it with the number of directories and regular files in it.
func hostile(t *testing.T, fs *os.File) (tree *os.File, inodes uint64) {
	t.Helper()
	top := filepath.Join(fs.Name(), "tree")
	outside := filepath.Join(fs.Name(), "outside")
	require.NoError(t, os.MkdirAll(filepath.Join(top, "a/b/c"), 0o755))
	require.NoError(t, os.Mkdir(outside, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(outside, "file"), nil, 0o644))
	require.NoError(t, os.Symlink("../outside", filepath.Join(top, "out")))
	require.NoError(t, os.Symlink("a", filepath.Join(top, "in")))
	require.NoError(t, unix.Mkfifo(filepath.Join(top, "a/fifo"), 0o644))
	require.NoError(t, unix.Mknod(filepath.Join(top, "a/null"), unix.S_IFCHR|0o644, int(unix.Mkdev(1, 3))))
	require.NoError(t, os.Mkdir(filepath.Join(top, "mounted"), 0o755))
	testroot.Mount(t, "tmpfs", filepath.Join(top, "mounted"), "-t", "tmpfs")
	require.NoError(t, os.WriteFile(filepath.Join(top, "a/linked"), nil, 0o644))
	require.NoError(t, os.Link(filepath.Join(top, "a/linked"), filepath.Join(outside, "linked")))
	for i := range 500 { // more than one read of the directory
		require.NoError(t, os.WriteFile(filepath.Join(top, "a/b", fmt.Sprint("file-with-a-name-", i)), nil, 0o644))
	}
	for i := range 40 {
		require.NoError(t, os.MkdirAll(filepath.Join(top, "wide", fmt.Sprint(i), "leaf"), 0o755))
	}
	return open(t, top), 1 + 3 + 1 + 500 + 1 + 2*40
}

// The walk needs no quota and no root, so it is tested everywhere.
func TestWalkMeetsEverythingOnce(t *testing.T) {
	dir := t.TempDir()
	const wide = 200
	for i := range wide {
		path := filepath.Join(dir, fmt.Sprintf("a-directory-with-a-name-%d", i))
		require.NoError(t, os.MkdirAll(filepath.Join(path, "x/y"), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(path, "file"), nil, 0o644))
	}
	require.NoError(t, unix.Mkfifo(filepath.Join(dir, "fifo"), 0o644))
	require.NoError(t, os.Symlink(".", filepath.Join(dir, "link")))
	tree := open(t, dir)
	for _, budget := range []int{0, 7, 500} {
		met := make(map[string]int)
		var count Report
		for at := (Cursor{}); !at.Done(); {
			r, err := walk(t.Context(), tree, &at, bound{entries: budget}, func(in inode, _ *Report) error {
				met[in.path()]++
				return nil
			})
			require.NoError(t, err)
			count.Inodes += r.Inodes
			count.Special += r.Special
		}
		require.Equal(t, Report{Inodes: 1 + 4*wide, Special: 2}, count, "budget %d", budget)
		require.Len(t, met, 1+4*wide)
		require.Equal(t, 1, met["a-directory-with-a-name-123/x/y"])
	}
}

func TestAssign(t *testing.T) {
	forEach(t, func(t *testing.T, fs *os.File) {
		tree, inodes := hostile(t, fs)
		r, err := Assign(t.Context(), tree, testID)
		require.NoError(t, err)
		require.Positive(t, r.Bytes)
		r.Bytes = 0 // how much depends on the filesystem
		require.Equal(t, Report{
			Inodes: inodes, Changed: inodes, HardLinks: 1, Special: 4, Mounts: 1,
		}, r)
		_, usage, err := GetLimits(fs, testID)
		require.NoError(t, err)
		require.Equal(t, inodes, usage.Inodes, "the kernel's count")
		id, _, err := GetProject(open(t, filepath.Join(fs.Name(), "outside")))
		require.NoError(t, err)
		require.Zero(t, id, "a link was followed")

		r, err = Assign(t.Context(), tree, testID)
		require.NoError(t, err)
		require.Zero(t, r.Changed, "a second call changes nothing")
		r, err = Check(t.Context(), tree, testID, new(Cursor), 0)
		require.NoError(t, err)
		require.Equal(t, inodes, r.Inodes)
		require.Empty(t, r.Strays)
	})
}

func TestAssignCanBeBrokenOff(t *testing.T) {
	forEach(t, func(t *testing.T, fs *os.File) {
		tree, inodes := hostile(t, fs)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err := Assign(ctx, tree, testID)
		require.ErrorIs(t, err, context.Canceled)
		r, err := Assign(t.Context(), tree, testID)
		require.NoError(t, err)
		require.Equal(t, inodes, r.Inodes)
	})
}

func TestAssignLeavesImmutableFiles(t *testing.T) {
	forEach(t, func(t *testing.T, fs *os.File) {
		require.NoError(t, os.Mkdir(fs.Name()+"/tree", 0o755))
		file := fs.Name() + "/tree/file"
		require.NoError(t, os.WriteFile(file, nil, 0o644))
		testroot.Run(t, "chattr", "+i", file)
		t.Cleanup(func() { testroot.Run(t, "chattr", "-i", file) })
		r, err := Assign(t.Context(), open(t, fs.Name()+"/tree"), testID)
		require.NoError(t, err)
		id, _, err := GetProject(open(t, file))
		require.NoError(t, err)
		if r.Immutable == 0 {
			require.Equal(t, testID, id, "the kernel allows it here")
		} else {
			require.Zero(t, id)
		}
		t.Logf("%+v, id %d", r, id)
	})
}

// Check goes through a tree in small steps and finds every inode that left.
func TestCheckInSteps(t *testing.T) {
	forEach(t, func(t *testing.T, fs *os.File) {
		tree, inodes := hostile(t, fs)
		_, err := Assign(t.Context(), tree, testID)
		require.NoError(t, err)
		require.NoError(t, SetProject(open(t, tree.Name()+"/a/b/file-with-a-name-321"), 0, false))
		require.NoError(t, SetProject(open(t, tree.Name()+"/wide/17/leaf"), testID+1, true))
		require.NoError(t, SetProject(open(t, tree.Name()+"/wide/18"), testID, false))

		var at Cursor
		var strays []string
		var met uint64
		for !at.Done() {
			r, err := Check(t.Context(), tree, testID, &at, 100)
			require.NoError(t, err)
			require.LessOrEqual(t, r.Inodes, uint64(101))
			met += r.Inodes
			for _, s := range r.Strays {
				strays = append(strays, fmt.Sprint(s.Path, " ", s.ID))
			}
		}
		require.Equal(t, inodes, met)
		require.ElementsMatch(t, []string{
			"a/b/file-with-a-name-321 0",
			fmt.Sprint("wide/17/leaf ", testID+1),
			fmt.Sprint("wide/18 ", testID),
		}, strays)
	})
}

// Parts of the tree may be moved and removed between two steps.
func TestCheckOfAMovingTree(t *testing.T) {
	forEach(t, func(t *testing.T, fs *os.File) {
		tree, _ := hostile(t, fs)
		_, err := Assign(t.Context(), tree, testID)
		require.NoError(t, err)
		var at Cursor
		for step := 0; !at.Done(); step++ {
			require.Less(t, step, 1000, "it ends")
			_, err := Check(t.Context(), tree, testID, &at, 50)
			require.NoError(t, err)
			switch step {
			case 2:
				require.NoError(t, os.Rename(tree.Name()+"/a", tree.Name()+"/moved"))
			case 4:
				require.NoError(t, os.RemoveAll(tree.Name()+"/wide"))
			}
		}
	})
}

// No path leads to the end of this tree: they are longer than PATH_MAX.
func TestWalkDeepTree(t *testing.T) {
	forEach(t, func(t *testing.T, fs *os.File) {
		require.NoError(t, os.Mkdir(fs.Name()+"/tree", 0o755))
		tree := open(t, fs.Name()+"/tree")
		const levels = 300
		name := strings.Repeat("d", 40)
		at, err := unix.Dup(int(tree.Fd()))
		require.NoError(t, err)
		for range levels {
			require.NoError(t, unix.Mkdirat(at, name, 0o755))
			next, err := unix.Openat(at, name, openDir, 0)
			require.NoError(t, err)
			unix.Close(at)
			at = next
		}
		f := os.NewFile(uintptr(at), "deepest")
		defer f.Close()
		r, err := Assign(t.Context(), tree, testID)
		require.NoError(t, err)
		require.Equal(t, uint64(levels+1), r.Inodes)

		require.NoError(t, SetProject(f, 0, true))
		var cursor Cursor
		var strays []Stray
		for !cursor.Done() {
			r, err := Check(t.Context(), tree, testID, &cursor, 300)
			require.NoError(t, err)
			strays = append(strays, r.Strays...)
		}
		require.Len(t, strays, 1)
		require.Less(t, len(strays[0].Path), 2*unix.PathMax)
	})
}
