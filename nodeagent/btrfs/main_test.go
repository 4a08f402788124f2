package btrfs

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/nodeagent/internal/tenant"
	"github.com/quarry-storage/quarry/nodeagent/internal/testroot"
)

const (
	miB       = uint64(testroot.MiB)
	testGroup = uint32(0x51000007)
)

func TestMain(m *testing.M) { tenant.Main(m, actions) }

// newFilesystem returns the top of a new btrfs.
func newFilesystem(t *testing.T) *os.File {
	t.Helper()
	testroot.RequireRoot(t)
	return open(t, testroot.NewFilesystem(t, "btrfs", 768*testroot.MiB))
}

// newSimple returns the top of a new btrfs with simple quotas. A kernel that is
// too old skips the test; one that should have them fails it.
func newSimple(t *testing.T) *os.File {
	t.Helper()
	fs := newFilesystem(t)
	err := EnableSimple(fs)
	var unsupported *ErrUnsupported
	if errors.As(err, &unsupported) && kernelBefore(t, 6, 7) {
		t.Skipf("%v: `make test` runs this on a kernel that has them", err)
	}
	require.NoError(t, err)
	return fs
}

// newVolume makes a subvolume "volume" that anybody may write to, in testGroup
// with a limit, and returns it.
func newVolume(t *testing.T, fs *os.File, limit uint64) *os.File {
	t.Helper()
	require.NoError(t, CreateGroup(fs, testGroup))
	require.NoError(t, SetLimit(fs, testGroup, limit))
	require.NoError(t, CreateSubvolume(fs, "volume", testGroup))
	volume := open(t, filepath.Join(fs.Name(), "volume"))
	require.NoError(t, volume.Chown(tenant.UID, tenant.UID))
	return volume
}

func open(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

func kernelBefore(t *testing.T, major, minor int) bool {
	t.Helper()
	var u unix.Utsname
	require.NoError(t, unix.Uname(&u))
	var have [2]int
	for i, part := range strings.SplitN(unix.ByteSliceToString(u.Release[:]), ".", 3)[:2] {
		for _, c := range part {
			if c < '0' || c > '9' {
				break
			}
			have[i] = have[i]*10 + int(c-'0')
		}
	}
	return have[0] < major || have[0] == major && have[1] < minor
}
