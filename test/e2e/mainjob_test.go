package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// writer keeps appending lines, and serves nothing.
const writer = `while :; do date >> /data/log; sync /data/log; sleep 0.2; done`

// idle keeps a pod alive.
const idle = `sleep 1000000`

func TestClaimBecomesAVolumeAPodWritesTo(t *testing.T) {
	for _, test := range []struct {
		class, fs, path string
	}{
		{"quarry", "ext4", "/mount/data"},
		{"quarry-xfs", "xfs", "/mount/data"},
		{"quarry-directory", "btrfs", "/data"},
		{"quarry-none", "ext4", "/data"},
	} {
		t.Run(test.class, func(t *testing.T) {
			t.Parallel()
			ns := newNamespace(t)
			claim(t, ns, "data", test.class, "400Mi")
			p := pod(t, ns, "app", "data", `echo hello > /data/file; sync; `+idle)
			pv := bound(t, ns, "data")

			require.NotNil(t, pv.Spec.Local, "a local PersistentVolume")
			require.True(t, strings.HasSuffix(pv.Spec.Local.Path, test.path), pv.Spec.Local.Path)
			require.Equal(t, corev1.PersistentVolumeReclaimDelete, pv.Spec.PersistentVolumeReclaimPolicy)
			term := pv.Spec.NodeAffinity.Required.NodeSelectorTerms[0].MatchExpressions[0]
			require.Equal(t, corev1.LabelHostname, term.Key)
			require.Equal(t, []string{p.Spec.NodeName}, term.Values)
			require.Equal(t, "400Mi", pv.Spec.Capacity.Storage().String())

			require.Equal(t, "hello", inPod(t, ns, "app", "cat /data/file"))
			require.Equal(t, "hello", onHost(t, p.Spec.NodeName, "cat "+pv.Spec.Local.Path+"/file"))
			require.Contains(t, inPod(t, ns, "app", "grep ' /data ' /proc/mounts"), test.fs)

			deletePod(t, ns, "app")
			pod(t, ns, "app", "data", idle)
			require.Equal(t, "hello", inPod(t, ns, "app", "cat /data/file"), "after the pod was made again")

			deletePod(t, ns, "app")
			deleteClaim(t, ns, "data")
			gone(t, pv)
		})
	}
}

func TestSizeIsEnforced(t *testing.T) {
	for _, class := range []string{"quarry", "quarry-directory"} {
		t.Run(class, func(t *testing.T) {
			t.Parallel()
			ns := newNamespace(t)
			claim(t, ns, "data", class, "64Mi")
			pod(t, ns, "app", "data", idle)
			written := inPod(t, ns, "app", "dd if=/dev/zero of=/data/big bs=1M count=200 2>/dev/null; sync; du -m "+
				"/data/big | cut -f1")
			var mib int
			_, err := fmt.Sscan(written, &mib)
			require.NoError(t, err)
			require.Greater(t, mib, 40, "most of 64Mi can be used")
			require.LessOrEqual(t, mib, 65, "and no more than 64Mi")
		})
	}
}

func TestBlockVolume(t *testing.T) {
	t.Parallel()
	ns := newNamespace(t)
	claim(t, ns, "data", "quarry", "32Mi", block)
	p := pod(t, ns, "app", "data", idle)
	pv := bound(t, ns, "data")
	require.Equal(t, corev1.PersistentVolumeBlock, *pv.Spec.VolumeMode)
	require.True(t, strings.HasPrefix(pv.Spec.Local.Path, "/run/quarry/dev/"), pv.Spec.Local.Path)
	inPod(t, ns, "app", "echo hello-block | dd of=/dev/data bs=4096 conv=sync,fsync 2>/dev/null")
	require.Equal(t, "33554432", inPod(t, ns, "app", "wc -c < /dev/data"))
	deletePod(t, ns, "app")
	pod(t, ns, "app", "data", idle)
	require.Equal(t, "hello-block", inPod(t, ns, "app", "head -c 11 /dev/data"))
	require.Equal(t, p.Spec.NodeName, running(t, ns, "app").Spec.NodeName)
	deletePod(t, ns, "app")
	deleteClaim(t, ns, "data")
	gone(t, pv)
}

func TestImmediateBinding(t *testing.T) {
	t.Parallel()
	ns := newNamespace(t)
	claim(t, ns, "data", "quarry-immediate", "64Mi")
	pv := bound(t, ns, "data") // with no pod at all
	p := pod(t, ns, "app", "data", idle)
	require.Equal(t, pv.Annotations["quarry.storage/node"], p.Spec.NodeName)
	deletePod(t, ns, "app")
	deleteClaim(t, ns, "data")
	gone(t, pv)
}

func TestSelectedNodeWithoutAPod(t *testing.T) {
	t.Parallel()
	ns := newNamespace(t)
	claim(t, ns, "data", "quarry", "64Mi", onNode("node3"))
	require.Equal(t, "node3", bound(t, ns, "data").Annotations["quarry.storage/node"])
}

func TestRetainedVolumeStays(t *testing.T) {
	t.Parallel()
	ns := newNamespace(t)
	claim(t, ns, "data", "quarry-retain", "64Mi")
	p := pod(t, ns, "app", "data", `echo keep > /data/file; sync; `+idle)
	pv := bound(t, ns, "data")
	deletePod(t, ns, "app")
	deleteClaim(t, ns, "data")
	eventually(t, "the PersistentVolume is released", func() (bool, string) {
		now, err := kube.CoreV1().PersistentVolumes().Get(t.Context(), pv.Name, metav1.GetOptions{})
		require.NoError(t, err)
		return now.Status.Phase == corev1.VolumeReleased, string(now.Status.Phase)
	})
	require.Equal(t, "keep", onHost(t, p.Spec.NodeName, "cat "+pv.Spec.Local.Path+"/file"))
	// An administrator who wants it gone after all.
	_, err := cluster.Kubectl(t.Context(), "patch", "pv", pv.Name, "-p",
		`{"spec":{"persistentVolumeReclaimPolicy":"Delete"}}`)
	require.NoError(t, err)
	gone(t, pv)
}

func TestEventsSayWhatIsWrong(t *testing.T) {
	classes := map[string]string{
		"unknown-parameter": `{"backnd":"loop"}`,
		"unknown-value":     `{"backend":"direktory"}`,
		"not-enforceable":   `{"backend":"directory","pool":"default"}`,
		"no-such-pool":      `{"pool":"nvme"}`,
	}
	for name, parameters := range classes {
		out, err := cluster.Kubectl(t.Context(), "create", "-o", "name", "-f", writeFile(t, fmt.Sprintf(
			`{"apiVersion":"storage.k8s.io/v1","kind":"StorageClass","metadata":{"name":%q},"provisioner":"local.quarry.storage","volumeBindingMode":"WaitForFirstConsumer","parameters":%s}`, name, parameters)))
		require.NoError(t, err, string(out))
		t.Cleanup(func() { _, _ = cluster.Kubectl(contextForCleanup(), "delete", "storageclass", name) })
	}
	for _, test := range []struct {
		name, class, size string
		options           []claimOption
		words             []string
	}{
		{"unknown-parameter", "unknown-parameter", "64Mi", nil, []string{"backnd", "backend"}},
		{"unknown-value", "unknown-value", "64Mi", nil, []string{"direktory", "directory"}},
		{"not-enforceable", "not-enforceable", "64Mi", nil, []string{"does not enforce"}},
		{"no-such-pool", "no-such-pool", "64Mi", nil, []string{"nvme"}},
		{"too-large", "quarry", "1Ti", nil, []string{"room for 1Ti"}},
		{"too-small", "quarry-xfs", "64Mi", nil, []string{"300Mi"}},
		{"rwx", "quarry", "64Mi", []claimOption{modes(corev1.ReadWriteMany)}, []string{"ReadWriteMany"}},
		{"rox", "quarry", "64Mi", []claimOption{modes(corev1.ReadOnlyMany)}, []string{"ReadOnlyMany"}},
		{"selector", "quarry", "64Mi", []claimOption{func(c *corev1.PersistentVolumeClaim) {
			c.Spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{"a": "b"}}
		}}, []string{"selector"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			ns := newNamespace(t)
			claim(t, ns, "data", test.class, test.size, append(test.options, onNode("node2"))...)
			waitEvent(t, ns, "data", "ProvisioningFailed", test.words...)
			c, err := kube.CoreV1().PersistentVolumeClaims(ns).Get(t.Context(), "data", metav1.GetOptions{})
			require.NoError(t, err)
			require.Equal(t, corev1.ClaimPending, c.Status.Phase)
			require.Equal(t, "node2", c.Annotations["volume.kubernetes.io/selected-node"],
				"no pod uses it: nobody would choose a node again")
		})
	}
}
