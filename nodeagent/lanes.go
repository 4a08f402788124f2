package nodeagent

import (
	"context"
	"errors"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/quarry-storage/quarry/nodeagent/store"
)

const (
	// lanesOfPool is how many volumes of one pool are worked on at a time.
	lanesOfPool = 12
	// freeWorkers are never kept by any pool.
	freeWorkers = 20
	// laneRetry is how long a volume waits whose pool has no lane free.
	laneRetry = 250 * time.Millisecond
)

// workersFor is how many Volumes are worked on at a time, where a node has so
// many pools. Most of that is waiting for the disk; heavy work is bounded by
// the store.
func workersFor(pools int) int { return lanesOfPool*pools + freeWorkers }

// errNoLane says that so many volumes of a pool are worked on as may be.
var errNoLane = errors.New("so many volumes of its pool are worked on already")

// lanes bound what one pool has of the workers: a disk that hangs keeps no
// more of them than its own.
type lanes struct {
	mu   sync.Mutex
	used map[string]int
}

// enter takes a lane of the pool and returns what gives it back; ok is false
// where none is free. No pool's is always free.
func (l *lanes) enter(pool string) (leave func(), ok bool) {
	if pool == "" {
		return func() {}, true
	}

	l.mu.Lock()
	defer l.mu.Unlock()

	if l.used == nil {
		l.used = map[string]int{}
	}

	if l.used[pool] >= lanesOfPool {
		return nil, false
	}

	l.used[pool]++
	return sync.OnceFunc(func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.used[pool]--
	}), true
}

// laneOf is the pool that a volume is in, as far as it is known; empty: none.
func (a *Agent) laneOf(ctx context.Context, name string) string {
	if there, err := a.store.Get(name); err == nil {
		return there.Pool
	}
	v, err := a.volumeObject(ctx, name)
	if err != nil || v == nil {
		return ""
	}
	return v.Status.Pool
}

// workOn works on one volume of the queue in a lane of its pool.
func (a *Agent) workOn(ctx context.Context, name string) {
	leave, ok := a.lanes.enter(a.laneOf(ctx, name))
	if !ok {
		a.queue.AddAfter(name, laneRetry)
		return
	}
	defer leave()

	err := a.reconcile(ctx, name)
	switch {
	case errors.Is(err, errNoLane):
		a.queue.AddAfter(name, laneRetry)
	case apierrors.IsConflict(err):
		a.queue.AddRateLimited(name) // the cache is behind; it will not be in a moment
	case err != nil && ctx.Err() == nil:
		a.log.WarnContext(ctx, "volume", "volume", name, "error", err)
		a.queue.AddRateLimited(name)
	default:
		a.queue.Forget(name)
	}
}

// carve makes the volume that was admitted, in a lane of the pool that it was
// admitted to. Where that pool's disk stops answering meanwhile, the volume is
// given up: it is refused, and will not be made when the disk answers again.
func (a *Agent) carve(ctx context.Context, adm *store.Admission) (store.Volume, error) {
	leave, ok := a.lanes.enter(adm.Pool())
	if !ok {
		return store.Volume{}, errNoLane
	}

	type result struct {
		volume store.Volume
		err    error
	}
	made := make(chan result, 1)
	go func() {
		defer leave()
		v, err := a.store.Create(ctx, adm)
		made <- result{v, err}
	}()

	for {
		changed := a.store.Changed()
		if err := adm.Hung(); err != nil && adm.Abandon() {
			return store.Volume{}, err
		}

		select {
		case r := <-made:
			return r.volume, r.err
		case <-changed:
		}
	}
}

func (a *Agent) work(ctx context.Context) {
	for {
		name, stop := a.queue.Get()
		if stop {
			return
		}
		a.workOn(ctx, name)
		a.queue.Done(name)
	}
}
