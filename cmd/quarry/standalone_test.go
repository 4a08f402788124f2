package main

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/quarry-storage/quarry/nodeagent/record"
)

// TestStandaloneEndpoint: orchestrators tell a plugin its socket by
// CSI_ENDPOINT (spec.md, "Environment Variables"); a flag says otherwise.
func TestStandaloneEndpoint(t *testing.T) {
	endpoint := func(args ...string) string {
		cmd := newStandaloneCommand()
		require.NoError(t, cmd.ParseFlags(args))
		return cmd.Flags().Lookup("endpoint").Value.String()
	}
	t.Setenv("CSI_ENDPOINT", "")
	require.Equal(t, "unix:///run/quarry/csi.sock", endpoint())
	t.Setenv("CSI_ENDPOINT", "unix:///opt/nomad/csi.sock")
	require.Equal(t, "unix:///opt/nomad/csi.sock", endpoint())
	require.Equal(t, "/run/other.sock", endpoint("--endpoint", "/run/other.sock"))
}

func TestStandaloneIntroducesItself(t *testing.T) {
	var out bytes.Buffer
	o := standaloneFlags{node: "node1", endpoint: "unix:///run/quarry/csi.sock"}
	o.introduce(slog.New(slog.NewTextHandler(&out, nil)))
	for _, says := range []string{
		"unix:///run/quarry/csi.sock", "csi.quarry.storage",
		"topology.quarry.storage/node=node1", "<volume>@node1", "one plugin id for each",
	} {
		require.Contains(t, out.String(), says)
	}
}

// TestDeviceDirectory: `quarry standalone` may keep the links to devices
// elsewhere, and ls and verify look there.
func TestDeviceDirectory(t *testing.T) {
	dir := diskOf(t)
	devices := filepath.Join(dir, "devices-of-a-test")
	printed, err := run(t, dir, "ls", "--pool", dir, "-o", "json", "--device-dir", devices)
	require.NoError(t, err)
	require.Contains(t, printed, `"path": "DIR/devices-of-a-test/vol-6"`)
	printed, err = run(t, dir, "ls", "--pool", dir, "-o", "json")
	require.NoError(t, err)
	require.Contains(t, printed, `"path": "/run/quarry/dev/vol-6"`)

	require.NoError(t, os.Mkdir(devices, 0o755))
	require.NoError(t, os.Symlink("/dev/loop99", filepath.Join(devices, "left")))
	empty := t.TempDir()
	text, err := record.EncodePool(&record.Pool{UID: "4f6c2a34-6f0e-4c57-9f5e-0a4f6f6b0c12", Name: "default"})
	require.NoError(t, err)
	require.NoError(t, os.Mkdir(filepath.Join(empty, record.MetaDir), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(empty, record.MetaDir, record.PoolFile), text, 0o600))
	printed, _ = run(t, dir, "verify", "--pool", empty, "--device-dir", devices)
	require.Contains(t, printed, "DIR/devices-of-a-test/left is the link of no Block volume")
}
