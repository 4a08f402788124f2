package parameters

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

// Allows reports whether the class may use the pool.
func (p Set) Allows(pool *v1alpha1.Pool) bool {
	if p.Pool != "" {
		return pool.Spec.Pool == p.Pool
	}
	if p.PoolSelector == nil {
		return true
	}

	selector, err := metav1.LabelSelectorAsSelector(p.PoolSelector)
	return err == nil && selector.Matches(labels.Set(pool.Labels))
}

// EnforceableIn reports whether the pool can hold sizes as the class asks. Only
// a directory needs the pool's help for that.
func (p Set) EnforceableIn(pool *v1alpha1.Pool) bool {
	if p.Backend != v1alpha1.BackendDirectory || p.Enforcement == v1alpha1.EnforcementNone {
		return true
	}
	return pool.Status.Features.ProjectQuota || pool.Status.Features.SimpleQuota
}
