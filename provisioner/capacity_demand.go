package provisioner

import (
	"context"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
)

// needGrace is how long a claim has no node before it counts as waiting for
// room. Where there is a node, the scheduler finds it in far less time. Once a
// claim waits that long, every change matters that may decide over it.
const needGrace = 500 * time.Millisecond

// demand knows what the scheduler looks for in vain: the sizes of the claims
// that wait for a node, by class. It does not ask whether a pod uses a claim;
// one that no pod uses yet only makes capacity more exact than it has to be.
type demand struct {
	// onWait is called, without locks held, when a claim has begun to wait.
	onWait func(class string, size int64)

	mu     sync.Mutex
	claims map[types.UID]*needed
	sizes  map[string][]int64 // of those that wait, ascending
}

// needed is a claim without a node.
type needed struct {
	class string
	size  int64
	waits bool
	timer *time.Timer
}

func newDemand(onWait func(class string, size int64)) *demand {
	return &demand{
		onWait: onWait,
		claims: map[types.UID]*needed{},
		sizes:  map[string][]int64{},
	}
}

// see notes the state of a claim.
func (n *demand) see(claim *corev1.PersistentVolumeClaim) {
	if claim.Spec.VolumeName != "" || claim.Spec.StorageClassName == nil ||
		claim.DeletionTimestamp != nil ||
		claim.Annotations[annSelectedNode] != "" {
		n.forget(claim.UID)
		return
	}

	n.mu.Lock()
	defer n.mu.Unlock()

	if n.claims[claim.UID] != nil {
		return
	}

	size := claim.Spec.Resources.Requests[corev1.ResourceStorage]
	c := &needed{class: *claim.Spec.StorageClassName, size: size.Value()}
	c.timer = time.AfterFunc(needGrace, func() { n.wait(claim.UID, c) })
	n.claims[claim.UID] = c
}

// wait has a claim count, if it still has no node.
func (n *demand) wait(uid types.UID, c *needed) {
	n.mu.Lock()
	if n.claims[uid] != c {
		n.mu.Unlock()
		return
	}

	c.waits = true
	at, _ := slices.BinarySearch(n.sizes[c.class], c.size)
	n.sizes[c.class] = slices.Insert(n.sizes[c.class], at, c.size)
	n.mu.Unlock()
	n.onWait(c.class, c.size)
}

// forget drops a claim that has a node, is bound or is gone.
func (n *demand) forget(uid types.UID) {
	n.mu.Lock()
	defer n.mu.Unlock()

	c := n.claims[uid]
	if c == nil {
		return
	}

	c.timer.Stop()
	delete(n.claims, uid)
	if !c.waits {
		return
	}

	sizes := n.sizes[c.class]
	at, _ := slices.BinarySearch(sizes, c.size)
	if sizes = slices.Delete(sizes, at, at+1); len(sizes) == 0 {
		delete(n.sizes, c.class)
	} else {
		n.sizes[c.class] = sizes
	}
}

// decides reports whether a change of the largest volume from a to b, or back,
// makes a difference to the waiting claims of a class: either one of them fits
// in only one of the two cases, or the smallest one would fit once more.
func (n *demand) decides(class string, a, b int64) bool {
	n.mu.Lock()
	defer n.mu.Unlock()

	sizes := n.sizes[class]
	if len(sizes) == 0 {
		return false
	}

	less, more := min(a, b), max(a, b)
	next, _ := slices.BinarySearch(sizes, less+1)
	return next < len(sizes) && sizes[next] <= more || more-less >= sizes[0]
}

// look calls see with an object of the cache. A packed claim is bound.
func (n *demand) look(o client.Object) {
	if claim, ok := o.(*corev1.PersistentVolumeClaim); ok {
		n.see(claim)
	} else {
		n.forget(o.GetUID())
	}
}

// handler feeds it with claims, and enqueues nothing.
func (n *demand) handler() handler.EventHandler {
	type queue = workqueue.TypedRateLimitingInterface[reconcile.Request]
	return handler.Funcs{
		CreateFunc: func(_ context.Context, e event.CreateEvent, _ queue) {
			n.look(e.Object)
		},
		UpdateFunc: func(_ context.Context, e event.UpdateEvent, _ queue) {
			n.look(e.ObjectNew)
		},
		DeleteFunc: func(_ context.Context, e event.DeleteEvent, _ queue) {
			n.forget(e.Object.GetUID())
		},
	}
}
