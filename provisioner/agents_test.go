package provisioner

import (
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestAgents(t *testing.T) {
	pod := func(name string, ready corev1.ConditionStatus) *corev1.Pod {
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PodSpec{NodeName: "n"},
			Status: corev1.PodStatus{
				Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: ready}},
				ContainerStatuses: []corev1.ContainerStatus{
					{State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{
						Reason: "CrashLoopBackOff"}}}}}}
	}
	var heard []bool
	a := &agentWatch{}
	a.OnChange = func(_ string, ready bool) { heard = append(heard, ready) }
	_, why := a.Ready("n")
	require.Equal(t, "no agent pod runs there", why)

	s := a.changed.subscribe("n")
	defer s.Close()
	a.OnAdd(pod("old", corev1.ConditionFalse), false)
	_, why = a.Ready("n")
	require.Equal(t, "pod old is not ready, CrashLoopBackOff", why)
	a.OnUpdate(nil, pod("old", corev1.ConditionTrue))
	a.OnAdd(pod("new", corev1.ConditionTrue), false) // a rolling update: there are two for a while
	shuttingDown := pod("old", corev1.ConditionTrue)
	shuttingDown.DeletionTimestamp = new(metav1.Now())
	a.OnUpdate(nil, shuttingDown)
	a.OnDelete(shuttingDown)
	ready, _ := a.Ready("n")
	require.True(t, ready)
	a.OnDelete(pod("new", corev1.ConditionTrue))
	require.Equal(t, []bool{true, false}, heard)
	require.False(t, <-s.C, "the newest state, however many came before")
}
