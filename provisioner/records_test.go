package provisioner

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

// A worker that everybody shares waits for an agent's work, and not long for the other claims of a pod.
func TestSettleWaitsNotLongForAGroup(t *testing.T) {
	for reason, patience := range map[string]time.Duration{v1alpha1.ReasonWaitingForGroup: groupPatience, v1alpha1.ReasonCreating: time.Minute} {
		t.Run(reason, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				v := &v1alpha1.Volume{Spec: v1alpha1.VolumeSpec{NodeName: "node1", DesiredState: v1alpha1.DesiredPresent}}
				v.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionReady, Status: metav1.ConditionFalse, Reason: reason, Message: "the others"}}
				began := time.Now()
				_, err := (&Records{}).settle(ctx, v, make(chan *v1alpha1.Volume))
				var pending *PendingError
				require.ErrorAs(t, err, &pending)
				require.Equal(t, patience, time.Since(began))
			})
		})
	}
}
