package btrfs

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/nodeagent/internal/tenant"
	"github.com/quarry-storage/quarry/nodeagent/internal/testroot"
)

func TestSubvolume(t *testing.T) {
	fs := newFilesystem(t)
	require.NoError(t, CreateSubvolume(fs, "a", NoGroup))
	require.ErrorIs(t, CreateSubvolume(fs, "a", NoGroup), unix.EEXIST)
	a := open(t, filepath.Join(fs.Name(), "a"))

	is, err := IsSubvolume(a)
	require.NoError(t, err)
	require.True(t, is)
	id, err := ID(a)
	require.NoError(t, err)
	require.GreaterOrEqual(t, id, uint64(topInode))

	require.NoError(t, os.WriteFile(filepath.Join(a.Name(), "file"), []byte("content"), 0o644))
	require.NoError(t, os.Mkdir(filepath.Join(a.Name(), "dir"), 0o755))
	dir := open(t, filepath.Join(a.Name(), "dir"))
	is, err = IsSubvolume(dir)
	require.NoError(t, err)
	require.False(t, is)
	inside, err := ID(dir)
	require.NoError(t, err)
	require.Equal(t, id, inside, "a directory is in its subvolume")

	require.NoError(t, Snapshot(a, dir, "snap", true, NoGroup))
	snap := open(t, filepath.Join(dir.Name(), "snap"))
	readOnly, err := IsReadOnly(snap)
	require.NoError(t, err)
	require.True(t, readOnly)
	content, err := os.ReadFile(filepath.Join(snap.Name(), "file"))
	require.NoError(t, err)
	require.Equal(t, "content", string(content))
	nested, err := Nested(fs, id)
	require.NoError(t, err)
	snapID, err := ID(snap)
	require.NoError(t, err)
	require.Equal(t, []uint64{snapID}, nested)

	require.NoError(t, SetReadOnly(snap, false))
	require.NoError(t, os.WriteFile(filepath.Join(snap.Name(), "file"), nil, 0o644))
}

func TestNamesThatAreNotOnePathElement(t *testing.T) {
	fs := newFilesystem(t)
	require.NoError(t, os.Mkdir(filepath.Join(fs.Name(), "dir"), 0o755))
	require.NoError(t, CreateSubvolume(fs, "target", NoGroup))
	require.NoError(t, os.Symlink("target", filepath.Join(fs.Name(), "link")))
	for _, name := range []string{"", ".", "..", "dir/x", "../x", "/x", "a\x00b"} {
		require.ErrorIs(t, CreateSubvolume(fs, name, NoGroup), unix.EINVAL, "%q", name)
		require.ErrorIs(t, DeleteSubvolume(t.Context(), fs, name), unix.EINVAL, "%q", name)
	}
	require.Error(t, DeleteSubvolume(t.Context(), fs, "link"))
	require.ErrorIs(t, DeleteSubvolume(t.Context(), fs, "dir"), ErrNotSubvolume)
	require.DirExists(t, filepath.Join(fs.Name(), "target"))
	require.DirExists(t, filepath.Join(fs.Name(), "dir"))
}

func TestOtherFilesystems(t *testing.T) {
	dir := open(t, t.TempDir())
	is, err := IsSubvolume(dir)
	require.NoError(t, err)
	if is {
		t.Skip("the temporary directory is itself a btrfs subvolume")
	}
	require.Error(t, CreateSubvolume(dir, "a", NoGroup))
}

// What a tenant can leave behind must not be in the way.
func TestDeleteWhatATenantMade(t *testing.T) {
	fs := newFilesystem(t)
	require.NoError(t, CreateSubvolume(fs, "volume", NoGroup))
	volume := open(t, filepath.Join(fs.Name(), "volume"))
	require.NoError(t, volume.Chown(tenant.UID, tenant.UID))
	volumeID, err := ID(volume)
	require.NoError(t, err)

	for _, step := range [][]string{
		{"write", "file", "1000000"},
		{"subvolume", "plain"},
		{"mkdir", "plain/dir"},
		{"subvolume", "plain/dir/deeper"},
		{"snapshot", ".", "read-only", "ro"},
		{"snapshot", "plain", "plain/dir/read-only", "ro"},
	} {
		r := tenant.Run(t, tenant.User, volume, step[0], step[1:]...)
		require.Zero(t, r.Errno, "%v", step)
	}
	require.ErrorIs(t, os.RemoveAll(filepath.Join(volume.Name(), "read-only")), unix.EROFS,
		"this is why DeleteSubvolume exists")
	// A read-only snapshot with a subvolume inside it, and immutable
	// directories.
	setReadOnly := func(path string) {
		f, err := os.Open(filepath.Join(volume.Name(), path))
		require.NoError(t, err)
		defer f.Close()
		require.NoError(t, SetReadOnly(f, true))
	}
	setReadOnly("plain/dir/deeper")
	testroot.Run(t, "chattr", "+i", filepath.Join(volume.Name(), "plain/dir"))
	setReadOnly("plain")
	testroot.Run(t, "chattr", "+i", volume.Name())

	require.NoError(t, volume.Close()) // an open descriptor keeps it from being freed
	require.NoError(t, DeleteSubvolume(t.Context(), fs, "volume"))
	require.NoDirExists(t, volume.Name())
	require.NoError(t, WaitFreed(t.Context(), fs, volumeID))
	nested, err := Nested(fs, volumeID)
	require.NoError(t, err)
	require.Empty(t, nested)
	require.NoError(t, DeleteSubvolume(t.Context(), fs, "volume"), "a second call changes nothing")
}

// A path to the innermost is longer than PATH_MAX: no path can lead there.
func TestDeleteDeepTree(t *testing.T) {
	fs := newFilesystem(t)
	require.NoError(t, CreateSubvolume(fs, "volume", NoGroup))
	at := open(t, filepath.Join(fs.Name(), "volume"))
	name := fmt.Sprintf("%0200d", 1)
	for range 40 {
		require.NoError(t, unix.Mkdirat(int(at.Fd()), name, 0o755))
		dir, err := openBeneath(at, name)
		require.NoError(t, err)
		require.NoError(t, CreateSubvolume(dir, "s", NoGroup))
		next, err := openBeneath(dir, "s")
		require.NoError(t, err)
		require.NoError(t, SetReadOnly(at, true))
		dir.Close()
		at.Close()
		at = next
	}
	at.Close()
	require.NoError(t, DeleteSubvolume(t.Context(), fs, "volume"))
	require.NoDirExists(t, filepath.Join(fs.Name(), "volume"))
}

func TestDeleteIsResumable(t *testing.T) {
	fs := newFilesystem(t)
	require.NoError(t, CreateSubvolume(fs, "volume", NoGroup))
	require.NoError(t, CreateSubvolume(open(t, filepath.Join(fs.Name(), "volume")), "inner", NoGroup))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, DeleteSubvolume(ctx, fs, "volume"), context.Canceled)
	require.DirExists(t, filepath.Join(fs.Name(), "volume"))
	require.NoError(t, DeleteSubvolume(t.Context(), fs, "volume"))
	require.NoDirExists(t, filepath.Join(fs.Name(), "volume"))
}
