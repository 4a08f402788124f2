package provisioner

import (
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

// lossBench is a cluster of nodes with pools, with a StatefulSet's claim on the
// first of them that may start over after ten minutes.
func lossBench(t *testing.T, nodes map[string]bool) (*nodeLossHandler, func() (claim, pv client.Object, err error),
	*time.Time) {
	scheme, err := NewScheme()
	require.NoError(t, err)
	longAgo := metav1.NewTime(time.Now().Add(-60 * time.Hour)) // of a weekend
	objects := []client.Object{
		&corev1.PersistentVolume{
			ObjectMeta: metav1.ObjectMeta{Name: "pvc-1", UID: "pv",
				Annotations: map[string]string{annProvisionedBy: v1alpha1.LocalProvisioner,
					v1alpha1.AnnotationVolume: "pvc-1-1", v1alpha1.AnnotationNode: "a",
					v1alpha1.AnnotationParameters: `{"onNodeLoss":"afterDelay","nodeLossDelay":"10m"}`}},
			Spec: corev1.PersistentVolumeSpec{PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimDelete,
				ClaimRef: &corev1.ObjectReference{Namespace: "ns", Name: "data-db-0", UID: "claim"},
				PersistentVolumeSource: corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{
					Path: "/volumes/pvc-1-1/data"}}},
			Status: corev1.PersistentVolumeStatus{Phase: corev1.VolumeBound},
		},
		&corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "data-db-0", UID: "claim"}},
		&corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "db-0",
				OwnerReferences: []metav1.OwnerReference{{Kind: "StatefulSet", Name: "db", Controller: new(true)}}},
			Spec: corev1.PodSpec{NodeName: "a",
				Volumes: []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{
					PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data-db-0"}}}}},
		},
	}
	for name, ready := range nodes {
		status := corev1.ConditionUnknown
		if ready {
			status = corev1.ConditionTrue
		}
		objects = append(objects, &v1alpha1.Pool{ObjectMeta: metav1.ObjectMeta{Name: name + ".default"},
			Spec: v1alpha1.PoolSpec{NodeName: name, Pool: "default"}},
			&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name},
				Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{
					{Type: corev1.NodeReady, Status: status, LastTransitionTime: longAgo}}}})
	}
	c := fake.NewClientBuilder().WithScheme(scheme).WithObjects(objects...).WithIndex(&corev1.PersistentVolume{},
		indexPVNode, indexPV).
		WithIndex(&corev1.PersistentVolume{}, indexNodeLoss, indexOfNodeLoss).Build()
	metrics, err := NewMetrics(prometheus.NewRegistry())
	require.NoError(t, err)
	now := time.Now()
	n := &nodeLossHandler{client: c, live: c, events: events.NewFakeRecorder(20), enabled: true, now: func() time.Time {
		return now
	}, metrics: metrics}
	look := func() (client.Object, client.Object, error) {
		claim, pv := &corev1.PersistentVolumeClaim{}, &corev1.PersistentVolume{}
		require.NoError(t, c.Get(t.Context(), client.ObjectKey{Name: "pvc-1"}, pv))
		return claim, pv, c.Get(t.Context(), client.ObjectKey{Namespace: "ns", Name: "data-db-0"}, claim)
	}
	return n, look, &now
}

// What a node's object says of its past proves nothing: after a weekend with
// everything switched off the control plane is up first. Only the time that was
// seen to pass counts.
func TestNodeLossCountsTheTimeItSaw(t *testing.T) {
	n, look, now := lossBench(t, map[string]bool{"a": false, "b": true, "c": true, "d": true})
	request := reconcile.Request{NamespacedName: client.ObjectKey{Name: "a"}}
	result, err := n.Reconcile(t.Context(), request)
	require.NoError(t, err)
	require.Equal(t, 10*time.Minute, result.RequeueAfter)
	_, _, err = look()
	require.NoError(t, err, "the claim is as it was")

	*now = now.Add(10 * time.Minute)
	_, err = n.Reconcile(t.Context(), request)
	require.NoError(t, err)
	_, pv, err := look()
	require.True(t, apierrors.IsNotFound(err), "%v", err)
	require.Equal(t, corev1.PersistentVolumeReclaimRetain,
		pv.(*corev1.PersistentVolume).Spec.PersistentVolumeReclaimPolicy, "the data first")
}

// When half of the nodes are lost at once it is not them.
func TestNodeLossOfManyIsNone(t *testing.T) {
	n, look, now := lossBench(t, map[string]bool{"a": false, "b": false, "c": true, "d": true})
	request := reconcile.Request{NamespacedName: client.ObjectKey{Name: "a"}}
	for range 3 {
		result, err := n.Reconcile(t.Context(), request)
		require.NoError(t, err)
		require.Equal(t, manyLostRetry, result.RequeueAfter)
		_, _, err = look()
		require.NoError(t, err)
		*now = now.Add(time.Hour)
	}
}

// Nodes that were taken away in peace, and left their Pools behind, are not
// lost.
func TestNodeLossForgetsNodesOfThePast(t *testing.T) {
	n, look, now := lossBench(t, map[string]bool{"a": false, "b": true, "c": true, "old-1": false, "old-2": false,
		"old-3": false})
	for _, name := range []string{"old-1", "old-2", "old-3"} {
		require.NoError(t, n.client.Delete(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}))
	}
	request := reconcile.Request{NamespacedName: client.ObjectKey{Name: "a"}}
	result, err := n.Reconcile(t.Context(), request)
	require.NoError(t, err)
	require.Equal(t, 10*time.Minute, result.RequeueAfter)
	*now = now.Add(10 * time.Minute)
	_, err = n.Reconcile(t.Context(), request)
	require.NoError(t, err)
	_, _, err = look()
	require.True(t, apierrors.IsNotFound(err), "%v", err)
}

// A claim that a StatefulSet's pods only name is made by nobody again.
func TestNodeLossHelpsTemplatesOnly(t *testing.T) {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "db-0"}, Spec: corev1.PodSpec{Volumes: []corev1.Volume{
		{Name: "data", VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data-db-0"}}},
		{Name: "shared", VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "my-data"}}},
	}}}
	require.True(t, fromTemplate(pod, "data-db-0"))
	require.False(t, fromTemplate(pod, "my-data"))
}
