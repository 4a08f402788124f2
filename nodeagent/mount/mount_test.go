package mount_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/nodeagent/internal/testroot"
	"github.com/quarry-storage/quarry/nodeagent/mount"
)

func open(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := mount.Open(path)
	require.NoError(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

// newDevice makes a filesystem on a loop device.
func newDevice(t *testing.T, fstype string) *os.File {
	t.Helper()
	image := testroot.NewImage(t, 320*testroot.MiB)
	testroot.Mkfs(t, fstype, image.Name())
	return open(t, testroot.NewLoop(t, image.Name()))
}

// newTarget makes a directory and unmounts what is left there in the end.
func newTarget(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	testroot.UnmountOnCleanup(t, dir)
	return dir
}

// isMounted asks anew, as a descriptor from before a mount stays beneath it.
func isMounted(t *testing.T, path string, device *os.File) bool {
	t.Helper()
	f, err := mount.Open(path)
	require.NoError(t, err)
	defer f.Close()
	dev, err := mount.BlockDevice(device)
	require.NoError(t, err)
	mounted, err := mount.IsDeviceMountedAt(f, dev)
	require.NoError(t, err)
	return mounted
}

func infoAt(t *testing.T, path string) mount.Info {
	t.Helper()
	f, err := mount.Open(path)
	require.NoError(t, err)
	defer f.Close()
	info, err := mount.At(f)
	require.NoError(t, err)
	return info
}

func TestDevice(t *testing.T) {
	testroot.RequireRoot(t)
	for _, fstype := range testroot.Filesystems() {
		t.Run(fstype, func(t *testing.T) {
			device, other, target := newDevice(t, fstype), newDevice(t, fstype), newTarget(t)
			require.False(t, isMounted(t, target, device))
			opts, err := mount.ParseOptions(fstype, true, []string{"noatime"})
			require.NoError(t, err)
			require.NoError(t, mount.Device(t.Context(), device, open(t, target), fstype, opts))

			info := infoAt(t, target)
			require.Equal(t, target, info.Mountpoint)
			require.Equal(t, "/", info.Root)
			require.Equal(t, fstype, info.FSType)
			require.Equal(t, device.Name(), info.Source)
			require.Subset(t, info.Options, []string{"rw", "nosuid", "nodev", "noatime"})
			require.True(t, isMounted(t, target, device))
			require.False(t, isMounted(t, target, other), "a mount, but of another device")

			sub := filepath.Join(target, "sub")
			require.NoError(t, os.Mkdir(sub, 0o755))
			require.False(t, isMounted(t, sub, device), "within the mount, but not its root")
			f, err := mount.Open(sub)
			require.NoError(t, err)
			devs, err := mount.DevicesOf(f)
			require.NoError(t, err)
			dev, err := mount.BlockDevice(device)
			require.NoError(t, err)
			require.Equal(t, []mount.Dev{dev}, devs)

			require.ErrorIs(t, mount.Unmount(t.Context(), target), unix.EBUSY)
			require.NoError(t, f.Close())
			require.NoError(t, mount.Unmount(t.Context(), target))
			require.NoError(t, mount.Unmount(t.Context(), target))
			require.False(t, isMounted(t, target, device))
		})
	}
}

func TestDeviceReadOnly(t *testing.T) {
	testroot.RequireRoot(t)
	for _, fstype := range testroot.Filesystems() {
		t.Run(fstype, func(t *testing.T) {
			device, target := newDevice(t, fstype), newTarget(t)
			require.NoError(t, mount.Device(t.Context(), device, open(t, target), fstype,
				mount.DefaultOptions().ReadOnly()))
			require.True(t, infoAt(t, target).ReadOnly())
			require.ErrorIs(t, os.WriteFile(target+"/x", nil, 0o600), unix.EROFS)
		})
	}
}

// Every option that is let through is one that the kernel takes.
func TestDeviceTakesAllowedOptions(t *testing.T) {
	testroot.RequireRoot(t)
	for fstype, options := range map[string][]string{
		"ext4": {"errors=remount-ro", "data=ordered", "commit=30", "journal_checksum", "noauto_da_alloc", "nodelalloc",
			"dioread_lock", "block_validity", "init_itable=10", "stripe=16",
			"inode_readahead_blks=32", "max_batch_time=15000",
			"min_batch_time=0", "max_dir_size_kb=4096", "acl", "user_xattr",
			"grpid", "i_version", "discard", "lazytime", "sync", "dirsync"},
		"xfs": {"allocsize=64k", "inode64", "largeio", "logbufs=8", "logbsize=64k", "noalign", "swalloc", "filestreams",
			"wsync", "discard"},
		"btrfs": {"compress=zstd:3", "compress-force=lzo", "autodefrag", "ssd", "space_cache=v2", "commit=60",
			"nodatacow", "nodatasum",
			"flushoncommit", "max_inline=2048", "thread_pool=4", "noacl", "skip_balance", "discard=async"},
	} {
		t.Run(fstype, func(t *testing.T) {
			device, target := newDevice(t, fstype), newTarget(t)
			dir := open(t, target) // from before all mounts, so it never keeps one busy
			for _, option := range options {
				opts, err := mount.ParseOptions(fstype, false, []string{option})
				require.NoError(t, err, option)
				require.NoError(t, mount.Device(t.Context(), device, dir, fstype, opts), option)
				require.NoError(t, mount.Unmount(t.Context(), target), option)
			}
		})
	}
}

// The name of a device may lead to another one by now; what counts is the
// descriptor.
func TestDeviceProvesItsSource(t *testing.T) {
	testroot.RequireRoot(t)
	for _, fstype := range testroot.Filesystems() {
		t.Run(fstype, func(t *testing.T) {
			meant, other, target := newDevice(t, fstype), newDevice(t, fstype), newTarget(t)
			link := filepath.Join(t.TempDir(), "device")
			require.NoError(t, os.Symlink(meant.Name(), link))
			source, err := os.OpenFile(link, unix.O_PATH, 0)
			require.NoError(t, err)
			defer source.Close()
			require.NoError(t, os.Remove(link))
			require.NoError(t, os.Symlink(other.Name(), link))

			err = mount.Device(t.Context(), source, open(t, target), fstype, mount.DefaultOptions())
			require.ErrorIs(t, err, mount.ErrOtherDevice)
			require.False(t, isMounted(t, target, meant))
			require.False(t, isMounted(t, target, other))
		})
	}
}

func TestDeviceErrors(t *testing.T) {
	testroot.RequireRoot(t)
	image := testroot.NewImage(t, testroot.MiB)
	blank := open(t, testroot.NewLoop(t, image.Name()))
	target := newTarget(t)
	err := mount.Device(t.Context(), blank, open(t, target), "ext4", mount.DefaultOptions())
	var failed *mount.Error
	require.ErrorAs(t, err, &failed)
	require.ErrorIs(t, err, unix.EINVAL)
	require.Equal(t, "fsconfig create", failed.Op)
	require.ErrorContains(t, err, target)

	err = mount.Device(t.Context(), open(t, image.Name()), open(t, target), "ext4", mount.DefaultOptions())
	require.ErrorIs(t, err, unix.ENOTBLK)

	err = mount.Device(t.Context(), blank, open(t, target), "nosuchfs", mount.DefaultOptions())
	require.ErrorIs(t, err, unix.ENODEV)
}

// What is bound is what was opened, whatever its name has become.
func TestBind(t *testing.T) {
	testroot.RequireRoot(t)
	base := testroot.NewFilesystem(t, "ext4", 32*testroot.MiB)
	source := filepath.Join(base, "source")
	require.NoError(t, os.Mkdir(source, 0o755))
	require.NoError(t, os.WriteFile(source+"/mine", nil, 0o600))
	dir := open(t, source)
	t.Cleanup(func() { dir.Close() })
	require.NoError(t, os.Rename(source, source+".moved"))
	require.NoError(t, os.Symlink("/etc", source))

	target := newTarget(t)
	require.NoError(t, mount.Bind(t.Context(), dir, open(t, target), mount.BindOptions{ReadOnly: true}))
	require.FileExists(t, target+"/mine")
	require.NoFileExists(t, target+"/passwd")
	require.ErrorIs(t, os.WriteFile(target+"/x", nil, 0o600), unix.EROFS)
	require.NoError(t, os.WriteFile(source+".moved/x", nil, 0o600), "read-only through the bind mount only")
	info := infoAt(t, target)
	require.Equal(t, "/source.moved", info.Root)
	require.True(t, info.ReadOnly())

	// A target that is a symlink is not followed: it cannot even be opened as
	// one.
	link := filepath.Join(t.TempDir(), "link")
	require.NoError(t, os.Symlink(newTarget(t), link))
	require.Error(t, mount.Bind(t.Context(), dir, open(t, link), mount.BindOptions{}))
}

// A directory of a filesystem that honours set-user-ID bits and device nodes is
// bound without them.
func TestBindConfined(t *testing.T) {
	testroot.RequireRoot(t)
	base := testroot.NewFilesystem(t, "ext4", 32*testroot.MiB)
	require.NotContains(t, infoAt(t, base).Options, "nosuid")
	target := newTarget(t)
	require.NoError(t, mount.Bind(t.Context(), open(t, base), open(t, target), mount.BindOptions{}.Confine(nil)))
	require.Contains(t, infoAt(t, target).Options, "nosuid")
	require.Contains(t, infoAt(t, target).Options, "nodev")
	null := filepath.Join(target, "null")
	require.NoError(t, unix.Mknod(null, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	_, err := os.Open(null)
	require.ErrorIs(t, err, unix.EACCES)
}

// A mount below the source stays where it is.
func TestBindIsNotRecursive(t *testing.T) {
	testroot.RequireRoot(t)
	source, target := t.TempDir(), newTarget(t)
	require.NoError(t, os.Mkdir(source+"/sub", 0o755))
	testroot.Mount(t, "tmpfs", source+"/sub", "-t", "tmpfs")
	require.NoError(t, os.WriteFile(source+"/sub/file", nil, 0o600))
	require.NoError(t, mount.Bind(t.Context(), open(t, source), open(t, target), mount.BindOptions{}))
	require.DirExists(t, target+"/sub")
	require.NoFileExists(t, target+"/sub/file")
}

// A block volume: the device node is bound on a file.
func TestBindDeviceNode(t *testing.T) {
	testroot.RequireRoot(t)
	device := newDevice(t, "ext4")
	target := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(target, nil, 0o600))
	testroot.UnmountOnCleanup(t, target)
	require.NoError(t, mount.Bind(t.Context(), device, open(t, target), mount.BindOptions{}))
	want, err := mount.BlockDevice(device)
	require.NoError(t, err)
	f, err := os.Open(target) // as a pod would
	require.NoError(t, err)
	defer f.Close()
	got, err := mount.BlockDevice(f)
	require.NoError(t, err)
	require.Equal(t, want, got)
	require.NoError(t, f.Close())
	require.NoError(t, mount.Unmount(t.Context(), target))
	require.FileExists(t, target)
}

func TestUnmountAt(t *testing.T) {
	testroot.RequireRoot(t)
	parent := t.TempDir()
	target := filepath.Join(parent, "mount")
	require.NoError(t, os.Mkdir(target, 0o755))
	testroot.Mount(t, "first", target, "-t", "tmpfs")
	testroot.Mount(t, "second", target, "-t", "tmpfs")
	require.Equal(t, "second", infoAt(t, target).Source, "the topmost one")

	dir := open(t, parent)
	elsewhere := newTarget(t)
	testroot.Mount(t, "tmpfs", elsewhere, "-t", "tmpfs")
	require.NoError(t, os.Symlink(elsewhere, parent+"/link"))
	require.NoError(t, mount.UnmountAt(t.Context(), dir, "link"), "a link is no mount point")
	infoAt(t, elsewhere) // still there

	require.NoError(t, mount.UnmountAt(t.Context(), dir, "mount"))
	require.NoError(t, mount.UnmountAt(t.Context(), dir, "missing"))
	f := open(t, target)
	_, err := mount.At(f)
	require.ErrorIs(t, err, mount.ErrNotMountpoint, "both are gone")
	for _, name := range []string{"", ".", "..", "a/b"} {
		require.Error(t, mount.UnmountAt(t.Context(), dir, name), name)
	}
}

func TestMountedBelow(t *testing.T) {
	testroot.RequireRoot(t)
	dir := newTarget(t)
	testroot.Mount(t, "outer", dir, "-t", "tmpfs")
	require.NoError(t, os.Mkdir(dir+"/in", 0o755))
	testroot.Mount(t, "inner", dir+"/in", "-t", "tmpfs")
	below, err := mount.MountedBelow(dir)
	require.NoError(t, err)
	require.Len(t, below, 2)
	require.Equal(t, "inner", below[0].Source)
	for _, m := range below {
		require.NoError(t, mount.Unmount(t.Context(), m.Mountpoint))
	}
}
