package nodeagent

import (
	"context"
	"fmt"

	"k8s.io/apimachinery/pkg/labels"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

// watch connects the informers to the queue.
func (a *Agent) watch(ctx context.Context) error {
	volumes, err := a.cache.GetInformer(ctx, &v1alpha1.Volume{}, cache.BlockUntilSynced(false))
	if err != nil {
		return fmt.Errorf("watch Volumes: %w", err)
	}

	_, err = volumes.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
		AddFunc: func(obj any) { a.enqueue(obj.(*v1alpha1.Volume)) },
		UpdateFunc: func(before, after any) {
			a.written.seen(after.(*v1alpha1.Volume))
			a.updated(before.(*v1alpha1.Volume), after.(*v1alpha1.Volume))
		},
		DeleteFunc: func(obj any) {
			if gone, ok := obj.(toolscache.DeletedFinalStateUnknown); ok {
				obj = gone.Obj
			}

			if v, ok := obj.(*v1alpha1.Volume); ok {
				a.written.forget(v.Name)
				a.queue.Add(v.Name)
			}
		},
	})
	if err != nil {
		return fmt.Errorf("watch Volumes: %w", err)
	}

	pools, err := a.cache.GetInformer(ctx, &v1alpha1.Pool{}, cache.BlockUntilSynced(false))
	if err == nil {
		_, err = pools.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
			AddFunc:    func(any) { a.pools.poke() },
			UpdateFunc: func(any, any) { a.pools.poke() },
			DeleteFunc: func(any) { a.pools.poke() },
		})
	}

	if err != nil {
		return fmt.Errorf("watch Pools: %w", err)
	}

	return nil
}

// updated looks at a Volume that changed. Where only its status did, that is
// this agent's own word, and there is nothing to do unless the disk says
// something else by now.
func (a *Agent) updated(before, after *v1alpha1.Volume) {
	asked := before.UID != after.UID || before.Generation != after.Generation ||
		before.ResourceVersion == after.ResourceVersion ||
		before.DeletionTimestamp.IsZero() != after.DeletionTimestamp.IsZero() ||
		!labels.Equals(before.Labels, after.Labels)
	if asked || a.moved(after, a.inTrash) {
		a.enqueue(after)
	}
}

// enqueue puts a Volume into the queue, and with it those that wait for it.
func (a *Agent) enqueue(v *v1alpha1.Volume) {
	a.queue.Add(v.Name)
	for _, name := range a.groups.waitingFor(v) {
		a.queue.Add(name)
	}
}
