package provisioner

import (
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

func TestWhatSpeaksOfGoneNodesGoes(t *testing.T) {
	scheme, err := NewScheme()
	require.NoError(t, err)
	record := func(name, node string, state v1alpha1.DesiredState, published bool, claim string) *v1alpha1.Volume {
		spec := v1alpha1.VolumeSpec{NodeName: node, DesiredState: state, Published: published,
			Claim: &v1alpha1.ClaimReference{Namespace: "ns", Name: claim, UID: types.UID(claim)}}
		return newVolumeObject("pvc-"+claim, name, &spec)
	}
	pool := func(node string) *v1alpha1.Pool {
		return &v1alpha1.Pool{ObjectMeta: metav1.ObjectMeta{Name: node + ".default"},
			Spec: v1alpha1.PoolSpec{NodeName: node, Pool: "default"}}
	}
	pvOn := pvForIndex("kept", "holds-pv")
	c := fake.NewClientBuilder().WithScheme(scheme).
		WithIndex(&v1alpha1.Volume{}, indexDoomed, indexOfDoomed).WithIndex(&v1alpha1.Pool{}, indexPoolNode, indexPool).
		WithIndex(&corev1.PersistentVolume{}, indexPVNode, indexPV).
		WithIndex(&v1alpha1.Volume{}, "spec.nodeName", func(o client.Object) []string {
			return []string{o.(*v1alpha1.Volume).Spec.NodeName}
		}).
		WithObjects(
			&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "here"}}, pool("here"), record("pvc-a-1",
				"here", v1alpha1.DesiredDeleted, false, "a"),
			pool("empty"), record("pvc-b-1", "empty", v1alpha1.DesiredDeleted, true, "b"),
			pool("holds-trash"), record("pvc-c-1", "holds-trash", v1alpha1.DesiredTrashed, true, "c"),
			pool("holds-orphan"), record("pvc-d-1", "holds-orphan", v1alpha1.DesiredPresent, true, "d"),
			pool("holds-pv"), pvOn,
			pool("of-a-claim"), record("pvc-e-1", "of-a-claim", v1alpha1.DesiredDeleted, false, "e"),
			&corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "e", UID: "e"}},
		).Build()
	metrics, err := NewMetrics(prometheus.NewRegistry())
	require.NoError(t, err)
	now := time.Now()
	clock := func() time.Time { return now }
	g := &goneNodeCleaner{client: c, live: c, agents: &agentWatch{}, grace: time.Hour, now: clock,
		sweep: &sweeper{volumes: &volumeObjects{client: c, live: c}, grace: time.Minute, now: clock, metrics: metrics}}
	look := func() {
		for _, node := range []string{"here", "empty", "holds-trash", "holds-orphan", "holds-pv", "of-a-claim"} {
			_, err := g.Reconcile(t.Context(), reconcile.Request{NamespacedName: client.ObjectKey{Name: node}})
			require.NoError(t, err, node)
		}
	}
	is := func(o client.Object) bool {
		err := c.Get(t.Context(), client.ObjectKeyFromObject(o), o)
		require.True(t, err == nil || apierrors.IsNotFound(err), "%v", err)
		return err == nil
	}
	look()
	now = now.Add(59 * time.Minute)
	look()
	require.True(t, is(pool("empty")), "its node may come back")
	now = now.Add(2 * time.Minute)
	look()
	require.False(t, is(record("pvc-b-1", "", "", false, "b")))
	require.False(t, is(pool("empty")))
	for _, kept := range []client.Object{pool("here"), record("pvc-a-1", "", "", false, "a"), pool("holds-trash"),
		record("pvc-c-1", "", "", false, "c"),
		pool("holds-orphan"), record("pvc-d-1", "", "", false, "d"), pool("holds-pv"), pvOn, pool("of-a-claim"),
		record("pvc-e-1", "", "", false, "e")} {
		require.True(t, is(kept), "%T %s", kept, kept.GetName())
	}

	// A node that was back meanwhile is away anew.
	require.NoError(t, c.Create(t.Context(), pool("flaps")))
	flaps := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "flaps"}}
	again := func() {
		_, err := g.Reconcile(t.Context(), reconcile.Request{NamespacedName: client.ObjectKey{Name: "flaps"}})
		require.NoError(t, err)
	}
	again()
	now = now.Add(59 * time.Minute)
	require.NoError(t, c.Create(t.Context(), flaps))
	again()
	require.NoError(t, c.Delete(t.Context(), flaps))
	now = now.Add(2 * time.Minute)
	again()
	require.True(t, is(pool("flaps")))
}

// pvForIndex is a classic PersistentVolume of ours, pvc-<claim>, on a node.
func pvForIndex(claim, node string) *corev1.PersistentVolume {
	return &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: "pvc-" + claim,
			Annotations: map[string]string{annProvisionedBy: v1alpha1.LocalProvisioner,
				v1alpha1.AnnotationVolume: "pvc-" + claim + "-1", v1alpha1.AnnotationNode: node}},
		Spec: corev1.PersistentVolumeSpec{PersistentVolumeSource: corev1.PersistentVolumeSource{
			Local: &corev1.LocalVolumeSource{Path: "/volumes/pvc-" + claim + "-1/data"}}},
		Status: corev1.PersistentVolumeStatus{Phase: corev1.VolumeBound},
	}
}
