package e2e

import (
	"context"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// claimHas waits until the claim's status says the size, and that nothing is
// left to be done.
func claimHas(t testing.TB, ns, name, size string) {
	t.Helper()
	eventually(t, "claim "+name+" has "+size, func() (bool, string) {
		c, err := kube.CoreV1().PersistentVolumeClaims(ns).Get(t.Context(), name, metav1.GetOptions{})
		require.NoError(t, err)
		return c.Status.Capacity.Storage().Equal(resource.MustParse(size)) && len(resizeConditions(c)) == 0 &&
			len(c.Status.AllocatedResourceStatuses) == 0, fmt.Sprint(c.Status)
	})
}

// resizeConditions are the messages of a claim's conditions but for those that
// Kubernetes sets for other ends (Unused, from 1.37 on).
func resizeConditions(c *corev1.PersistentVolumeClaim) map[corev1.PersistentVolumeClaimConditionType]string {
	found := map[corev1.PersistentVolumeClaimConditionType]string{}
	for _, condition := range c.Status.Conditions {
		if condition.Type != "Unused" {
			found[condition.Type] = condition.Message
		}
	}
	return found
}

// writable is how many MiB of a file fit into the pod's volume.
func writable(t testing.TB, ns, pod string, try int) (n int) {
	t.Helper()
	_, err := fmt.Sscan(inPod(t, ns, pod, fmt.Sprintf("dd if=/dev/zero of=/data/big bs=1M count=%d 2>/dev/null; sync; "+
		"du -m /data/big | cut -f1; rm /data/big", try)), &n)
	require.NoError(t, err)
	return n
}

// sawCondition collects the conditions a claim has had, from now on.
func sawCondition(t testing.TB, ns, name string) (seen func(corev1.PersistentVolumeClaimConditionType) bool) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	w, err := kube.CoreV1().PersistentVolumeClaims(ns).Watch(ctx,
		metav1.ListOptions{FieldSelector: "metadata.name=" + name})
	require.NoError(t, err)
	return func(kind corev1.PersistentVolumeClaimConditionType) bool {
		kubectl(t, "annotate", "pvc", "-n", ns, name, "e2e-end=yes")
		had := false
		for e := range w.ResultChan() {
			if c, ok := e.Object.(*corev1.PersistentVolumeClaim); ok {
				for _, condition := range c.Status.Conditions {
					had = had || condition.Type == kind && condition.Status == corev1.ConditionTrue
				}
				if c.Annotations["e2e-end"] != "" {
					break
				}
			}
		}
		return had
	}
}

func TestClassicVolumeGrows(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		class      string
		small      string
		large      string
		is, become int // MiB that can be written: at most, and then at least
	}{
		{"quarry-xfs", "320Mi", "480Mi", 320, 340},
		{"quarry-directory", "64Mi", "160Mi", 65, 120},
	} {
		t.Run(test.class+" with a pod", func(t *testing.T) {
			t.Parallel()
			ns := newNamespace(t)
			claim(t, ns, "data", test.class, test.small)
			p := pod(t, ns, "app", "data", `echo kept > /data/file; sync; `+idle)
			require.LessOrEqual(t, writable(t, ns, "app", 600), test.is)
			seen := sawCondition(t, ns, "data")
			resize(t, ns, "data", test.large)
			waitEvent(t, ns, "data", "Resizing", test.large)
			waitEvent(t, ns, "data", "VolumeResizeSuccessful", test.large)
			claimHas(t, ns, "data", test.large)
			require.True(t, seen(corev1.PersistentVolumeClaimResizing), "the condition was there meanwhile")
			require.Equal(t, test.large, bound(t, ns, "data").Spec.Capacity.Storage().String())
			if test.class == "quarry-xfs" { // of a quota of btrfs, df knows nothing
				var df int
				_, err := fmt.Sscan(inPod(t, ns, "app", "df -m /data | tail -1 | awk '{print $2}'"), &df)
				require.NoError(t, err)
				require.Greater(t, df, 380)
				require.LessOrEqual(t, df, 480)
			}
			require.Greater(t, writable(t, ns, "app", 600), test.become)
			require.Equal(t, "kept", inPod(t, ns, "app", "cat /data/file"))
			now := running(t, ns, "app")
			require.Equal(t, p.UID, now.UID, "all that with the pod running")
			require.Zero(t, now.Status.ContainerStatuses[0].RestartCount)
		})
		t.Run(test.class+" without a pod", func(t *testing.T) {
			t.Parallel()
			ns := newNamespace(t)
			claim(t, ns, "data", test.class, test.small, onNode("node2"))
			bound(t, ns, "data")
			resize(t, ns, "data", test.large)
			claimHas(t, ns, "data", test.large)
			pod(t, ns, "app", "data", idle)
			require.Greater(t, writable(t, ns, "app", 600), test.become)
		})
	}
}

// TestCSIVolumeGrowsWithoutAPod: the image grows at once, and kubelet has the
// filesystem follow when a pod comes.
func TestCSIVolumeGrowsWithoutAPod(t *testing.T) {
	t.Parallel()
	for class, sizes := range map[string][2]string{"quarry-csi-xfs": {"320Mi", "480Mi"},
		"quarry-csi-directory": {"64Mi", "160Mi"}} {
		t.Run(class, func(t *testing.T) {
			t.Parallel()
			ns := newNamespace(t)
			claim(t, ns, "data", class, sizes[0], onNode("node2"))
			pv := bound(t, ns, "data")
			resize(t, ns, "data", sizes[1])
			eventually(t, "the PersistentVolume has its new size", func() (bool, string) {
				now, err := kube.CoreV1().PersistentVolumes().Get(t.Context(), pv.Name, metav1.GetOptions{})
				require.NoError(t, err)
				return now.Spec.Capacity.Storage().String() == sizes[1], now.Spec.Capacity.Storage().String()
			})
			pod(t, ns, "app", "data", idle)
			claimHas(t, ns, "data", sizes[1])
			require.Greater(t, writable(t, ns, "app", 600), map[string]int{"320Mi": 340, "64Mi": 120}[sizes[0]])
		})
	}
}

func TestClassicGrowthThatIsTooLarge(t *testing.T) {
	t.Parallel()
	ns := newNamespace(t)
	claim(t, ns, "data", "quarry-directory", "64Mi")
	pod(t, ns, "app", "data", idle)
	resize(t, ns, "data", "1Ti")
	waitEvent(t, ns, "data", "VolumeResizeFailed", "room", "1Ti", "lower")
	eventually(t, "the claim says that it is not feasible", func() (bool, string) {
		c, err := kube.CoreV1().PersistentVolumeClaims(ns).Get(t.Context(), "data", metav1.GetOptions{})
		require.NoError(t, err)
		conditions := resizeConditions(c)
		return c.Status.AllocatedResourceStatuses[corev1.ResourceStorage] == corev1.PersistentVolumeClaimControllerResizeInfeasible &&
				len(conditions) == 1 && conditions[corev1.PersistentVolumeClaimControllerResizeError] != "",
			fmt.Sprint(c.Status)
	})
	require.LessOrEqual(t, writable(t, ns, "app", 200), 65, "it is what it was")
	resize(t, ns, "data", "96Mi") // KEP-1790: what could not be had is taken back
	claimHas(t, ns, "data", "96Mi")
	require.Greater(t, writable(t, ns, "app", 200), 70)
}

func TestClassicGrowthWaitsForRoom(t *testing.T) {
	t.Parallel()
	fills(t, "spare")
	ns := newNamespace(t)
	grows := sized("spare")
	grows["fsType"] = "xfs" // ext4 grows only for who has CAP_SYS_RESOURCE while it is mounted
	class := classic.newClass(t, grows)
	claim(t, ns, "data", class, "320Mi", onNode("node3"))
	pv := bound(t, ns, "data")
	claim(t, ns, "full", class, mib(room(t, "node3", "spare")-32<<20), onNode("node3"))
	full := bound(t, ns, "full")
	resize(t, ns, "data", "640Mi")
	waitEvent(t, ns, "data", "VolumeResizeFailed", "room")
	deleteClaim(t, ns, "full")
	gone(t, full)
	claimHas(t, ns, "data", "640Mi") // nobody asked again
	deleteClaim(t, ns, "data")
	gone(t, pv)
}
