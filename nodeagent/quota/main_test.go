package quota

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/nodeagent/internal/tenant"
	"github.com/quarry-storage/quarry/nodeagent/internal/testroot"
)

const (
	testID = FirstID + 6
	miB    = uint64(testroot.MiB)
)

var filesystems = []string{"ext4", "xfs"}

func TestMain(m *testing.M) { tenant.Main(m, actions) }

// newFilesystem returns the top of a new filesystem with project quotas, or
// what else the mount option makes of it. A kernel without them skips the test,
// unless QUARRY_TEST_REQUIRE says that there must be some.
func newFilesystem(t *testing.T, fstype, option string) *os.File {
	t.Helper()
	testroot.RequireRoot(t)
	dev := testroot.NewLoop(t, testroot.NewImage(t, 400*testroot.MiB).Name())
	if fstype == "ext4" {
		testroot.Run(t, "mkfs.ext4", "-q", "-F", "-b", "4096", "-O", "quota,project", "-E", "quotatype=prjquota", dev)
	} else {
		testroot.Mkfs(t, fstype, dev)
	}
	dir := t.TempDir()
	out, err := exec.Command("mount", "-o", option, dev, dir).CombinedOutput()
	if err != nil {
		var u unix.Utsname
		require.NoError(t, unix.Uname(&u))
		if strings.Contains(os.Getenv("QUARRY_TEST_REQUIRE"), "project-quota") {
			t.Fatalf("mount %s with project quotas: %v: %s", fstype, err, out)
		}
		t.Skipf("kernel %s has no project quota for %s: `make test` runs this in a virtual machine (%s)",
			unix.ByteSliceToString(u.Release[:]), fstype, strings.TrimSpace(string(out)))
	}
	testroot.UnmountOnCleanup(t, dir)
	return open(t, dir)
}

// forEach runs a test on a new filesystem of each kind with project quotas.
func forEach(t *testing.T, test func(t *testing.T, fs *os.File)) {
	for _, fstype := range filesystems {
		t.Run(fstype, func(t *testing.T) { test(t, newFilesystem(t, fstype, "prjquota")) })
	}
}

// newVolume makes a directory that anybody may write to, in project testID with
// limits.
func newVolume(t *testing.T, fs *os.File, limits Limits) *os.File {
	t.Helper()
	path := filepath.Join(fs.Name(), "volume")
	require.NoError(t, os.Mkdir(path, 0o755))
	volume := open(t, path)
	require.NoError(t, volume.Chown(tenant.UID, tenant.UID))
	require.NoError(t, SetProject(volume, testID, true))
	require.NoError(t, SetLimits(fs, testID, limits))
	return volume
}

func open(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

// setXattr is what the owner of a file may ask of the kernel.
func setXattr(name string, change func(*fsxattr)) error {
	var attr fsxattr
	if err := tenant.Ioctl(name, fsIocFSGetXattr, unsafe.Pointer(&attr)); err != nil {
		return err
	}
	change(&attr)
	return tenant.Ioctl(name, fsIocFSSetXattr, unsafe.Pointer(&attr))
}
