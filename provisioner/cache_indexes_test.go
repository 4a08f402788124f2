package provisioner

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

// counted is a client over a fake cluster with the cache's indexes, and the
// number of objects that were listed through it, by kind.
type counted struct {
	client.Client
	mu     sync.Mutex
	seen   map[string]int
	listed map[string]int
}

func newCounted(t *testing.T, objects ...client.Object) *counted {
	scheme, err := NewScheme()
	require.NoError(t, err)
	c := &counted{}
	c.reset()
	b := fake.NewClientBuilder().WithScheme(scheme).WithObjects(objects...).WithInterceptorFuncs(interceptor.Funcs{
		List: func(ctx context.Context, w client.WithWatch, list client.ObjectList, opts ...client.ListOption) error {
			err := w.List(ctx, list, opts...)
			c.mu.Lock()
			defer c.mu.Unlock()
			c.seen[fmt.Sprintf("%T", list)] += meta.LenList(list)
			c.listed[fmt.Sprintf("%T", list)]++
			return err
		}})
	for _, index := range cacheIndexes {
		b.WithIndex(index.object, index.field, index.of)
	}
	b.WithIndex(&corev1.Pod{}, "spec.nodeName", func(o client.Object) []string {
		return []string{o.(*corev1.Pod).Spec.NodeName}
	})
	c.Client = b.Build()
	return c
}

func (c *counted) reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen, c.listed = map[string]int{}, map[string]int{}
}

// TestWhatLeadsToAVolumeIsFoundByIndex: neither a deletion nor the look for
// orphans goes through the cluster's PersistentVolumes.
func TestWhatLeadsToAVolumeIsFoundByIndex(t *testing.T) {
	var objects []client.Object
	for i := range 500 {
		objects = append(objects, pvForIndex(fmt.Sprint("x", i), "node"))
	}
	byHand := func(name, path string) *corev1.PersistentVolume {
		return &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: name},
			Status: corev1.PersistentVolumeStatus{Phase: corev1.VolumeBound},
			Spec: corev1.PersistentVolumeSpec{PersistentVolumeSource: corev1.PersistentVolumeSource{
				Local: &corev1.LocalVolumeSource{Path: path}}}}
	}
	byHandle := func(name, handle string) *corev1.PersistentVolume {
		return &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: name},
			Status: corev1.PersistentVolumeStatus{Phase: corev1.VolumeBound},
			Spec: corev1.PersistentVolumeSpec{PersistentVolumeSource: corev1.PersistentVolumeSource{
				CSI: &corev1.CSIPersistentVolumeSource{Driver: v1alpha1.CSIDriver, VolumeHandle: handle}}}}
	}
	forged := pvForIndex("forged", "node")
	forged.Annotations[v1alpha1.AnnotationVolume] = "pvc-victim-1"
	objects = append(objects, byHand("rescued", "/volumes/pvc-a-1/mount/data"), byHandle("imported", "pvc-b-1"),
		byHand("adopted", "/srv/old"),
		byHand("device", "/run/quarry/dev/pvc-c-1"), byHand("named", "/volumes/by-hand/data"), forged)
	c := newCounted(t, objects...)
	adopt := &v1alpha1.Adoption{Path: "/srv/old"}
	for _, test := range []struct {
		volume string
		adopt  *v1alpha1.Adoption
		want   []string
	}{
		{"pvc-a-1", nil, []string{"rescued"}}, {"pvc-b-1", nil, []string{"imported"}},
		{"pvc-c-1", nil, []string{"device"}},
		{"pvc-z-1", adopt, []string{"adopted"}}, {"by-hand", nil, []string{"named"}},
		{"pvc-victim-1", nil, []string{"pvc-forged"}},
		{"pvc-x7-1", nil, []string{"pvc-x7"}}, {"pvc-x7-2", nil, nil}, {"pvc-none-1", nil, nil},
	} {
		v := &v1alpha1.Volume{ObjectMeta: metav1.ObjectMeta{Name: test.volume},
			Spec: v1alpha1.VolumeSpec{Adopt: test.adopt}}
		// The same as a look at every one of them gives.
		var all corev1.PersistentVolumeList
		require.NoError(t, c.List(t.Context(), &all))
		var slow []string
		for i := range all.Items {
			if LeadsTo(&all.Items[i], v) {
				slow = append(slow, all.Items[i].Name)
			}
		}
		require.ElementsMatch(t, test.want, slow, test.volume)
		c.reset()
		found, err := leadingTo(t.Context(), c, v)
		require.NoError(t, err)
		var names []string
		for _, pv := range found {
			names = append(names, pv.Name)
		}
		require.ElementsMatch(t, test.want, names, test.volume)
		require.LessOrEqual(t, c.seen["*v1.PersistentVolumeList"], 2, test.volume)
	}
}

// TestManyClaimsAreAdvisedByOneLook: claims that wait share a look at the nodes
// and one at their namespace's pods.
func TestManyClaimsAreAdvisedByOneLook(t *testing.T) {
	const nodes, claims = 200, 1000
	wait := storagev1.VolumeBindingWaitForFirstConsumer
	objects := []client.Object{&storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "class"},
		Provisioner: v1alpha1.LocalProvisioner, VolumeBindingMode: &wait}}
	agents := &agentWatch{}
	for i := range nodes {
		name := fmt.Sprint("node-", i)
		node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
		node.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
		pool := &v1alpha1.Pool{ObjectMeta: metav1.ObjectMeta{Name: name + ".default"},
			Spec: v1alpha1.PoolSpec{NodeName: name, Pool: "default"}}
		pool.Status.MaximumVolumeSize, pool.Status.Available = resource.NewQuantity(1<<30, resource.BinarySI),
			resource.NewQuantity(1<<30, resource.BinarySI)
		pool.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue}}
		objects = append(objects, node, pool)
		agents.OnAdd(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "agent-" + name},
			Spec: corev1.PodSpec{NodeName: name},
			Status: corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.PodReady,
				Status: corev1.ConditionTrue}}}}, false)
	}
	var names []string
	for i := range claims {
		size := resource.MustParse("1Ti")
		if i%2 == 1 {
			size = resource.MustParse("1Gi") // fits
		}
		name := fmt.Sprint("claim-", i)
		names = append(names, name)
		objects = append(objects, &corev1.PersistentVolumeClaim{
			ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: "u",
				CreationTimestamp: metav1.NewTime(time.Now().Add(-time.Minute))},
			Spec: corev1.PersistentVolumeClaimSpec{StorageClassName: new("class"),
				Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{
					corev1.ResourceStorage: size}}}})
	}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "pod"}}
	for _, name := range []string{"claim-0", "claim-1"} {
		pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: name}}})
	}
	c := newCounted(t, append(objects, pod)...)
	metrics, err := NewMetrics(prometheus.NewRegistry())
	require.NoError(t, err)
	recorder := events.NewFakeRecorder(claims)
	now := time.Now()
	l := &frontDoor{client: c, live: c, agents: agents, events: recorder, metrics: metrics}
	a := &unschedulableReporter{door: l, now: func() time.Time {
		return now
	}, surveys: &surveyCache{door: l, now: func() time.Time { return now }}}
	for round := range 2 {
		c.reset()
		for _, name := range names {
			_, err := a.Reconcile(t.Context(), reconcile.Request{NamespacedName: client.ObjectKey{Namespace: "ns",
				Name: name}})
			require.NoError(t, err)
		}
		require.Equal(t, map[string]int{"*v1.NodeList": 1, "*v1alpha1.PoolList": 1, "*v1.PodList": 2 - round}, c.listed,
			"at first those that name their node themselves are looked for as well")
		now = now.Add(surveyAge)
	}
	require.Len(t, recorder.Events, 1, "the one claim that a pod waits for and that fits nowhere, once")
	require.Contains(t, <-recorder.Events, "of 200 nodes, 200 without enough room")
}
