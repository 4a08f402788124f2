package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/watch"
)

// unenforced is the cheapest of volumes: a plain directory, for which no room
// is kept.
func unenforced(pool string) parameters {
	return parameters{"pool": pool, "backend": "directory", "enforcement": "none"}
}

// sized makes volumes whose size the pool keeps for them, and that cost little:
// images that are not filled beforehand.
func sized(pool string) parameters {
	return parameters{"pool": pool, "backend": "loop", "allocation": "thin"}
}

func TestPodLandsWhereThereIsRoom(t *testing.T) {
	t.Parallel()
	fills(t, "spare")
	for _, d := range frontDoors {
		t.Run(d.name, func(t *testing.T) {
			ns := newNamespace(t)
			class := d.newClass(t, sized("spare"))
			eventually(t, "the class has room on node3", func() (bool, string) { // as far as the scheduler knows
				list, err := kube.StorageV1().CSIStorageCapacities(quarryNamespace).List(t.Context(),
					metav1.ListOptions{})
				require.NoError(t, err)
				for _, c := range list.Items {
					if c.StorageClassName == class && isAbout(&c, "node3") && !c.Capacity.IsZero() {
						return true, ""
					}
				}
				return false, fmt.Sprint(len(list.Items), " objects")
			})
			claim(t, ns, "before", class, "64Mi")
			newPod(t, ns, "before", prefers("node3"), "before")
			require.Equal(t, "node3", running(t, ns, "before").Spec.NodeName, "the one it prefers")
			bound(t, ns, "before")

			claim(t, ns, "full", class, mib(room(t, "node3", "spare")-32<<20), onNode("node3"))
			bound(t, ns, "full")
			claim(t, ns, "after", class, "64Mi")
			newPod(t, ns, "after", prefers("node3"), "after")
			p := running(t, ns, "after")
			require.Equal(t, "node2", p.Spec.NodeName, "the only one that has room: node1 has no such pool")
			require.Equal(t, p.Spec.NodeName, second2(whereIs(bound(t, ns, "after"))))
		})
	}
}

func second2[A, B any](_ A, b B) B { return b }

// TestPodsRaceForRoom has 120 pods ask for room for 60, all at once; by the
// other door fewer, since all that differs is who asks for the volumes. The
// scheduler places most of them before any capacity is published anew, so the
// agents refuse many, and those are scheduled again.
func TestPodsRaceForRoom(t *testing.T) {
	t.Parallel()
	fills(t, "small")
	for _, race := range []struct {
		door                  door
		racing, places, freed int
	}{{classic, 120, 60, 15}, {csi, 50, 25, 8}} {
		t.Run(race.door.name, func(t *testing.T) {
			racing, places, freed := race.racing, race.places, race.freed
			ns := newNamespace(t)
			class := race.door.newClass(t, sized("small"))
			leaveRoomFor(t, ns, class, places)
			start := time.Now()
			var makers errgroup.Group
			makers.SetLimit(16)
			for i := range racing {
				name := fmt.Sprint("data-", i)
				makers.Go(func() error {
					if _, err := kube.CoreV1().PersistentVolumeClaims(ns).Create(t.Context(),
						newClaim(ns, name, class, mib(place)), metav1.CreateOptions{}); err != nil {
						return err
					}
					_, err := kube.CoreV1().Pods(ns).Create(t.Context(), idlePod(ns, name, neverStarts, name),
						metav1.CreateOptions{})
					return err
				})
			}
			require.NoError(t, makers.Wait())
			require.Len(t, waitBound(t, ns, places), places)
			t.Logf("%d of %d claims were bound %v after the first was made",
				places, racing, time.Since(start).Round(time.Millisecond))
			waitSettled(t, ns)
			t.Logf("everybody else was told why after %v", time.Since(start).Round(time.Millisecond))
			first := waitBound(t, ns, places)
			require.Len(t, first, places, "and not one more")

			// Room is made; as many of those that wait get it, and no more.
			for _, name := range first[:freed] {
				require.NoError(t, kube.CoreV1().Pods(ns).Delete(t.Context(), name,
					metav1.DeleteOptions{GracePeriodSeconds: new(int64(0))}))
				deleteClaim(t, ns, name)
			}
			start = time.Now()
			for _, name := range first[:freed] {
				claimGone(t, ns, name)
			}
			waitBound(t, ns, places)
			t.Logf("the places of %d deleted ones were taken after %v",
				freed, time.Since(start).Round(time.Millisecond))
			waitSettled(t, ns)
			require.Len(t, waitBound(t, ns, places), places)
		})
	}
}

// place is the size of one place, in bytes.
const place = int64(16 << 20)

// leaveRoomFor fills the pools named small, so that there is room for so many
// places on all nodes together.
func leaveRoomFor(t testing.TB, ns, class string, places int) {
	t.Helper()
	nodes := cluster.Nodes()
	for i, node := range nodes {
		n := int64(places / len(nodes))
		if i < places%len(nodes) {
			n++
		}
		// Half a place more than needed, for what the volumes' own directories
		// take; an uneven rest is no place.
		claim(t, ns, "full-"+node, class, mib(room(t, node, "small")-n*place-place/2), onNode(node))
		bound(t, ns, "full-"+node)
	}
}

// neverStarts has kubelet wait for a Secret that nobody makes: the pod is
// scheduled and its claims count, and 120 containers need not be run.
func neverStarts(p *corev1.Pod) {
	p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: "never",
		VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "nobody-makes-it"}}})
	p.Spec.Containers[0].VolumeMounts = append(p.Spec.Containers[0].VolumeMounts, corev1.VolumeMount{Name: "never",
		MountPath: "/never"})
}

// boundClaims are the names of the racing claims that are bound.
func boundClaims(t testing.TB, ns string) (names []string) {
	t.Helper()
	list, err := kube.CoreV1().PersistentVolumeClaims(ns).List(t.Context(), metav1.ListOptions{})
	require.NoError(t, err)
	for _, c := range list.Items {
		if strings.HasPrefix(c.Name, "data-") && c.Status.Phase == corev1.ClaimBound && c.DeletionTimestamp == nil {
			names = append(names, c.Name)
		}
	}
	return names
}

// isAbout reports whether a capacity object is about a node, by whichever
// door's topology.
func isAbout(c *storagev1.CSIStorageCapacity, node string) bool {
	return c.NodeTopology.MatchLabels[corev1.LabelHostname] == node ||
		c.NodeTopology.MatchLabels["topology.quarry.storage/node"] == node
}

// waitBound waits until at least n of the racing claims are bound.
func waitBound(t testing.TB, ns string, n int) (names []string) {
	t.Helper()
	eventually(t, fmt.Sprint(n, " claims are bound"), func() (bool, string) {
		names = boundClaims(t, ns)
		return len(names) >= n, fmt.Sprint(len(names))
	})
	return names
}

// waitSettled waits until everybody who waits was told why: an agent's refusal
// on the claim, or the scheduler's on the pod, which is what the claim's own
// events point at. Nobody is on the way to a node any more then.
func waitSettled(t testing.TB, ns string) {
	t.Helper()
	eventually(t, "everybody who waits was told why", func() (bool, string) {
		events, err := kube.CoreV1().Events(ns).List(t.Context(), metav1.ListOptions{})
		require.NoError(t, err)
		refused, unscheduled := map[string]bool{}, map[string]bool{}
		for _, e := range events.Items {
			switch e.InvolvedObject.Kind {
			case "PersistentVolumeClaim":
				if e.Reason == "ProvisioningFailed" && strings.Contains(e.Message, "room for "+mib(place)) {
					refused[e.InvolvedObject.Name] = true
				}
			case "Pod":
				if e.Reason == "FailedScheduling" && strings.Contains(e.Message, "enough free storage") {
					unscheduled[e.InvolvedObject.Name] = true
				}
			}
		}
		pods, err := kube.CoreV1().Pods(ns).List(t.Context(), metav1.ListOptions{})
		require.NoError(t, err)
		claims, err := kube.CoreV1().PersistentVolumeClaims(ns).List(t.Context(), metav1.ListOptions{})
		require.NoError(t, err)
		waiting := map[string]bool{}
		for _, p := range pods.Items {
			waiting[p.Name] = p.Spec.NodeName == ""
		}
		for _, c := range claims.Items {
			if c.Status.Phase != corev1.ClaimPending {
				continue
			}
			if node := c.Annotations["volume.kubernetes.io/selected-node"]; node != "" {
				return false, c.Name + " is being tried on " + node
			}
			if !waiting[c.Name] || !refused[c.Name] && !unscheduled[c.Name] {
				return false, "nothing is said about " + c.Name
			}
		}
		return true, ""
	})
}

// TestPublishedCapacity is not parallel: it looks at every write of the
// publisher's.
func TestPublishedCapacity(t *testing.T) {
	ns := newNamespace(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	class := classic.newClass(t, sized("small"))
	capacities := kube.StorageV1().CSIStorageCapacities(quarryNamespace)
	known := map[string]storagev1.CSIStorageCapacity{}
	var version string
	eventually(t, "the class's capacity is published for every node", func() (bool, string) {
		list, err := capacities.List(ctx, metav1.ListOptions{})
		require.NoError(t, err)
		version, known = list.ResourceVersion, map[string]storagev1.CSIStorageCapacity{}
		n := 0
		for _, c := range list.Items {
			known[c.Name] = c
			if c.StorageClassName == class {
				n++
			}
		}
		return n == len(cluster.Nodes()), fmt.Sprint(n)
	})
	published, err := capacities.Watch(ctx, metav1.ListOptions{ResourceVersion: version})
	require.NoError(t, err)
	pools, err := objects.Resource(poolsResource).Watch(ctx, metav1.ListOptions{FieldSelector: "spec.nodeName=node2"})
	require.NoError(t, err)

	// Everything that wakes the publisher and is no news to it.
	for _, node := range cluster.Nodes() {
		kubectl(t, "label", "node", node, "e2e-wakes=publisher")
		t.Cleanup(func() { _, _ = cluster.Kubectl(contextForCleanup(), "label", "node", node, "e2e-wakes-") })
		kubectl(t, "label", "pools.quarry.storage", node+".small", "e2e-wakes=publisher")
		t.Cleanup(func() {
			_, _ = cluster.Kubectl(contextForCleanup(), "label", "pools.quarry.storage", node+".small", "e2e-wakes-")
		})
	}
	kubectl(t, "annotate", "storageclass", "--all", "e2e-wakes=publisher", "--overwrite")
	t.Cleanup(func() { _, _ = cluster.Kubectl(contextForCleanup(), "annotate", "storageclass", "--all", "e2e-wakes-") })

	// And then news.
	want := room(t, "node2", "small") - 64<<20
	// Its directory and record take some blocks.
	isNews := func(room int64) bool { return room <= want && room > want-4<<20 }
	claim(t, ns, "data", class, "64Mi", onNode("node2"))
	var poolSaid, wasPublished time.Time
	for poolSaid.IsZero() || wasPublished.IsZero() {
		select {
		case e := <-pools.ResultChan():
			if p, ok := e.Object.(*unstructured.Unstructured); ok && p.GetName() == "node2.small" &&
				isNews(poolRoom(t, p)) && poolSaid.IsZero() {
				poolSaid = time.Now()
			}
		case e := <-published.ResultChan():
			now, ok := e.Object.(*storagev1.CSIStorageCapacity)
			require.True(t, ok, "%v", e)
			if before, was := known[now.Name]; was && e.Type == watch.Modified {
				require.False(t, before.Capacity.Cmp(*now.Capacity) == 0 &&
					before.MaximumVolumeSize.Cmp(*now.MaximumVolumeSize) == 0,
					"a write without news: %s of %s", now.Name, now.StorageClassName)
			}
			known[now.Name] = *now
			if now.StorageClassName == class && now.NodeTopology.MatchLabels[corev1.LabelHostname] == "node2" &&
				isNews(now.Capacity.Value()) {
				wasPublished = time.Now()
			}
		case <-time.After(patience):
			t.Fatalf("waited %v for the pool (%v) and its capacity (%v)", patience, poolSaid, wasPublished)
		}
	}
	t.Logf("the capacity was published %v after the pool changed", wasPublished.Sub(poolSaid).Round(time.Millisecond))

	// The class goes, and what was published for it.
	bound(t, ns, "data")
	require.NoError(t, kube.StorageV1().StorageClasses().Delete(ctx, class, metav1.DeleteOptions{}))
	eventually(t, "nothing is published for a class that is gone", func() (bool, string) {
		list, err := capacities.List(ctx, metav1.ListOptions{})
		require.NoError(t, err)
		for _, c := range list.Items {
			if c.StorageClassName == class {
				return false, c.Name
			}
		}
		return true, ""
	})
}

// requireNoRoomOn waits until nothing can be had on a node by any class of
// either door, and sees a pod that would rather be there go elsewhere.
func requireNoRoomOn(t testing.TB, ns, node string) {
	t.Helper()
	eventually(t, "capacity zero is published for "+node, func() (bool, string) {
		list, err := kube.StorageV1().CSIStorageCapacities(quarryNamespace).List(t.Context(), metav1.ListOptions{})
		require.NoError(t, err)
		for _, c := range list.Items {
			if isAbout(&c, node) && (!c.Capacity.IsZero() || !c.MaximumVolumeSize.IsZero()) {
				return false, c.StorageClassName + ": " + c.Capacity.String()
			}
		}
		return true, ""
	})
	for _, class := range []string{"quarry-small", "quarry-csi-small"} {
		claim(t, ns, class, class, "8Mi")
		newPod(t, ns, class, prefers(node), class)
		require.NotEqual(t, node, running(t, ns, class).Spec.NodeName)
	}
}
