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
	// laneRetry is after how long a volume whose pool had no lane free is
	// looked at without being told of one: a lane was given to another that did
	// not take it.
	laneRetry = 5 * time.Second
)

// workersFor is how many Volumes are worked on at a time, where a node has so
// many pools. Most of that is waiting for the disk; heavy work is bounded by
// the store.
func workersFor(pools int) int { return lanesOfPool*pools + freeWorkers }

// errNoLane says that so many volumes of a pool are worked on as may be.
var errNoLane = errors.New("so many volumes of its pool are worked on already")

// lanes bound what one pool has of the workers: a disk that hangs keeps no
// more of them than its own. wake is called, without a lock held, with the
// volume that waited longest when a lane is free.
type lanes struct {
	wake func(volume string)

	mu      sync.Mutex
	used    map[string]int
	waiting map[string][]string // volumes by pool, in the order they came
	waits   map[[2]string]bool  // by pool and volume: it is in waiting
}

// enter takes a lane of the pool for a volume and returns what gives it back.
// ok is false where none is free: the volume is woken when one is. No pool's is
// always free.
func (l *lanes) enter(pool, volume string) (leave func(), ok bool) {
	if pool == "" {
		return func() {}, true
	}

	l.mu.Lock()
	defer l.mu.Unlock()

	if l.used == nil {
		l.used, l.waiting = map[string]int{}, map[string][]string{}
		l.waits = map[[2]string]bool{}
	}

	if l.used[pool] >= lanesOfPool {
		if key := [2]string{pool, volume}; !l.waits[key] {
			l.waits[key] = true
			l.waiting[pool] = append(l.waiting[pool], volume)
		}
		return nil, false
	}

	l.used[pool]++
	return sync.OnceFunc(func() { l.leave(pool) }), true
}

// leave gives a lane back.
func (l *lanes) leave(pool string) {
	l.mu.Lock()
	l.used[pool]--
	var next []string
	if free := lanesOfPool - l.used[pool]; len(l.waiting[pool]) > 0 {
		next = l.waiting[pool][:min(free, len(l.waiting[pool]))]
		l.waiting[pool] = l.waiting[pool][len(next):]
	}
	for _, volume := range next {
		delete(l.waits, [2]string{pool, volume})
	}
	l.mu.Unlock()

	for _, volume := range next {
		l.wake(volume)
	}
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
	leave, ok := a.lanes.enter(a.laneOf(ctx, name), name)
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

// carve makes the named volume, which was admitted, in a lane of the pool that
// it was admitted to. Where that pool's disk stops answering meanwhile, the
// volume is given up: it is refused, and will not be made when the disk answers
// again.
func (a *Agent) carve(ctx context.Context, name string,
	adm *store.Admission) (store.Volume, error) {
	leave, ok := a.lanes.enter(adm.Pool(), name)
	if !ok {
		// Those that have the lanes may wait for a disk that does not answer: who
		// has not begun goes elsewhere.
		if err := adm.Hung(); err != nil {
			adm.Withdraw()
			return store.Volume{}, err
		}
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
