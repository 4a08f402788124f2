package provisioner

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

// TestExplained proves that what a front door says of an error is understood
// again, through what the library and the sidecar put before it.
func TestExplained(t *testing.T) {
	for _, err := range []reasoner{
		&refusedError{Node: "a", Code: v1alpha1.ReasonInsufficientCapacity, Message: "no room (1Gi of 2Gi)"},
		&refusedError{Node: "a", Code: v1alpha1.ReasonPoolOffline, Message: "pool x is offline"},
		&agentNotReadyError{Node: "a", Why: "no agent pod runs there"},
		&noNodeError{Why: "2 nodes have no room"},
		&pendingError{Node: "a", Why: "Creating"},
		&deletePendingError{Volume: "v", Node: "a", Why: "it is down"},
		&nodeGoneError{Node: "a"},
	} {
		for _, before := range []string{
			"", `failed to provision volume with StorageClass "quarry": `,
			`failed to provision volume with StorageClass "quarry": rpc error: code = ResourceExhausted desc = `,
		} {
			reason, what, hint := Explained(before + explanation(err))
			require.Equal(t, err.Reason(), reason, before)
			require.Equal(t, err.Error(), what, before)
			require.Equal(t, Hint(err.Reason()), hint, before)
			require.NotEmpty(t, hint)
		}
	}

	reason, what, hint := Explained("claim x: something else (with more)")
	require.Equal(t, "", reason+hint)
	require.Equal(t, "claim x: something else (with more)", what)
	require.Equal(t, "", Hint("NeverHeardOf"))
	for reason, v := range verdicts {
		if v.Hint == "" {
			continue
		}
		_, what, hint := Explained(fmt.Sprintf("node a: %s (%s)", reason, v.Hint))
		require.Equal(t, "node a: "+reason+" "+v.Hint, what+" "+hint)
	}
}
