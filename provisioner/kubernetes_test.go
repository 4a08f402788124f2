package provisioner

import (
	"context"
	"fmt"
	"testing"

	"github.com/go-logr/logr"
	"github.com/stretchr/testify/require"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/provisioner/internal/controlplane"
)

const (
	immediate = storagev1.VolumeBindingImmediate
	waitFirst = storagev1.VolumeBindingWaitForFirstConsumer
)

// TestKubernetes runs the provisioner against a real API server, controller
// manager and scheduler.
func TestKubernetes(t *testing.T) {
	cp := controlplane.Start(t, "../charts/quarry/crds")
	cp.Kubectl(t, "apply", "-f", "testdata/rbac.yaml")
	ctrllog.SetLogger(logr.Discard())
	for _, test := range []struct {
		name string
		run  func(t *testing.T, k *cluster)
	}{
		{"a pod's claim is bound on the pod's node, and deleted", testPodClaim},
		{"an Immediate class takes the node with the most room", testImmediate},
		{"a claim without a pod keeps its node when it is refused, and is woken by room", testRefusedWithoutPod},
		{"a claim waits for a node's agent", testAgentDown},
		{"bad claims and classes are explained", testBadInput},
		{"a crash and a deleted claim leak nothing", testCrash},
		{"a lost record is written again", testHeal},
		{"a volume in use is deleted when it is free", testInUse},
		{"a Retain policy set late is honoured, trash is not purged", testRetainAndTrash},
		{"a claim survives its node", testNodeGone},
		{"a pod goes where there is room", testCapacity},
		{"the claims of one pod are admitted together", testGroup},
		{"a claim grows, and recovers from growing too far", testExpansion},
		{"a pod that cannot be scheduled holds up no other pod's claim", testGroupOfAnotherPod},
		{"a pod with two claims goes where there is room for both", testTwoClaims},
		{"a node that fails is left alone", testFailing},
		{"the autoscaler is told of nodes to come", testTemplate},
		{"a pod that goes past the scheduler is pointed out", testBypassed},
		{"what cannot succeed is not woken by pools", testNoWaking},
		{"a pool's path changes", testPathChanged},
		{"a claim cannot leave its class's topologies", testTopologies},
		{"many claims race for little room", testRace},
		{"two controllers make one volume", testTwoControllers},
		{"a claim's selector chooses the pool", testSelector},
		{"a deleted volume's space is anybody's once it is scrubbed", testRecycle},
		{"a rescued volume is reported and kept", testOrphan},
		{"what was lost while nobody led is found at the start", testFoundAtStart},
		{"a StatefulSet's claim starts over when its node is lost", testNodeLoss},
		{"a forged PersistentVolume deletes nothing", testForged},
		{"the CSI front door", testCSI},
		{"the other replica takes over", testTakeOver},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, newCluster(t, cp)) })
	}
}

func testPodClaim(t *testing.T, k *cluster) {
	node := k.node("a")
	k.agent(node, "10Gi")
	class := k.class("wait", waitFirst, map[string]string{"backend": "loop", "fsType": "ext4"})
	k.start()
	k.claim("data", class, "1Gi", "")
	k.pod("user", "data")
	claim, pv := k.bound("data")

	records := k.volumes(claim)
	require.Len(t, records, 1)
	v := records[0]
	require.True(t, isServed(&v))
	require.Equal(t, pv.Name+"-1", v.Name)
	require.Equal(t, v.Status.Path, pv.Spec.Local.Path)
	require.Equal(t, "ext4", *pv.Spec.Local.FSType)
	require.Equal(t, []string{"noatime"}, pv.Spec.MountOptions)
	require.Equal(t, []string{"host-" + node},
		pv.Spec.NodeAffinity.Required.NodeSelectorTerms[0].MatchExpressions[0].Values)
	require.Equal(t, node, pv.Annotations[v1alpha1.AnnotationNode])
	require.Equal(t, "1Gi", pv.Spec.Capacity.Storage().String())

	zero := int64(0)
	require.NoError(t, k.Delete(t.Context(), &corev1.Pod{ObjectMeta: claimMeta("user", k)},
		&client.DeleteOptions{GracePeriodSeconds: &zero}))
	require.NoError(t, k.Delete(t.Context(), claim))
	k.gone(pv)
	k.gone(&v)
}

func testImmediate(t *testing.T, k *cluster) {
	small, large := k.node("small"), k.node("large")
	k.agent(small, "2Gi")
	k.agent(large, "20Gi")
	class := k.class("now", immediate, nil)
	k.start()
	block := func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeMode = new(corev1.PersistentVolumeBlock) }
	k.claim("data", class, "1Gi", "", block)
	claim, pv := k.bound("data")
	require.Equal(t, large, pv.Annotations[v1alpha1.AnnotationNode])
	require.Equal(t, corev1.PersistentVolumeBlock, *pv.Spec.VolumeMode)
	require.Nil(t, pv.Spec.Local.FSType)
	require.NoError(t, k.Delete(t.Context(), claim))
	k.gone(pv)
}

func testRefusedWithoutPod(t *testing.T, k *cluster) {
	node := k.node("a")
	a := k.agent(node, "1Gi")
	class := k.class("wait", waitFirst, nil)
	k.start()
	claim := k.claim("data", class, "5Gi", node)
	k.warned("data", "no pool has room for 5Gi")
	require.NoError(t, k.Get(t.Context(), client.ObjectKeyFromObject(claim), claim))
	require.Equal(t, node, claim.Annotations[annSelectedNode], "nothing would ever choose a node again")
	k.until("the refused attempt is gone", func() string {
		if n := len(k.volumes(claim)); n != 0 {
			return "records left"
		}
		return ""
	})
	a.set(func() { a.size = 10 << 30 })
	k.bound("data")
}

func testAgentDown(t *testing.T, k *cluster) {
	node := k.node("a")
	k.agent(node, "10Gi")
	k.agentReady(node, false)
	class := k.class("wait", waitFirst, nil)
	k.start()
	claim := k.claim("data", class, "1Gi", node)
	k.warned("data", "waiting for the Quarry agent on node "+node)
	require.Empty(t, k.volumes(claim), "nothing is written before somebody can act on it")
	k.agentReady(node, true)
	_, pv := k.bound("data")

	k.agentReady(node, false)
	require.NoError(t, k.Delete(t.Context(), claim))
	k.warned(pv.Name, "waiting for the Quarry agent on node "+node)
	k.agentReady(node, true)
	k.gone(pv)
}

func testBadInput(t *testing.T, k *cluster) {
	node := k.node("a")
	k.agent(node, "10Gi")
	good := k.class("good", waitFirst, nil)
	bad := k.class("bad", waitFirst, map[string]string{"backnd": "loop"})
	k.start()
	k.claim("many", good, "1Gi", node, func(c *corev1.PersistentVolumeClaim) {
		c.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteMany}
	})
	k.warned("many", "accessModes: ReadWriteMany is not possible")
	k.claim("copy", good, "1Gi", node, func(c *corev1.PersistentVolumeClaim) {
		c.Spec.DataSource = &corev1.TypedLocalObjectReference{Kind: "PersistentVolumeClaim", Name: "other"}
	})
	k.warned("copy", "volumes are made empty")
	claim := k.claim("typo", bad, "1Gi", node)
	k.warned("typo", `"backnd": is not known (did you mean "backend"?)`)

	// The cause goes away: the class is made again, right this time, and
	// nothing else happens.
	require.NoError(t, k.Delete(t.Context(), &storagev1.StorageClass{ObjectMeta: clusterMeta(bad)}))
	k.class("bad", waitFirst, map[string]string{"backend": "loop"})
	k.bound(claim.Name)
}

func testCrash(t *testing.T, k *cluster) {
	node := k.node("a")
	a := k.agent(node, "10Gi")
	a.set(func() { a.paused = true })
	class := k.class("wait", waitFirst, nil)
	kill := k.start()
	claim := k.claim("data", class, "1Gi", node)
	k.until("the attempt is recorded", func() string {
		if len(k.volumes(claim)) == 1 {
			return ""
		}
		return "no record"
	})
	kill()
	require.NoError(t, k.Delete(t.Context(), claim))
	k.gone(&corev1.PersistentVolumeClaim{ObjectMeta: claimMeta("data", k)})
	a.set(func() { a.paused = false })
	v := k.volumes(claim)[0]
	k.start(func(o *Options) { o.SweepGrace = 1 })
	k.gone(&v)
	require.Empty(t, a.held)
}

func testHeal(t *testing.T, k *cluster) {
	node := k.node("a")
	k.agent(node, "10Gi")
	class := k.class("wait", waitFirst, map[string]string{"onDelete": "trash", "mode": "0750"})
	k.start()
	k.claim("data", class, "1Gi", node)
	claim, _ := k.bound("data")
	before := k.volumes(claim)[0]
	require.NoError(t, k.Delete(t.Context(), &before))
	var after v1alpha1.Volume
	k.until("the record is back", func() string {
		if err := k.Get(t.Context(), client.ObjectKeyFromObject(&before), &after); err != nil {
			return err.Error()
		}
		if after.UID == before.UID {
			return "the old one is still there"
		}
		return ""
	})
	require.True(t, sameWish(&after.Spec, &before.Spec), "%+v\n%+v", after.Spec, before.Spec)
	require.True(t, after.Spec.Published)
	require.Equal(t, before.Spec.Deletion, after.Spec.Deletion)
	require.Equal(t, v1alpha1.DesiredPresent, after.Spec.DesiredState)

	// The CRDs with all that is in them, by mistake; and back, by installing
	// again.
	k.cp.Kubectl(t, "delete", "crd", "volumes.quarry.storage")
	k.cp.Kubectl(t, "apply", "-f", "../charts/quarry/crds")
	k.until("the record is back", func() string {
		if err := k.Get(t.Context(), client.ObjectKeyFromObject(&before), &after); err != nil {
			return err.Error()
		}
		return ""
	})
	require.True(t, after.Spec.Published)
}

func testInUse(t *testing.T, k *cluster) {
	node := k.node("a")
	a := k.agent(node, "10Gi")
	class := k.class("wait", waitFirst, nil)
	k.start()
	k.claim("data", class, "1Gi", node)
	claim, pv := k.bound("data")
	v := k.volumes(claim)[0]
	a.set(func() { a.inUse[v.Name] = true })
	require.NoError(t, k.Delete(t.Context(), claim))
	k.warned(pv.Name, "is still in use: mounted by pod x")
	a.set(func() { delete(a.inUse, v.Name) })
	k.gone(pv)
	k.gone(&v)
}

func testRetainAndTrash(t *testing.T, k *cluster) {
	node := k.node("a")
	k.agent(node, "10Gi")
	class := k.class("wait", waitFirst, map[string]string{"onDelete": "trash"})
	k.start()
	k.claim("kept", class, "1Gi", node)
	claim, pv := k.bound("kept")
	pv.Spec.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimRetain
	require.NoError(t, k.Update(t.Context(), pv))
	k.until("the record follows", func() string { return differs(k.volumes(claim)[0].Spec.ReclaimPolicy, "Retain") })
	require.NoError(t, k.Delete(t.Context(), claim))
	k.until("the PersistentVolume is released", func() string {
		require.NoError(t, k.Get(t.Context(), client.ObjectKeyFromObject(pv), pv))
		return differs(pv.Status.Phase, corev1.VolumeReleased)
	})

	k.claim("trashed", class, "1Gi", node)
	other, gone := k.bound("trashed")
	require.NoError(t, k.Delete(t.Context(), other))
	k.gone(gone)
	require.Equal(t, v1alpha1.DesiredTrashed, k.volumes(other)[0].Spec.DesiredState)
	require.Equal(t, v1alpha1.DesiredPresent, k.volumes(claim)[0].Spec.DesiredState)
}

func testNodeGone(t *testing.T, k *cluster) {
	lost, other := k.node("lost"), k.node("other")
	a := k.agent(lost, "10Gi")
	k.agent(other, "10Gi")
	class := k.class("wait", waitFirst, nil)
	k.start()

	// A half-made volume on a node that vanishes: with a pod the claim moves
	// on.
	a.set(func() { a.paused = true })
	claim := k.claim("moves", class, "1Gi", lost)
	k.until("the attempt is recorded", func() string { return differs(len(k.volumes(claim)), 1) })
	k.claim("stays", class, "1Gi", lost)
	bystander := k.claim("bystander", class, "1Gi", lost)
	k.until("the attempt is recorded", func() string { return differs(len(k.volumes(bystander)), 1) })
	require.NoError(t, k.Delete(context.Background(), &corev1.Node{ObjectMeta: clusterMeta(lost)}))
	require.NoError(t, k.Delete(context.Background(), &corev1.Pod{ObjectMeta: agentMeta(lost)},
		&client.DeleteOptions{GracePeriodSeconds: new(int64)}))
	k.pod("user", "moves")
	_, pv := k.bound("moves")
	require.Equal(t, other, pv.Annotations[v1alpha1.AnnotationNode])
	k.warned("stays", "node "+lost+" does not exist")
	var stays corev1.PersistentVolumeClaim
	require.NoError(t, k.Get(t.Context(), client.ObjectKey{Namespace: k.namespace, Name: "stays"}, &stays))
	require.Equal(t, lost, stays.Annotations[annSelectedNode])
	states := map[string]v1alpha1.DesiredState{}
	for _, v := range k.volumes(claim) {
		states[v.Spec.NodeName] = v.Spec.DesiredState
	}
	require.Equal(t, map[string]v1alpha1.DesiredState{lost: v1alpha1.DesiredDeleted, other: v1alpha1.DesiredPresent},
		states)
}

// testRace: everything the scheduler believes is wrong at once; the agents
// decide, and nothing is lost on the way.
func testTwoControllers(t *testing.T, k *cluster) {
	node := k.node("a")
	k.agent(node, "100Gi")
	class := k.class("wait", waitFirst, nil)
	k.start()
	k.start()
	const claims = 20
	for i := range claims {
		k.claim(fmt.Sprintf("data-%d", i), class, "1Gi", node)
	}
	for i := range claims {
		claim, pv := k.bound(fmt.Sprintf("data-%d", i))
		records := k.volumes(claim)
		require.Len(t, records, 1)
		require.Equal(t, records[0].Name, pv.Annotations[v1alpha1.AnnotationVolume])
		require.True(t, isServed(&records[0]))
	}
}

func testForged(t *testing.T, k *cluster) {
	node := k.node("a")
	k.agent(node, "10Gi")
	class := k.class("wait", waitFirst, nil)
	k.start()
	k.claim("victim", class, "1Gi", node)
	claim, pv := k.bound("victim")
	v := k.volumes(claim)[0]

	for name, volume := range map[string]string{
		"names-a-record":    v.Name,
		"names-a-lost-one":  "pvc-00000000-0000-0000-0000-000000000000-1",
		"leaves-the-pool-1": "leaves-the-pool-1",
	} {
		forged := pv.DeepCopy()
		forged.ObjectMeta = clusterMeta(k.name(name))
		forged.Annotations = map[string]string{annProvisionedBy: v1alpha1.LocalProvisioner,
			v1alpha1.AnnotationVolume: volume, v1alpha1.AnnotationNode: node}
		forged.Spec.ClaimRef = &corev1.ObjectReference{Kind: "PersistentVolumeClaim", Namespace: k.namespace,
			Name: "nobody", UID: types.UID(name)}
		forged.Status = corev1.PersistentVolumeStatus{}
		k.make(forged)
		k.warned(forged.Name, "is not the one its volume was made for")
	}
	require.NoError(t, k.Get(t.Context(), client.ObjectKeyFromObject(&v), &v))
	require.Equal(t, v1alpha1.DesiredPresent, v.Spec.DesiredState)
	k.gone(&v1alpha1.Volume{ObjectMeta: clusterMeta("pvc-00000000-0000-0000-0000-000000000000-1")})
	k.cp.Kubectl(t, "delete", "pv", "--wait=false", k.name("names-a-record"), k.name("names-a-lost-one"),
		k.name("leaves-the-pool-1"))
}

func testTakeOver(t *testing.T, k *cluster) {
	node := k.node("a")
	a := k.agent(node, "10Gi")
	a.set(func() { a.paused = true })
	class := k.class("wait", waitFirst, nil)
	elected := func(o *Options) { o.NoLeaderElection = false }
	leader := func() string {
		var lease coordinationv1.Lease
		err := k.Get(t.Context(), client.ObjectKey{Namespace: systemNamespace, Name: "quarry-controller"}, &lease)
		if err != nil || lease.Spec.HolderIdentity == nil {
			return ""
		}
		return *lease.Spec.HolderIdentity
	}
	kill := k.start(elected)
	k.until("the first leads", func() string { return differs(leader() != "", true) })
	first := leader()
	k.start(elected)
	claim := k.claim("data", class, "1Gi", node)
	k.until("the attempt is recorded", func() string { return differs(len(k.volumes(claim)), 1) })
	kill() // in the middle of it
	k.until("the second leads", func() string { return differs(leader() != "" && leader() != first, true) })
	a.set(func() { a.paused = false })
	_, pv := k.bound("data")
	require.Equal(t, k.volumes(claim)[0].Name, pv.Annotations[v1alpha1.AnnotationVolume])
	require.Len(t, k.volumes(claim), 1, "the second went on with the first one's attempt")
}
