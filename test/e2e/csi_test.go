package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// These tests come in by the other front door: Kubernetes' own
// external-provisioner, external-resizer and kubelet.

func TestCSIVolume(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ class, fs string }{
		{"quarry-csi", "ext4"}, {"quarry-csi-xfs", "xfs"}, {"quarry-csi-directory", "btrfs"},
	} {
		t.Run(test.class, func(t *testing.T) {
			t.Parallel()
			ns := newNamespace(t)
			claim(t, ns, "data", test.class, "400Mi")
			p := pod(t, ns, "app", "data", `echo hello > /data/file; sync; `+idle)
			pv := bound(t, ns, "data")

			require.NotNil(t, pv.Spec.CSI, "a CSI PersistentVolume")
			require.Equal(t, "csi.quarry.storage", pv.Spec.CSI.Driver)
			require.Equal(t, "400Mi", pv.Spec.Capacity.Storage().String())
			term := pv.Spec.NodeAffinity.Required.NodeSelectorTerms[0].MatchExpressions[0]
			require.Equal(t, []string{p.Spec.NodeName}, term.Values)
			volume, node := volumeOf(t, pv)
			require.Equal(t, p.Spec.NodeName, node)
			require.Equal(t, "data", nested(volume.Object, "spec", "claim", "name"), "the record says whose it is")

			require.Equal(t, "hello", inPod(t, ns, "app", "cat /data/file"))
			require.Contains(t, inPod(t, ns, "app", "grep ' /data ' /proc/mounts"), test.fs)
			statsOf(t, ns, "app", 300, 400)

			deletePod(t, ns, "app")
			pod(t, ns, "app", "data", idle)
			require.Equal(t, "hello", inPod(t, ns, "app", "cat /data/file"), "after the pod was made again")
			deletePod(t, ns, "app")
			deleteClaim(t, ns, "data")
			gone(t, pv)
		})
	}
}

func TestCSISizeIsEnforcedAndGrows(t *testing.T) {
	t.Parallel()
	for _, class := range []string{"quarry-csi-xfs", "quarry-csi-directory"} {
		t.Run(class, func(t *testing.T) {
			t.Parallel()
			ns := newNamespace(t)
			claim(t, ns, "data", class, "320Mi")
			p := pod(t, ns, "app", "data", idle)
			fill := func() (mib int) {
				_, err := fmt.Sscan(inPod(t, ns, "app", "dd if=/dev/zero of=/data/big bs=1M count=600 2>/dev/null; "+
					"sync; du -m /data/big | cut -f1"), &mib)
				require.NoError(t, err)
				return mib
			}
			require.LessOrEqual(t, fill(), 320)

			resize(t, ns, "data", "480Mi")
			eventually(t, "the claim has its new size", func() (bool, string) {
				c, err := kube.CoreV1().PersistentVolumeClaims(ns).Get(t.Context(), "data", metav1.GetOptions{})
				require.NoError(t, err)
				return c.Status.Capacity.Storage().Equal(resource.MustParse("480Mi")), fmt.Sprint(c.Status)
			})
			statsOf(t, ns, "app", 380, 480)
			if class == "quarry-csi-xfs" { // of a quota of btrfs, df knows nothing
				var df int
				_, err := fmt.Sscan(inPod(t, ns, "app", "df -m /data | tail -1 | awk '{print $2}'"), &df)
				require.NoError(t, err)
				require.Greater(t, df, 380)
				require.LessOrEqual(t, df, 480)
			}
			grown := fill()
			require.Greater(t, grown, 340, "the new room can be used")
			require.LessOrEqual(t, grown, 480)
			now := running(t, ns, "app")
			require.Equal(t, p.UID, now.UID, "all that with the pod running")
			require.Zero(t, now.Status.ContainerStatuses[0].RestartCount)
		})
	}
}

func TestCSIGrowthThatIsTooLarge(t *testing.T) {
	t.Parallel()
	ns := newNamespace(t)
	claim(t, ns, "data", "quarry-csi-directory", "64Mi")
	pod(t, ns, "app", "data", idle)
	resize(t, ns, "data", "1Ti")
	waitEvent(t, ns, "data", "VolumeResizeFailed", "room")
	resize(t, ns, "data", "96Mi") // KEP-1790: what could not be had is taken back
	eventually(t, "the claim has the size it asked for in the end", func() (bool, string) {
		c, err := kube.CoreV1().PersistentVolumeClaims(ns).Get(t.Context(), "data", metav1.GetOptions{})
		require.NoError(t, err)
		return c.Status.Capacity.Storage().Equal(resource.MustParse("96Mi")), fmt.Sprint(c.Status)
	})
}

func TestCSIBlockVolume(t *testing.T) {
	t.Parallel()
	ns := newNamespace(t)
	claim(t, ns, "data", "quarry-csi", "32Mi", block)
	pod(t, ns, "app", "data", idle)
	pv := bound(t, ns, "data")
	inPod(t, ns, "app", "echo hello-block | dd of=/dev/data bs=4096 conv=sync,fsync 2>/dev/null")
	require.Equal(t, "33554432", inPod(t, ns, "app", "wc -c < /dev/data"))
	deletePod(t, ns, "app")
	pod(t, ns, "app", "data", idle)
	require.Equal(t, "hello-block", inPod(t, ns, "app", "head -c 11 /dev/data"))
	resize(t, ns, "data", "64Mi")
	eventually(t, "the device in the pod grew", func() (bool, string) {
		size := inPod(t, ns, "app", "wc -c < /dev/data")
		return size == "67108864", size
	})
	deletePod(t, ns, "app")
	deleteClaim(t, ns, "data")
	gone(t, pv)
}

func TestCSIReadWriteOncePod(t *testing.T) {
	t.Parallel()
	ns := newNamespace(t)
	claim(t, ns, "data", "quarry-csi", "64Mi", modes(corev1.ReadWriteOncePod))
	pod(t, ns, "first", "data", idle)
	pv := bound(t, ns, "data")
	require.Equal(t, []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOncePod}, pv.Spec.AccessModes)
	startPod(t, ns, "second", corev1.Volume{Name: "data", VolumeSource: corev1.VolumeSource{
		PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data"}}})
	waitEvent(t, ns, "second", "FailedScheduling", "ReadWriteOncePod")
	deletePod(t, ns, "first")
	running(t, ns, "second")
}

func TestCSIEphemeralVolumes(t *testing.T) {
	t.Parallel()
	ns := newNamespace(t)

	// Inline volumes are refused unless the chart's values say otherwise.
	startPod(t, ns, "inline", corev1.Volume{Name: "data", VolumeSource: corev1.VolumeSource{
		CSI: &corev1.CSIVolumeSource{Driver: "csi.quarry.storage",
			VolumeAttributes: map[string]string{"size": "64Mi"}}}})
	waitEvent(t, ns, "inline", "FailedMount", "inline volumes are switched off", "csi.inlineVolumes")
	deletePod(t, ns, "inline") // what was never published is unpublished well

	startPod(t, ns, "generic", corev1.Volume{Name: "data", VolumeSource: corev1.VolumeSource{
		Ephemeral: &corev1.EphemeralVolumeSource{VolumeClaimTemplate: &corev1.PersistentVolumeClaimTemplate{
			Spec: corev1.PersistentVolumeClaimSpec{
				StorageClassName: new("quarry-csi-directory"),
				AccessModes:      []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
				Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{
					corev1.ResourceStorage: resource.MustParse("64Mi")}},
			}}}}})
	running(t, ns, "generic")
	inPod(t, ns, "generic", "echo hello > /data/file")
	pv := bound(t, ns, "generic-data")
	deletePod(t, ns, "generic")
	gone(t, pv)
}

func TestCSIEventsSayWhatIsWrong(t *testing.T) {
	t.Parallel()
	ns := newNamespace(t)
	claim(t, ns, "large", "quarry-csi", "1Ti", onNode("node2"))
	waitEvent(t, ns, "large", "ProvisioningFailed", "room for 1Ti")
	claim(t, ns, "small", "quarry-csi-xfs", "64Mi", onNode("node2"))
	waitEvent(t, ns, "small", "ProvisioningFailed", "300Mi")
	claim(t, ns, "many", "quarry-csi", "64Mi", modes(corev1.ReadWriteMany), onNode("node2"))
	waitEvent(t, ns, "many", "ProvisioningFailed", "one node's disk")
}

// TestCSIClaimWaitsForRoom is not parallel: it fills a pool.
func TestCSIClaimWaitsForRoom(t *testing.T) {
	ns := newNamespace(t)
	for _, node := range cluster.Nodes() {
		claim(t, ns, "full-"+node, "quarry-directory", "3Gi", onNode(node))
		bound(t, ns, "full-"+node)
	}
	claim(t, ns, "data", "quarry-csi-directory", "2Gi")
	startPod(t, ns, "app", corev1.Volume{Name: "data", VolumeSource: corev1.VolumeSource{
		PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data"}}})
	// The scheduler knows by what the controller published; it asks nobody in
	// vain.
	waitEvent(t, ns, "app", "FailedScheduling", "enough free storage")
	deleteClaim(t, ns, "full-node2")
	require.Equal(t, "node2", running(t, ns, "app").Spec.NodeName)
}

func TestCSIAgentKilledWhilePodsWrite(t *testing.T) {
	ns := newNamespace(t)
	// A write that fails ends the pod, and the test.
	const strict = `set -e; while :; do date >> /data/log; sync /data/log; sleep 0.1; done`
	for _, class := range []string{"quarry-csi", "quarry-csi-directory"} {
		claim(t, ns, class, class, "64Mi", onNode("node3"))
		pod(t, ns, class, class, strict)
	}
	for range 3 {
		killAgents(t, "node3")
		agentReady(t, "node3")
	}
	for _, p := range []string{"quarry-csi", "quarry-csi-directory"} {
		lines := inPod(t, ns, p, "wc -l < /data/log")
		eventually(t, p+" goes on writing", func() (bool, string) {
			now := inPod(t, ns, p, "wc -l < /data/log")
			return now != lines, now
		})
		require.Zero(t, running(t, ns, p).Status.ContainerStatuses[0].RestartCount)
	}
	claim(t, ns, "new", "quarry-csi", "64Mi", onNode("node3"))
	pod(t, ns, "new", "new", strict)
}

func TestCSIHardRebootKeepsData(t *testing.T) {
	ns := newNamespace(t)
	classes := map[string]string{"quarry-csi": "64Mi", "quarry-csi-xfs": "320Mi", "quarry-csi-directory": "64Mi"}
	for class, size := range classes {
		claim(t, ns, class, class, size, onNode("node2"))
		pod(t, ns, class, class, `echo before >> /data/file; sync; touch /tmp/ready; `+idle)
	}
	claim(t, ns, "raw", "quarry-csi", "32Mi", block, onNode("node2"))
	pod(t, ns, "raw", "raw", idle)
	inPod(t, ns, "raw", "echo raw-data | dd of=/dev/data bs=4096 conv=sync,fsync 2>/dev/null")
	for p := range classes {
		eventually(t, p+" has written", func() (bool, string) {
			out := inPod(t, ns, p, "cat /tmp/ready /data/file; true")
			return out == "before", out
		})
	}
	require.NoError(t, cluster.RebootNode(t.Context(), "node2"))
	agentReady(t, "node2")
	for p := range classes {
		eventually(t, p+" runs again on its own data", func() (bool, string) {
			out, err := cluster.Kubectl(t.Context(), "exec", "-n", ns, p, "--", "cat", "/data/file")
			return err == nil && strings.Count(string(out), "before") == 2, fmt.Sprint(string(out), err)
		})
	}
	eventually(t, "the block volume has its data", func() (bool, string) {
		out, err := cluster.Kubectl(t.Context(), "exec", "-n", ns, "raw", "--", "head", "-c", "8", "/dev/data")
		return err == nil && string(out) == "raw-data", fmt.Sprint(string(out), err)
	})
	for class := range classes {
		pv := bound(t, ns, class)
		deletePod(t, ns, class)
		deleteClaim(t, ns, class)
		gone(t, pv)
	}
}

// startPod makes an idle pod with the volume at /data, and does not wait for
// it.
func startPod(t testing.TB, ns, name string, volume corev1.Volume) {
	t.Helper()
	_, err := kube.CoreV1().Pods(ns).Create(t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: ns},
		Spec: corev1.PodSpec{
			TerminationGracePeriodSeconds: new(int64(0)), Volumes: []corev1.Volume{volume},
			Tolerations: []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
			Containers: []corev1.Container{{
				Name: "main", Image: "busybox:stable",
				ImagePullPolicy: corev1.PullNever, Command: []string{"sh", "-c", idle},
				VolumeMounts: []corev1.VolumeMount{{Name: volume.Name, MountPath: "/data"}},
			}},
		},
	}, metav1.CreateOptions{})
	require.NoError(t, err)
}

// resize asks for another size of the claim.
func resize(t testing.TB, ns, name, size string) {
	t.Helper()
	patch := fmt.Sprintf(`{"spec":{"resources":{"requests":{"storage":%q}}}}`, size)
	_, err := kube.CoreV1().PersistentVolumeClaims(ns).Patch(t.Context(), name, types.MergePatchType, []byte(patch),
		metav1.PatchOptions{})
	require.NoError(t, err)
}

// statsOf waits until kubelet says how full the pod's volume is, and compares
// its size in MiB.
func statsOf(t testing.TB, ns, name string, atLeast, atMost int64) {
	t.Helper()
	node := running(t, ns, name).Spec.NodeName
	eventually(t, "kubelet's statistics of the volume of "+name, func() (bool, string) {
		out, err := cluster.Kubectl(t.Context(), "get", "--raw", "/api/v1/nodes/"+node+"/proxy/stats/summary")
		if err != nil {
			return false, err.Error()
		}
		var summary struct {
			Pods []struct {
				PodRef struct{ Name, Namespace string }
				Volume []struct {
					Name                                 string
					CapacityBytes, UsedBytes, InodesUsed int64
				}
			}
		}
		require.NoError(t, json.Unmarshal(out, &summary))
		for _, p := range summary.Pods {
			for _, v := range p.Volume {
				if p.PodRef.Namespace == ns && p.PodRef.Name == name && v.Name == "data" {
					mib := v.CapacityBytes >> 20
					return mib >= atLeast && mib <= atMost && v.UsedBytes > 0, fmt.Sprint(v)
				}
			}
		}
		return false, "not among them"
	})
}

// nested is a string field of an object.
func nested(object map[string]any, path ...string) string {
	for _, name := range path[:len(path)-1] {
		object, _ = object[name].(map[string]any)
	}
	value, _ := object[path[len(path)-1]].(string)
	return value
}
