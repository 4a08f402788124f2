package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// What nobody asks for any more is cleared away, and what somebody still has is
// not. These tests stop parts of the cluster, so none of them is parallel.

// signalAgent sends a signal to the agent's process on the node.
func signalAgent(t testing.TB, node, signal string) {
	t.Helper()
	_, err := cluster.Exec(contextForCleanup(), node, "/bin/sh", "-c", `for p in /proc/[0-9]*; do
  if tr '\0' ' ' < $p/cmdline 2>/dev/null | grep -q '^/quarry agent '; then kill -`+signal+` ${p#/proc/}; fi
done; true`)
	require.NoError(t, err)
}

// scaleController sets how many controllers there are, and waits until it is
// so.
func scaleController(t testing.TB, replicas int) {
	t.Helper()
	kubectl(t, "scale", "-n", quarryNamespace, "deployment/quarry-controller", fmt.Sprint("--replicas=", replicas))
	if replicas > 0 {
		kubectl(t, "rollout", "status", "-n", quarryNamespace, "deployment/quarry-controller", "--timeout=2m")
		return
	}
	kubectl(t, "delete", "pod", "-n", quarryNamespace, "-l", "app.kubernetes.io/component=controller", "--force",
		"--grace-period=0")
	eventually(t, "no controller is left", func() (bool, string) {
		out := kubectl(t, "get", "pods", "-n", quarryNamespace, "-l", "app.kubernetes.io/component=controller",
			"-o", "name")
		return out == "", out
	})
}

// attempts are the ids of the records made for claims of a namespace, on a node
// or, without one, on any.
func attempts(t testing.TB, ns, node string) (ids []string) {
	t.Helper()
	list, err := objects.Resource(volumesResource).List(t.Context(), metav1.ListOptions{})
	require.NoError(t, err)
	for _, v := range list.Items {
		if nested(v.Object, "spec", "claim", "namespace") == ns &&
			(node == "" || nested(v.Object, "spec", "nodeName") == node) {
			ids = append(ids, v.GetName())
		}
	}
	return ids
}

// attemptsGone waits until the records are gone, and what is on the node of
// them.
func attemptsGone(t testing.TB, node string, ids []string) {
	t.Helper()
	for _, id := range ids {
		eventually(t, "Volume "+id+" is gone", func() (bool, string) {
			v, err := objects.Resource(volumesResource).Get(t.Context(), id, metav1.GetOptions{})
			if err != nil {
				return apierrors.IsNotFound(err), err.Error()
			}
			return false, fmt.Sprint(v.Object["spec"], v.Object["status"])
		})
		eventually(t, "nothing of "+id+" is on "+node, func() (bool, string) {
			left := traces(t, node, id)
			return left == "", left
		})
	}
}

// TestControllerKilledBeforeThePersistentVolume kills the controllers when they
// have recorded what they want and before the agent answered; then the claims
// are deleted.
func TestControllerKilledBeforeThePersistentVolume(t *testing.T) {
	ns := newNamespace(t)
	signalAgent(t, "node2", "STOP")
	t.Cleanup(func() { signalAgent(t, "node2", "CONT") })
	for _, d := range frontDoors {
		claim(t, ns, d.name, d.newClass(t, tier(parameters{"pool": "hdd"})), "64Mi", onNode("node2"))
	}
	var ids []string
	eventually(t, "both are recorded", func() (bool, string) {
		ids = attempts(t, ns, "")
		return len(ids) == len(frontDoors), fmt.Sprint(ids)
	})
	scaleController(t, 0)
	signalAgent(t, "node2", "CONT")
	for _, id := range ids {
		phaseOf(t, id, "Ready") // made, and nobody knows of them
	}
	for _, d := range frontDoors {
		deleteClaim(t, ns, d.name)
		claimGone(t, ns, d.name)
	}
	scaleController(t, 2)
	attemptsGone(t, "node2", ids)
	pvs, err := kube.CoreV1().PersistentVolumes().List(t.Context(), metav1.ListOptions{})
	require.NoError(t, err)
	for _, pv := range pvs.Items {
		require.False(t, pv.Spec.ClaimRef != nil && pv.Spec.ClaimRef.Namespace == ns, "PersistentVolume %s", pv.Name)
	}
}

// TestHalfProvisionedVolumesOfANodeThatWasGivenUp: a node dies with volumes
// that are recorded, some of them made, and none published; its Node object is
// deleted, the pods start elsewhere, and then the node comes back.
func TestHalfProvisionedVolumesOfANodeThatWasGivenUp(t *testing.T) {
	ns := newNamespace(t)
	signalAgent(t, "node3", "STOP")
	var names []string
	for _, d := range frontDoors {
		class := d.newClass(t, tier(parameters{"pool": "ssd", "fsType": "ext4"}))
		for i := range 4 {
			name := fmt.Sprint(d.name, "-", i)
			names = append(names, name)
			claim(t, ns, name, class, "64Mi")
			newPod(t, ns, name, prefers("node3"), name)
		}
	}
	var half []string
	// Where a pod prefers to be is one of several things that the scheduler
	// weighs: now and then it takes another node for one of them.
	eventually(t, "all are recorded, most for node3", func() (bool, string) {
		half = attempts(t, ns, "node3")
		return len(attempts(t, ns, "")) == len(names) && len(half) > len(names)/2, fmt.Sprint(half)
	})
	scaleController(t, 0)
	signalAgent(t, "node3", "CONT")
	phaseOf(t, half[0], "Ready")
	require.NoError(t, cluster.KillNode(t.Context(), "node3"))
	started := false
	start := func() {
		if !started {
			started = true
			require.NoError(t, cluster.StartNode(contextForCleanup(), "node3"))
		}
	}
	t.Cleanup(start)
	kubectl(t, "delete", "node", "node3")
	scaleController(t, 2)
	// The sidecar takes a lost node away from a claim at the moment the
	// scheduler looks at its pod; the scheduler then leaves the pod aside for
	// five minutes, unless something about a node changes.
	poked, poking := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(poking)
		for i := 0; ; i++ {
			select {
			case <-poked:
				return
			case <-time.After(15 * time.Second):
				_, _ = cluster.Kubectl(contextForCleanup(), "label", "node", "node1", "--overwrite",
					fmt.Sprint("e2e.test/look-again=", i))
			}
		}
	}()
	t.Cleanup(func() { close(poked); <-poking })
	for _, name := range names {
		require.NotEqual(t, "node3", running(t, ns, name).Spec.NodeName)
		require.NotEqual(t, "node3", second2(whereIs(bound(t, ns, name))))
	}
	eventually(t, "nothing is published for a node that is gone", func() (bool, string) {
		list, err := kube.StorageV1().CSIStorageCapacities(quarryNamespace).List(t.Context(), metav1.ListOptions{})
		require.NoError(t, err)
		for _, c := range list.Items {
			if c.NodeTopology.MatchLabels[corev1.LabelHostname] == "node3" {
				return false, c.StorageClassName
			}
		}
		return true, ""
	})
	start()
	agentReady(t, "node3")
	attemptsGone(t, "node3", half)
	for _, name := range names {
		require.NotEqual(t, "node3", running(t, ns, name).Spec.NodeName)
	}
}

// TestVolumeInUseByAPodThatIsGone: kubelet stops, its pods are deleted by
// force, and their claims too; the containers know nothing of that and go on.
// Their volumes stay until the containers are gone.
func TestVolumeInUseByAPodThatIsGone(t *testing.T) {
	ns := newNamespace(t)
	volumes := map[string]*corev1.PersistentVolume{}
	uids := map[string]string{}
	for _, class := range []string{"quarry", "quarry-directory", "quarry-csi", "quarry-csi-directory"} {
		claim(t, ns, class, class, "64Mi", onNode("node3"))
		uids[class] = string(pod(t, ns, class, class, writer).UID)
		volumes[class] = bound(t, ns, class)
	}
	// Devices that nobody has open at the moment: the containers have them in
	// their /dev all the same.
	for name, class := range map[string]string{"raw": "quarry", "raw-csi": "quarry-csi"} {
		claim(t, ns, name, class, "32Mi", block, onNode("node3"))
		pod(t, ns, name, name, idle)
		volumes[name] = bound(t, ns, name)
	}
	require.NoError(t, cluster.StopProgram(t.Context(), "node3", "kubelet"))
	started := false
	start := func() {
		if !started {
			started = true
			require.NoError(t, cluster.StartProgram(contextForCleanup(), "node3", "kubelet"))
		}
	}
	t.Cleanup(start)
	for name := range volumes {
		deletePod(t, ns, name) // with no grace period: by force
		deleteClaim(t, ns, name)
		claimGone(t, ns, name)
	}
	for class, pv := range volumes {
		id, _ := whereIs(pv)
		eventually(t, "the volume of "+class+" is known to be in use", func() (bool, string) {
			v, err := objects.Resource(volumesResource).Get(t.Context(), id, metav1.GetOptions{})
			require.NoError(t, err)
			conditions, _ := v.Object["status"].(map[string]any)["conditions"].([]any)
			for _, c := range conditions {
				if c := c.(map[string]any); c["type"] == "InUse" && c["status"] == "True" {
					require.Equal(t, "Deleted", nested(v.Object, "spec", "desiredState"))
					return true, ""
				}
			}
			return false, fmt.Sprint(v.Object["spec"], v.Object["status"])
		})
		pvPhase(t, pv.Name, corev1.VolumeReleased)
		if strings.HasPrefix(class, "raw") {
			continue
		}
		// The container writes on, into the same volume.
		log := onHost(t, "node3", "ls -d "+volumeDir(t, pv)+"/data/log "+volumeDir(t, pv)+
			"/mount/data/log 2>/dev/null; true")
		if log == "" { // a CSI image is mounted for kubelet only
			log = onHost(t, "node3", "ls /var/lib/kubelet/pods/"+uids[class]+"/volumes/*/*/mount/log")
		}
		lines := onHost(t, "node3", "wc -l < "+log)
		eventually(t, "the container of "+class+" writes on", func() (bool, string) {
			now := onHost(t, "node3", "wc -l < "+log)
			return now != lines, now
		})
	}
	start()
	for _, pv := range volumes {
		gone(t, pv)
	}
}

// traces are what is on a node of a volume: directories, mounts, loop devices.
func traces(t testing.TB, node, id string) string {
	t.Helper()
	return strings.TrimSpace(onHost(t, node, "for p in /volumes* /mnt/disks/*; do ls -d $p/"+id+" $p/.quarry/tmp/"+id+
		" $p/.quarry/trash/"+id+"@* 2>/dev/null; done; "+
		"grep -F "+id+" /proc/self/mountinfo; losetup -n -O BACK-FILE -l | grep -F "+id+"; true"))
}
