package scale

import (
	"context"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

// freshness sees Pools and capacity objects change, each by its own watch.
type freshness struct {
	stop context.CancelFunc

	mu   sync.Mutex
	node string    // that is looked at
	room int64     // what its Pool says since told
	told time.Time // zero: it has not changed yet
	done chan time.Duration
}

// newFreshness watches until stop is called.
func newFreshness(ctx context.Context, config *rest.Config, _ kubernetes.Interface) (*freshness, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{storagev1.AddToScheme, v1alpha1.AddToScheme} {
		if err := add(scheme); err != nil {
			return nil, err
		}
	}
	c, err := client.NewWithWatch(config, client.Options{Scheme: scheme})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	f := &freshness{stop: cancel}
	for _, list := range []client.ObjectList{&v1alpha1.PoolList{}, &storagev1.CSIStorageCapacityList{}} {
		// Changes only: what is there already comes first, and is of no node that is expected to change.
		w, err := c.Watch(ctx, list)
		if err != nil {
			cancel()
			return nil, fmt.Errorf("watch %T: %w", list, err)
		}
		context.AfterFunc(ctx, w.Stop)
		go func() {
			for event := range w.ResultChan() {
				f.changed(event.Object)
			}
		}()
	}
	return f, nil
}

// expect begins to look at a node.
func (f *freshness) expect(node string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.node, f.told, f.done = node, time.Time{}, make(chan time.Duration, 1)
}

func (f *freshness) changed(object runtime.Object) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch o := object.(type) {
	case *v1alpha1.Pool:
		if o.Spec.NodeName == f.node && f.told.IsZero() && o.Status.Available != nil {
			f.room, f.told = o.Status.Available.Value(), time.Now()
		}
	case *storagev1.CSIStorageCapacity:
		if o.NodeTopology == nil || o.NodeTopology.MatchLabels[corev1.LabelHostname] != f.node || f.told.IsZero() || o.Capacity == nil {
			return
		}
		if o.Capacity.Value() <= f.room {
			f.done <- time.Since(f.told)
			f.node = ""
		}
	}
}

// wait returns how long after the Pool the capacity object said the same.
func (f *freshness) wait(ctx context.Context) (time.Duration, error) {
	select {
	case took := <-f.done:
		return took, nil
	case <-ctx.Done():
		return 0, fmt.Errorf("no capacity object of node %s says what its Pool says: %w", f.node, context.Cause(ctx))
	}
}
