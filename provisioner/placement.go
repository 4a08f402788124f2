package provisioner

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sort"
	"strings"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/provisioner/parameters"
)

// room is what a set of pools could still take, in bytes.
type room struct {
	// Available is the sum over the filesystems; pools that share one share its
	// room.
	Available int64
	// Largest is the largest single volume.
	Largest int64
}

// roomIn adds up the ready pools that the parameters allow.
func roomIn(pools []v1alpha1.Pool, p parameters.Set) room {
	byFilesystem := map[string]int64{}
	var r room
	for i := range pools {
		pool := &pools[i]
		if !p.Allows(pool) ||
			!meta.IsStatusConditionTrue(pool.Status.Conditions, v1alpha1.ConditionReady) {
			continue
		}
		if !p.EnforceableIn(pool) {
			continue
		}

		if a := pool.Status.Available; a != nil {
			filesystem := pool.Status.FilesystemID
			if filesystem == "" {
				filesystem = "pool " + pool.Name
			}
			byFilesystem[filesystem] = max(byFilesystem[filesystem], a.Value())
		}

		if m := pool.Status.MaximumVolumeSize; m != nil {
			r.Largest = max(r.Largest, m.Value())
		}
	}

	for _, available := range byFilesystem {
		r.Available += max(available, 0)
	}

	r.Largest = max(r.Largest, 0)
	return r
}

// placement is what is known when a node is to be chosen for a class with
// volumeBindingMode Immediate.
type placement struct {
	nodes []corev1.Node
	pools map[string][]v1alpha1.Pool // by node
	ready func(node string) (bool, string)
	// refused counts how often a node's agent refused this very claim lately;
	// such nodes come last.
	refused map[string]int
}

// pick takes the node with the most room among those that can take the volume;
// without taints before with, because a pod that tolerates nothing has to be
// able to follow its volume. The error is a *noNodeError.
func (pl placement) pick(
	class *storagev1.StorageClass,
	p parameters.Set,
	size int64,
) (string, error) {
	type candidate struct {
		name    string
		tainted bool
		refused int
		room    int64
	}
	var candidates []candidate
	out := map[string]int{}
	for i := range pl.nodes {
		node := &pl.nodes[i]
		switch {
		case !inTopologies(node, class.AllowedTopologies):
			out["outside allowedTopologies"]++
			continue
		case !isNodeReady(node):
			out["not ready"]++
			continue
		}

		if ready, _ := pl.ready(node.Name); !ready {
			out["without a ready Quarry agent"]++
			continue
		}

		free := roomIn(pl.pools[node.Name], p)
		if free.Largest < size {
			out["without enough room in a pool that matches"]++
			continue
		}

		candidates = append(
			candidates,
			candidate{node.Name, isTainted(node), pl.refused[node.Name], free.Largest},
		)
	}

	if len(candidates) == 0 {
		var why []string
		for reason, n := range out {
			why = append(why, fmt.Sprintf("%d %s", n, reason))
		}
		sort.Strings(why)
		return "", &noNodeError{
			fmt.Sprintf("of %d nodes, %s", len(pl.nodes), strings.Join(why, ", ")),
		}
	}

	best := slices.MinFunc(candidates, func(a, b candidate) int {
		return cmp.Or(compareBool(a.tainted, b.tainted), cmp.Compare(a.refused, b.refused),
			cmp.Compare(b.room, a.room), cmp.Compare(a.name, b.name))
	})
	return best.name, nil
}

// pickNode chooses among all nodes by what the caches say; the error is a
// *noNodeError if none can take the volume.
func (d *frontDoor) pickNode(
	ctx context.Context,
	class *storagev1.StorageClass,
	p parameters.Set,
	size int64,
	refused map[string]int,
) (string, error) {
	pl, err := d.placement(ctx, refused)
	if err != nil {
		return "", err
	}
	return pl.pick(class, p, size)
}

// placement is what the caches say of all nodes.
func (d *frontDoor) placement(ctx context.Context, refused map[string]int) (placement, error) {
	pl := placement{ready: d.agents.Ready, refused: refused}
	var nodes corev1.NodeList
	// Read only, and there may be thousands.
	if err := d.client.List(ctx, &nodes, client.UnsafeDisableDeepCopy); err != nil {
		return pl, &apiError{"list nodes", err}
	}

	pools, err := d.pools(ctx)
	if err != nil {
		return pl, err
	}

	pl.nodes, pl.pools = nodes.Items, pools
	return pl, nil
}

// pools are all pools by node, from the cache.
func (d *frontDoor) pools(ctx context.Context) (map[string][]v1alpha1.Pool, error) {
	var list v1alpha1.PoolList
	if err := d.client.List(ctx, &list, client.UnsafeDisableDeepCopy); err != nil { // read only
		return nil, &apiError{"list pools", err}
	}

	byNode := map[string][]v1alpha1.Pool{}
	for _, pool := range list.Items {
		byNode[pool.Spec.NodeName] = append(byNode[pool.Spec.NodeName], pool)
	}

	return byNode, nil
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// inTopologies reports whether a node is in one of a class's allowed
// topologies; none given allows every node.
func inTopologies(node *corev1.Node, terms []corev1.TopologySelectorTerm) bool {
	if len(terms) == 0 {
		return true
	}
	return slices.ContainsFunc(terms, func(term corev1.TopologySelectorTerm) bool {
		for _, e := range term.MatchLabelExpressions {
			value, has := node.Labels[e.Key]
			// The CSI driver's own key, so that a class serves both doors.
			if e.Key == v1alpha1.TopologyNode {
				value, has = node.Name, true
			}
			if !has || !slices.Contains(e.Values, value) {
				return false
			}
		}
		return true
	})
}

func isNodeReady(node *corev1.Node) bool {
	for _, c := range node.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// isTainted reports whether ordinary pods stay away; a cordoned node carries
// such a taint, too.
func isTainted(node *corev1.Node) bool {
	return node.Spec.Unschedulable ||
		slices.ContainsFunc(node.Spec.Taints, func(t corev1.Taint) bool {
			return t.Effect == corev1.TaintEffectNoSchedule ||
				t.Effect == corev1.TaintEffectNoExecute
		})
}

// offersMore reports whether a pool may take a volume now that it could not
// before.
func offersMore(before, after *v1alpha1.Pool) bool {
	if !meta.IsStatusConditionTrue(after.Status.Conditions, v1alpha1.ConditionReady) {
		return false
	}
	return !meta.IsStatusConditionTrue(before.Status.Conditions, v1alpha1.ConditionReady) ||
		bytesOf(after.Status.MaximumVolumeSize) > bytesOf(before.Status.MaximumVolumeSize) ||
		!labels.Equals(before.Labels, after.Labels) ||
		before.Status.Features != after.Status.Features
}

// bytesOf is a quantity in bytes; none is 0.
func bytesOf(q *resource.Quantity) int64 {
	if q == nil {
		return 0
	}
	return q.Value()
}
