package e2e

import (
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestPodWithTwoClaimsIsPlaced: two nodes have room for either claim of a pod
// and not for both, and the scheduler prefers one of them to the third, which
// has room for both. It looks at each claim alone, so it would choose that one
// for ever.
func TestPodWithTwoClaimsIsPlaced(t *testing.T) {
	t.Parallel()
	fills(t, "small")
	for _, d := range frontDoors {
		t.Run(d.name, func(t *testing.T) {
			ns := newNamespace(t)
			class := d.newClass(t, parameters{"pool": "small", "backend": "loop", "fsType": "ext4"})
			for _, node := range []string{"node1", "node2"} {
				claim(t, ns, "full-"+node, class, mib(room(t, node, "small")-150<<20), onNode(node))
				bound(t, ns, "full-"+node)
			}
			claim(t, ns, "one", class, "100Mi")
			claim(t, ns, "two", class, "100Mi")
			newPod(t, ns, "user", prefers("node1"), "one", "two")
			require.Equal(t, "node3", running(t, ns, "user").Spec.NodeName)
			for _, name := range []string{"one", "two"} {
				require.Equal(t, "node3", second2(whereIs(bound(t, ns, name))))
			}
		})
	}
}

// TestClaimOfTwoPods: the older pod of a claim cannot be scheduled, so its
// other claim never gets a node. The younger one runs.
func TestClaimOfTwoPods(t *testing.T) {
	t.Parallel()
	for _, d := range frontDoors {
		t.Run(d.name, func(t *testing.T) {
			t.Parallel()
			ns := newNamespace(t)
			class := d.newClass(t, parameters{"pool": "default"})
			claim(t, ns, "shared", class, "32Mi")
			claim(t, ns, "cache", class, "32Mi")
			newPod(t, ns, "stuck", func(p *corev1.Pod) {
				p.Spec.Containers[0].Resources.Requests = corev1.ResourceList{
					corev1.ResourceCPU: resource.MustParse("1000")}
			}, "shared", "cache")
			waitEvent(t, ns, "stuck", "FailedScheduling")
			newPod(t, ns, "runs", func(*corev1.Pod) {}, "shared")
			running(t, ns, "runs")
			cache, err := kube.CoreV1().PersistentVolumeClaims(ns).Get(t.Context(), "cache", metav1.GetOptions{})
			require.NoError(t, err)
			require.Equal(t, corev1.ClaimPending, cache.Status.Phase, "nobody made it for a pod that has no node")
		})
	}
}
