package nodeagent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	toolscache "k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/keylock"
	"github.com/quarry-storage/quarry/nodeagent/mount"
	"github.com/quarry-storage/quarry/nodeagent/store"
)

// lookEvery is how often the pools are looked at without being told of a change: a few system calls for each.
const lookEvery = 5 * time.Second

// DefaultRecheckEvery is how often the sizes of directory volumes are looked at again.
const DefaultRecheckEvery = store.DefaultRecheckEvery

// Options are the agent's settings.
type Options struct {
	// Node is the name of the node the agent runs on.
	Node string
	// Store holds the node's volumes. It must be new.
	Store *store.Store
	// Config reaches the API server.
	Config *rest.Config
	// RecheckEvery is how often the sizes of directory volumes are looked at again. 0: 10 minutes.
	RecheckEvery time.Duration
	// MachineID tells this machine from another one under the same node name. Empty: the machine's own (machine-id(5)).
	MachineID string
	// Registry takes the metrics; nil: none are kept.
	Registry prometheus.Registerer
	// Log receives what no object can carry. Nil: slog.Default.
	Log *slog.Logger
	// Serving, if set, is called once, when the start is over.
	Serving func()
}

// Agent is the agent of one node.
type Agent struct {
	opts   Options
	log    *slog.Logger
	store  *store.Store
	cache  cache.Cache
	client client.Client
	live   client.Reader
	queue  workqueue.TypedRateLimitingInterface[string]
	groups groups
	pools  *poolReporter
	meter  *meter
	// inUse are the volumes that could not be deleted because something uses them; a change of the node's mounts wakes them.
	inUse sync.Map
	// untold are the volumes that were made and that no status has told of yet: the UIDs of their records, by name.
	untold sync.Map
	// growing are the volumes whose growth was refused for want of room; more room wakes them.
	growing sync.Map
	// failures counts the tries to make a volume that failed.
	failures failures
	lanes    lanes
	// up is closed when the volumes were brought up.
	up    chan struct{}
	ready atomic.Bool
}

// NewScheme knows the kinds an agent deals with.
func NewScheme() (*runtime.Scheme, error) {
	s := runtime.NewScheme()
	return s, errors.Join(v1alpha1.AddToScheme(s), corev1.AddToScheme(s), coordinationv1.AddToScheme(s))
}

// mapper knows where the agent's kinds are in the API, so that nothing has to be discovered: an agent starts without the API server.
func mapper() meta.RESTMapper {
	m := meta.NewDefaultRESTMapper(nil)
	for _, kind := range []string{"Volume", "Snapshot", "Pool"} {
		m.Add(v1alpha1.GroupVersion.WithKind(kind), meta.RESTScopeRoot)
	}
	m.Add(corev1.SchemeGroupVersion.WithKind("Namespace"), meta.RESTScopeRoot)
	m.Add(coordinationv1.SchemeGroupVersion.WithKind("Lease"), meta.RESTScopeNamespace)
	return m
}

// New makes an agent. Nothing happens before Run.
func New(o Options) (*Agent, error) {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.RecheckEvery <= 0 {
		o.RecheckEvery = DefaultRecheckEvery
	}
	if o.MachineID == "" {
		o.MachineID = MachineID(o.Log)
	}
	scheme, err := NewScheme()
	if err != nil {
		return nil, err
	}
	config := rest.CopyConfig(o.Config)
	if config.QPS == 0 {
		// The library's default of 5 a second would make a burst of volumes wait; the API server protects itself.
		config.QPS, config.Burst = 100, 200
	}
	mine := cache.ByObject{Field: fields.OneTermEqualSelector("spec.nodeName", o.Node)}
	kinds := mapper()
	informers, err := cache.New(config, cache.Options{Scheme: scheme, Mapper: kinds, DefaultTransform: cache.TransformStripManagedFields(),
		ByObject: map[client.Object]cache.ByObject{&v1alpha1.Volume{}: mine, &v1alpha1.Pool{}: mine}})
	if err != nil {
		return nil, fmt.Errorf("make the cache: %w", err)
	}
	if err := informers.IndexField(context.Background(), &v1alpha1.Volume{}, indexClaim, indexOfClaim); err != nil {
		return nil, fmt.Errorf("index Volumes by %s: %w", indexClaim, err)
	}
	cached, err := client.New(config, client.Options{Scheme: scheme, Mapper: kinds, Cache: &client.CacheOptions{Reader: informers}})
	if err != nil {
		return nil, fmt.Errorf("make the client: %w", err)
	}
	live, err := client.New(config, client.Options{Scheme: scheme, Mapper: kinds})
	if err != nil {
		return nil, fmt.Errorf("make the client: %w", err)
	}
	a := &Agent{opts: o, log: o.Log, store: o.Store, cache: informers, client: cached, live: live, up: make(chan struct{}),
		queue: workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[string](100*time.Millisecond, time.Minute))}
	a.groups.admitted = map[string]*store.Admission{}
	a.pools = newPoolReporter(a)
	if a.meter, err = newMeter(o.Registry, o.Store); err != nil {
		return nil, err
	}
	return a, nil
}

// Run brings the node's volumes up and then serves the records until ctx ends.
func (a *Agent) Run(ctx context.Context) error {
	// The disk first: pools that are pools already. Whether a directory that is none may become one, the API server knows.
	a.pools.askEarly(ctx)
	a.store.Refresh(ctx)
	close(a.up)
	a.log.InfoContext(ctx, "volumes are up", "node", a.opts.Node, "volumes", len(a.store.List()))

	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer a.queue.ShutDown()

	changed, err := mount.Watch(ctx)
	if err != nil {
		return err
	}
	wg.Go(func() { a.followMounts(ctx, changed) })
	wg.Go(func() { a.followStore(ctx) })
	wg.Go(func() {
		if err := a.store.Watch(ctx); err != nil {
			cancel(err)
		}
	})

	if err := a.watch(ctx); err != nil {
		return err
	}
	wg.Go(func() {
		if err := a.cache.Start(ctx); err != nil {
			cancel(fmt.Errorf("watch the API server: %w", err))
		}
	})
	if !a.cache.WaitForCacheSync(ctx) {
		return context.Cause(ctx)
	}
	if err := a.pools.identify(ctx); err != nil {
		return err
	}
	a.pools.lookForTwins(ctx)
	wg.Go(func() { a.store.Run(ctx) }) // not before it is known that the disks are this cluster's: it frees trash
	wg.Go(func() { a.pools.run(ctx) })
	wg.Go(func() { a.recheck(ctx) })
	wg.Go(func() { a.store.KeepEnforced(ctx, a.opts.RecheckEvery) })
	for range workersFor(len(a.store.Pools())) {
		wg.Go(func() { a.work(ctx) })
	}
	a.ready.Store(true)
	if a.opts.Serving != nil {
		a.opts.Serving()
	}
	a.log.InfoContext(ctx, "serving", "node", a.opts.Node)
	<-ctx.Done()
	a.queue.ShutDown()
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		return cause
	}
	return nil
}

// watch connects the informers to the queue.
func (a *Agent) watch(ctx context.Context) error {
	volumes, err := a.cache.GetInformer(ctx, &v1alpha1.Volume{}, cache.BlockUntilSynced(false))
	if err != nil {
		return fmt.Errorf("watch Volumes: %w", err)
	}
	_, err = volumes.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
		AddFunc:    func(obj any) { a.enqueue(obj.(*v1alpha1.Volume)) },
		UpdateFunc: func(before, after any) { a.updated(before.(*v1alpha1.Volume), after.(*v1alpha1.Volume)) },
		DeleteFunc: func(obj any) {
			if gone, ok := obj.(toolscache.DeletedFinalStateUnknown); ok {
				obj = gone.Obj
			}
			if v, ok := obj.(*v1alpha1.Volume); ok {
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

// updated looks at a Volume that changed. Where only its status did, that is this agent's own word, and there is nothing to do
// unless the disk says something else by now.
func (a *Agent) updated(before, after *v1alpha1.Volume) {
	asked := before.UID != after.UID || before.Generation != after.Generation || before.ResourceVersion == after.ResourceVersion ||
		before.DeletionTimestamp.IsZero() != after.DeletionTimestamp.IsZero() || !labels.Equals(before.Labels, after.Labels)
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

// followMounts looks at the pools, and at volumes that were in use, whenever a mount of the node changed; at the pools also
// without being told, since a disk can fail without any mount changing.
func (a *Agent) followMounts(ctx context.Context, changed <-chan struct{}) {
	ticker := time.NewTicker(lookEvery)
	defer ticker.Stop()
	for {
		select {
		case _, open := <-changed:
			if !open {
				return
			}
			a.inUse.Range(func(name, _ any) bool { a.queue.Add(name.(string)); return true })
		case <-ticker.C:
		}
		a.store.Glance(ctx)
	}
}

// followStore reports what changed on the disks: pools' room, volumes that became available or not, trash that was freed.
func (a *Agent) followStore(ctx context.Context) {
	feed := a.store.Feed()
	for {
		changed := a.store.Changed() // before anything is looked at, or a change in between would be seen by nobody
		a.pools.poke()
		a.followMoved(ctx, feed)
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

// recheck brings up now and then what failed to come up, and grows what there may be room for.
func (a *Agent) recheck(ctx context.Context) {
	ticker := time.NewTicker(a.opts.RecheckEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		a.pools.lookForTwins(ctx)
		a.requeueMoved(ctx) // somebody else's files on a pool's filesystem may have gone: there may be room to grow
		for _, v := range a.store.List() {
			if ctx.Err() != nil {
				return
			}
			if v.Unavailable != nil {
				a.queue.Add(v.ID)
			}
		}
	}
}

// requeueMoved puts into the queue the Volumes whose status does not say what the store says.
func (a *Agent) requeueMoved(ctx context.Context) {
	var list v1alpha1.VolumeList
	if !a.ready.Load() {
		return
	}
	if err := a.client.List(ctx, &list); err != nil {
		return
	}
	trashed := map[string]bool{}
	for _, t := range a.store.Trash() {
		if t.Volume != nil {
			trashed[t.Volume.ID] = true
		}
	}
	for i := range list.Items {
		if v := &list.Items[i]; a.moved(v, func(id string) bool { return trashed[id] }) {
			a.queue.Add(v.Name)
		}
	}
}

// moved reports whether a Volume's status does not say what the store says.
func (a *Agent) moved(v *v1alpha1.Volume, inTrash func(id string) bool) bool {
	there, err := a.store.Get(v.Name)
	available := err == nil && there.Unavailable == nil
	switch v.Status.Phase {
	case v1alpha1.VolumeReady:
		return !available || a.roomToGrow(v, &there) || isEnforcedNews(v.Status.Conditions, there.NotEnforced)
	case v1alpha1.VolumeUnavailable, v1alpha1.VolumeLost:
		return available || err != nil || there.Adopting != "" // the latter waits for us to finish it
	case v1alpha1.VolumePending: // an adoption waits for its pool
		ready := meta.FindStatusCondition(v.Status.Conditions, v1alpha1.ConditionReady)
		return v.Spec.Adopt != nil && ready != nil && ready.Reason == v1alpha1.ReasonPoolOffline
	case v1alpha1.VolumeTrashed:
		return !inTrash(v.Name)
	}
	return err == nil // it says that there is none
}

// roomToGrow tells a volume whose growth was refused, and that fits by now.
func (a *Agent) roomToGrow(v *v1alpha1.Volume, there *store.Volume) bool {
	if !waitsForRoom(v) {
		return false
	}
	for _, p := range a.store.Pools() {
		if p.Name == there.Pool {
			return p.Offline == nil && p.Available >= v.Spec.Capacity.Value()-there.Promise()
		}
	}
	return false
}

// Up is closed once the pools that are there were opened and their volumes brought up, API server or not.
func (a *Agent) Up() <-chan struct{} { return a.up }

// Ready tells whether the agent serves records: its pod's readiness, by which the controller knows.
func (a *Agent) Ready() bool { return a.ready.Load() }

// Health serves /healthz and /readyz.
func (a *Agent) Health() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) {
		if !a.Ready() {
			http.Error(w, "the API server has not been reached yet", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	return mux
}

// groups holds what is known of volumes that are admitted together.
type groups struct {
	locks keylock.Set

	mu       sync.Mutex
	admitted map[string]*store.Admission // by volume: promised, and not made yet
	waiting  map[string]waiting          // by volume
}

// waiting is the group whose other members a volume waits for, and since when.
type waiting struct {
	group string
	since time.Time
}
