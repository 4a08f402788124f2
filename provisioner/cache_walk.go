package provisioner

import (
	"context"
	"fmt"

	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"
)

// eachQuiet has a loop look at every object of a kind that lies packed in the
// cache when the loop starts, one after the other. Its watch leaves these out
// (newsOfQuiet): in its queue, a hundred thousand of them would take more
// memory than they do in the cache. What fails goes into the queue, which tries
// again.
func eachQuiet(mgr manager.Manager, kind client.Object, look reconcile.Reconciler) source.Source {
	return source.Func(func(ctx context.Context, queue workQueue) error {
		informer, err := mgr.GetCache().GetInformer(ctx, kind) // once it is filled
		if err != nil {
			return fmt.Errorf("watch %T: %w", kind, err)
		}
		shared, ok := informer.(toolscache.SharedIndexInformer)
		if !ok {
			return fmt.Errorf("the cache's informer of %T is a %T, which has no store",
				kind, informer)
		}

		go walkQuiet(ctx, shared.GetStore(), queue, look)
		return nil
	})
}

func walkQuiet(
	ctx context.Context,
	store toolscache.Store,
	queue workQueue,
	look reconcile.Reconciler,
) {
	for _, key := range store.ListKeys() {
		object, _, err := store.GetByKey(key)
		if err != nil || !isPacked(object) {
			continue // it is gone, or it is in the queue
		}
		p := object.(*packed)
		request := reconcile.Request{
			NamespacedName: client.ObjectKey{Namespace: p.namespace, Name: p.name},
		}
		if ctx.Err() != nil {
			return
		}
		if result, err := look.Reconcile(ctx, request); err != nil || !result.IsZero() {
			queue.Add(request)
		}
	}
}
