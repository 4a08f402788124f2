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
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/mount"
	"github.com/quarry-storage/quarry/nodeagent/store"
)

// DefaultRecheckEvery is how often the sizes of directory volumes are looked at
// again.
const DefaultRecheckEvery = store.DefaultRecheckEvery

// Options are the agent's settings.
type Options struct {
	// Node is the name of the node the agent runs on.
	Node string
	// Store holds the node's volumes. It must be new.
	Store *store.Store
	// Config reaches the API server.
	Config *rest.Config
	// RecheckEvery is how often the sizes of directory volumes are looked at
	// again. 0: 10 minutes.
	RecheckEvery time.Duration
	// MachineID tells this machine from another one under the same node name.
	// Empty: the machine's own (machine-id(5)).
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
	// inUse are the volumes that could not be deleted because something uses
	// them; a change of the node's mounts wakes them.
	inUse sync.Map
	// untold are the volumes that were made and that no status has told of yet:
	// the UIDs of their objects, by name.
	untold sync.Map
	// written are the objects that the cache is behind of.
	written written
	// early are the Volumes that an agent before this one may have made without
	// a word: the UIDs of the objects, by name.
	early sync.Map
	// growing are the volumes whose growth was refused for want of room; more
	// room wakes them.
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
	return s, errors.Join(v1alpha1.AddToScheme(s), corev1.AddToScheme(s),
		coordinationv1.AddToScheme(s))
}

// mapper knows where the agent's kinds are in the API, so that nothing has to
// be discovered: an agent starts without the API server.
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
		// No limit: a burst of volumes would wait for it, at 100 a second for
		// longer than for the disk. The queue's delays bound what goes wrong,
		// and the API server protects itself.
		config.QPS = -1
	}

	mine := cache.ByObject{Field: fields.OneTermEqualSelector("spec.nodeName", o.Node)}
	kinds := mapper()
	informers, err := cache.New(config, cache.Options{Scheme: scheme, Mapper: kinds,
		DefaultTransform: cache.TransformStripManagedFields(),
		ByObject: map[client.Object]cache.ByObject{&v1alpha1.Volume{}: mine,
			&v1alpha1.Pool{}: mine}})
	if err != nil {
		return nil, fmt.Errorf("make the cache: %w", err)
	}
	if err := informers.IndexField(context.Background(), &v1alpha1.Volume{}, indexClaim,
		indexOfClaim); err != nil {
		return nil, fmt.Errorf("index Volumes by %s: %w", indexClaim, err)
	}

	cached, err := client.New(config, client.Options{Scheme: scheme, Mapper: kinds,
		Cache: &client.CacheOptions{Reader: informers}})
	if err != nil {
		return nil, fmt.Errorf("make the client: %w", err)
	}

	live, err := client.New(config, client.Options{Scheme: scheme, Mapper: kinds})
	if err != nil {
		return nil, fmt.Errorf("make the client: %w", err)
	}

	a := &Agent{opts: o, log: o.Log, store: o.Store, cache: informers, client: cached, live: live,
		up: make(chan struct{}),
		queue: workqueue.NewTypedRateLimitingQueue(
			workqueue.NewTypedItemExponentialFailureRateLimiter[string](100*time.Millisecond,
				time.Minute))}
	a.lanes.wake = func(volume string) { a.queue.Add(volume) }
	a.groups.admitted = map[string]*store.Admission{}
	a.pools = newPoolReporter(a)
	if a.meter, err = newMeter(o.Registry, o.Store); err != nil {
		return nil, err
	}

	return a, nil
}

// Run brings the node's volumes up and then serves the Volume objects until ctx
// ends.
func (a *Agent) Run(ctx context.Context) error {
	// The disk first: pools that are pools already. Whether a directory that is
	// none may become one, the API server knows.
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
	if err := a.noteEarly(ctx); err != nil {
		return err
	}
	if err := a.pools.identify(ctx); err != nil {
		return err
	}

	a.pools.lookForTwins(ctx)

	// Not before it is known that the disks are this cluster's: it frees trash.
	wg.Go(func() { a.store.Run(ctx) })
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

// Up is closed once the pools that are there were opened and their volumes
// brought up, API server or not.
func (a *Agent) Up() <-chan struct{} { return a.up }

// Ready reports whether the agent serves Volume objects: its pod's readiness,
// by which the controller knows.
func (a *Agent) Ready() bool { return a.ready.Load() }

// Health serves /healthz and /readyz.
func (a *Agent) Health() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "ok")
	})

	mux.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) {
		if !a.Ready() {
			http.Error(w, "the API server has not been reached yet", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	return mux
}
