package e2e

import (
	"context"
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// thin images take no room of what other tests fill, and are made quickly.
func tier(more parameters) parameters {
	p := parameters{"backend": "loop", "allocation": "thin"}
	maps.Copy(p, more)
	return p
}

func TestTiers(t *testing.T) {
	t.Parallel()
	for _, d := range frontDoors {
		for name, test := range map[string]struct {
			choice parameters
			pool   string
		}{
			"by name":         {parameters{"pool": "ssd"}, "ssd"},
			"by label":        {parameters{"poolSelector": "disk=hdd"}, "hdd"},
			"by pool's label": {parameters{"poolSelector": "quarry.storage/pool=ssd"}, "ssd"},
		} {
			t.Run(d.name+" "+name, func(t *testing.T) {
				t.Parallel()
				ns := newNamespace(t)
				class := d.newClass(t, tier(test.choice))
				claim(t, ns, "data", class, "64Mi")
				newPod(t, ns, "app", nil, "data")
				p := running(t, ns, "app")
				pv := bound(t, ns, "data")
				require.Equal(t, test.pool, poolOf(t, pv))
				require.Equal(t, "/mnt/disks/"+test.pool, onHost(t, p.Spec.NodeName, "dirname "+volumeDir(t, pv)))
				deletePod(t, ns, "app")
				deleteClaim(t, ns, "data")
				gone(t, pv)
			})
		}
	}
}

func TestAllowedTopologies(t *testing.T) {
	t.Parallel()
	only := func(key, node string, mode storagev1.VolumeBindingMode) func(*storagev1.StorageClass) {
		return func(c *storagev1.StorageClass) {
			c.VolumeBindingMode = &mode
			c.AllowedTopologies = []corev1.TopologySelectorTerm{
				{MatchLabelExpressions: []corev1.TopologySelectorLabelRequirement{{Key: key, Values: []string{node}}}}}
		}
	}
	const topologyNode = "topology.quarry.storage/node"
	for _, test := range []struct {
		door door
		key  string
		mode storagev1.VolumeBindingMode
	}{
		{classic, corev1.LabelHostname, storagev1.VolumeBindingWaitForFirstConsumer},
		{classic, corev1.LabelHostname, storagev1.VolumeBindingImmediate},
		{classic, topologyNode, storagev1.VolumeBindingWaitForFirstConsumer},
		{classic, topologyNode, storagev1.VolumeBindingImmediate},
		{csi, topologyNode, storagev1.VolumeBindingWaitForFirstConsumer},
		{csi, topologyNode, storagev1.VolumeBindingImmediate},
	} {
		t.Run(strings.Join([]string{test.door.name, test.key, string(test.mode)}, " "), func(t *testing.T) {
			t.Parallel()
			ns := newNamespace(t)
			class := test.door.newClass(t, tier(parameters{"pool": "ssd"}), only(test.key, "node2", test.mode))
			claim(t, ns, "data", class, "64Mi")
			newPod(t, ns, "app", prefers("node3"), "data")
			require.Equal(t, "node2", running(t, ns, "app").Spec.NodeName)
			require.Equal(t, "node2", second2(whereIs(bound(t, ns, "data"))))
		})
	}
}

func selecting(labels ...string) claimOption {
	return func(c *corev1.PersistentVolumeClaim) {
		c.Spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{}}
		for _, l := range labels {
			key, value, _ := strings.Cut(l, "=")
			c.Spec.Selector.MatchLabels[key] = value
		}
	}
}

func TestClaimsSelectorChoosesThePool(t *testing.T) {
	t.Parallel()
	ns := newNamespace(t)
	class := classic.newClass(t, tier(parameters{"poolSelector": "tiers=both"}))
	for _, disk := range []string{"hdd", "ssd"} {
		claim(t, ns, disk, class, "64Mi", selecting("disk="+disk))
		newPod(t, ns, disk, nil, disk)
		running(t, ns, disk)
		pv := bound(t, ns, disk)
		require.Equal(t, disk, poolOf(t, pv))
		require.Equal(t, disk, pv.Labels["disk"], "the PersistentVolume matches the claim's selector")
		require.Equal(t, "both", pv.Labels["tiers"])
	}
}

// TestClaimsSelectorThatNothingMatches: the scheduler does not know selectors
// of claims and would choose the same node again and again, so the node it
// chose stays chosen, and the event says what to do.
func TestClaimsSelectorThatNothingMatches(t *testing.T) {
	t.Parallel()
	ns := newNamespace(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	slow := classic.newClass(t, tier(parameters{"pool": "hdd"}))
	fast := classic.newClass(t, tier(parameters{"pool": "ssd"}))
	watched, err := kube.CoreV1().PersistentVolumeClaims(ns).Watch(ctx, metav1.ListOptions{})
	require.NoError(t, err)
	claim(t, ns, "data", slow, "64Mi", selecting("disk=ssd"))
	claim(t, ns, "tape", slow, "64Mi", selecting("disk=tape"))
	newPod(t, ns, "data", nil, "data")
	newPod(t, ns, "tape", nil, "tape")
	waitEvent(t, ns, "data", "ProvisioningFailed", "disk=ssd", fast)
	waitEvent(t, ns, "tape", "ProvisioningFailed", "disk=tape", "no StorageClass leads to nodes that all have one")
	// It is tried again, and nothing is rescheduled.
	eventually(t, "the claim was tried again", func() (bool, string) {
		events, err := kube.CoreV1().Events(ns).List(ctx,
			metav1.ListOptions{FieldSelector: "involvedObject.name=data,reason=ProvisioningFailed"})
		require.NoError(t, err)
		n := 0
		for _, e := range events.Items {
			n += int(max(e.Count, 1))
			if e.Series != nil {
				n += int(e.Series.Count) - 1
			}
		}
		return n > 1, fmt.Sprint(n)
	})
	// A mark that the watch has to show after all that was written before.
	kubectl(t, "annotate", "pvc", "-n", ns, "data", "e2e-end=yes")
	chosen := map[string][]string{}
	for e := range watched.ResultChan() {
		c, ok := e.Object.(*corev1.PersistentVolumeClaim)
		require.True(t, ok, "%v", e)
		require.Equal(t, corev1.ClaimPending, c.Status.Phase)
		node := c.Annotations["volume.kubernetes.io/selected-node"]
		if was := chosen[c.Name]; len(was) == 0 || was[len(was)-1] != node {
			chosen[c.Name] = append(was, node)
		}
		if c.Annotations["e2e-end"] != "" {
			break
		}
	}
	for name, nodes := range chosen {
		require.LessOrEqual(t, len(nodes), 2, "%s: none, and then one, which stays: %q", name, nodes)
	}
	require.Len(t, chosen["data"], 2)

	claim(t, ns, "csi", csi.newClass(t, tier(parameters{"pool": "ssd"})), "64Mi", selecting("disk=ssd"),
		onNode("node2"))
	waitEvent(t, ns, "csi", "ProvisioningFailed", "elector") // the sidecar's own words: CSI knows no selectors
}

// TestStatefulSetsVolumesApart: both volumes of a StatefulSet on one node,
// where the pool with the most room would be the same twice.
func TestStatefulSetsVolumesApart(t *testing.T) {
	t.Parallel()
	for _, d := range frontDoors {
		t.Run(d.name, func(t *testing.T) {
			t.Parallel()
			ns := newNamespace(t)
			claim(t, ns, "full", d.newClass(t, sized("hdd")), "512Mi", onNode("node2"))
			bound(t, ns, "full")
			apart := d.newClass(t, tier(parameters{"poolSelector": "tiers=both", "poolSpread": "apart"}))
			most := d.newClass(t, tier(parameters{"poolSelector": "tiers=both"}))
			for name, class := range map[string]string{"apart": apart, "most": most} {
				apply(t, ns, "-f", writeFile(t, fmt.Sprintf(`
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: %[1]s}
spec:
  serviceName: %[1]s
  replicas: 2
  selector: {matchLabels: {app: %[1]s}}
  template:
    metadata: {labels: {app: %[1]s}}
    spec:
      terminationGracePeriodSeconds: 0
      nodeSelector: {kubernetes.io/hostname: node2}
      containers:
      - name: main
        image: busybox:stable
        imagePullPolicy: Never
        command: [sleep, "1000000"]
        volumeMounts: [{name: data, mountPath: /data}]
  volumeClaimTemplates:
  - metadata: {name: data}
    spec:
      storageClassName: %[2]s
      accessModes: [ReadWriteOnce]
      resources: {requests: {storage: 64Mi}}
`, name, class)))
			}
			pools := map[string][]string{}
			for _, name := range []string{"apart", "most"} {
				for i := range 2 {
					running(t, ns, fmt.Sprintf("%s-%d", name, i))
					pools[name] = append(pools[name], poolOf(t, bound(t, ns, fmt.Sprintf("data-%s-%d", name, i))))
				}
			}
			require.Equal(t, []string{"ssd", "ssd"}, pools["most"], "by default the one with the most room")
			require.ElementsMatch(t, []string{"ssd", "hdd"}, pools["apart"])
		})
	}
}
