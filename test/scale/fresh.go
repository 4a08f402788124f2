package scale

import (
	"context"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

// freshLimit is when it is given up to wait for a capacity object.
const freshLimit = 30 * time.Second

// freshness sees Pools and capacity objects change, each by its own watch.
type freshness struct {
	stop context.CancelFunc

	mu    sync.Mutex
	node  string    // that is looked at; empty: none
	room  int64     // what its Pool says since told
	told  time.Time // zero: it has not changed yet
	said  int64     // what the capacity object said last, since it is looked at
	heard bool      // it said something
	done  chan time.Duration
}

// newFreshness watches until stop is called.
func newFreshness(ctx context.Context, config *rest.Config) (*freshness, error) {
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
		w, err := c.Watch(ctx, list)
		if err != nil {
			cancel()
			return nil, fmt.Errorf("watch %T: %w", list, err)
		}
		context.AfterFunc(ctx, w.Stop)
		go func() {
			for event := range w.ResultChan() {
				f.changed(event)
			}
		}()
	}
	return f, nil
}

// expect begins to look at a node.
func (f *freshness) expect(node string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.node, f.told, f.heard, f.done = node, time.Time{}, false, make(chan time.Duration, 1)
}

// changed takes an event of either watch. What is there already, and comes
// first as if it were new, is no news.
func (f *freshness) changed(event watch.Event) {
	if event.Type != watch.Modified {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	switch o := event.Object.(type) {
	case *v1alpha1.Pool:
		if o.Spec.NodeName != f.node || !f.told.IsZero() || o.Status.Available == nil {
			return
		}
		f.room, f.told = o.Status.Available.Value(), time.Now()
	case *storagev1.CSIStorageCapacity:
		if o.NodeTopology == nil || o.NodeTopology.MatchLabels[corev1.LabelHostname] != f.node || o.Capacity == nil {
			return
		}
		f.said, f.heard = o.Capacity.Value(), true
	}
	// The two watches are not ordered: the capacity object may be seen first.
	if f.node != "" && !f.told.IsZero() && f.heard && f.said <= f.room {
		f.done <- time.Since(f.told)
		f.node = ""
	}
}

// wait returns how long after the Pool the capacity object said the same, or
// freshLimit if it did not.
func (f *freshness) wait(ctx context.Context) (time.Duration, error) {
	select {
	case took := <-f.done:
		return took, nil
	case <-time.After(freshLimit):
		return freshLimit, nil
	case <-ctx.Done():
		return 0, fmt.Errorf("wait for the capacity object of node %s: %w", f.node, context.Cause(ctx))
	}
}
