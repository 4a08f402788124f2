package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"testing"

	"github.com/onsi/ginkgo/v2/types"
	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestCSISanity runs csi-sanity on node1, against the sockets of the controller
// and the agent there. Not parallel: it counts all volumes.
func TestCSISanity(t *testing.T) {
	controller := controllerSocket(t, "node1")
	const (
		plugin  = "/var/lib/kubelet/plugins/csi.quarry.storage"
		scratch = plugin + "/sanity" // below kubelet's directory, where the agent's mounts are seen from the node
	)
	onHost(t, "node1", "mkdir -p "+scratch)
	t.Cleanup(func() {
		_, err := cluster.Exec(contextForCleanup(), "node1", "rm", "-rf", "--one-file-system", scratch)
		require.NoError(t, err)
	})
	toNode(t, "node1", "csi-sanity", scratch+"/csi-sanity")

	for _, test := range []struct {
		name, parameters string
		size, grown      int
		access           string
	}{
		{"loop", `{backend: loop, fsType: xfs, poolSelector: "sanity=loop"}`, 320 << 20, 448 << 20, "mount"},
		{"directory", `{backend: directory, poolSelector: "sanity=directory"}`, 64 << 20, 96 << 20, "mount"},
		{"block", `{backend: loop, poolSelector: "sanity=loop"}`, 64 << 20, 96 << 20, "block"},
	} {
		t.Run(test.name, func(t *testing.T) {
			const report = scratch + "/report.json"
			onHost(t, "node1", fmt.Sprintf("rm -f %s; echo '%s' > %s/parameters.yaml",
				report, test.parameters, scratch))
			command, err := cluster.Command(t.Context(), "node1", scratch+"/csi-sanity",
				"--ginkgo.no-color", "--ginkgo.json-report="+report,
				"--csi.endpoint=unix://"+plugin+"/csi.sock", "--csi.controllerendpoint=unix://"+controller,
				"--csi.mountdir="+scratch+"/target", "--csi.stagingdir="+scratch+"/staging",
				"--csi.testvolumeparameters="+scratch+"/parameters.yaml", "--csi.testvolumeaccesstype="+test.access,
				fmt.Sprint("--csi.testvolumesize=", test.size), fmt.Sprint("--csi.testvolumeexpandsize=", test.grown))
			require.NoError(t, err)
			out, err := command.CombinedOutput()
			require.NoError(t, err, string(out))

			var suites []types.Report
			require.NoError(t, json.Unmarshal([]byte(onHost(t, "node1", "cat "+report)), &suites))
			require.Len(t, suites, 1)
			specs := suites[0].SpecReports
			for _, s := range specs {
				if why := s.Failure.Message; s.State == types.SpecStateSkipped && !notAdvertised.MatchString(why) {
					t.Errorf("skipped what is advertised: %s: %s", s.FullText(), why)
				}
			}
			passed := specs.CountWithState(types.SpecStatePassed)
			require.Greater(t, passed, 40)
			t.Logf("%d passed, %d skipped, which are about what no service of ours has",
				passed, specs.CountWithState(types.SpecStateSkipped))
		})
	}
	list, err := objects.Resource(volumesResource).List(t.Context(), metav1.ListOptions{})
	require.NoError(t, err)
	require.Empty(t, list.Items, "csi-sanity deletes what it made")
}

// notAdvertised are the reasons to skip a test that name what no service of
// ours says it has.
var notAdvertised = regexp.MustCompile(
	`Snapshot|Cloning|[Mm]odify ?[Vv]olume|(Volume|Storage)Health|GroupController|Controller(Unp|P)ublishVolume|Controller Publish`)

// controllerSocket has a controller run on the node, for this test, and returns
// the path there of the socket that it serves its sidecars at.
func controllerSocket(t *testing.T, node string) (path string) {
	t.Helper()
	move := func(ctx context.Context, patch string) {
		_, err := cluster.Kubectl(ctx, "patch", "-n", quarryNamespace, "deployment/quarry-controller", "--type=merge",
			"-p", patch)
		require.NoError(t, err)
		_, err = cluster.Kubectl(ctx, "rollout", "status", "-n", quarryNamespace, "deployment/quarry-controller",
			"--timeout", "2m")
		require.NoError(t, err)
	}
	move(t.Context(), fmt.Sprintf(`{"spec":{"template":{"spec":{"nodeSelector":{"kubernetes.io/hostname":%q}}}}}`,
		node))
	t.Cleanup(func() { move(contextForCleanup(), `{"spec":{"template":{"spec":{"nodeSelector":null}}}}`) })
	eventually(t, "a controller serves on "+node, func() (bool, string) {
		list, err := kube.CoreV1().Pods(quarryNamespace).List(t.Context(), metav1.ListOptions{
			LabelSelector: "app.kubernetes.io/component=controller",
			FieldSelector: "status.phase=Running,spec.nodeName=" + node})
		require.NoError(t, err)
		for _, p := range list.Items {
			if p.DeletionTimestamp == nil && p.Spec.NodeSelector != nil {
				path = "/var/lib/kubelet/pods/" + string(p.UID) + "/volumes/kubernetes.io~empty-dir/csi/csi.sock"
				return onHost(t, node, "test -S "+path+" && echo yes; true") == "yes", "no socket at " + path
			}
		}
		return false, "none"
	})
	return path
}

// toNode copies one of the tools to a node, which does not see the machine's
// files.
func toNode(t *testing.T, node, tool, path string) {
	t.Helper()
	program, err := cluster.Tool(t.Context(), tool)
	require.NoError(t, err)
	file, err := os.Open(program)
	require.NoError(t, err)
	defer file.Close()
	command, err := cluster.Command(t.Context(), node, "/bin/sh", "-c", "cat > "+path+" && chmod 0755 "+path)
	require.NoError(t, err)
	command.Stdin = file
	out, err := command.CombinedOutput()
	require.NoError(t, err, string(out))
}
