package provisioner

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v10/controller"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/provisioner/parameters"
)

func TestJudge(t *testing.T) {
	for _, test := range []struct {
		err    error
		state  controller.ProvisioningState
		reason string
	}{
		{&refusedError{Node: "n", Code: v1alpha1.ReasonInsufficientCapacity, Message: "full"},
			controller.ProvisioningReschedule, "InsufficientCapacity"},
		{&refusedError{Node: "n", Code: v1alpha1.ReasonTooSmall, Message: "300 MB"}, controller.ProvisioningFinished,
			"TooSmall"},
		{&refusedError{Node: "n", Code: "FromTomorrow", Message: "?"}, controller.ProvisioningFinished, "FromTomorrow"},
		{&agentNotReadyError{Node: "n"}, controller.ProvisioningNoChange, v1alpha1.ReasonAgentNotReady},
		{&agentNotReadyError{Node: "n", Recorded: true}, controller.ProvisioningInBackground,
			v1alpha1.ReasonAgentNotReady},
		{&pendingError{"n", "?"}, controller.ProvisioningInBackground, v1alpha1.ReasonPending},
		{&apiError{"reading", errors.New("timeout")}, controller.ProvisioningNoChange, v1alpha1.ReasonAPIError},
		{errors.New("what?"), controller.ProvisioningInBackground, "InternalError"},
	} {
		v := judge(fmt.Errorf("wrapped: %w", test.err))
		require.Equal(t, test.state, v.State, test.err.Error())
		require.Equal(t, test.reason, v.Reason, test.err.Error())
	}
}

// Every reason an agent may refuse for has its row.
func TestVerdictsAreComplete(t *testing.T) {
	for _, reason := range []string{
		v1alpha1.ReasonInsufficientCapacity, v1alpha1.ReasonGroupRefused, v1alpha1.ReasonUnsupported,
		v1alpha1.ReasonPoolNotFound,
		v1alpha1.ReasonPoolOffline, v1alpha1.ReasonCreateFailed, v1alpha1.ReasonTooSmall, v1alpha1.ReasonInvalidOptions,
		v1alpha1.ReasonSourceNotFound, v1alpha1.ReasonIDConflict,
	} {
		require.Contains(t, verdicts, reason)
	}
	for reason, v := range verdicts {
		require.NotEmpty(t, v.State, reason)
	}
}

// What a class may say wrongly fits into an event with the advice behind it.
func TestExplainsWrongParameters(t *testing.T) {
	for _, class := range []map[string]string{
		{"backend": strings.Repeat("x", 100000)},
		{strings.Repeat("x", 100000): "1"},
		{"mkfsOptions": strings.Repeat("-x ", 33), "fsType": "ext4"},
	} {
		_, err := parameters.Parse(class)
		require.Less(t, len(explanation(err)), longestNote)
		require.Equal(t, v1alpha1.ReasonInvalidParameter, judge(err).Reason)
	}
}
