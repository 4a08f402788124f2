package provisioner

import (
	"context"
	"slices"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

// frontDoor is what both front doors need: the cluster, the agents of its
// nodes, and where a door reports what it does.
type frontDoor struct {
	volumes *volumeObjects
	// client reads claims, classes, nodes and pools from caches; live reads
	// past them.
	client client.Client
	live   client.Reader
	agents agentReadiness
	// capacity is told before the scheduler is asked to choose again. Nil where
	// no capacity is published.
	capacity capacityNotifier
	events   events.EventRecorder
	metrics  *Metrics
}

// capacityNotifier publishes for the scheduler what still fits on a node.
type capacityNotifier interface {
	// PublishNode reads the node's pools live and writes what changed before it
	// returns; a second call writes nothing.
	PublishNode(ctx context.Context, node string) error
	// PublishRefusal does so for a node that refused a claim. If by its room
	// the node could have taken it, the scheduler is kept from choosing it for
	// that size again for some time, longer each time.
	PublishRefusal(ctx context.Context, r nodeRefusal) error
}

// pods reads the pods of claims, live.
func (d *frontDoor) pods() podReader { return podReader{d.live} }

// claimsIn lists a namespace's claims that are not bound, from the cache.
func (d *frontDoor) claimsIn(
	ctx context.Context,
	namespace string,
) ([]corev1.PersistentVolumeClaim, error) {
	var list corev1.PersistentVolumeClaimList
	if err := d.client.List(ctx, &list, client.InNamespace(namespace),
		client.MatchingFields{indexUnbound: stillUnbound}); err != nil {
		return nil, &apiError{"list the claims of namespace " + namespace, err}
	}
	return list.Items, nil
}

// claimsNow is claimsIn by a live read.
func (d *frontDoor) claimsNow(
	ctx context.Context,
	namespace string,
) ([]corev1.PersistentVolumeClaim, error) {
	var list corev1.PersistentVolumeClaimList
	if err := d.live.List(ctx, &list, client.InNamespace(namespace)); err != nil {
		return nil, &apiError{"list the claims of namespace " + namespace, err}
	}
	return list.Items, nil
}

// isOurs reports whether the claim's class is one of Quarry's, through either
// door, that waits for the scheduler.
func (d *frontDoor) isOurs(claim *corev1.PersistentVolumeClaim) bool {
	if claim.Spec.StorageClassName == nil {
		return false
	}

	var class storagev1.StorageClass
	if err := d.client.Get(context.Background(),
		client.ObjectKey{Name: *claim.Spec.StorageClassName}, &class); err != nil {
		return false
	}
	return isOurClass(&class) && waitsForConsumer(&class)
}

// refusalOf is what the scheduler is to know of an agent's refusal.
func (d *frontDoor) refusalOf(ctx context.Context, refused *refusedError) nodeRefusal {
	wish := refused.wish
	r := nodeRefusal{
		Node:  refused.Node,
		Class: wish.StorageClassName,
		Below: wish.Capacity.Value(),
	}
	switch refused.Code {
	case v1alpha1.ReasonInsufficientCapacity, v1alpha1.ReasonGroupRefused:
		r.Claim = wish.Claim
	case v1alpha1.ReasonCreateFailed:
		r.Below = 1 // it has nothing to do with sizes
	}

	if wish.Admission == nil || r.Claim == nil {
		return r
	}

	claims, err := d.claimsIn(ctx, wish.Claim.Namespace)
	if err != nil {
		return r
	}

	for i := range claims {
		claim := &claims[i]
		size := claim.Spec.Resources.Requests[corev1.ResourceStorage]
		if slices.Contains(wish.Admission.Claims, claim.UID) &&
			claim.Spec.StorageClassName != nil &&
			*claim.Spec.StorageClassName == r.Class {
			r.Below = min(r.Below, size.Value())
		}
	}

	return r
}

// publishRefusal publishes what a node that refused a claim still has for it,
// before the scheduler is asked to choose again.
func (d *frontDoor) publishRefusal(ctx context.Context, node string, refused *refusedError) error {
	if d.capacity == nil {
		return nil
	}
	if refused == nil || refused.wish == nil {
		return d.capacity.PublishNode(ctx, node)
	}
	return d.capacity.PublishRefusal(ctx, d.refusalOf(ctx, refused))
}
