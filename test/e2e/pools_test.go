package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/quarry-storage/quarry/test/testbed"
)

// spare is a disk that tests pull out of a running node: its parent directory
// is among the chart's hostPaths.
const spare = "/mnt/disks/spare"

// poolReady waits until the Pool's condition Ready is as wanted, and returns
// its reason.
func poolReady(t testing.TB, name, want string) (reason string) {
	t.Helper()
	eventually(t, "pool "+name+" is Ready="+want, func() (bool, string) {
		out, err := cluster.Kubectl(t.Context(), "get", "pools.quarry.storage", name, "-o",
			`jsonpath={.status.conditions[?(@.type=="Ready")].status} {.status.conditions[?(@.type=="Ready")].reason}`)
		if err != nil {
			return false, err.Error()
		}
		status, r, _ := strings.Cut(string(out), " ")
		reason = r
		return status == want, string(out)
	})
	return reason
}

func TestDiskPulledAndPutBack(t *testing.T) {
	ns := newNamespace(t)
	poolReady(t, "node3.spare", "True")
	image, err := cluster.PullDisk(t.Context(), "node3", spare)
	require.NoError(t, err)
	put := func(image string) {
		require.NoError(t, cluster.InsertDisk(t.Context(), "node3",
			testbed.Disk{Path: spare, Filesystem: "ext4"}, image))
	}
	back := false
	t.Cleanup(func() {
		if !back {
			_ = cluster.InsertDisk(contextForCleanup(), "node3", testbed.Disk{Path: spare, Filesystem: "ext4"}, image)
		}
	})
	require.Equal(t, "NoMountpoint", poolReady(t, "node3.spare", "False"))
	waitEvent(t, "default", "node3.spare", "PoolOffline", "mount point")

	// Nothing is made on the disk underneath.
	claim(t, ns, "data", "quarry-spare", "64Mi", onNode("node3"))
	waitEvent(t, ns, "data", "ProvisioningFailed", "spare", "offline")
	require.Empty(t, onHost(t, "node3", "ls -A "+spare))

	// Another disk is not the pool either.
	other, err := cluster.NewDisk(t.Context(), "node3", testbed.Disk{Path: spare, Filesystem: "ext4", Size: 1 << 30})
	require.NoError(t, err)
	put(other)
	eventually(t, "the pool says that its disk is missing", func() (bool, string) {
		reason := poolReady(t, "node3.spare", "False")
		return reason == "Missing", reason
	})
	waitEvent(t, "default", "node3.spare", "PoolOffline", "holds no pool")
	require.NotContains(t, onHost(t, "node3", "ls -A "+spare), ".quarry")
	_, err = cluster.PullDisk(t.Context(), "node3", spare)
	require.NoError(t, err)

	put(image)
	back = true
	poolReady(t, "node3.spare", "True")
	pv := bound(t, ns, "data") // woken by the pool's return
	deleteClaim(t, ns, "data")
	gone(t, pv)
}

func TestClaimsOfOnePodAreAdmittedTogether(t *testing.T) {
	ns := newNamespace(t)
	// Each fits on a node, both do not: the scheduler, which looks at one claim
	// at a time, finds a node.
	claim(t, ns, "one", "quarry", "12Gi")
	claim(t, ns, "two", "quarry", "12Gi")
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "app", Namespace: ns},
		Spec: corev1.PodSpec{
			TerminationGracePeriodSeconds: new(int64(0)),
			Containers: []corev1.Container{{Name: "main", Image: "busybox:stable", ImagePullPolicy: corev1.PullNever,
				Command: []string{"sh", "-c", idle},
				VolumeMounts: []corev1.VolumeMount{{Name: "one", MountPath: "/one"},
					{Name: "two", MountPath: "/two"}}}},
		},
	}
	for _, name := range []string{"one", "two"} {
		p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: name}}})
	}
	_, err := kube.CoreV1().Pods(ns).Create(t.Context(), p, metav1.CreateOptions{})
	require.NoError(t, err)
	for _, name := range []string{"one", "two"} {
		waitEvent(t, ns, name, "ProvisioningFailed", "room for 12Gi")
	}
	for _, name := range []string{"one", "two"} {
		c, err := kube.CoreV1().PersistentVolumeClaims(ns).Get(t.Context(), name, metav1.GetOptions{})
		require.NoError(t, err)
		require.Equal(t, corev1.ClaimPending, c.Status.Phase)
	}
	left := ""
	for _, node := range cluster.Nodes() {
		left += onHost(t, node, "ls /volumes | grep pvc- ; true")
	}
	require.Empty(t, left, "neither of them was made")
	// With one of them smaller both fit, and the pod runs.
	deleteClaim(t, ns, "two")
	deletePod(t, ns, "app")
	eventually(t, "the claim is gone", func() (bool, string) {
		_, err := kube.CoreV1().PersistentVolumeClaims(ns).Get(t.Context(), "two", metav1.GetOptions{})
		return err != nil, fmt.Sprint(err)
	})
	claim(t, ns, "two", "quarry", "1Gi")
	p.ResourceVersion = ""
	_, err = kube.CoreV1().Pods(ns).Create(t.Context(), p, metav1.CreateOptions{})
	require.NoError(t, err)
	running(t, ns, "app")
}
