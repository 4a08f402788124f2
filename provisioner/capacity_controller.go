package provisioner

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

// driverSwitch is the key under which the CSIDriver objects are looked at; no
// node is called so, since names have no "/".
const driverSwitch = "/csidrivers"

type workQueue = workqueue.TypedRateLimitingInterface[reconcile.Request]

// agentChanged has a node published whose agent became ready or stopped being
// so. The publisher does not watch the agents' pods itself: it could see a
// pod's change before agentWatch does, and publish what was true before.
func (c *capacityPublisher) agentChanged(node string) {
	if queue := c.queue.Load(); queue != nil {
		(*queue).Add(requests(node)[0])
	}
}

// addCapacity drives the publisher by everything that its objects follow from.
func addCapacity(mgr manager.Manager, c *capacityPublisher) error {
	byNode := func(nodeOf func(client.Object) string) handler.EventHandler {
		return handler.EnqueueRequestsFromMapFunc(
			func(_ context.Context, o client.Object) []reconcile.Request {
				return requests(nodeOf(o))
			},
		)
	}

	everyNode := handler.EnqueueRequestsFromMapFunc(
		func(ctx context.Context, o client.Object) []reconcile.Request {
			if class, ok := o.(*storagev1.StorageClass); ok && !isOurClass(class) {
				return nil
			}

			var nodes corev1.NodeList
			// Names only.
			if err := c.client.List(ctx, &nodes, client.UnsafeDisableDeepCopy); err != nil {
				return nil // the cache is not there, so neither is the process for long
			}

			names := make([]string, len(nodes.Items), len(nodes.Items)+1)
			for i := range nodes.Items {
				names[i] = nodes.Items[i].Name
			}

			names = append(names, templateNodes)
			return requests(names...)
		},
	)
	// Not the heartbeats.
	nodeMatters := predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
		return !labels.Equals(e.ObjectOld.GetLabels(), e.ObjectNew.GetLabels()) ||
			e.ObjectOld.GetUID() != e.ObjectNew.GetUID()
	}}
	s := &switchable{capacityPublisher: c}
	err := builder.ControllerManagedBy(mgr).Named("capacity").
		For(&corev1.Node{}, builder.WithPredicates(nodeMatters)).
		Watches(&v1alpha1.Pool{}, byNode(func(o client.Object) string {
			return o.(*v1alpha1.Pool).Spec.NodeName
		})).
		Watches(&storagev1.StorageClass{}, everyNode).
		// Undone by hand.
		Watches(&storagev1.CSIStorageCapacity{}, byNode(func(o client.Object) string {
			if o.GetLabels()[labelManagedBy] != managedBy {
				return ""
			}
			return o.GetAnnotations()[v1alpha1.AnnotationNode]
		})).
		Watches(&corev1.PersistentVolumeClaim{}, c.holders.handler()).
		Watches(&corev1.PersistentVolumeClaim{}, c.demand.handler()).
		Watches(&storagev1.CSIDriver{}, byNode(func(client.Object) string { return driverSwitch })).
		WatchesRawSource(source.Func(func(_ context.Context, queue workQueue) error {
			c.queue.Store(&queue) // before the first nodes are published
			return nil
		})).
		WithOptions(controller.Options{
			MaxConcurrentReconciles: 8,
			SkipNameValidation:      new(true),
			RateLimiter: workqueue.NewTypedItemExponentialFailureRateLimiter[reconcile.Request](
				50*time.Millisecond,
				15*time.Second,
			),
		}).Complete(s)
	if err != nil {
		return fmt.Errorf("set up the capacity publisher: %w", err)
	}

	return nil
}

// switchable adds the CSIDriver objects to what the publisher looks after.
type switchable struct{ *capacityPublisher }

// Reconcile publishes one node, or switches the CSIDrivers on after all nodes
// were published.
func (s *switchable) Reconcile(
	ctx context.Context,
	req reconcile.Request,
) (reconcile.Result, error) {
	if req.Name != driverSwitch {
		return s.capacityPublisher.Reconcile(ctx, req)
	}
	if err := s.publishAll(ctx); err != nil {
		return reconcile.Result{}, err
	}
	return reconcile.Result{}, s.switchOn(ctx)
}

func requests(names ...string) []reconcile.Request {
	var all []reconcile.Request
	for _, name := range names {
		if name != "" {
			all = append(all, reconcile.Request{NamespacedName: types.NamespacedName{Name: name}})
		}
	}
	return all
}
