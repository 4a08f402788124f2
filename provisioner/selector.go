package provisioner

import (
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/provisioner/parameters"
)

// A claim's selector chooses among the pools of its node by their labels, and
// its PersistentVolume gets those labels, so that it matches. The scheduler
// does not know selectors of claims: where the node it chose has no such pool,
// choosing again would find the same node again. So the error is a final one,
// and it names classes that would do.

// selectPools narrows a wish to the pools that a claim's selector matches, or
// says that its node has none: a *selectorError.
func (l *localDoor) selectPools(
	ctx context.Context,
	claim *corev1.PersistentVolumeClaim,
	class *storagev1.StorageClass,
	wish *v1alpha1.VolumeSpec,
	p parameters.Set,
) error {
	if claim.Spec.Selector == nil {
		return nil
	}

	selector, err := metav1.LabelSelectorAsSelector(claim.Spec.Selector)
	if err != nil {
		return &claimError{"selector", err.Error()}
	}

	narrow(wish, claim.Spec.Selector)
	var pools v1alpha1.PoolList
	if err := l.client.List(ctx, &pools); err != nil {
		return &apiError{"list pools", err}
	}

	suits := func(p parameters.Set, pool *v1alpha1.Pool) bool {
		return p.Allows(pool) && selector.Matches(labels.Set(pool.Labels))
	}
	if slices.ContainsFunc(
		pools.Items,
		func(pool v1alpha1.Pool) bool {
			return pool.Spec.NodeName == wish.NodeName && suits(p, &pool)
		},
	) {
		return nil
	}

	would, err := l.classesThat(ctx, class, pools.Items, suits)
	if err != nil {
		return err
	}

	return &selectorError{
		Node:     wish.NodeName,
		Selector: metav1.FormatLabelSelector(claim.Spec.Selector),
		Classes:  would,
	}
}

// narrow adds a claim's selector to the pools that the class allows.
func narrow(wish *v1alpha1.VolumeSpec, selector *metav1.LabelSelector) {
	both := &metav1.LabelSelector{}
	add := func(s *metav1.LabelSelector) {
		if s == nil {
			return
		}

		var keys []string
		for key := range s.MatchLabels {
			keys = append(keys, key)
		}

		slices.Sort(keys)
		// As expressions, so that of a key that both have neither overwrites
		// the other.
		for _, key := range keys {
			both.MatchExpressions = append(both.MatchExpressions, metav1.LabelSelectorRequirement{
				Key:      key,
				Operator: metav1.LabelSelectorOpIn,
				Values:   []string{s.MatchLabels[key]},
			})
		}

		both.MatchExpressions = append(both.MatchExpressions, s.MatchExpressions...)
	}

	if wish.Pool != "" {
		add(&metav1.LabelSelector{MatchLabels: map[string]string{v1alpha1.LabelPool: wish.Pool}})
		wish.Pool = ""
	}

	add(wish.PoolSelector)
	add(selector)
	wish.PoolSelector = both
}

// classesThat are the classes with which the scheduler can only choose nodes
// whose pools suit: those that allow pools at all, on nodes that all have one
// that suits.
func (l *localDoor) classesThat(
	ctx context.Context,
	but *storagev1.StorageClass,
	pools []v1alpha1.Pool,
	suits func(parameters.Set, *v1alpha1.Pool) bool,
) ([]string, error) {
	var classes storagev1.StorageClassList
	if err := l.client.List(ctx, &classes); err != nil {
		return nil, &apiError{"list StorageClasses", err}
	}

	var nodes corev1.NodeList
	if err := l.client.List(ctx, &nodes, client.UnsafeDisableDeepCopy); err != nil {
		return nil, &apiError{"list nodes", err}
	}

	byName := map[string]*corev1.Node{}
	for i := range nodes.Items {
		byName[nodes.Items[i].Name] = &nodes.Items[i]
	}

	var would []string
	for i := range classes.Items {
		class := &classes.Items[i]
		p, err := parameters.Parse(class.Parameters)
		if err != nil || class.Name == but.Name || class.Provisioner != v1alpha1.LocalProvisioner {
			continue // the sidecar of the other door serves no claims with selectors
		}

		may, does := map[string]bool{}, map[string]bool{}
		for j := range pools {
			pool := &pools[j]
			node := byName[pool.Spec.NodeName]
			if node == nil || !inTopologies(node, class.AllowedTopologies) || !p.Allows(pool) {
				continue
			}
			may[node.Name] = true
			if suits(p, pool) {
				does[node.Name] = true
			}
		}

		if len(may) > 0 && len(may) == len(does) {
			would = append(would, class.Name)
		}
	}

	slices.Sort(would)
	return would, nil
}

// selectorError says that the node of a claim has no pool that the claim's
// selector matches.
type selectorError struct {
	Node, Selector string
	// Classes are the StorageClasses whose nodes all have such a pool.
	Classes []string
}

func (e *selectorError) Error() string {
	text := fmt.Sprintf(
		"node %s has no pool that the class allows and the claim's selector (%s) matches",
		e.Node,
		e.Selector,
	)
	if len(e.Classes) == 0 {
		return text + "; no StorageClass leads to nodes that all have one"
	}
	return text + "; a claim of StorageClass " + strings.Join(e.Classes, " or ") + " would find one"
}

// Reason is its key in the table of verdicts.
func (e *selectorError) Reason() string { return v1alpha1.ReasonNoMatchingPool }

// poolLabels are the labels of the pool that holds a volume, for its
// PersistentVolume; none if the pool is not known.
func (l *localDoor) poolLabels(ctx context.Context, v *v1alpha1.Volume) map[string]string {
	var pool v1alpha1.Pool
	name := v1alpha1.PoolObjectName(v.Spec.NodeName, v.Status.Pool)
	if err := l.client.Get(ctx, client.ObjectKey{Name: name}, &pool); err != nil {
		return nil
	}
	return pool.Labels
}
