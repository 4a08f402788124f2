package provisioner

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

func TestConditionsBecomeEvents(t *testing.T) {
	claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "data", UID: "u1"}}
	scheme, err := NewScheme()
	require.NoError(t, err)
	recorder := events.NewFakeRecorder(10)
	leading := make(chan struct{})
	n := &conditionReporter{client: fake.NewClientBuilder().WithScheme(scheme).WithObjects(claim).WithIndex(
		&v1alpha1.Volume{}, indexTrouble, indexOfTrouble).Build(), events: recorder, leading: leading}
	volume := func(phase v1alpha1.VolumePhase, enforced metav1.ConditionStatus, uid string) *v1alpha1.Volume {
		v := &v1alpha1.Volume{Spec: v1alpha1.VolumeSpec{Published: true, DesiredState: v1alpha1.DesiredPresent,
			Claim: &v1alpha1.ClaimReference{Namespace: "default", Name: "data", UID: claim.UID}}}
		v.Spec.Claim.UID = claim.UID
		if uid != "" {
			v.Spec.Claim.UID = "another"
		}
		v.Status.Phase = phase
		if enforced != "" {
			v.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionEnforced, Status: enforced,
				Reason: v1alpha1.ReasonEscaped, Message: "two files left"}}
		}
		return v
	}
	told := func() string {
		select {
		case e := <-recorder.Events:
			return e
		default:
			return ""
		}
	}
	handler := n.volumes(context.Background())
	update := func(was, is any) string { handler.OnUpdate(was, is); return told() }
	ready, escaped := volume(v1alpha1.VolumeReady, "", ""), volume(v1alpha1.VolumeReady, metav1.ConditionFalse, "")
	require.Empty(t, update(ready, escaped), "not the leader")
	close(leading)
	require.Contains(t, update(ready, escaped), "SizeNotEnforced two files left")
	require.Empty(t, update(escaped, escaped), "once")
	require.Contains(t, update(ready, volume(v1alpha1.VolumeLost, "", "")), "VolumeLost")
	require.Empty(t, update(ready, volume(v1alpha1.VolumeLost, "", "u2")), "another claim of that name")

	pool := func(ready metav1.ConditionStatus) *v1alpha1.Pool {
		return &v1alpha1.Pool{Status: v1alpha1.PoolStatus{Conditions: []metav1.Condition{{Type: v1alpha1.ConditionReady,
			Status: ready, Reason: "Missing", Message: "no disk"}}}}
	}
	pools := n.pools()
	pools.OnUpdate(pool(metav1.ConditionTrue), pool(metav1.ConditionFalse))
	require.Contains(t, told(), "PoolOffline Missing: no disk")
	pools.OnUpdate(pool(metav1.ConditionFalse), pool(metav1.ConditionTrue))
	require.Contains(t, told(), "PoolOnline")

	// What turned while nobody led is told by the next leader.
	offline := pool(metav1.ConditionFalse)
	offline.Name = "node.default"
	require.NoError(t, n.client.Create(t.Context(), offline))
	require.NoError(t, n.catchUp(t.Context()))
	require.Contains(t, told(), "PoolOffline Missing: no disk")
	require.Empty(t, told())
}
