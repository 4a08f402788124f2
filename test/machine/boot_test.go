package machine_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/quarry-storage/quarry/test/machine"
)

// needRoot skips what has to see all files of the host and may install
// packages.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: run `make test`")
	}
}

// script is a bash command that stops at the first failure.
func script(text string) []string { return []string{"bash", "-euc", text} }

// TestRun looks at a machine from the inside: one boot.
func TestRun(t *testing.T) {
	needRoot(t)
	host := t.TempDir()
	share := t.TempDir()
	kept := filepath.Join(host, "kept")
	if err := os.WriteFile(kept, []byte("host\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	second := filepath.Join(t.TempDir(), "second,with a comma.img")
	if err := os.WriteFile(second, bytes.Repeat([]byte("quarry.."), 1<<17), 0o644); err != nil {
		t.Fatal(err)
	}
	var stdout, stderr bytes.Buffer
	code, err := machine.Run(t.Context(), machine.Config{
		Command: script(`
			echo to stderr >&2
			cat kept; echo guest > kept; cat kept           # cwd, and an overlay over the host
			echo "$GREETING"
			echo shared > "$SHARE/file"
			uname -r
			IFS=: read -r first second <<< "$QUARRY_MACHINE_DISKS"
			head -c 8 "$second"; echo
			blockdev --getsize64 "$first"; blockdev --getss "$first"
			grep -qw "$TMPDIR" /proc/mounts && stat -fc %T "$TMPDIR"
			modprobe -a dm_log_writes dm_flakey
			dmsetup targets | sed -n 's/^\(flakey\|log-writes\).*/\1/p' | sort
			mkfs.ext4 -q -O project,quota -E quotatype=prjquota "$first"
			mkdir /run/pool; mount -o prjquota "$first" /run/pool
			grep -o ',prjquota' /proc/mounts
			(setsid sleep 1000 &)                           # must not keep the machine up
			exit 7`),
		Env: append(os.Environ(), "GREETING=hello  there", "SHARE="+share), Dir: host,
		Stdout: &stdout, Stderr: &stderr,
		Disks: []machine.Disk{
			{Path: filepath.Join(t.TempDir(), "first.img"), Size: 64 << 20, SectorSize: 4096},
			{Path: second},
		},
		Scratch: 64 << 20, Shares: []string{share},
	})
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(stdout.String(), "\n")
	if len(lines) < 5 || !strings.HasPrefix(lines[3], machine.DefaultKernel+".") {
		t.Fatalf("no kernel %s in line 4 of %q; stderr %q", machine.DefaultKernel, lines, stderr.String())
	}
	lines[3] = "RELEASE"
	want := "host guest hello  there|RELEASE|quarry..|67108864|4096|ext2/ext3|flakey|log-writes|,prjquota|"
	if got := strings.Join(lines[:2], " ") + " " + strings.Join(lines[2:], "|"); got != want {
		t.Errorf("output\n%s\nwant\n%s", got, want)
	}
	if stderr.String() != "to stderr\n" {
		t.Errorf("standard error %q", stderr.String())
	}
	if code != 7 {
		t.Errorf("exit status %d, want 7", code)
	}
	if b, _ := os.ReadFile(kept); string(b) != "host\n" {
		t.Errorf("the guest changed a file of the host: %q", b)
	}
	if b, _ := os.ReadFile(filepath.Join(share, "file")); string(b) != "shared\n" {
		t.Errorf("the share has %q", b)
	}
}

// TestCut cuts the power between a write and its flush: one boot.
func TestCut(t *testing.T) {
	needRoot(t)
	image := filepath.Join(t.TempDir(), "disk.img")
	var stdout bytes.Buffer
	_, err := machine.Run(t.Context(), machine.Config{
		Command: script(`
			put() { printf '%-4096s' "$1" | dd of="$QUARRY_MACHINE_DISKS" bs=4096 seek="$2" oflag=direct status=none ${3-}; }
			put flushed 0 conv=fsync
			put unflushed 1
			dd if="$QUARRY_MACHINE_DISKS" bs=4096 skip=1 count=1 iflag=direct status=none | head -c 9
			echo " is read back"
			echo cut here
			sleep 1000`),
		Stdout: &stdout,
		Disks:  []machine.Disk{{Path: image, Size: 1 << 20, Volatile: true}},
		Cut:    machine.Cut{On: "cut here"},
	})
	if !errors.Is(err, machine.ErrCut) {
		t.Fatalf("%v, want ErrCut", err)
	}
	if !strings.Contains(stdout.String(), "unflushed is read back\n") {
		t.Errorf("output %q", stdout.String())
	}
	b, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.HasPrefix(b, []byte("flushed ")) {
		t.Errorf("the flushed block is lost: %q", b[:16])
	}
	if bytes.Contains(b, []byte("unflushed")) {
		t.Error("the unflushed block survived the cut")
	}
}

// TestTimeout ends machines that have no time to boot.
func TestTimeout(t *testing.T) {
	needRoot(t)
	cfg := machine.Config{Command: []string{"true"}, Timeout: time.Millisecond}
	_, err := machine.Run(t.Context(), cfg)
	var failure *machine.Failure
	if !errors.As(err, &failure) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("timeout: %v, want a Failure with DeadlineExceeded", err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	cfg.Timeout = 0
	m, err := machine.Start(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := m.Wait(); !errors.Is(err, context.Canceled) {
		t.Errorf("cancel: %v, want context.Canceled", err)
	}
}
