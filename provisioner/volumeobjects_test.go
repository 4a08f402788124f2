package provisioner

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

// attemptThat is an attempt whose condition Ready has a reason since it was
// made, a while ago.
func attemptThat(reason string, age time.Duration) *v1alpha1.Volume {
	since := metav1.NewTime(time.Now().Add(-age))
	v := &v1alpha1.Volume{ObjectMeta: metav1.ObjectMeta{Name: "pvc-x-1", UID: "u", CreationTimestamp: since}}
	v.Spec.NodeName, v.Spec.DesiredState = "node1", v1alpha1.DesiredPresent
	if reason != "" {
		v.Status.Phase = v1alpha1.VolumePending
		v.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionReady, Status: metav1.ConditionFalse,
			Reason:  reason,
			Message: "read-only file system", LastTransitionTime: since}}
	}
	return v
}

// A worker that everybody shares waits for an agent that is at it, and seconds
// for anything else.
func TestSettleIsPatientWithWorkOnly(t *testing.T) {
	for reason, patience := range map[string]time.Duration{
		v1alpha1.ReasonWaitingForGroup: groupPatience, v1alpha1.ReasonCreating: time.Minute,
		v1alpha1.ReasonFailed: failurePatience, v1alpha1.ReasonMismatch: failurePatience,
		v1alpha1.ReasonPoolOffline: failurePatience, "": silencePatience,
	} {
		t.Run(reason, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				began := time.Now()
				_, err := (&volumeObjects{}).settle(ctx, attemptThat(reason, 0), make(chan *v1alpha1.Volume))
				var pending *pendingError
				require.ErrorAs(t, err, &pending)
				require.Equal(t, patience, time.Since(began))
			})
		})
	}
}

// In a burst the last volume waits for all others of its node.
func TestSettleWaitsForANodeThatIsHeardOf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		r := &volumeObjects{}
		go func() {
			for range 6 {
				time.Sleep(silencePatience / 2)
				other := attemptThat("", 0)
				made := other.DeepCopy()
				made.Name, made.Status.Phase = "other", v1alpha1.VolumeReady
				r.OnUpdate(other, made)
			}
		}()
		began := time.Now()
		_, err := r.settle(ctx, attemptThat("", 0), make(chan *v1alpha1.Volume))
		require.ErrorContains(t, err, "has not answered yet")
		waited := time.Since(began)
		require.Greater(t, waited, 3*silencePatience)
		require.Less(t, waited, 5*silencePatience)
	})
}

// An agent that went while the record was written is not waited for.
func TestSettleSeesAnAgentThatWentBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		agents := &agentWatch{}
		r := &volumeObjects{agents: agents, agentChanged: &agents.changed}
		began := time.Now()
		_, err := r.settle(t.Context(), attemptThat("", 0), make(chan *v1alpha1.Volume))
		var notReady *agentNotReadyError
		require.ErrorAs(t, err, &notReady)
		require.True(t, notReady.Recorded)
		require.Zero(t, time.Since(began))
	})
}

// A node that goes on failing, or that is silent, is given up for another one;
// one that is at it, or had a volume, is not.
func TestSettleGivesUpAnAttempt(t *testing.T) {
	for reason, gives := range map[string]bool{v1alpha1.ReasonFailed: true, "": true,
		v1alpha1.ReasonWaitingForGroup: false, v1alpha1.ReasonCreating: false} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			v := attemptThat(reason, givenUpAfter)
			_, err := (&volumeObjects{}).settle(ctx, v, make(chan *v1alpha1.Volume))
			var refused *refusedError
			require.Equal(t, gives, errors.As(err, &refused), "%s: %v", reason, err)
		})
	}
	v := attemptThat(v1alpha1.ReasonFailed, givenUpAfter)
	v.Spec.Published = true
	require.Empty(t, hopeless(v, time.Now()))
}
