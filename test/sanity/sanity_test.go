// Package sanity runs the conformance tests of the Container Storage Interface
// (csi-sanity) against `quarry standalone`, the built program, with real pools:
// once for each backend, and once for block devices. And it makes the calls that
// Nomad makes, for the files of the guide.
package sanity

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	csisanity "github.com/kubernetes-csi/csi-test/v5/pkg/sanity"
	"github.com/onsi/ginkgo/v2"
	"github.com/onsi/ginkgo/v2/types"
	"github.com/stretchr/testify/require"
)

const (
	mib = 1 << 20
	gib = 1 << 30
)

func requireRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: run `make test`")
	}
}

// program builds the binary, once for all tests.
var program = sync.OnceValues(func() (string, error) {
	binary := filepath.Join(scratch, "quarry")
	out, err := exec.Command("go", "build", "-C", "../..", "-o", binary, "./cmd/quarry").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build quarry: %w\n%s", err, out)
	}
	return binary, nil
})

// scratch is a directory of the whole process.
var scratch string

func TestMain(m *testing.M) {
	var err error
	if scratch, err = os.MkdirTemp("", "quarry-sanity-"); err != nil {
		panic(err)
	}
	code := m.Run()
	os.RemoveAll(scratch)
	os.Exit(code)
}

func TestDirectoryOnBtrfs(t *testing.T) {
	requireRoot(t)
	pool := newFilesystem(t, "btrfs", 12*gib)
	run(t, pool, settings{Parameters: map[string]string{"backend": "directory"}}, "--enable-quota")
}

func TestLoopOnExt4(t *testing.T) {
	requireRoot(t)
	pool := newFilesystem(t, "ext4", 12*gib)
	run(t, pool, settings{Parameters: map[string]string{"backend": "loop", "fsType": "xfs"}})
}

func TestBlockOnXFS(t *testing.T) {
	requireRoot(t)
	pool := newFilesystem(t, "xfs", 12*gib)
	run(t, pool, settings{Block: true})
}

// settings is what a run hands to its child.
type settings struct {
	Address, Dir string
	Parameters   map[string]string
	Block        bool
}

// childEnv carries the settings. Ginkgo runs one suite in a process, so each
// run is a process of its own.
const childEnv = "QUARRY_SANITY_SETTINGS"

// TestSuite is the child's.
func TestSuite(t *testing.T) {
	text := os.Getenv(childEnv)
	if text == "" {
		t.Skip("is started by the other tests, each in a process of its own, with " + childEnv)
	}
	var s settings
	require.NoError(t, json.Unmarshal([]byte(text), &s))
	config := csisanity.NewTestConfig()
	config.Address = "unix://" + s.Address
	config.TargetPath = filepath.Join(s.Dir, "target")
	config.StagingPath = filepath.Join(s.Dir, "staging")
	config.TestVolumeSize = 512 * mib
	config.TestVolumeExpandSize = 768 * mib
	config.TestVolumeParameters = s.Parameters
	if s.Block {
		config.TestVolumeAccessType = "block"
	}
	ginkgo.ReportAfterSuite("skipped", func(r types.Report) {
		for _, spec := range r.SpecReports {
			if spec.State.Is(types.SpecStateSkipped) && spec.Failure.Message != "" {
				fmt.Println("SKIPPED:", spec.FullText(), ":", spec.Failure.Message)
			}
		}
		ran := r.SpecReports.CountWithState(types.SpecStatePassed)
		fmt.Println("PASSED:", ran)
	})
	csisanity.Test(t, config)
}

// notAdvertised are the reasons to skip that name what no service of ours says
// it has. Every other one fails the test.
var notAdvertised = []*regexp.Regexp{
	regexp.MustCompile(`Snapshot|Volume Cloning|[Mm]odify [Vv]olume|ModifyVolume|Health not supported|GroupSnapshot`),
	regexp.MustCompile(
		`ControllerPublishVolume not supported|Controller Publish, UnpublishVolume not supported|ControllerUnpublishVolume not supported`),
	regexp.MustCompile(`Service not supported: Group|GroupController|VolumeGroup`),
}

func run(t *testing.T, pool string, s settings, args ...string) {
	s.Dir = t.TempDir()
	s.Address = filepath.Join(s.Dir, "csi.sock")
	serve(t, pool, s.Address, args...)
	text, err := json.Marshal(s)
	require.NoError(t, err)
	child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestSuite$", "-test.v", "-ginkgo.no-color",
		"-ginkgo.succinct")
	child.Env = append(os.Environ(), childEnv+"="+string(text))
	out, err := child.CombinedOutput()
	if err != nil {
		t.Fatalf("csi-sanity: %v\n%s", err, out)
	}
	passed := false
	for line := range strings.Lines(string(out)) {
		if why, ok := strings.CutPrefix(strings.TrimSpace(line), "SKIPPED:"); ok {
			if !slices.ContainsFunc(notAdvertised, func(r *regexp.Regexp) bool { return r.MatchString(why) }) {
				t.Errorf("skipped what is advertised:%s", why)
			}
		}
		if n, ok := strings.CutPrefix(strings.TrimSpace(line), "PASSED: "); ok {
			t.Logf("%s conformance tests passed", n)
			passed = n != "0"
		}
	}
	require.True(t, passed, "no conformance test ran:\n%s", out)
}

// serve builds and starts `quarry standalone` and stops it when the test ends,
// with the proof that every volume was deleted.
func serve(t *testing.T, pool, socket string, args ...string) {
	t.Helper()
	binary, err := program()
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	server := exec.CommandContext(ctx, binary, append([]string{"standalone", "--pool", pool, "--endpoint",
		"unix://" + socket,
		"--node-id", "sanity", "--reserve", "0%", "--device-dir", filepath.Join(t.TempDir(), "dev")}, args...)...)
	server.Cancel = func() error { return server.Process.Signal(os.Interrupt) }
	server.WaitDelay = 10 * time.Second
	stderr, err := server.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, server.Start())
	logged := make(chan string, 1)
	go func() {
		var all strings.Builder
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			all.WriteString(lines.Text() + "\n")
		}
		logged <- all.String()
	}()
	t.Cleanup(func() {
		entries, err := os.ReadDir(pool)
		cancel()
		log := <-logged
		_ = server.Wait() // it was told to end
		if t.Failed() {
			t.Logf("the server's log:\n%s", log)
		}
		require.NoError(t, err)
		for _, e := range entries {
			if e.Name() != ".quarry" && e.Name() != "lost+found" {
				t.Errorf("a volume was left: %s", e.Name())
			}
		}
	})
	require.Eventually(t, func() bool {
		conn, err := net.Dial("unix", socket)
		if err == nil {
			conn.Close()
		}
		return err == nil
	}, time.Minute, 10*time.Millisecond, "nobody answers at %s", socket)
}

// newFilesystem makes a filesystem of size bytes in a sparse image, mounts it
// and returns where.
func newFilesystem(t *testing.T, fstype string, size int64) string {
	t.Helper()
	image, dir := filepath.Join(t.TempDir(), "image"), t.TempDir()
	require.NoError(t, os.WriteFile(image, nil, 0o600))
	require.NoError(t, os.Truncate(image, size))
	force := map[string]string{"ext4": "-F", "xfs": "-f", "btrfs": "-f"}[fstype]
	command(t, "mkfs."+fstype, "-q", force, image)
	device := strings.TrimSpace(command(t, "losetup", "--find", "--show", image))
	t.Cleanup(func() { command(t, "losetup", "--detach", device) })
	command(t, "mount", device, dir)
	t.Cleanup(func() { command(t, "umount", dir) })
	return dir
}

func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	require.NoError(t, err, "%s %v: %s", name, args, out)
	return string(out)
}
