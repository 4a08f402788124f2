package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// These tests take down what the others need, so none of them is parallel.

// agentOn returns the name of the agent's pod on the node.
func agentOn(t testing.TB, node string) string {
	t.Helper()
	list, err := kube.CoreV1().Pods(quarryNamespace).List(t.Context(), metav1.ListOptions{
		LabelSelector: "app.kubernetes.io/component=agent", FieldSelector: "spec.nodeName=" + node})
	require.NoError(t, err)
	for _, p := range list.Items {
		if p.DeletionTimestamp == nil {
			return p.Name
		}
	}
	t.Fatalf("no agent on %s", node)
	return ""
}

// agentReady waits until the node's agent serves.
func agentReady(t testing.TB, node string) {
	t.Helper()
	eventually(t, "the agent on "+node+" is ready", func() (bool, string) {
		list, err := kube.CoreV1().Pods(quarryNamespace).List(t.Context(), metav1.ListOptions{
			LabelSelector: "app.kubernetes.io/component=agent", FieldSelector: "spec.nodeName=" + node})
		if err != nil {
			return false, err.Error()
		}
		state := ""
		for _, p := range list.Items {
			for _, c := range p.Status.Conditions {
				if c.Type == "Ready" && p.DeletionTimestamp == nil {
					state += p.Name + "=" + string(c.Status) + " "
					if c.Status == "True" {
						return true, ""
					}
				}
			}
		}
		return false, state
	})
}

// killAgents kills the agent's process on the node, as a crash would: SIGKILL,
// in the middle of whatever it does.
func killAgents(t testing.TB, node string) {
	t.Helper()
	onHost(t, node, `for p in /proc/[0-9]*; do
  if tr '\0' ' ' < $p/cmdline 2>/dev/null | grep -q '^/quarry agent '; then kill -9 ${p#/proc/}; fi
done; true`)
}

func TestHardRebootKeepsData(t *testing.T) {
	ns := newNamespace(t)
	for class, size := range map[string]string{"quarry": "64Mi", "quarry-xfs": "320Mi", "quarry-directory": "64Mi"} {
		claim(t, ns, class, class, size, onNode("node2"))
		pod(t, ns, class, class, `echo before >> /data/file; sync; `+idle)
	}
	claim(t, ns, "raw", "quarry", "32Mi", block, onNode("node2"))
	pod(t, ns, "raw", "raw", idle)
	inPod(t, ns, "raw", "echo raw-data | dd of=/dev/data bs=4096 conv=sync,fsync 2>/dev/null")
	for _, p := range []string{"quarry", "quarry-xfs", "quarry-directory"} {
		eventually(t, p+" has written", func() (bool, string) {
			out := inPod(t, ns, p, "cat /data/file")
			return out == "before", out
		})
	}

	require.NoError(t, cluster.RebootNode(t.Context(), "node2"))
	agentReady(t, "node2")
	for _, p := range []string{"quarry", "quarry-xfs", "quarry-directory"} {
		// kubelet starts the same pod again; what it wrote is there, and what
		// it writes now comes after it.
		eventually(t, p+" runs again on its own data", func() (bool, string) {
			out, err := cluster.Kubectl(t.Context(), "exec", "-n", ns, p, "--", "cat", "/data/file")
			return err == nil && strings.Count(string(out), "before") == 2, fmt.Sprint(string(out), err)
		})
	}
	eventually(t, "the block volume has its data", func() (bool, string) {
		out, err := cluster.Kubectl(t.Context(), "exec", "-n", ns, "raw", "--", "head", "-c", "8", "/dev/data")
		return err == nil && string(out) == "raw-data", fmt.Sprint(string(out), err)
	})
}

func TestAgentKilledWhileVolumesAreMade(t *testing.T) {
	ns := newNamespace(t)
	const n = 20
	for i := range n {
		claim(t, ns, fmt.Sprint("data-", i), []string{"quarry", "quarry-directory"}[i%2], "64Mi", onNode("node3"))
	}
	for range 4 {
		killAgents(t, "node3")
		// Until it is working again: it has made one more volume, or all.
		agentReady(t, "node3")
	}
	for i := range n {
		bound(t, ns, fmt.Sprint("data-", i))
	}
	require.Empty(t, onHost(t, "node3", "ls /volumes/.quarry/tmp /volumes-btrfs/.quarry/tmp | grep -v : ; true"))
}

func TestAgentKilledWhileVolumesAreDeleted(t *testing.T) {
	ns := newNamespace(t)
	const n = 20
	for i := range n {
		claim(t, ns, fmt.Sprint("data-", i), []string{"quarry", "quarry-directory"}[i%2], "64Mi", onNode("node3"))
	}
	for i := range n {
		bound(t, ns, fmt.Sprint("data-", i))
	}
	for i := range n {
		pv := bound(t, ns, fmt.Sprint("data-", i))
		deleteClaim(t, ns, fmt.Sprint("data-", i))
		if i%5 == 0 {
			killAgents(t, "node3")
		}
		t.Cleanup(func() {})
		defer gone(t, pv)
	}
	agentReady(t, "node3")
}

func TestPodsDoNotNeedQuarry(t *testing.T) {
	ns := newNamespace(t)
	claim(t, ns, "data", "quarry", "64Mi", onNode("node2"))
	pod(t, ns, "app", "data", writer)
	_, err := cluster.Kubectl(t.Context(), "scale", "-n", quarryNamespace, "deployment/quarry-controller",
		"--replicas=0")
	require.NoError(t, err)
	killAgents(t, "node2")
	lines := inPod(t, ns, "app", "wc -l < /data/log")
	eventually(t, "the pod goes on writing", func() (bool, string) {
		now := inPod(t, ns, "app", "wc -l < /data/log")
		return now != lines, now
	})
	_, err = cluster.Kubectl(t.Context(), "scale", "-n", quarryNamespace, "deployment/quarry-controller",
		"--replicas=2")
	require.NoError(t, err)
	agentReady(t, "node2")
}

func TestControllerKilled(t *testing.T) {
	ns := newNamespace(t)
	for i := range 10 {
		claim(t, ns, fmt.Sprint("data-", i), "quarry", "64Mi", onNode("node1"))
		if i%3 == 0 {
			_, err := cluster.Kubectl(t.Context(), "delete", "pod", "-n", quarryNamespace, "-l",
				"app.kubernetes.io/component=controller", "--force", "--grace-period=0", "--wait=false")
			require.NoError(t, err)
		}
	}
	for i := range 10 {
		bound(t, ns, fmt.Sprint("data-", i))
	}
	list, err := objects.Resource(volumesResource).List(t.Context(), metav1.ListOptions{})
	require.NoError(t, err)
	owners := map[string]int{}
	for _, v := range list.Items {
		owners[v.GetLabels()["quarry.storage/pv-name"]]++
	}
	for pv, volumes := range owners {
		require.Equal(t, 1, volumes, "volumes made for %s", pv)
	}
}

func TestAgentDown(t *testing.T) {
	ns := newNamespace(t)
	// An agent that never gets ready: its pod is there, its image is not.
	agent := agentOn(t, "node3")
	_, err := cluster.Kubectl(t.Context(), "label", "node", "node3", "e2e-no-agent=yes")
	require.NoError(t, err)
	t.Cleanup(func() {
		_, _ = cluster.Kubectl(contextForCleanup(), "label", "node", "node3", "e2e-no-agent-")
	})
	_, err = cluster.Kubectl(t.Context(), "patch", "-n", quarryNamespace, "daemonset/quarry-agent",
		"--type=merge", "-p",
		`{"spec":{"template":{"spec":{"affinity":{"nodeAffinity":{"requiredDuringSchedulingIgnoredDuringExecution":{"nodeSelectorTerms":[{"matchExpressions":[{"key":"e2e-no-agent","operator":"DoesNotExist"}]}]}}}}}}}`)
	require.NoError(t, err)
	eventually(t, "the agent of node3 is gone", func() (bool, string) {
		out, err := cluster.Kubectl(t.Context(), "get", "pod", "-n", quarryNamespace, agent, "--ignore-not-found",
			"-o", "name")
		return err == nil && len(out) == 0, fmt.Sprint(string(out), err)
	})
	claim(t, ns, "data", "quarry", "64Mi", onNode("node3"))
	waitEvent(t, ns, "data", "ProvisioningFailed", "agent", "node3")
	claim(t, ns, "other", "quarry", "64Mi", onNode("node1"))
	bound(t, ns, "other") // nobody waits for node3
	requireNoRoomOn(t, ns, "node3")
	_, err = cluster.Kubectl(t.Context(), "patch", "-n", quarryNamespace, "daemonset/quarry-agent", "--type=json", "-p",
		`[{"op":"remove","path":"/spec/template/spec/affinity"}]`)
	require.NoError(t, err)
	bound(t, ns, "data")
}

func TestChartAndCRDsTakenAwayByMistake(t *testing.T) {
	ns := newNamespace(t)
	claim(t, ns, "data", "quarry", "64Mi", onNode("node2"))
	claim(t, ns, "dir", "quarry-directory", "64Mi", onNode("node2"))
	pod(t, ns, "app", "data", `echo precious > /data/file; sync; `+writer)
	pod(t, ns, "app2", "dir", `echo precious > /data/file; sync; `+writer)
	pv, dir := bound(t, ns, "data"), bound(t, ns, "dir")

	_, err := cluster.Helm(t.Context(), "uninstall", "quarry", "--namespace", quarryNamespace, "--wait")
	require.NoError(t, err)
	_, err = cluster.Kubectl(t.Context(), "delete", "crd", "volumes.quarry.storage", "pools.quarry.storage",
		"snapshots.quarry.storage")
	require.NoError(t, err)
	require.NoError(t, install(t.Context()))

	for _, v := range []struct {
		pod, path, id string
	}{{"app", pv.Spec.Local.Path, pv.Annotations["quarry.storage/volume"]}, {"app2", dir.Spec.Local.Path,
		dir.Annotations["quarry.storage/volume"]}} {
		require.Equal(t, "precious", onHost(t, "node2", "cat "+v.path+"/file"))
		require.Equal(t, "precious", inPod(t, ns, v.pod, "cat /data/file"))
		eventually(t, "Volume "+v.id+" is written again and ready", func() (bool, string) {
			out, err := cluster.Kubectl(t.Context(), "get", "volumes.quarry.storage", v.id, "-o",
				"jsonpath={.status.phase}")
			return string(out) == "Ready", fmt.Sprint(string(out), err)
		})
	}
	deletePod(t, ns, "app")
	deletePod(t, ns, "app2")
	deleteClaim(t, ns, "data")
	deleteClaim(t, ns, "dir")
	gone(t, pv)
	gone(t, dir)
}
