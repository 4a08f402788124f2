package provisioner

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

// testGroupOfAnotherPod is a claim of two pods: the older one cannot be
// scheduled, so its other claim never gets a node.
func testGroupOfAnotherPod(t *testing.T, k *cluster) {
	k.agent(k.node("a"), "10Gi")
	class := k.class("wait", waitFirst, nil)
	k.start()
	shared := k.claim("shared", class, "1Gi", "")
	k.claim("cache", class, "1Gi", "")
	k.podThat("stuck", func(p *corev1.Pod) {
		p.Spec.Containers[0].Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1000")}
	}, "shared", "cache")
	k.until("the scheduler has looked at the pod that it cannot place", func() string {
		var pod corev1.Pod
		require.NoError(t, k.Get(t.Context(), client.ObjectKey{Namespace: k.namespace, Name: "stuck"}, &pod))
		return differs(len(pod.Status.Conditions), 1)
	})
	k.pod("runs", "shared")
	k.bound("shared")
	require.Nil(t, k.volumes(shared)[0].Spec.Admission)
}

// testNoWaking is a claim of a class that nobody can serve: what happens to
// pools is nothing to it.
func testNoWaking(t *testing.T, k *cluster) {
	node := k.node("a")
	a := k.agent(node, "1Gi")
	bad := k.class("bad", waitFirst, map[string]string{"backend": "directory", "enforcement": "strict"})
	good := k.class("good", waitFirst, nil)
	k.start()
	k.claim("never", bad, "1Gi", node)
	k.warned("never", "directory cannot hold a size against a hostile tenant")
	for _, name := range []string{"one", "two", "three"} {
		k.claim(name, good, "2Gi", node)
		k.warned(name, "no pool has room for 2Gi")
		a.set(func() { a.size += 2 << 30 })
		k.bound(name) // so the room that came has woken who waits for room
	}
	var list corev1.EventList
	require.NoError(t, k.List(t.Context(), &list, client.InNamespace(k.namespace)))
	tries := 0
	for _, e := range list.Items {
		if e.InvolvedObject.Name == "never" && e.Reason == "Provisioning" {
			tries += int(max(e.Count, 1))
		}
	}
	require.Equal(t, 1, tries)
}

// podThat makes a pod that uses claims.
func (k *cluster) podThat(name string, change func(*corev1.Pod), claims ...string) {
	k.t.Helper()
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: k.namespace},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "c"}},
			NodeSelector: map[string]string{"test": k.namespace}}}
	for _, c := range claims {
		p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: c, VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: c}}})
	}
	change(p)
	k.make(p)
}

// driver has the scheduler heed the capacity of classic volumes, once it is
// published.
func (k *cluster) driver() {
	k.t.Helper()
	driver := &storagev1.CSIDriver{ObjectMeta: clusterMeta(v1alpha1.LocalProvisioner),
		Spec: storagev1.CSIDriverSpec{AttachRequired: new(false)}}
	k.make(driver)
	k.t.Cleanup(func() { _ = k.Delete(context.Background(), driver) })
}

// heeded waits until it does.
func (k *cluster) heeded() {
	k.t.Helper()
	k.until("the scheduler heeds capacity", func() string {
		var driver storagev1.CSIDriver
		require.NoError(k.t, k.Get(k.t.Context(), client.ObjectKey{Name: v1alpha1.LocalProvisioner}, &driver))
		return differs(driver.Spec.StorageCapacity != nil && *driver.Spec.StorageCapacity, true)
	})
}

// testTwoClaims is a pod with two claims. Two nodes have room for either and
// not for both, and the scheduler likes them better than the third, which has
// room for both.
func testTwoClaims(t *testing.T, k *cluster) {
	k.driver()
	k.agent(k.node("a"), "8Gi")
	k.agent(k.node("b"), "8Gi")
	roomy := k.node("roomy")
	k.agent(roomy, "20Gi")
	class := k.class("wait", waitFirst, nil)
	k.start()
	k.heeded()
	k.podThat("busy", func(p *corev1.Pod) {
		p.Spec.NodeName = roomy
		p.Spec.Containers[0].Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("7"),
			corev1.ResourceMemory: resource.MustParse("7Gi")}
	})
	k.claim("one", class, "6Gi", "")
	k.claim("two", class, "6Gi", "")
	k.pod("user", "one", "two")
	for _, name := range []string{"one", "two"} {
		_, pv := k.bound(name)
		require.Equal(t, roomy, pv.Annotations[v1alpha1.AnnotationNode])
	}
	k.until("the other nodes are offered as they are again, since nobody waits", func() string {
		var list storagev1.CSIStorageCapacityList
		require.NoError(t, k.List(t.Context(), &list, client.InNamespace(systemNamespace)))
		for _, c := range list.Items {
			if c.StorageClassName == class && c.Annotations[v1alpha1.AnnotationHold] != "" {
				return c.Annotations[v1alpha1.AnnotationHold]
			}
		}
		return ""
	})
}

// testFailing is a node that cannot make volumes: what it refuses goes
// elsewhere, and it is not asked again at once, by another claim or by another
// leader.
func testFailing(t *testing.T, k *cluster) {
	k.driver()
	bad, good := k.node("bad"), k.node("good")
	a := k.agent(bad, "100Gi")
	a.set(func() { a.fail = "read-only file system" })
	k.agent(good, "10Gi")
	class := k.class("wait", waitFirst, nil)
	kill := k.start()
	k.heeded()
	k.claim("data", class, "1Gi", bad) // as the scheduler might have it
	k.pod("user", "data")
	_, pv := k.bound("data")
	require.Equal(t, good, pv.Annotations[v1alpha1.AnnotationNode])

	kill()
	k.start()
	k.podThat("busy", func(p *corev1.Pod) { // so that the scheduler would like the other one better
		p.Spec.NodeName = good
		p.Spec.Containers[0].Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("7"),
			corev1.ResourceMemory: resource.MustParse("7Gi")}
	})
	k.claim("more", class, "1Gi", "")
	k.pod("user-of-more", "more")
	_, pv = k.bound("more")
	require.Equal(t, good, pv.Annotations[v1alpha1.AnnotationNode])
	a.mu.Lock()
	defer a.mu.Unlock()
	require.Equal(t, 1, a.refused)
}

// testTemplate is what the autoscaler is told of nodes that do not exist yet,
// and the switch that has the scheduler ignore all.
func testTemplate(t *testing.T, k *cluster) {
	k.driver()
	k.agent(k.node("a"), "1Gi")
	class := k.class("wait", waitFirst, nil)
	k.class("now", immediate, nil)
	templates := func() []storagev1.CSIStorageCapacity {
		var list, found storagev1.CSIStorageCapacityList
		require.NoError(t, k.List(t.Context(), &list, client.InNamespace(systemNamespace)))
		for _, c := range list.Items {
			if c.NodeTopology.MatchLabels["cluster-autoscaler.kubernetes.io/template-node"] == "true" {
				found.Items = append(found.Items, c)
			}
		}
		return found.Items
	}
	kill := k.start(func(o *Options) { o.TemplateNodeSize = 100 << 30 })
	k.heeded()
	k.until("a node to come is published", func() string { return differs(len(templates()), 1) })
	require.Equal(t, class, templates()[0].StorageClassName)
	require.Equal(t, "100Gi", templates()[0].MaximumVolumeSize.String())
	require.Equal(t, "100Gi", templates()[0].Capacity.String())

	kill()
	k.start(func(o *Options) { o.IgnoreCapacity = true })
	k.until("it is published no more", func() string { return differs(len(templates()), 0) })
	k.until("the scheduler ignores capacity", func() string {
		var driver storagev1.CSIDriver
		require.NoError(t, k.Get(t.Context(), client.ObjectKey{Name: v1alpha1.LocalProvisioner}, &driver))
		return differs(driver.Spec.StorageCapacity != nil && *driver.Spec.StorageCapacity, false)
	})
}

// testBypassed is a pod that names its node itself: no scheduler ever chooses
// the node of its claim.
func testBypassed(t *testing.T, k *cluster) {
	node := k.node("a")
	k.agent(node, "10Gi")
	class := k.class("wait", waitFirst, nil)
	k.start()
	k.claim("data", class, "1Gi", "")
	k.podThat("bypasses", func(p *corev1.Pod) { p.Spec.NodeName = node }, "data")
	k.warned("data", "pod bypasses names node "+node+" itself")
}
