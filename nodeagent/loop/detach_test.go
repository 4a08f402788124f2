package loop_test

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/nodeagent/internal/testroot"
	"github.com/quarry-storage/quarry/nodeagent/loop"
)

// requireBusy tries to detach, and wants to be told who holds the device, and
// that it has stayed as it was.
func requireBusy(t *testing.T, dev loop.Device, image *os.File, kind loop.Kind) loop.Holder {
	t.Helper()
	before, err := loop.Find(image)
	require.NoError(t, err)
	err = loop.Detach(t.Context(), dev, image)
	var busy *loop.BusyError
	require.ErrorAs(t, err, &busy)
	require.ErrorIs(t, err, unix.EBUSY)
	after, err := loop.Find(image)
	require.NoError(t, err)
	require.Equal(t, before, after)
	for _, h := range busy.Holders {
		if h.Kind == kind {
			return h
		}
	}
	require.Failf(t, "holder not named", "want a %s among %v", kind, busy.Holders)
	return loop.Holder{}
}

func TestDetachMounted(t *testing.T) {
	testroot.RequireRoot(t)
	for _, fstype := range testroot.Filesystems() {
		t.Run(fstype, func(t *testing.T) {
			image := testroot.NewImage(t, 320*testroot.MiB)
			testroot.Mkfs(t, fstype, image.Name())
			dev := attach(t, image, loop.Options{})
			target := t.TempDir()
			testroot.Mount(t, dev.Path, target)
			holder := requireBusy(t, dev, image, loop.KindMount)
			require.Contains(t, holder.Detail, target)
			require.NoError(t, unix.Unmount(target, 0))
			require.NoError(t, loop.Detach(t.Context(), dev, image))
		})
	}
}

// A mount that only another mount namespace has.
func TestDetachMountedElsewhere(t *testing.T) {
	testroot.RequireRoot(t)
	for _, fstype := range testroot.Filesystems() {
		t.Run(fstype, func(t *testing.T) {
			image := testroot.NewImage(t, 320*testroot.MiB)
			testroot.Mkfs(t, fstype, image.Name())
			dev := attach(t, image, loop.Options{})
			target := t.TempDir()
			ns := testroot.NewMountNamespace(t, `mount "$1" "$2"`, dev.Path, target)
			holder := requireBusy(t, dev, image, loop.KindMount)
			require.Equal(t, ns.PID, holder.PID)
			require.Contains(t, holder.Detail, target)
			ns.Stop()
			require.NoError(t, loop.Detach(t.Context(), dev, image))
		})
	}
}

// A mount that no process has in its namespace: the kernel knows all the same.
func TestDetachMountedNowhere(t *testing.T) {
	testroot.RequireRoot(t)
	image := testroot.NewImage(t, 16*testroot.MiB)
	testroot.Mkfs(t, "ext4", image.Name())
	dev := attach(t, image, loop.Options{})
	fs, err := unix.Fsopen("ext4", unix.FSOPEN_CLOEXEC)
	require.NoError(t, err)
	defer unix.Close(fs)
	require.NoError(t, unix.FsconfigSetString(fs, "source", dev.Path))
	require.NoError(t, unix.FsconfigCreate(fs))
	mnt, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	require.NoError(t, err)
	requireBusy(t, dev, image, loop.KindUnknown)
	require.NoError(t, unix.Close(mnt))
	require.NoError(t, unix.Close(fs))
	require.NoError(t, loop.Detach(t.Context(), dev, image))
}

// Another loop device over this one.
func TestDetachStacked(t *testing.T) {
	testroot.RequireRoot(t)
	image := testroot.NewImage(t, 16*testroot.MiB)
	dev := attach(t, image, loop.Options{})
	above := testroot.NewLoop(t, dev.Path)
	holder := requireBusy(t, dev, image, loop.KindLoop)
	require.Contains(t, holder.Detail, above)
	testroot.Run(t, "losetup", "--detach", above)
	require.NoError(t, loop.Detach(t.Context(), dev, image))
}

// Also through a node of another name.
func TestDetachStackedByAnotherName(t *testing.T) {
	testroot.RequireRoot(t)
	image := testroot.NewImage(t, 16*testroot.MiB)
	dev := attach(t, image, loop.Options{})
	node := t.TempDir() + "/disk"
	require.NoError(t, unix.Mknod(node, unix.S_IFBLK|0o600, int(unix.Mkdev(dev.Dev.Major, dev.Dev.Minor))))
	above := testroot.NewLoop(t, node)
	t.Cleanup(func() { _ = exec.Command("losetup", "--detach", above).Run() })
	requireBusy(t, dev, image, loop.KindLoop)
}

// A descriptor of another process. Detaching then only marks the device, and
// the mark has to be taken back: it must outlive the descriptor.
func TestDetachOpen(t *testing.T) {
	testroot.RequireRoot(t)
	image := testroot.NewImage(t, testroot.MiB)
	dev := attach(t, image, loop.Options{})
	other := testroot.NewMountNamespace(t, `exec 9<"$1"`, dev.Path)
	holder := requireBusy(t, dev, image, loop.KindDescriptor)
	require.Equal(t, other.PID, holder.PID)
	other.Stop()
	require.Equal(t, []string{dev.Path}, testroot.LoopsOver(t, image.Name()))
	require.NoError(t, loop.Detach(t.Context(), dev, image))
}

func TestHolders(t *testing.T) {
	testroot.RequireRoot(t)
	image := testroot.NewImage(t, 16*testroot.MiB)
	dev := attach(t, image, loop.Options{})
	own, err := os.Open(dev.Path)
	require.NoError(t, err)
	defer own.Close()

	holders, err := loop.Holders(dev, loop.HolderOptions{})
	require.NoError(t, err)
	require.Empty(t, holders, "our own descriptor does not count")
	holders, err = loop.Holders(dev, loop.HolderOptions{IncludeSelf: true})
	require.NoError(t, err)
	require.Len(t, holders, 1)
	require.Equal(t, os.Getpid(), holders[0].PID)
	require.NoError(t, own.Close())
}

func TestDetachSwap(t *testing.T) {
	testroot.RequireRoot(t)
	image := testroot.NewThickImage(t, 16*testroot.MiB)
	dev := attach(t, image, loop.Options{})
	testroot.Run(t, "mkswap", dev.Path)
	if out, err := exec.Command("swapon", dev.Path).CombinedOutput(); err != nil {
		t.Skipf("this machine allows no swap: %v: %s", err, strings.TrimSpace(string(out)))
	}
	t.Cleanup(func() { _ = exec.Command("swapoff", dev.Path).Run() })
	requireBusy(t, dev, image, loop.KindSwap)
	testroot.Run(t, "swapoff", dev.Path)
	require.NoError(t, loop.Detach(t.Context(), dev, image))
}

// The number of a detached device can have another image by now.
func TestDetachLeavesOthersAlone(t *testing.T) {
	testroot.RequireRoot(t)
	image, foreign := testroot.NewImage(t, testroot.MiB), testroot.NewImage(t, testroot.MiB)
	dev := attach(t, image, loop.Options{})
	require.NoError(t, loop.Detach(t.Context(), dev, image))
	testroot.Run(t, "losetup", dev.Path, foreign.Name())

	require.NoError(t, loop.Detach(t.Context(), dev, image))
	require.NoError(t, loop.DetachBacking(t.Context(), dev))
	require.Equal(t, []string{dev.Path}, testroot.LoopsOver(t, foreign.Name()))
	_, err := loop.Resize(dev, image)
	require.Error(t, err)
}
