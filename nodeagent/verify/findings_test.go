package verify

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestRepair applies what can be, all of it, and says what cannot.
func TestRepair(t *testing.T) {
	var done []string
	does := func(what string, err error) func(context.Context) error {
		return func(context.Context) error {
			done = append(done, what)
			return err
		}
	}
	findings := []Finding{
		{Severity: SeverityError, What: "a", Repair: "mend a", apply: does("a", errors.New("no"))},
		{Severity: SeverityNote, What: "b"},
		{Severity: SeverityWarning, What: "c", Repair: "mend c", apply: does("c", nil)},
	}
	require.EqualError(t, Repair(t.Context(), findings), "mend a: no")
	require.Equal(t, []string{"a", "c"}, done, "an error keeps no other one from being put right")
	require.ErrorContains(t, findings[1].Apply(t.Context()), "without a person")

	require.False(t, Holds(findings))
	require.False(t, Holds(findings[2:]))
	require.True(t, Holds(findings[1:2]))
	require.True(t, Holds(nil))
}
