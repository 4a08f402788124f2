package nodeagent

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestMachine(t *testing.T) {
	root, sysfs := t.TempDir(), t.TempDir()
	require.Equal(t, Machine{Cgroups: "v1", SELinux: "off"}, machineAt(root, sysfs))

	write := func(text string, path ...string) {
		file := filepath.Join(path...)
		require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o755))
		require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
	}
	write("NAME=\"Fedora Linux\"\nPRETTY_NAME=\"Fedora CoreOS 43\"\n", root, "usr/lib/os-release")
	write("cpu io memory\n", sysfs, "fs/cgroup/cgroup.controllers")
	write("0", sysfs, "fs/selinux/enforce")
	require.Equal(t, Machine{OS: "Fedora CoreOS 43", Cgroups: "v2", SELinux: "permissive"}, machineAt(root, sysfs))
	write("1\n", sysfs, "fs/selinux/enforce")
	write("PRETTY_NAME='Talos (v1.12)'\n", root, "etc/os-release")
	require.Equal(t, Machine{OS: "Talos (v1.12)", Cgroups: "v2", SELinux: "enforcing"}, machineAt(root, sysfs))

	require.NotEmpty(t, ThisMachine().Kernel)
}

func TestMachineLog(t *testing.T) {
	for kernel, old := range map[string]bool{
		"6.12.5-talos": false, "5.14.0-503.el9.x86_64": false, "5.10.0-28-amd64": true, "4.18.0": true, "5.4-rc1": true,
		"": false, "plan9": false,
	} {
		var out bytes.Buffer
		Machine{Kernel: kernel}.Log(slog.New(slog.NewTextHandler(&out, nil)))
		require.Contains(t, out.String(), "this machine")
		require.Equal(t, old, bytes.Contains(out.Bytes(), []byte("level=WARN")), kernel)
	}
}
