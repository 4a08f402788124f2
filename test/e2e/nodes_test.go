package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Nodes that are lost, that come back, and whose disks turn up elsewhere. None
// of these tests is parallel.

// statefulSet applies a StatefulSet of one replica with a claim "data" of the
// class, that may run on nodes 2 and 3, and returns its pod. What it writes
// says on which node it began.
func statefulSet(t testing.TB, ns, name, class string) *corev1.Pod {
	t.Helper()
	apply(t, ns, "-f", writeFile(t, fmt.Sprintf(`
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: %[1]s}
spec:
  serviceName: %[1]s
  selector: {matchLabels: {app: %[1]s}}
  template:
    metadata: {labels: {app: %[1]s}}
    spec:
      terminationGracePeriodSeconds: 0
      affinity:
        nodeAffinity:
          requiredDuringSchedulingIgnoredDuringExecution:
            nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [node2, node3]}]}]
      containers:
      - name: main
        image: busybox:stable
        imagePullPolicy: Never
        command: [sh, -c, 'echo $NODE >> /data/nodes; sync; exec sleep 1000000']
        env: [{name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}]
        volumeMounts: [{name: data, mountPath: /data}]
  volumeClaimTemplates:
  - metadata: {name: data}
    spec:
      storageClassName: %[2]s
      accessModes: [ReadWriteOnce]
      resources: {requests: {storage: 64Mi}}
`, name, class)))
	return running(t, ns, name+"-0")
}

func nodeCondition(t testing.TB, node, want string) {
	t.Helper()
	eventually(t, node+" is Ready="+want, func() (bool, string) {
		out, err := cluster.Kubectl(t.Context(), "get", "node", node, "-o",
			`jsonpath={.status.conditions[?(@.type=="Ready")].status}`)
		return string(out) == want, fmt.Sprint(string(out), err)
	})
}

func TestNodeLostAndFound(t *testing.T) {
	ns := newNamespace(t)
	classes := map[string]string{}
	for door, provisioner := range doors {
		classes["tainted-"+door] = makeClass(t, "tainted-"+door, provisioner, map[string]string{"pool": "default",
			"onNodeLoss": "outOfServiceTaint"})
	}
	classes["delayed"] = makeClass(t, "delayed", doors["local"], map[string]string{"pool": "default",
		"onNodeLoss": "afterDelay", "nodeLossDelay": "1s"})
	classes["never"] = "quarry"
	// All on node3: node2 is closed while they are made.
	_, err := cluster.Kubectl(t.Context(), "cordon", "node2")
	require.NoError(t, err)
	old := map[string]*corev1.PersistentVolume{}
	for name, class := range classes {
		require.Equal(t, "node3", statefulSet(t, ns, name, class).Spec.NodeName)
		old[name] = bound(t, ns, "data-"+name+"-0")
	}
	claim(t, ns, "deleted", "quarry", "64Mi", onNode("node3"))
	deleted := bound(t, ns, "deleted")
	claim(t, ns, "bystander", "quarry", "64Mi", onNode("node2"))
	bystander := bound(t, ns, "bystander")
	_, err = cluster.Kubectl(t.Context(), "uncordon", "node2")
	require.NoError(t, err)

	require.NoError(t, cluster.KillNode(t.Context(), "node3"))
	off := true
	t.Cleanup(func() {
		if off {
			_ = cluster.StartNode(contextForCleanup(), "node3")
		}
		_, _ = cluster.Kubectl(contextForCleanup(), "taint", "node", "node3", "node.kubernetes.io/out-of-service-")
	})
	nodeCondition(t, "node3", "Unknown")
	startedOver := func(name string) {
		t.Helper()
		eventually(t, name+" starts over on node2", func() (bool, string) {
			p, err := kube.CoreV1().Pods(ns).Get(t.Context(), name+"-0", metav1.GetOptions{})
			if err != nil {
				return false, err.Error()
			}
			return p.Spec.NodeName == "node2" && p.Status.Phase == corev1.PodRunning, p.Spec.NodeName + " " +
				string(p.Status.Phase)
		})
		require.Equal(t, "node2", inPod(t, ns, name+"-0", "cat /data/nodes"), "on a new, empty volume")
		pv, err := kube.CoreV1().PersistentVolumes().Get(t.Context(), old[name].Name, metav1.GetOptions{})
		require.NoError(t, err)
		require.Equal(t, corev1.PersistentVolumeReclaimRetain, pv.Spec.PersistentVolumeReclaimPolicy)
		waitEvent(t, "default", pv.Name, "NodeLost", "data-"+name+"-0", "the data stays")
	}
	startedOver("delayed")
	for _, name := range []string{"tainted-local", "tainted-csi", "never"} {
		c, err := kube.CoreV1().PersistentVolumeClaims(ns).Get(t.Context(), "data-"+name+"-0", metav1.GetOptions{})
		require.NoError(t, err)
		require.Equal(t, old[name].Name, c.Spec.VolumeName, "nobody said that the node is off for good")
	}
	_, err = cluster.Kubectl(t.Context(), "taint", "node", "node3",
		"node.kubernetes.io/out-of-service=nodeshutdown:NoExecute")
	require.NoError(t, err)
	startedOver("tainted-local")
	startedOver("tainted-csi")

	// Deleting a volume there waits for the node, as long as there is one, and
	// blocks nobody else.
	deleteClaim(t, ns, "deleted")
	waitEvent(t, "default", deleted.Name, "VolumeFailedDelete", "waiting for the Quarry agent on node node3")
	deleteClaim(t, ns, "bystander")
	gone(t, bystander)
	// The Node object goes: so does the PersistentVolume.
	_, err = cluster.Kubectl(t.Context(), "delete", "node", "node3")
	require.NoError(t, err)
	pvGone(t, deleted.Name)
	c, err := kube.CoreV1().PersistentVolumeClaims(ns).Get(t.Context(), "data-never-0", metav1.GetOptions{})
	require.NoError(t, err)
	require.Equal(t, old["never"].Name, c.Spec.VolumeName)
	require.Nil(t, c.DeletionTimestamp)

	// The machine was only asleep: what was deleted meanwhile is deleted now,
	// and everything else is there.
	require.NoError(t, cluster.StartNode(t.Context(), "node3"))
	off = false
	agentReady(t, "node3")
	gone(t, deleted)
	for name, pv := range old {
		id, node := whereIs(pv)
		require.Equal(t, "node3", node)
		phaseOf(t, id, "Ready")
		if name == "never" {
			running(t, ns, name+"-0")
			require.Equal(t, "node3\nnode3", inPod(t, ns, name+"-0", "cat /data/nodes"), "it waited for its node")
			continue
		}
		require.Equal(t, "node3", onHost(t, "node3", "cat /volumes/"+id+"/mount/data/nodes"),
			"the old data is where it was")
		_, err := cluster.Kubectl(t.Context(), "delete", "pv", pv.Name)
		require.NoError(t, err)
		pvGone(t, pv.Name)
		mustPlugin(t, "orphans", "delete", id, "--yes")
		gone(t, pv)
	}
}

// TestDiskMovedToAnotherNode swaps a disk of two nodes that are off; one has
// volumes of both doors.
func TestDiskMovedToAnotherNode(t *testing.T) {
	ns := newNamespace(t)
	csi := makeClass(t, "spare-csi", doors["csi"], map[string]string{"pool": "spare"})
	volumes := map[string]*corev1.PersistentVolume{}
	for name, class := range map[string]string{"data": "quarry-spare", "csi": csi} {
		claim(t, ns, name, class, "64Mi", onNode("node3"))
		volumes[name] = bound(t, ns, name)
		pod(t, ns, name, name, `echo precious > /data/file; sync; `+idle)
		deletePod(t, ns, name)
	}
	swap := func() {
		t.Helper()
		for _, node := range []string{"node2", "node3"} {
			require.NoError(t, cluster.KillNode(t.Context(), node))
		}
		require.NoError(t, cluster.SwapDisks(t.Context(), "node2", "node3", spare))
		for _, node := range []string{"node2", "node3"} {
			require.NoError(t, cluster.StartNode(t.Context(), node))
			agentReady(t, node)
		}
		for _, node := range []string{"node2", "node3"} { // each remembers its old disk, and takes no other unasked
			eventually(t, node+" refuses the other's disk", func() (bool, string) {
				reason := poolReady(t, node+".spare", "False")
				return reason == "Swapped", reason
			})
		}
		for _, node := range []string{"node2", "node3"} {
			_, err := cluster.Kubectl(t.Context(), "delete", "pools.quarry.storage", node+".spare")
			require.NoError(t, err)
			poolReady(t, node+".spare", "True")
		}
	}
	swap()
	eventually(t, "the pool says where its disk comes from", func() (bool, string) {
		out, err := cluster.Kubectl(t.Context(), "get", "pools.quarry.storage", "node2.spare", "-o",
			`jsonpath={.status.conditions[?(@.type=="Orphans")].message}`)
		return strings.Contains(string(out), "made on node node3"), fmt.Sprint(string(out), err)
	})
	for _, pv := range volumes {
		id, _ := whereIs(pv)
		phaseOf(t, id, "Lost")
	}

	plan := mustPlugin(t, "recover")
	for _, pv := range volumes {
		require.Contains(t, plan, pv.Name)
	}
	mustPlugin(t, "recover", "--apply")
	for name := range volumes {
		now := bound(t, ns, name)
		require.Equal(t, volumes[name].Name, now.Name)
		require.Equal(t, corev1.PersistentVolumeReclaimDelete, now.Spec.PersistentVolumeReclaimPolicy)
		p := pod(t, ns, name, name, idle)
		require.Equal(t, "node2", p.Spec.NodeName)
		require.Equal(t, "precious", inPod(t, ns, name, "cat /data/file"))
		deletePod(t, ns, name)
		deleteClaim(t, ns, name)
		gone(t, now)
	}
	require.Contains(t, mustPlugin(t, "recover"), "There is nothing to do")
	swap() // as the other tests know them
}

// TestNodeRebuiltWithEmptyDisks: another machine comes back under a node's
// name.
func TestNodeRebuiltWithEmptyDisks(t *testing.T) {
	ns := newNamespace(t)
	volumes := map[string]*corev1.PersistentVolume{}
	for name, class := range map[string]string{"data": "quarry", "directory": "quarry-none", "csi": "quarry-csi"} {
		claim(t, ns, name, class, "64Mi", onNode("node3"))
		pod(t, ns, name, name, `echo $(date) >> /data/file; sync; `+idle)
		volumes[name] = bound(t, ns, name)
	}
	_, err := cluster.RebuildNode(t.Context(), "node3")
	require.NoError(t, err)
	agentReady(t, "node3")
	for name, pv := range volumes {
		id, _ := whereIs(pv)
		phaseOf(t, id, "Lost")
		waitEvent(t, ns, name, "VolumeLost", "rebuilt")
	}
	require.Equal(t, "Rebuilt", poolReady(t, "node3.default", "False"))
	require.Empty(t, onHost(t, "node3", "ls -A /volumes | grep -v lost+found; true"),
		"nothing is made in place of what was there")
	for name := range volumes {
		p, err := kube.CoreV1().Pods(ns).Get(t.Context(), name, metav1.GetOptions{})
		require.NoError(t, err)
		for _, s := range p.Status.ContainerStatuses {
			require.False(t, s.Ready && s.State.Running != nil && s.RestartCount > 0, "nothing empty is served: %v", s)
		}
	}

	// An administrator knows that the disks are gone.
	for _, pool := range []string{"default", "btrfs", "spare"} {
		_, err := cluster.Kubectl(t.Context(), "delete", "pools.quarry.storage", "node3."+pool)
		require.NoError(t, err)
		poolReady(t, "node3."+pool, "True")
	}
	for name, pv := range volumes {
		id, _ := whereIs(pv)
		phaseOf(t, id, "Lost")
		deletePod(t, ns, name)
		deleteClaim(t, ns, name)
		gone(t, pv)
	}
	claim(t, ns, "new", "quarry", "64Mi", onNode("node3"))
	gone(t, func() *corev1.PersistentVolume { pv := bound(t, ns, "new"); deleteClaim(t, ns, "new"); return pv }())
}

// TestClusterRebuilt wipes what Kubernetes knew: a new API server, and the old
// disks.
func TestClusterRebuilt(t *testing.T) {
	const ns = "rebuilt"
	makeNamespace := func() {
		_, err := kube.CoreV1().Namespaces().Create(t.Context(),
			&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns}}, metav1.CreateOptions{})
		require.NoError(t, err)
	}
	makeNamespace()
	t.Cleanup(func() { _, _ = cluster.Kubectl(contextForCleanup(), "delete", "namespace", ns) })
	type volume struct {
		pv    *corev1.PersistentVolume
		claim *corev1.PersistentVolumeClaim
	}
	volumes := map[string]volume{}
	for name, class := range map[string]string{"loop": "quarry", "directory": "quarry-directory", "csi": "quarry-csi",
		"retained": "quarry-retain"} {
		claim(t, ns, name, class, "64Mi", onNode("node2"), func(c *corev1.PersistentVolumeClaim) {
			c.Labels = map[string]string{"app": name}
		})
		pv := bound(t, ns, name)
		pod(t, ns, name, name, `echo `+name+` > /data/file; sync; `+idle)
		c, err := kube.CoreV1().PersistentVolumeClaims(ns).Get(t.Context(), name, metav1.GetOptions{})
		require.NoError(t, err)
		volumes[name] = volume{pv, c}
		deletePod(t, ns, name)
	}
	set := statefulSet(t, ns, "db", "quarry") // nobody makes its claim again but itself
	kubeSystem := clusterID(t)

	require.NoError(t, cluster.ResetControlPlane(t.Context()))
	require.NotEqual(t, kubeSystem, clusterID(t))
	require.NoError(t, loadSidecars(t.Context()))
	require.NoError(t, install(t.Context()))
	for _, node := range cluster.Nodes() {
		require.Equal(t, "Foreign", poolReady(t, node+".default", "False"), "a disk of another cluster is not "+
			"touched unasked")
	}

	plan := mustPlugin(t, "recover")
	require.Contains(t, plan, kubeSystem)
	require.Contains(t, plan, "--take-over")
	makeNamespace()
	mustPlugin(t, "recover", "--take-over", kubeSystem, "--apply", "--claims")
	for _, node := range cluster.Nodes() {
		poolReady(t, node+".default", "True")
	}
	for name, was := range volumes {
		now := bound(t, ns, name)
		require.Equal(t, was.pv.Name, now.Name)
		require.Equal(t, lasting(t, was.pv), lasting(t, now))
		c, err := kube.CoreV1().PersistentVolumeClaims(ns).Get(t.Context(), name, metav1.GetOptions{})
		require.NoError(t, err)
		require.Equal(t, was.claim.Labels, c.Labels)
		require.Equal(t, was.claim.Spec, c.Spec)
		pod(t, ns, name, name, idle)
		require.Equal(t, name, inPod(t, ns, name, "cat /data/file"))
	}
	p := statefulSet(t, ns, "db", "quarry")
	require.Equal(t, set.Spec.NodeName, p.Spec.NodeName)
	require.Equal(t, p.Spec.NodeName+"\n"+p.Spec.NodeName, inPod(t, ns, "db-0", "cat /data/nodes"))
	require.Contains(t, mustPlugin(t, "recover"), "There is nothing to do")

	// What was brought back lives on like everything else: it is deleted, or
	// kept, as its class said.
	_, err := cluster.Kubectl(t.Context(), "delete", "statefulset", "db", "-n", ns)
	require.NoError(t, err)
	db := bound(t, ns, "data-db-0")
	deleteClaim(t, ns, "data-db-0")
	gone(t, db)
	for name, was := range volumes {
		deletePod(t, ns, name)
		deleteClaim(t, ns, name)
		claimGone(t, ns, name)
		if name == "retained" {
			_, err := cluster.Kubectl(t.Context(), "patch", "pv", was.pv.Name, "-p",
				`{"spec":{"persistentVolumeReclaimPolicy":"Delete"}}`)
			require.NoError(t, err)
		}
		gone(t, was.pv)
	}
}

// clusterID is what a cluster is known by.
func clusterID(t testing.TB) string {
	t.Helper()
	ns, err := kube.CoreV1().Namespaces().Get(t.Context(), metav1.NamespaceSystem, metav1.GetOptions{})
	require.NoError(t, err)
	return string(ns.UID)
}

// lasting is what of a PersistentVolume has to be the same when it is written
// again from disk.
func lasting(t testing.TB, pv *corev1.PersistentVolume) string {
	t.Helper()
	spec := pv.Spec.DeepCopy()
	spec.ClaimRef = nil
	annotations := map[string]string{}
	for key, value := range pv.Annotations {
		if strings.HasPrefix(key, "quarry.storage/") && key != "quarry.storage/node-uid" { // the Node is another object
			annotations[key] = value
		}
	}
	if spec.CSI != nil {
		delete(spec.CSI.VolumeAttributes, "storage.kubernetes.io/csiProvisionerIdentity")
	}
	text, err := json.MarshalIndent(map[string]any{"spec": spec, "annotations": annotations}, "", " ")
	require.NoError(t, err)
	return string(text)
}
