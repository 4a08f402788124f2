package testroot

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Sizes in bytes.
const (
	KiB int64 = 1 << 10
	MiB int64 = 1 << 20
	GiB int64 = 1 << 30
)

// RequireRoot skips the test when it does not run as root.
func RequireRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: run `make test`")
	}
}

// Filesystems are those that volumes are made with.
func Filesystems() []string { return []string{"ext4", "xfs", "btrfs"} }

// NewImage makes a sparse file of size bytes in a temporary directory of the
// test's own and returns it open for reading and writing. When the test ends
// every loop device that is over it is detached.
func NewImage(t testing.TB, size int64) *os.File {
	t.Helper()
	return NewImageIn(t, t.TempDir(), size)
}

// NewImageIn is NewImage in the directory dir.
func NewImageIn(t testing.TB, dir string, size int64) *os.File {
	t.Helper()
	f, err := os.CreateTemp(dir, "image-*")
	if err != nil {
		t.Fatalf("make an image: %v", err)
	}

	t.Cleanup(func() {
		DetachAll(t, f.Name())
		f.Close()
		os.Remove(f.Name())
	})
	if err := f.Truncate(size); err != nil {
		t.Fatalf("make an image of %d bytes: %v", size, err)
	}

	return f
}

// NewThickImage is NewImage with every block allocated.
func NewThickImage(t testing.TB, size int64) *os.File {
	t.Helper()
	f := NewImage(t, size)
	if err := unix.Fallocate(int(f.Fd()), 0, 0, size); err != nil {
		t.Fatalf("allocate %d bytes for %s: %v", size, f.Name(), err)
	}
	return f
}

// AllocatedBytes is how much of the disk a file takes (st_blocks is in units
// of 512 bytes, whatever the filesystem's blocks are).
func AllocatedBytes(t testing.TB, f *os.File) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		t.Fatalf("stat %s: %v", f.Name(), err)
	}
	return st.Blocks * 512
}

// NewLoop puts a loop device of losetup's over the image and returns its path.
// It is detached when the test ends, with all others over the image.
func NewLoop(t testing.TB, image string, args ...string) string {
	t.Helper()
	t.Cleanup(func() { DetachAll(t, image) })
	for {
		device := Losetup(t, image, args...)
		if !withoutDiscards(t, device) {
			return device
		}
		renew(t, device)
	}
}

// Losetup has losetup put a free device over the image, and leaves it there.
// Its own --find keeps a device that another process was faster to take open
// for up to seconds, and to whoever is to delete that one's volume it looks
// like a user.
func Losetup(t testing.TB, image string, args ...string) string {
	t.Helper()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer control.Close()

	for {
		number, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			t.Fatalf("find a free loop device: %v", err)
		}

		device := fmt.Sprintf("/dev/loop%d", number)
		out, err := exec.Command("losetup", append(args, device, image)...).CombinedOutput()
		switch {
		case err == nil:
			return device
		case strings.Contains(string(out), "busy"), strings.Contains(string(out), "No such device"):
			// Taken, or removed, by another process since.
		default:
			t.Fatalf("losetup %s %s: %v: %s", device, image, err, out)
		}
	}
}

// withoutDiscards reports whether somebody switched the discards of the
// device's number off before: that outlives the image (Linux 6.8), and a
// machine on which thick volumes were detached by other means than ours has
// such numbers.
func withoutDiscards(t testing.TB, device string) bool {
	t.Helper()
	limit, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(device),
		"queue/discard_max_bytes"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(limit)) == "0"
}

// renew detaches the device and has the kernel forget its number, which then
// comes back as new.
func renew(t testing.TB, device string) {
	t.Helper()
	Run(t, "losetup", "--detach", device)
	number, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(device), "loop"))
	if err != nil {
		t.Fatal(err)
	}

	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer control.Close()

	// Busy: another process has it already, and this one will be given another
	// number.
	if err := unix.IoctlSetInt(int(control.Fd()), unix.LOOP_CTL_REMOVE, number); err != nil &&
		!errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENODEV) {
		t.Fatalf("remove %s: %v", device, err)
	}
}

// LoopsOver lists the paths of the loop devices over the file, as losetup sees
// them.
func LoopsOver(t testing.TB, image string) []string {
	t.Helper()
	return strings.Fields(Run(t, "losetup", "--noheadings", "--output", "NAME",
		"--associated", image))
}

// DetachAll detaches every loop device over the file. It is meant for
// cleanups: what fails is logged only.
func DetachAll(t testing.TB, image string) {
	t.Helper()
	if _, err := os.Stat(image); err != nil {
		return
	}

	for _, dev := range LoopsOver(t, image) {
		// A test may have stacked another device over this one.
		if dev != image {
			DetachAll(t, dev)
		}

		if out, err := exec.Command("losetup", "--detach", dev).CombinedOutput(); err != nil {
			t.Logf("cleanup: losetup --detach %s: %v: %s", dev, err, out)
		}
	}
}

// Mkfs makes a filesystem of the given type on a device or in an image.
func Mkfs(t testing.TB, fstype, path string) {
	t.Helper()
	switch fstype {
	case "ext4":
		Run(t, "mkfs.ext4", "-q", "-F", path)
	case "xfs":
		Run(t, "mkfs.xfs", "-q", "-f", path)
	case "btrfs":
		Run(t, "mkfs.btrfs", "-q", "-f", path)
	default:
		t.Fatalf("no filesystem %q here", fstype)
	}
}

// Mount mounts with mount(8) and unmounts when the test ends. args go before
// source and target.
func Mount(t testing.TB, source, target string, args ...string) {
	t.Helper()
	Run(t, "mount", append(args, source, target)...)
	UnmountOnCleanup(t, target)
}

// NewFilesystem makes a filesystem of size bytes in an image, mounts it and
// returns where. xfs needs 300 MiB.
func NewFilesystem(t testing.TB, fstype string, size int64, mountArgs ...string) string {
	t.Helper()
	image := NewImage(t, size)
	Mkfs(t, fstype, image.Name())
	target := t.TempDir()
	Mount(t, NewLoop(t, image.Name()), target, mountArgs...)
	return target
}

// Unmount unmounts what is mounted at a path. A child of this process has its
// descriptors between fork and exec, also those within the mount, so a mount
// that is busy is tried again for some seconds.
func Unmount(target string) error {
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		err := unix.Unmount(target, unix.UMOUNT_NOFOLLOW)
		if err != unix.EBUSY || time.Now().After(end) {
			return err
		}
	}
}

// UnmountOnCleanup unmounts whatever is mounted at the path when the test
// ends, however many mounts are stacked there.
func UnmountOnCleanup(t testing.TB, target string) {
	t.Helper()
	t.Cleanup(func() {
		for {
			err := Unmount(target)
			if err == nil {
				continue
			}
			if err != unix.EINVAL && err != unix.ENOENT {
				t.Errorf("cleanup: unmount %s: %v", target, err)
			}
			return
		}
	})
}

// Run runs a tool and returns its standard output; the test ends when it fails.
func Run(t testing.TB, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, out, stderr.String())
	}

	return string(out)
}

// Namespace is a process in a mount namespace of its own.
type Namespace struct {
	PID  int
	stop func()
}

// Stop ends the process, and with it the namespace and its mounts. Stopping
// twice is fine.
func (n *Namespace) Stop() { n.stop() }

// NewMountNamespace starts a process in a mount namespace of its own (private:
// mounts go neither in nor out) and runs the shell script there. It returns
// when the script has run; the process then stays until Stop or the test's end.
func NewMountNamespace(t testing.TB, script string, args ...string) *Namespace {
	t.Helper()
	const ready = "testroot: ready"
	cmd := exec.Command("unshare", append([]string{
		"--mount", "--propagation", "private", "--",
		"sh", "-e", "-c", script + "\necho '" + ready + "'\nread _", "sh"}, args...)...)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}

	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}

	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatalf("start a process in a mount namespace of its own: %v", err)
	}

	stopped := false
	stop := func() {
		if stopped {
			return
		}

		stopped = true
		stdin.Close() // the script's `read` ends
		cmd.Wait()
	}
	t.Cleanup(stop)
	lines := bufio.NewScanner(stdout)
	for lines.Scan() {
		if lines.Text() == ready {
			return &Namespace{PID: cmd.Process.Pid, stop: stop}
		}
	}

	stop()
	t.Fatalf("in a mount namespace of its own: %s\n%s", script, stderr.String())
	return nil
}

// Wipe overwrites the first MiB of a file or device with zeros.
func Wipe(t testing.TB, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()

	if _, err := f.WriteAt(make([]byte, MiB), 0); err != nil {
		t.Fatal(fmt.Errorf("wipe %s: %w", filepath.Base(path), err))
	}
}

// HasCapability reports whether this process has a capability (unix.CAP_...) in
// force. Root in a container may lack some.
func HasCapability(t testing.TB, capability int) bool {
	t.Helper()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		t.Fatalf("read capabilities: %v", err)
	}
	return data[capability/32].Effective&(1<<(capability%32)) != 0
}
