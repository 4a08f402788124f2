package vm_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/quarry-storage/quarry/test/machine"
)

// guest is what runs in one machine: test binaries one after the other, each
// with its flags.
type guest struct {
	name, kernel string
	// require are the features that tests must not skip for want of
	// (QUARRY_TEST_REQUIRE).
	require string
	tests   []string
}

// guests are the machines. Which tests run where is chosen by what differs
// between kernels, since all of it is emulated and ten times slower than on
// this machine: quotas, which this machine may lack, and what needs
// CAP_SYS_RESOURCE, which it may withhold.
var guests = []guest{
	{"oldest kernel", "6.1", "project-quota", []string{
		"quota",
		"filesystem -test.run Grow",
		"store -test.run TestContract/(ext4|xfs)_with|TestVerifyDirectories|TestActivatePutsQuotaBack|TestTwoPools|TestRequireMountpoint|TestPoolInsideAProject|TestRecheck|TestInodesAreLimited|TestVolumesTakeTurns",
	}},
	{"crashes under project quotas", "6.1", "project-quota", []string{
		"store -test.run TestKilledAtEveryStep/(ext4_project|xfs_project)",
	}},
	{"newer kernel", "6.12", "project-quota,simple-quota", []string{
		"btrfs -test.run TestSimpleIsProbedByDoing|TestNestedSubvolumesCount|TestStrays|TestForeign|TestFullVolume|TestDissolve|TestForgotten|TestRewriting|TestLimitHolds/(root|uid_65534)/write",
		"quota -test.run TestBytesAreLimited|TestProjectIsKept|TestReturn",
		"store -test.run TestContract/ext4$/loop_ext4_thick|TestContract/btrfs/directory$|TestContract/xfs_with.*/directory$",
	}},
}

// TestOtherKernels runs the node agent's tests that depend on the kernel.
func TestOtherKernels(t *testing.T) {
	needRoot(t)
	bin := binaries(t)
	slots := make(chan struct{}, atOnce)
	for _, g := range guests {
		t.Run(g.name, func(t *testing.T) {
			t.Parallel()
			slots <- struct{}{}
			defer func() { <-slots }()
			var script strings.Builder
			script.WriteString("set -eu\n")
			for _, test := range g.tests {
				name, flags, _ := strings.Cut(test, " ")
				fmt.Fprintf(&script, "cd %s && ./%s.test -test.v -test.timeout 9m", bin, name)
				for flag := range strings.FieldsSeq(flags) {
					fmt.Fprintf(&script, " '%s'", flag)
				}
				script.WriteString("\n")
			}
			var out bytes.Buffer
			begin := time.Now()
			status, err := machine.Run(t.Context(), machine.Config{
				Command: []string{"sh", "-c", script.String()},
				Env:     append(os.Environ(), "QUARRY_TEST_REQUIRE="+g.require),
				Kernel:  g.kernel, Scratch: 8 << 30, Stdout: &out, Stderr: &out, Timeout: 15 * time.Minute,
			})
			if err != nil || status != 0 {
				t.Fatalf("kernel %s: exit status %d, %v\n%s", g.kernel, status, err, failures(out.String()))
			}
			t.Logf("kernel %s: %d tests passed in %s", g.kernel, strings.Count(out.String(), "--- PASS"),
				time.Since(begin).Round(time.Second))
			for line := range strings.Lines(out.String()) {
				if strings.Contains(line, "--- SKIP") {
					t.Log(strings.TrimSpace(line))
				}
			}
		})
	}
}

// atOnce is how many machines run at the same time: each keeps a processor of
// this one busy.
const atOnce = 2

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: run `make test`")
	}
}

var build = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "quarry-vm-")
	if err != nil {
		return "", err
	}
	for _, name := range []string{"quota", "btrfs", "filesystem", "store"} {
		cmd := exec.Command("go", "test", "-c", "-o", filepath.Join(dir, name+".test"), "./nodeagent/"+name)
		cmd.Dir = "../.."
		if out, err := cmd.CombinedOutput(); err != nil {
			return dir, fmt.Errorf("build the tests of %s: %w: %s", name, err, out)
		}
	}
	return dir, nil
})

// binaries builds the test binaries and returns the directory they are in.
func binaries(t *testing.T) string {
	t.Helper()
	dir, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestMain(m *testing.M) {
	code := m.Run()
	if dir, err := build(); err == nil || dir != "" {
		os.RemoveAll(dir)
	}
	os.Exit(code)
}

// failures shortens the output of tests to what went wrong.
func failures(out string) string {
	var kept []string
	lines := strings.Split(out, "\n")
	for i, line := range lines {
		if strings.Contains(line, "--- FAIL") || strings.Contains(line, "Error Trace") ||
			strings.Contains(line, "panic:") {
			kept = append(kept, lines[max(0, i-1):min(len(lines), i+9)]...)
		}
	}
	if len(kept) == 0 {
		kept = lines[max(0, len(lines)-40):]
	}
	return strings.Join(kept[:min(len(kept), 200)], "\n")
}
