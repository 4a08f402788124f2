package testbed_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/quarry-storage/quarry/test/testbed"
	"github.com/stretchr/testify/require"
)

// needRoot skips a test that makes namespaces, and fails one that would disturb
// a testbed in use.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: run `make test`")
	}
	left, err := testbed.Leftovers()
	require.NoError(t, err)
	require.Empty(t, left, "a testbed is on this machine: take it down first")
}

// The whole life of one cluster. The steps share it, because each costs
// seconds.
func TestClusterLife(t *testing.T) {
	needRoot(t)
	ctx := t.Context()
	before := machineState(t)
	t.Cleanup(func() { require.NoError(t, testbed.Down(context.Background(), testLog{t})) })
	cluster, err := testbed.Up(ctx, testbed.Config{
		Nodes:          2,
		Pool:           testbed.Disk{Size: 1 << 30},
		ExtraPools:     []testbed.Disk{{Path: "/volumes-b", Filesystem: "btrfs", Size: 1 << 30}},
		HostnameLabels: map[string]string{"node2": "rack7"},
		Log:            testLog{t},
	})
	require.NoError(t, err)
	steps := []struct {
		name string
		run  func(*testing.T, *testbed.Cluster)
	}{
		{"a second Up refuses", secondUpRefuses},
		{"a pod writes to the node's pool", podWrites},
		{"a reboot keeps the disks and nothing else", rebootKeepsDisks},
		{"programs restart", programsRestart},
		{"disks are pulled and inserted", disksSwap},
		{"the control plane is lost", controlPlaneLost},
	}
	for _, step := range steps {
		if !t.Run(step.name, func(t *testing.T) { step.run(t, cluster) }) {
			break
		}
	}
	require.NoError(t, cluster.Down(ctx))
	left, err := testbed.Leftovers()
	require.NoError(t, err)
	require.Empty(t, left)
	require.Equal(t, before, machineState(t))
	_, err = testbed.Open()
	require.ErrorIs(t, err, testbed.ErrNotFound)
	require.NoError(t, cluster.Down(ctx), "Down twice")
}

func secondUpRefuses(t *testing.T, _ *testbed.Cluster) {
	_, err := testbed.Up(t.Context(), testbed.Config{})
	require.ErrorIs(t, err, testbed.ErrExists)
	again, err := testbed.Open()
	require.NoError(t, err)
	require.Equal(t, []string{"node1", "node2"}, again.Nodes())
}

// writer is a pod on the node with the hostname label rack7, which is node2. It
// sees the node's tree as a storage agent does: what is mounted there later
// too.
const writer = `
apiVersion: v1
kind: Pod
metadata: {name: writer}
spec:
  nodeSelector: {kubernetes.io/hostname: rack7}
  terminationGracePeriodSeconds: 0
  containers:
  - name: writer
    image: localhost/quarry-testbed/busybox:1
    command: [sh, -c, "date +%s%N >> /host/volumes/written && exec sleep 1000000"]
    volumeMounts: [{name: host, mountPath: /host, mountPropagation: HostToContainer}]
  volumes: [{name: host, hostPath: {path: /}}]
`

func podWrites(t *testing.T, c *testbed.Cluster) {
	apply(t, c, writer)
	kubectl(t, c, "wait", "--for=condition=Ready", "pod/writer", "--timeout=60s")
	require.Equal(t, "node2", kubectl(t, c, "get", "pod", "writer", "-o", "jsonpath={.spec.nodeName}"))
	require.Equal(t, 1, linesWritten(t, c))
	// logs and exec go through the API server to kubelet
	require.Contains(t, kubectl(t, c, "exec", "writer", "--", "df", "/host/volumes"), "/host/volumes")
}

// rebootKeepsDisks has loop devices stacked on the node's disks in every way
// there is, and one of somebody else.
func rebootKeepsDisks(t *testing.T, c *testbed.Cluster) {
	foreign := attachForeign(t)
	under := node2(t, c, `set -e
		truncate -s 64M /volumes/stacked /var/lib/stacked
		on_ext4=$(losetup --find --show /volumes/stacked)
		losetup --find $on_ext4        # a device on a device, as kubelet has for a block volume
		mkfs.ext4 -q $on_ext4; mkdir /tmp/inner; mount $on_ext4 /tmp/inner
		truncate -s 8M /tmp/inner/stacked; losetup --find /tmp/inner/stacked
		losetup --find /var/lib/stacked
		btrfs subvolume create /volumes-b/sub >/dev/null
		truncate -s 64M /volumes-b/sub/stacked; losetup --find /volumes-b/sub/stacked
		basename $on_ext4`)
	bootID := node2(t, c, "cat /proc/sys/kernel/random/boot_id")
	require.Len(t, loopDevices(t, "node2/disks", "/stacked", "/"+under+"\n"), 3+4+1)

	require.NoError(t, c.KillNode(t.Context(), "node2"))
	require.Empty(t, loopDevices(t, "node2/disks", "/stacked", "/"+under+"\n"))
	require.Len(t, loopDevices(t, foreign), 1)
	_, err := c.Exec(t.Context(), "node2", "true")
	require.ErrorContains(t, err, "not running")
	require.NoError(t, c.KillNode(t.Context(), "node2"), "KillNode twice")

	require.NoError(t, c.StartNode(t.Context(), "node2"))
	require.ErrorContains(t, c.StartNode(t.Context(), "node2"), "is running")
	require.NotEqual(t, bootID, node2(t, c, "cat /proc/sys/kernel/random/boot_id"))
	node2(t, c, "test -e /volumes/stacked -a -e /volumes-b/sub/stacked -a -e /var/lib/stacked -a ! -e /tmp/inner")
	eventually(t, "the pod to run and write again", func() bool { return linesWritten(t, c) == 2 })
}

func programsRestart(t *testing.T, c *testbed.Cluster) {
	ctx := t.Context()
	require.NoError(t, c.RestartProgram(ctx, "node2", "kubelet"))
	require.NoError(t, c.KillProgram(ctx, "node1", "kube-apiserver"))
	_, err := c.Kubectl(ctx, "get", "nodes")
	require.Error(t, err)
	require.NoError(t, c.StartProgram(ctx, "node1", "kube-apiserver"))
	kubectl(t, c, "get", "nodes")
	require.ErrorContains(t, c.StartProgram(ctx, "node2", "kube-apiserver"), "no program")
}

func disksSwap(t *testing.T, c *testbed.Cluster) {
	ctx := t.Context()
	_, err := c.PullDisk(ctx, "node2", "/")
	require.ErrorContains(t, err, "no disk")
	old, err := c.PullDisk(ctx, "node2", "/volumes")
	require.NoError(t, err)
	inPod := func(command string) string { return kubectl(t, c, "exec", "writer", "--", "sh", "-c", command) }
	require.Equal(t, "0", inPod("ls /host/volumes | wc -l"), "what is left is the empty mount point")

	blank, err := c.NewDisk(ctx, "node2", testbed.Disk{Path: "/volumes", Filesystem: "xfs", Size: 512 << 20})
	require.NoError(t, err)
	require.NoError(t, c.InsertDisk(ctx, "node2", testbed.Disk{Path: "/volumes", Filesystem: "xfs"}, blank))
	require.Equal(t, "xfs", node2(t, c, "stat -f -c %T /volumes"))
	require.Contains(t, inPod("grep ' /host/volumes ' /proc/mounts"), "xfs", "a running container sees the new disk")
	require.ErrorContains(t, c.InsertDisk(ctx, "node2", testbed.Disk{Path: "/volumes"}, old), "already")

	_, err = c.PullDisk(ctx, "node2", "/volumes")
	require.NoError(t, err)
	require.NoError(t, c.InsertDisk(ctx, "node2", testbed.Disk{Path: "/volumes"}, old))
	require.Equal(t, 2, linesWritten(t, c))
}

func controlPlaneLost(t *testing.T, c *testbed.Cluster) {
	clusterID := kubectl(t, c, "get", "namespace", "kube-system", "-o", "jsonpath={.metadata.uid}")
	require.NoError(t, c.ResetControlPlane(t.Context()))
	require.NotEqual(t, clusterID, kubectl(t, c, "get", "namespace", "kube-system", "-o", "jsonpath={.metadata.uid}"))
	require.Empty(t, kubectl(t, c, "get", "pods", "-o", "name"))
	require.Equal(t, 2, linesWritten(t, c), "the pool is as it was")
	apply(t, c, writer)
	kubectl(t, c, "wait", "--for=condition=Ready", "pod/writer", "--timeout=60s")
}

// Up is killed at three moments; Down must find all there is, with no more to
// go by than what Up had recorded.
func TestDownAfterKilledUp(t *testing.T) {
	needRoot(t)
	before := machineState(t)
	t.Cleanup(func() { require.NoError(t, testbed.Down(context.Background(), testLog{t})) })
	for _, moment := range []struct {
		name    string
		reached func(output string) bool
	}{
		{"making the disks", func(string) bool { return exists(testbed.Dir(), "nodes", "node1", "disks", "*") }},
		{"starting a node", func(string) bool { return exists(testbed.Dir(), "nodes", "node1", "log", "init.log") }},
		{"starting kubelet", func(output string) bool { return strings.Contains(output, "API server is ready") }},
	} {
		t.Run(moment.name, func(t *testing.T) {
			var output lockedBuffer
			up := exec.CommandContext(t.Context(), "/proc/self/exe")
			up.Env = append(os.Environ(), upInstead+"=2")
			up.Stderr = &output
			require.NoError(t, up.Start())
			eventually(t, moment.name, func() bool { return moment.reached(output.String()) })
			require.NoError(t, up.Process.Kill())
			require.ErrorContains(t, up.Wait(), "killed", output.String())

			_, err := testbed.Open()
			require.ErrorIs(t, err, testbed.ErrNotFound)
			require.NoError(t, testbed.Down(t.Context(), testLog{t}))
			require.Equal(t, before, machineState(t))
		})
	}
	t.Run("a node's death", func(t *testing.T) {
		cluster, err := testbed.Up(t.Context(), testbed.Config{Nodes: 1})
		require.NoError(t, err)
		pid := strings.Fields(strings.TrimPrefix(firstWith(t, leftovers(t), "process "), "process "))[0]
		require.NoError(t, exec.CommandContext(t.Context(), "kill", "-KILL", pid).Run())
		eventually(t, "the node to be off", func() bool {
			_, err := cluster.Exec(t.Context(), "node1", "true")
			return err != nil
		})
		require.NoError(t, cluster.Down(t.Context()))
		require.Equal(t, before, machineState(t))
	})
}

// upInstead makes this test binary run Up, as the command does, with that many
// nodes.
const upInstead = "QUARRY_TESTBED_TEST_UP"

func TestMain(m *testing.M) {
	if nodes := os.Getenv(upInstead); nodes != "" {
		var config testbed.Config
		fmt.Sscan(nodes, &config.Nodes) //nolint:errcheck // written by the test above
		config.Log = os.Stderr
		if _, err := testbed.Up(context.Background(), config); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// machineState is all that Down must leave as it was and that nobody else is
// likely to change meanwhile.
func machineState(t *testing.T) []string {
	t.Helper()
	state := leftovers(t)
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	require.NoError(t, err)
	for line := range strings.Lines(string(mounts)) {
		if fields := strings.Fields(line); !strings.HasPrefix(fields[4], "/tmp") {
			state = append(state, "mount "+fields[4])
		}
	}
	for _, pattern := range []string{"/*", "/etc/*", "/var/lib/*", "/opt/*", "/run/*", "/sys/class/net/*",
		"/sys/fs/cgroup/*/*quarry*"} {
		matches, err := filepath.Glob(pattern)
		require.NoError(t, err)
		state = append(state, matches...)
	}
	for _, command := range []string{"containerd", "kubelet", "kube-proxy", "kube-apiserver", "etcd"} {
		output, _ := exec.CommandContext(t.Context(), "pgrep", "-x",
			command).Output() //nolint:errcheck // it fails when there is none
		state = append(state, command+" "+string(output))
	}
	return state
}

func leftovers(t *testing.T) []string {
	t.Helper()
	left, err := testbed.Leftovers()
	require.NoError(t, err)
	return left
}

// attachForeign makes a loop device that is none of the testbed's business, and
// returns its file.
func attachForeign(t *testing.T) string {
	t.Helper()
	image := filepath.Join(t.TempDir(), "foreign")
	require.NoError(t, os.WriteFile(image, make([]byte, 1<<20), 0o600))
	output, err := exec.CommandContext(t.Context(), "losetup", "--find", "--show", image).Output()
	require.NoError(t, err)
	device := strings.TrimSpace(string(output))
	t.Cleanup(func() {
		require.NoError(t, exec.CommandContext(context.Background(), "losetup", "--detach", device).Run())
	})
	return image
}

// loopDevices are the machine's loop devices whose backing file has one of the
// parts in its name.
func loopDevices(t *testing.T, parts ...string) []string {
	t.Helper()
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	require.NoError(t, err)
	var devices []string
	for _, file := range files {
		name, err := os.ReadFile(file)
		if err != nil {
			continue // detached since
		}
		if slices.ContainsFunc(parts, func(part string) bool { return strings.Contains(string(name), part) }) {
			devices = append(devices, file+" "+string(name))
		}
	}
	return devices
}

func node2(t *testing.T, c *testbed.Cluster, script string) string {
	t.Helper()
	output, err := c.Exec(t.Context(), "node2", "sh", "-c", script)
	require.NoError(t, err)
	return strings.TrimSpace(string(output))
}

func linesWritten(t *testing.T, c *testbed.Cluster) int {
	t.Helper()
	return strings.Count(node2(t, c, "cat /volumes/written")+"\n", "\n")
}

func kubectl(t *testing.T, c *testbed.Cluster, arguments ...string) string {
	t.Helper()
	output, err := c.Kubectl(t.Context(), arguments...)
	require.NoError(t, err)
	return strings.TrimSpace(string(output))
}

func apply(t *testing.T, c *testbed.Cluster, manifest string) {
	t.Helper()
	command := c.KubectlCommand(t.Context(), "apply", "-f", "-")
	command.Stdin = strings.NewReader(manifest)
	output, err := command.CombinedOutput()
	require.NoError(t, err, string(output))
}

// eventually waits for a condition, long enough for the slowest machine.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	require.Eventually(t, condition, 2*time.Minute, 20*time.Millisecond, "waited for %s", what)
}

func exists(elements ...string) bool {
	matches, err := filepath.Glob(filepath.Join(elements...))
	return err == nil && len(matches) > 0
}

func firstWith(t *testing.T, list []string, prefix string) string {
	t.Helper()
	i := slices.IndexFunc(list, func(s string) bool { return strings.HasPrefix(s, prefix) })
	require.GreaterOrEqual(t, i, 0, "nothing begins with %q in %v", prefix, list)
	return list[i]
}

// testLog writes to the test's log.
type testLog struct{ t *testing.T }

func (l testLog) Write(line []byte) (int, error) {
	l.t.Log(strings.TrimRight(string(line), "\n"))
	return len(line), nil
}

// lockedBuffer may be read while a command writes to it.
type lockedBuffer struct {
	mu   sync.Mutex
	text strings.Builder
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}
