package provisioner

import (
	"context"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

// goneNodeCleaner removes objects that speak of nodes that do not exist any
// more, and of nothing that is still of use. Without it a cluster whose nodes
// come and go under ever new names would gather such objects for ever.
//
// No data goes with them. A Volume object that is removed here asked for a
// deletion that no agent is there to do. Should the node come back after all,
// its volume is found on the disk, kept, and reported as an orphan. A Pool goes
// when no record and no PersistentVolume speaks of its node: then there is
// nothing that another disk in its place could be taken for. What is wanted, in
// the trash or published and not deleted stays as long as people let it.
type goneNodeCleaner struct {
	client client.Client
	live   client.Reader
	agents agentReadiness
	sweep  *sweeper
	// grace is how long a node has to have been away, in time that this process
	// saw pass: later is safe.
	grace time.Duration
	now   func() time.Time

	mu    sync.Mutex
	since map[string]time.Time
}

// defaultGoneNodeGrace is how long a node has to have been away before what
// speaks of it is taken away.
const defaultGoneNodeGrace = 24 * time.Hour

// indexDoomed is the cache's index of Volumes that are to be deleted, by node.
const indexDoomed = "doomed"

func indexOfDoomed(o client.Object) []string {
	// A packed one is wanted.
	if v, ok := o.(*v1alpha1.Volume); ok && v.Spec.DesiredState == v1alpha1.DesiredDeleted {
		return []string{v.Spec.NodeName}
	}
	return nil
}

// Reconcile looks at one node, named by the request.
func (g *goneNodeCleaner) Reconcile(
	ctx context.Context,
	req reconcile.Request,
) (reconcile.Result, error) {
	node := req.Name
	var known corev1.Node
	err := g.client.Get(ctx, client.ObjectKey{Name: node}, &known)
	if client.IgnoreNotFound(err) != nil {
		return reconcile.Result{}, &apiError{"read Node " + node, err}
	}

	if err == nil {
		g.back(node)
		return reconcile.Result{}, nil
	}

	if wait := g.grace - g.now().Sub(g.away(node)); wait > 0 {
		return reconcile.Result{RequeueAfter: wait}, nil
	}

	exists, err := nodeExists(ctx, g.live, node)
	if ready, _ := g.agents.Ready(node); err != nil || exists || ready {
		g.back(node)
		return reconcile.Result{}, err
	}

	if err := g.removeVolumes(ctx, node); err != nil {
		return reconcile.Result{}, err
	}

	return reconcile.Result{}, g.removePools(ctx, node)
}

// removeVolumes removes the Volumes of a node that ask for a deletion, of
// claims that do not exist any more: no other attempt is ever called like one
// of them.
func (g *goneNodeCleaner) removeVolumes(ctx context.Context, node string) error {
	var doomed v1alpha1.VolumeList
	if err := g.client.List(ctx, &doomed, client.MatchingFields{indexDoomed: node}); err != nil {
		return &apiError{"list the volumes of node " + node, err}
	}

	for i := range doomed.Items {
		v := &doomed.Items[i]
		wanted, err := g.sweep.wanted(ctx, v)
		if err != nil {
			return err
		}
		if wanted {
			continue
		}
		if err := g.sweep.volumes.removeObject(ctx, v); err != nil {
			return err
		}

		log.FromContext(ctx).Info(
			"Removed the record of a volume whose deletion nobody is there to do: its node does "+
				"not exist any more", "volume", v.Name, "node", node)
	}

	return nil
}

// removePools removes the Pools of a node that nothing speaks of, by live
// reads.
func (g *goneNodeCleaner) removePools(ctx context.Context, node string) error {
	var pools v1alpha1.PoolList
	if err := g.client.List(ctx, &pools, client.MatchingFields{indexPoolNode: node}); err != nil {
		return &apiError{"list the pools of node " + node, err}
	}

	if len(pools.Items) == 0 {
		g.back(node)
		return nil
	}

	var pvs corev1.PersistentVolumeList
	if err := g.client.List(ctx, &pvs, client.MatchingFields{indexPVNode: node}); err != nil {
		return &apiError{"list the PersistentVolumes of node " + node, err}
	}

	var volumes v1alpha1.VolumeList
	if err := g.live.List(ctx, &volumes, client.MatchingFields{"spec.nodeName": node}); err != nil {
		return &apiError{"list the volumes of node " + node, err}
	}
	if len(pvs.Items) > 0 || len(volumes.Items) > 0 {
		return nil // their end wakes it
	}

	for i := range pools.Items {
		pool := &pools.Items[i]
		err := g.client.Delete(ctx, pool, client.Preconditions{
			UID:             &pool.UID,
			ResourceVersion: &pool.ResourceVersion,
		})
		if client.IgnoreNotFound(err) != nil && !apierrors.IsConflict(err) {
			return &apiError{"remove Pool " + pool.Name, err}
		}

		log.FromContext(ctx).Info(
			"Removed the Pool of a node that does not exist any more", "pool",
			pool.Name, "node", node)
	}

	return nil
}

// away is since when a node has been seen to be away.
func (g *goneNodeCleaner) away(node string) time.Time {
	g.mu.Lock()
	defer g.mu.Unlock()

	if g.since == nil {
		g.since = map[string]time.Time{}
	}
	if g.since[node].IsZero() {
		g.since[node] = g.now()
	}

	return g.since[node]
}

func (g *goneNodeCleaner) back(node string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.since, node)
}

// addGoneNodes drives it by nodes that go, and by what speaks of one.
func addGoneNodes(mgr manager.Manager, g *goneNodeCleaner) error {
	toNode := func(nodeOf func(client.Object) []string) handler.EventHandler {
		return handler.EnqueueRequestsFromMapFunc(
			func(_ context.Context, o client.Object) []reconcile.Request {
				return requests(nodeOf(o)...)
			},
		)
	}

	created := predicate.Funcs{UpdateFunc: func(event.UpdateEvent) bool { return false }}
	gone := predicate.Funcs{
		CreateFunc: func(event.CreateEvent) bool { return false },
		UpdateFunc: func(event.UpdateEvent) bool { return false },
	}
	err := builder.ControllerManagedBy(mgr).Named("gone-nodes").
		For(&corev1.Node{}, builder.WithPredicates(gone)).
		Watches(&v1alpha1.Pool{}, toNode(indexPool), builder.WithPredicates(created)).
		Watches(&v1alpha1.Volume{}, toNode(nodeOfDoomed), builder.WithPredicates(restless)).
		Watches(&corev1.PersistentVolume{}, toNode(indexPV), builder.WithPredicates(gone)).
		WithOptions(controller.Options{
			MaxConcurrentReconciles: 1,
			SkipNameValidation:      new(true),
		}).Complete(g)
	if err != nil {
		return fmt.Errorf("set up the removal of what nodes left: %w", err)
	}

	return nil
}

// nodeOfDoomed is the node of a Volume that is to be deleted, or was.
func nodeOfDoomed(o client.Object) []string {
	if v, ok := whole[*v1alpha1.Volume](o); ok && v.Spec.DesiredState != v1alpha1.DesiredPresent {
		return []string{v.Spec.NodeName}
	}
	return nil
}
