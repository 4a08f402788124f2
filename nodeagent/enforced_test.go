package nodeagent

import (
	"testing"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/store"
)

// A size that is not enforced for another reason than before is news as well.
func TestEnforcedNews(t *testing.T) {
	lost := func(reason string) error { return &store.EnforcementError{Reason: reason} }
	condition := func(status metav1.ConditionStatus, reason string) []metav1.Condition {
		return []metav1.Condition{{Type: v1alpha1.ConditionEnforced, Status: status, Reason: reason}}
	}
	for _, c := range []struct {
		conditions []metav1.Condition
		found      error
		want       bool
	}{
		{nil, nil, false},
		{nil, lost(v1alpha1.ReasonQuotaLost), true},
		{condition(metav1.ConditionTrue, v1alpha1.ReasonEnforced), nil, false},
		{condition(metav1.ConditionTrue, v1alpha1.ReasonEnforced), lost(v1alpha1.ReasonEscaped), true},
		{condition(metav1.ConditionFalse, v1alpha1.ReasonEscaped), lost(v1alpha1.ReasonEscaped), false},
		{condition(metav1.ConditionFalse, v1alpha1.ReasonQuotaLost), lost(v1alpha1.ReasonUncounted), true},
		{condition(metav1.ConditionFalse, v1alpha1.ReasonQuotaLost), nil, true},
	} {
		require.Equal(t, c.want, isEnforcedNews(c.conditions, c.found), "%v, %v", c.conditions, c.found)
	}
}
