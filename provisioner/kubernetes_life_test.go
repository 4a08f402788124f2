package provisioner

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

func testSelector(t *testing.T, k *cluster) {
	node := k.node("a")
	a := k.agent(node, "10Gi")
	class := k.class("wait", waitFirst, nil)
	gold := k.class("gold", waitFirst, map[string]string{"pool": "gold"})
	k.start()
	tier := func(tier string) func(*corev1.PersistentVolumeClaim) {
		return func(c *corev1.PersistentVolumeClaim) {
			c.Spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{"tier": tier}}
		}
	}
	claim := k.claim("data", class, "1Gi", node, tier("silver"))
	k.warned("data", "no pool that the class allows and the claim's selector (tier=silver) matches; no StorageClass "+
		"leads to nodes")
	require.Empty(t, k.volumes(claim))
	a.label("tier", "silver") // it is looked at again, and nobody gave the node away
	claim, pv := k.bound("data")
	require.Equal(t, "silver", pv.Labels["tier"])
	require.Equal(t, "default", pv.Labels[v1alpha1.LabelPool])
	v := k.volumes(claim)[0]
	require.Equal(t, "tier in (silver)", metav1.FormatLabelSelector(v.Spec.PoolSelector))

	// A class that leads only to pools that match is named.
	k.make(&v1alpha1.Pool{ObjectMeta: metav1.ObjectMeta{Name: node + ".gold",
		Labels: map[string]string{"tier": "gold", v1alpha1.LabelPool: "gold"}},
		Spec: v1alpha1.PoolSpec{NodeName: node, Pool: "gold"}})
	other := k.node("b")
	k.agent(other, "10Gi")
	k.claim("elsewhere", class, "1Gi", other, tier("gold"))
	k.warned("elsewhere", "a claim of StorageClass "+gold+" would find one")

	// Where no scheduler chose, a node is taken that has such a pool, though
	// another has more room.
	roomy := k.node("roomy")
	k.agent(roomy, "100Gi")
	k.claim("now", k.class("now", immediate, nil), "1Gi", "", tier("silver"))
	_, pv = k.bound("now")
	require.Equal(t, node, pv.Annotations[v1alpha1.AnnotationNode])
}

// testRecycle is a class whose deleted volumes are scrubbed: their space is the
// next claim's, and no PersistentVolume that nobody asked for holds it.
func testRecycle(t *testing.T, k *cluster) {
	node := k.node("a")
	a := k.agent(node, "1Gi")
	class := k.class("wait", waitFirst, map[string]string{"onDelete": "recycle"})
	other := k.class("other", waitFirst, nil)
	kill := k.start()
	k.claim("first", class, "1Gi", node)
	claim, pv := k.bound("first")
	old := k.volumes(claim)[0]
	require.Equal(t, v1alpha1.ScrubZero, old.Spec.Deletion.Scrub)
	a.set(func() { a.paused = true })
	require.NoError(t, k.Delete(t.Context(), claim))
	k.until("the wish to delete is recorded", func() string {
		return differs(k.volumes(claim)[0].Spec.DesiredState, v1alpha1.DesiredDeleted)
	})
	kill()
	a.set(func() { a.paused = false })
	k.start()
	k.gone(pv)
	k.gone(&old)

	// The pool was full, and its room is anybody's again.
	k.claim("second", other, "1Gi", node)
	_, again := k.bound("second")
	require.NotEqual(t, pv.Spec.Local.Path, again.Spec.Local.Path, "nothing that remembers the old volume may "+
		"meet the new one")
	var list corev1.PersistentVolumeList
	require.NoError(t, k.List(t.Context(), &list))
	for _, pv := range list.Items {
		require.NotEqual(t, class, pv.Spec.StorageClassName, "%s was offered", pv.Name)
	}
}

func testOrphan(t *testing.T, k *cluster) {
	node := k.node("a")
	k.agent(node, "10Gi")
	class := k.class("wait", waitFirst, nil)
	k.start(func(o *Options) { o.SweepGrace = 1 })
	k.claim("data", class, "1Gi", node)
	claim, pv := k.bound("data")
	v := k.volumes(claim)[0]
	require.Empty(t, v.Labels[v1alpha1.LabelOrphaned])

	// The usual rescue.
	base := pv.DeepCopy()
	pv.Spec.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimRetain
	require.NoError(t, k.Patch(t.Context(), pv, client.MergeFrom(base)))
	require.NoError(t, k.Delete(t.Context(), claim))
	k.until("released", func() string {
		require.NoError(t, k.Get(t.Context(), client.ObjectKeyFromObject(pv), pv))
		return differs(pv.Status.Phase, corev1.VolumeReleased)
	})
	require.NoError(t, k.Delete(t.Context(), pv))
	k.gone(pv)
	k.until("it is reported", func() string {
		require.NoError(t, k.Get(t.Context(), client.ObjectKeyFromObject(&v), &v))
		return differs(v.Labels[v1alpha1.LabelOrphaned], "true")
	})
	k.warned(v.Name, "kubectl quarry orphans restore "+v.Name)
	require.Equal(t, v1alpha1.DesiredPresent, v.Spec.DesiredState)

	// A person brings it back.
	back := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: base.Name, Annotations: base.Annotations},
		Spec: base.Spec}
	back.Spec.ClaimRef = nil
	k.make(back)
	k.until("it is reported no more", func() string {
		require.NoError(t, k.Get(t.Context(), client.ObjectKeyFromObject(&v), &v))
		return differs(v.Labels[v1alpha1.LabelOrphaned], "")
	})
}

// testFoundAtStart takes Volumes and PersistentVolumes away while no controller
// runs. What is left of each pair rests packed in the caches of the next one:
// all but the first of a kind, so there are some of each.
func testFoundAtStart(t *testing.T, k *cluster) {
	node := k.node("a")
	k.agent(node, "10Gi")
	class := k.class("wait", waitFirst, nil)
	kill := k.start()
	var lost, orphans []v1alpha1.Volume
	var left []*corev1.PersistentVolume
	for _, name := range []string{"lost-0", "lost-1", "lost-2", "rescued-0", "rescued-1", "rescued-2"} {
		k.claim(name, class, "1Gi", node)
		claim, pv := k.bound(name)
		v := k.volumes(claim)[0]
		base := v.DeepCopy()
		v.Spec.Published = true
		require.NoError(t, k.Patch(t.Context(), &v, client.MergeFrom(base)))
		if strings.HasPrefix(name, "lost") {
			lost = append(lost, v)
			continue
		}
		orphans = append(orphans, v)
		left = append(left, pv)
	}
	kill()

	for i := range lost {
		require.NoError(t, k.Delete(t.Context(), &lost[i]))
		k.gone(&lost[i])
	}
	for i, pv := range left {
		base := pv.DeepCopy()
		pv.Spec.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimRetain
		pv.Finalizers = nil
		require.NoError(t, k.Patch(t.Context(), pv, client.MergeFrom(base)))
		require.NoError(t, k.Delete(t.Context(), &corev1.PersistentVolumeClaim{
			ObjectMeta: metav1.ObjectMeta{Namespace: k.namespace, Name: fmt.Sprint("rescued-", i)},
		}))
		require.NoError(t, k.Delete(t.Context(), pv))
		k.gone(pv)
	}

	k.start(func(o *Options) { o.SweepGrace = 1 })
	for i := range lost {
		k.until("the Volume is back", func() string {
			var v v1alpha1.Volume
			if err := k.Get(t.Context(), client.ObjectKeyFromObject(&lost[i]), &v); err != nil {
				return err.Error()
			}
			return ""
		})
	}
	for i := range orphans {
		k.until("the volume without a PersistentVolume is reported", func() string {
			v := &orphans[i]
			require.NoError(t, k.Get(t.Context(), client.ObjectKeyFromObject(v), v))
			return differs(v.Labels[v1alpha1.LabelOrphaned], "true")
		})
	}
}

func testNodeLoss(t *testing.T, k *cluster) {
	lost := k.node("lost")
	k.agent(lost, "10Gi")
	class := k.class("wait", waitFirst, map[string]string{"onNodeLoss": "outOfServiceTaint"})
	never := k.class("never", waitFirst, nil)
	kill := k.start() // without the consent
	k.statefulSet("db", class)
	k.statefulSet("cautious", never)
	claim, pv := k.bound("data-db-0")
	cautious, _ := k.bound("data-cautious-0")
	k.until("its pod is on the node", func() string {
		var pod corev1.Pod
		require.NoError(t, k.Get(t.Context(), client.ObjectKey{Namespace: k.namespace, Name: "db-0"}, &pod))
		return differs(pod.Spec.NodeName, lost)
	})

	other := k.node("other")
	k.agent(other, "10Gi")
	var node corev1.Node
	require.NoError(t, k.Get(t.Context(), client.ObjectKey{Name: lost}, &node))
	node.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionUnknown,
		LastTransitionTime: metav1.NewTime(time.Now().Add(-time.Hour))}}
	require.NoError(t, k.Status().Update(t.Context(), &node))
	require.NoError(t, k.Get(t.Context(), client.ObjectKey{Name: lost}, &node))
	node.Spec.Taints = append(node.Spec.Taints, corev1.Taint{Key: taintOutOfService, Value: "nodeshutdown",
		Effect: corev1.TaintEffectNoExecute})
	require.NoError(t, k.Update(t.Context(), &node))
	k.warned("data-db-0", "the installation does not allow it; set nodeLoss.enabled")
	require.NoError(t, k.Get(t.Context(), client.ObjectKeyFromObject(claim), claim))
	require.Nil(t, claim.DeletionTimestamp)
	kill()

	k.start(func(o *Options) { o.NodeLoss = true })
	var again corev1.PersistentVolumeClaim
	k.until("the claim starts over elsewhere", func() string {
		err := k.Get(t.Context(), client.ObjectKeyFromObject(claim), &again)
		if err != nil {
			return err.Error()
		}
		if again.UID == claim.UID {
			return "it is the old one; " + k.events("data-db-0")
		}
		return differs(again.Status.Phase, corev1.ClaimBound)
	})
	require.Equal(t, other, again.Annotations[annSelectedNode])
	k.warned(pv.Name, "claim "+k.namespace+"/data-db-0 starts over elsewhere, and the data stays")
	require.NoError(t, k.Get(t.Context(), client.ObjectKeyFromObject(pv), pv))
	require.Equal(t, corev1.PersistentVolumeReclaimRetain, pv.Spec.PersistentVolumeReclaimPolicy)
	require.Equal(t, v1alpha1.DesiredPresent, k.volumes(claim)[0].Spec.DesiredState)
	require.NoError(t, k.Get(t.Context(), client.ObjectKeyFromObject(cautious), cautious))
	require.Nil(t, cautious.DeletionTimestamp, "a class that says nothing loses nothing")
}

// statefulSet makes one of one replica, with a claim template "data" of 1Gi.
func (k *cluster) statefulSet(name, class string) {
	k.t.Helper()
	labels := map[string]string{"app": name}
	s := &appsv1.StatefulSet{ObjectMeta: claimMeta(name, k), Spec: appsv1.StatefulSetSpec{
		Replicas: new(int32(1)), ServiceName: name, Selector: &metav1.LabelSelector{MatchLabels: labels},
		Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{
			NodeSelector: map[string]string{"test": k.namespace},
			Containers: []corev1.Container{{Name: "c", Image: "c",
				VolumeMounts: []corev1.VolumeMount{{Name: "data", MountPath: "/data"}}}}}},
		VolumeClaimTemplates: []corev1.PersistentVolumeClaim{{ObjectMeta: metav1.ObjectMeta{Name: "data"},
			Spec: corev1.PersistentVolumeClaimSpec{
				StorageClassName: &class, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
				Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{
					corev1.ResourceStorage: resource.MustParse("1Gi")}}}}},
	}}
	k.make(s)
	k.t.Cleanup(func() { _ = k.Delete(context.Background(), s) })
	k.until("the claim is made", func() string {
		if err := k.Get(k.t.Context(), client.ObjectKey{Namespace: k.namespace, Name: "data-" + name + "-0"},
			&corev1.PersistentVolumeClaim{}); err != nil {
			return err.Error()
		}
		return ""
	})
}
