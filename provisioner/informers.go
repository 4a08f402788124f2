package provisioner

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/labels"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

// informers are what the library watches, shared with everything else in the
// process.
type informers struct {
	claims, volumes, classes, nodes toolscache.SharedIndexInformer
}

// watch connects the informers. They wake what waits for a Volume or a node,
// and the library shares them.
func (c *provisioner) watch(ctx context.Context, mgr manager.Manager) (informers, error) {
	var in informers
	for object, to := range map[client.Object]*toolscache.SharedIndexInformer{
		&corev1.PersistentVolumeClaim{}: &in.claims, &corev1.PersistentVolume{}: &in.volumes,
		&storagev1.StorageClass{}: &in.classes, &corev1.Node{}: &in.nodes,
	} {
		informer, err := mgr.GetCache().GetInformer(ctx, object, cache.BlockUntilSynced(false))
		if err != nil {
			return in, fmt.Errorf("watch %T: %w", object, err)
		}

		shared, ok := informer.(toolscache.SharedIndexInformer)
		if !ok {
			return in, fmt.Errorf(
				"the cache's informer of %T is a %T, which the library cannot share",
				object,
				informer,
			)
		}

		*to = shared
	}

	waiting := c.local.waiting
	news := &conditionReporter{
		client:  mgr.GetClient(),
		events:  c.local.events,
		leading: mgr.Elected(),
	}
	handlers := map[client.Object]toolscache.ResourceEventHandler{
		&corev1.Pod{}:      c.agents,
		&v1alpha1.Volume{}: c.volumes,
		&corev1.Node{}:     onNode(waiting.nodeChanged),
		&storagev1.StorageClass{}: onEvery(
			func(s *storagev1.StorageClass) { waiting.classChanged(s.Name) },
		),
		&corev1.PersistentVolumeClaim{}: toolscache.ResourceEventHandlerFuncs{
			UpdateFunc: func(_, after any) {
				if p, quiet := after.(*packed); quiet {
					waiting.removeClaim(string(p.uid))
					return
				}

				claim := after.(*corev1.PersistentVolumeClaim)
				if claim.Spec.VolumeName != "" {
					// Also where it was bound to another volume than ours.
					waiting.removeClaim(string(claim.UID))
				}
			},
			DeleteFunc: func(obj any) {
				lastState(obj, func(claim *corev1.PersistentVolumeClaim) {
					waiting.claimGone(string(claim.UID))
				})
			},
		},
		&corev1.PersistentVolume{}: onDelete(
			func(p *corev1.PersistentVolume) { waiting.removeVolume(p.Name) },
		),
		&v1alpha1.Pool{}: toolscache.ResourceEventHandlerFuncs{
			AddFunc: func(obj any) { waiting.poolChanged(nil, obj.(*v1alpha1.Pool)) },
			UpdateFunc: func(before, after any) {
				waiting.poolChanged(before.(*v1alpha1.Pool), after.(*v1alpha1.Pool))
			},
		},
	}
	// By the leader, once the caches are filled.
	if err := mgr.Add(manager.RunnableFunc(news.catchUp)); err != nil {
		return in, err
	}

	tell := map[client.Object]toolscache.ResourceEventHandler{
		&v1alpha1.Volume{}: news.volumes(ctx),
		&v1alpha1.Pool{}:   news.pools(),
	}
	for _, set := range []map[client.Object]toolscache.ResourceEventHandler{handlers, tell} {
		for object, h := range set {
			informer, err := mgr.GetCache().GetInformer(ctx, object, cache.BlockUntilSynced(false))
			if err != nil {
				return in, fmt.Errorf("watch %T: %w", object, err)
			}
			if _, err := informer.AddEventHandler(h); err != nil {
				return in, fmt.Errorf("watch %T: %w", object, err)
			}
		}
	}

	c.volumes.onChange = waiting.volumeChanged
	return in, nil
}

// onNode calls f with a node that came, went, or changed in a way that matters
// to a volume. Heartbeats do not.
func onNode(f func(name string)) toolscache.ResourceEventHandler {
	h := onEvery(func(n *corev1.Node) { f(n.Name) }).(toolscache.ResourceEventHandlerFuncs)
	h.UpdateFunc = func(before, after any) {
		b, a := before.(*corev1.Node), after.(*corev1.Node)
		if b.UID != a.UID || isNodeReady(b) != isNodeReady(a) || isTainted(b) != isTainted(a) ||
			!labels.Equals(b.Labels, a.Labels) {
			f(a.Name)
		}
	}
	return h
}

// onEvery calls f with the newest state of an object that came, changed or
// went.
func onEvery[T client.Object](f func(T)) toolscache.ResourceEventHandler {
	return toolscache.ResourceEventHandlerFuncs{
		AddFunc:    func(obj any) { f(obj.(T)) },
		UpdateFunc: func(_, obj any) { f(obj.(T)) },
		DeleteFunc: func(obj any) { lastState(obj, f) },
	}
}

// onDelete calls f with the last known state of an object that went.
func onDelete[T client.Object](f func(T)) toolscache.ResourceEventHandler {
	return toolscache.ResourceEventHandlerFuncs{DeleteFunc: func(obj any) { lastState(obj, f) }}
}

func lastState[T client.Object](obj any, f func(T)) {
	if o, ok := whole[T](obj); ok {
		f(o)
	}
}
