package disk

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/quarry-storage/quarry/nodeagent/internal/testroot"
)

// TestKubeletIsFoundOnTheHost: the agent's container does not have kubelet's
// directory unless it publishes there.
func TestKubeletIsFoundOnTheHost(t *testing.T) {
	testroot.RequireRoot(t)
	host := testroot.NewFilesystem(t, "ext4", 64<<20)
	const kubelet = "/var/lib/kubelet-of-a-test"
	require.NoError(t, os.MkdirAll(filepath.Join(host, kubelet), 0o755))
	dir, err := os.Open(host)
	require.NoError(t, err)
	defer dir.Close()

	require.False(t, sharedWithKubelet([]string{"/"}, kubelet, dir),
		"this process has no such directory")
	require.True(t, sharedWithKubelet([]string{host, "/"}, kubelet, dir),
		"the machine's first process has")
	require.False(t, sharedWithKubelet([]string{t.TempDir(), "/"}, kubelet, dir), "nobody has")
	require.Equal(t, "/proc/1/root", hostRoots[0])
}
