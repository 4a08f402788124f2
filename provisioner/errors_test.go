package provisioner

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"slices"
	"strconv"
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

// Every reason that a claim can fail for has its line in the table, also one
// that is added to the API some day.
func TestVerdictsAreComplete(t *testing.T) {
	without := map[string]string{
		v1alpha1.ReasonVolumeNotFound: "only the CSI front door's callers are told",
	}
	reasons := reasonsOf(t,
		"Reasons of ConditionReady with phase Refused", "Reasons of errors that no agent's refusal causes")
	require.Greater(t, len(reasons), 20)

	for _, reason := range reasons {
		if why, is := without[reason]; is {
			require.NotContains(t, verdicts, reason, why)
			continue
		}
		require.Contains(t, verdicts, reason)
	}
	for reason, v := range verdicts {
		require.NotEmpty(t, v.State, reason)
		require.Contains(t, reasons, reason, "no reason of the API")
	}
}

// reasonsOf are the values of the API's reasons, of the groups whose comments
// begin so.
func reasonsOf(t *testing.T, groups ...string) (reasons []string) {
	file, err := parser.ParseFile(token.NewFileSet(), "../api/v1alpha1/reasons.go", nil, parser.ParseComments)
	require.NoError(t, err)

	for _, decl := range file.Decls {
		group, is := decl.(*ast.GenDecl)
		if !is || !slices.ContainsFunc(groups, func(begin string) bool {
			return strings.HasPrefix(strings.Join(strings.Fields(group.Doc.Text()), " "), begin)
		}) {
			continue
		}
		for _, spec := range group.Specs {
			text, err := strconv.Unquote(spec.(*ast.ValueSpec).Values[0].(*ast.BasicLit).Value)
			require.NoError(t, err)
			reasons = append(reasons, text)
		}
	}
	return reasons
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
