package nodeagent

import (
	"errors"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/store"
)

// isEnforcedNews reports whether what a look at a volume's size found is not
// what its condition says: that it holds or not, and for which reason.
func isEnforcedNews(conditions []metav1.Condition, found error) bool {
	said, reason := "", ""
	if c := meta.FindStatusCondition(conditions, v1alpha1.ConditionEnforced); c != nil && c.Status == metav1.ConditionFalse {
		said = c.Reason
	}
	var lost *store.EnforcementError
	if errors.As(found, &lost) {
		reason = lost.Reason
	}
	return said != reason
}
