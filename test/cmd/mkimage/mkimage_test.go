package main

import (
	"archive/tar"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// program builds a small static program to stand at quarry's place.
func program(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	source := filepath.Join(dir, "main.go")
	require.NoError(t, os.WriteFile(source, []byte("package main\n\nfunc main() { print(\"started\") }\n"), 0o644))
	binary := filepath.Join(dir, "quarry")
	cmd := exec.Command("go", "build", "-o", binary, source)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, string(out))
	return binary
}

func TestSameContentSameImage(t *testing.T) {
	binary := program(t)
	var digests [2]string
	for i := range digests {
		img, err := build(binary, "1.2.3")
		require.NoError(t, err)
		digest, err := img.Digest()
		require.NoError(t, err)
		digests[i] = digest.String()
	}
	require.Equal(t, digests[0], digests[1])
}

func TestRefusesDynamicProgram(t *testing.T) {
	_, err := build("/bin/ls", "1.2.3")
	require.ErrorContains(t, err, "CGO_ENABLED=0")
}

// TestToolsRun makes filesystems with the image's tools and the image's
// libraries alone: everything they need is in it.
func TestToolsRun(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root (chroot): run `make test`")
	}
	img, err := build(program(t), "1.2.3")
	require.NoError(t, err)
	root := t.TempDir()
	content := mutate.Extract(img)
	defer content.Close()
	unpack(t, content, root)
	// As any container has it; e2fsprogs asks /etc/mtab, a link into it, what
	// is mounted.
	require.NoError(t, unix.Mount("proc", filepath.Join(root, "proc"), "proc", 0, ""))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(filepath.Join(root, "proc"), 0)) })

	for _, c := range [][]string{
		{"/quarry"},
		{"mkfs.ext4", "-q", "-F", "/tmp/ext4", "32M"},
		{"fsck.ext4", "-f", "-n", "/tmp/ext4"},
		{"tune2fs", "-l", "/tmp/ext4"},
		{"dumpe2fs", "-h", "/tmp/ext4"},
		{"resize2fs", "/tmp/ext4", "48M"},
		{"mkfs.xfs", "-q", "-d", "name=/tmp/xfs,file=1,size=320m"},
		{"xfs_repair", "-f", "-n", "/tmp/xfs"},
		{"xfs_db", "-f", "-r", "-c", "uuid", "/tmp/xfs"},
		{"xfs_growfs", "-V"},
		{"mkfs.btrfs", "-q", "/tmp/btrfs"},
		{"btrfs", "check", "/tmp/btrfs"},
	} {
		if c[0] == "mkfs.btrfs" { // it alone wants the file to be there
			require.NoError(t, os.WriteFile(filepath.Join(root, "tmp/btrfs"), nil, 0o644))
			require.NoError(t, os.Truncate(filepath.Join(root, "tmp/btrfs"), 128<<20))
		}
		path, err := exec.LookPath(filepath.Join(root, "usr/sbin", c[0]))
		if c[0] == "/quarry" {
			path, err = exec.LookPath(filepath.Join(root, "quarry"))
		}
		require.NoError(t, err)
		inside, err := filepath.Rel(root, path)
		require.NoError(t, err)
		cmd := &exec.Cmd{
			Path: "/" + inside, Args: c, Dir: "/", Env: []string{"PATH=/usr/sbin:/usr/bin"},
			SysProcAttr: &syscall.SysProcAttr{Chroot: root},
		}
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%v: %s", c, out)
	}
}

func unpack(t *testing.T, from io.Reader, root string) {
	t.Helper()
	for r := tar.NewReader(from); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		require.NoError(t, err)
		target := filepath.Join(root, h.Name)
		require.Zero(t, h.Uid)
		switch h.Typeflag {
		case tar.TypeDir:
			require.NoError(t, os.MkdirAll(target, h.FileInfo().Mode().Perm()))
		case tar.TypeSymlink:
			require.NoError(t, os.Symlink(h.Linkname, target))
		default:
			content, err := io.ReadAll(r)
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(target, content, h.FileInfo().Mode().Perm()))
		}
	}
}
