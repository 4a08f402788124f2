package provisioner

import (
	"context"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	toolscache "k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrlcontroller "sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	ctrlmetrics "sigs.k8s.io/controller-runtime/pkg/metrics"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

// Options are the provisioner's settings; the zero value of each gives the
// default named in its comment.
type Options struct {
	// Namespace is Quarry's own: of the agents' pods, of the lease and of the
	// capacity objects. Required.
	Namespace string
	// AgentLabels select the agents' pods in it. Default:
	// app.kubernetes.io/name=quarry, app.kubernetes.io/component=agent.
	AgentLabels map[string]string
	// LeaseName names the lease of the leader election. Default:
	// quarry-controller.
	LeaseName string
	// NoLeaderElection is for tests and for a single process on a workbench.
	NoLeaderElection bool
	// Workers is how many claims, and how many PersistentVolumes, are worked on
	// at a time. Default: 100.
	Workers int
	// ProvisionTimeout bounds one try of one claim. Default: 60 s.
	ProvisionTimeout time.Duration
	// DeletionTimeout bounds one try of one PersistentVolume, DeleteWait the
	// wait for the agent in it. Default: 2 min, 10 s.
	DeletionTimeout time.Duration
	DeleteWait      time.Duration
	// SweepGrace is how old an unpublished attempt is before the sweep looks at
	// it. Default: 1 min.
	SweepGrace time.Duration
	// NodeLoss allows claims to be deleted so that they start over elsewhere,
	// for classes with onNodeLoss.
	NodeLoss bool
	// Deployment, if set, is the controller's own, in its namespace. It owns
	// the capacity objects, so that they go with it: the scheduler would
	// believe what they said last for ever.
	Deployment string
	// TemplateNodeSize is the largest volume, in bytes, that a node which the
	// cluster autoscaler would add has room for. 0: the autoscaler is told
	// nothing.
	TemplateNodeSize int64
	// IgnoreCapacity leaves the scheduler's look at capacity off: it chooses
	// nodes whether they have room or not.
	IgnoreCapacity bool
	// capacityOwner is the reference to it.
	capacityOwner *metav1.OwnerReference
	// MetricsAddress and HealthAddress are where those are served. Default: not
	// at all.
	MetricsAddress string
	HealthAddress  string
	// Registry takes the metrics. Default: controller-runtime's, which
	// MetricsAddress serves.
	Registry prometheus.Registerer
	// ServeCSI, if set, serves the CSI front door. It runs on every replica,
	// leader or not, until ctx ends.
	ServeCSI func(ctx context.Context, door *CSI) error

	// limiter replaces the delays between tries, for tests.
	limiter workqueue.TypedRateLimiter[any]
}

func (o Options) withDefaults() Options {
	if len(o.AgentLabels) == 0 {
		o.AgentLabels = map[string]string{
			"app.kubernetes.io/name":      "quarry",
			"app.kubernetes.io/component": "agent",
		}
	}

	orDefault(&o.LeaseName, "quarry-controller")
	orDefault(&o.Workers, 100)
	orDefault(&o.ProvisionTimeout, time.Minute)
	orDefault(&o.DeletionTimeout, 2*time.Minute)
	orDefault(&o.DeleteWait, defaultDeleteWait)
	orDefault(&o.SweepGrace, defaultSweepGrace)
	if o.limiter == nil {
		o.limiter = retryLimiter()
	}
	if o.Registry == nil {
		o.Registry = ctrlmetrics.Registry
	}

	return o
}

func orDefault[T comparable](field *T, value T) {
	if zero := *new(T); *field == zero {
		*field = value
	}
}

// NewScheme knows the kinds of Kubernetes and of Quarry.
func NewScheme() (*runtime.Scheme, error) {
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientscheme.AddToScheme, v1alpha1.AddToScheme} {
		if err := add(s); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// managerOptions are the options of the manager that setup needs: what is
// cached, and how the leader is elected.
func managerOptions(o Options) (manager.Options, error) {
	o = o.withDefaults()
	if o.Namespace == "" {
		return manager.Options{}, fmt.Errorf("the provisioner's options lack a namespace")
	}

	scheme, err := NewScheme()
	if err != nil {
		return manager.Options{}, err
	}

	metrics := o.MetricsAddress
	if metrics == "" {
		metrics = "0" // the manager's word for none
	}

	volumes, claims, records := newPackers()
	return manager.Options{
		Scheme: scheme,
		Cache: cache.Options{
			DefaultTransform: cache.TransformStripManagedFields(),
			ByObject: map[client.Object]cache.ByObject{
				// Only the agents' pods; the pods of a claim are read live when
				// they matter.
				&corev1.Pod{}: {Transform: trimPod, Namespaces: map[string]cache.Config{
					o.Namespace: {LabelSelector: labels.SelectorFromSet(o.AgentLabels)},
				}},
				&corev1.Node{}: {Transform: trimNode},
				// What there is most of lies packed, and is not gone through
				// again without news.
				&corev1.PersistentVolume{}: {
					Transform:  volumes.transform,
					SyncPeriod: new(time.Duration(0)),
				},
				&corev1.PersistentVolumeClaim{}: {
					Transform:  claims.transform,
					SyncPeriod: new(time.Duration(0)),
				},
				&v1alpha1.Volume{}: {
					Transform:  records.transform,
					SyncPeriod: new(time.Duration(0)),
				},
				&storagev1.CSIStorageCapacity{}: {
					Namespaces: map[string]cache.Config{o.Namespace: {}},
				},
			},
		},
		LeaderElection:          !o.NoLeaderElection,
		LeaderElectionID:        o.LeaseName,
		LeaderElectionNamespace: o.Namespace,
		// The process ends when the manager does; the other replica takes over
		// at once.
		LeaderElectionReleaseOnCancel: true,
		Metrics:                       metricsserver.Options{BindAddress: metrics},
		HealthProbeBindAddress:        o.HealthAddress,
	}, nil
}

// provisioner is the provisioner of one process. What it offers works on every
// replica; its loops run on the leader.
type provisioner struct {
	volumes *volumeObjects
	agents  *agentWatch
	// local and csi are the two front doors.
	local *localDoor
	csi   *CSI
}

// Run makes a manager, sets the provisioner up in it and runs it until ctx
// ends. An error means that the process should end; losing the lease is one.
func Run(ctx context.Context, config *rest.Config, o Options) error {
	options, err := managerOptions(o)
	if err != nil {
		return err
	}

	mgr, err := manager.New(Throughput(config), options)
	if err != nil {
		return fmt.Errorf("make the manager: %w", err)
	}
	if o.Deployment != "" {
		if o.capacityOwner, err = ownerOf(ctx, mgr.GetAPIReader(), client.ObjectKey{
			Namespace: o.Namespace,
			Name:      o.Deployment,
		}); err != nil {
			mgr.GetLogger().Error(err, "The capacity objects will not go with the installation")
		}
	}

	c, err := setup(ctx, mgr, o)
	if err != nil {
		return err
	}

	if o.ServeCSI != nil {
		serve := func(ctx context.Context) error { return o.ServeCSI(ctx, c.csi) }
		if err := mgr.Add(everyReplica(serve)); err != nil {
			return err
		}
	}

	return mgr.Start(ctx)
}

// ownerOf is the reference to a Deployment that others are to go with.
func ownerOf(
	ctx context.Context,
	live client.Reader,
	key client.ObjectKey,
) (*metav1.OwnerReference, error) {
	var d appsv1.Deployment
	if err := live.Get(ctx, key, &d); err != nil {
		return nil, fmt.Errorf("read the controller's own Deployment %s: %w", key, err)
	}
	return &metav1.OwnerReference{
		APIVersion: appsv1.SchemeGroupVersion.String(),
		Kind:       "Deployment",
		Name:       d.Name,
		UID:        d.UID,
	}, nil
}

// Throughput returns the config with client-side limits that a burst of a few
// hundred claims does not meet, unless it has limits already; the API server
// protects itself by priority and fairness.
func Throughput(config *rest.Config) *rest.Config {
	c := rest.CopyConfig(config)
	if c.QPS == 0 {
		c.QPS, c.Burst = 500, 1000
	}
	return c
}

// protobuf has a client of built-in kinds only speak the form that costs least.
// The manager's client chooses by kind.
func protobuf(config *rest.Config) *rest.Config {
	c := rest.CopyConfig(config)
	c.ContentType = runtime.ContentTypeProtobuf
	c.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	return c
}

// setup registers everything with a manager that was made with managerOptions.
// Nothing runs before the manager starts.
func setup(ctx context.Context, mgr manager.Manager, o Options) (*provisioner, error) {
	o = o.withDefaults()
	metrics, err := NewMetrics(o.Registry)
	if err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}

	kube, err := kubernetes.NewForConfig(protobuf(mgr.GetConfig()))
	if err != nil {
		return nil, fmt.Errorf("make the client of the library: %w", err)
	}
	if err := addIndexes(ctx, mgr.GetFieldIndexer()); err != nil {
		return nil, err
	}

	recorder := eventRecorder{mgr.GetEventRecorder("quarry-controller")}
	agents := &agentWatch{}
	volumes := &volumeObjects{
		client:       mgr.GetClient(),
		live:         mgr.GetAPIReader(),
		agents:       agents,
		agentChanged: &agents.changed,
	}
	capacity := newCapacityPublisher(&capacityPublisher{
		client:       mgr.GetClient(),
		live:         mgr.GetAPIReader(),
		agents:       agents,
		namespace:    o.Namespace,
		owner:        o.capacityOwner,
		metrics:      metrics,
		templateSize: o.TemplateNodeSize,
		leaveOff:     o.IgnoreCapacity,
	})
	door := &frontDoor{
		volumes:  volumes,
		client:   mgr.GetClient(),
		live:     mgr.GetAPIReader(),
		agents:   agents,
		capacity: capacity,
		events:   recorder,
		metrics:  metrics,
	}
	c := &provisioner{volumes: volumes, agents: agents, csi: &CSI{frontDoor: door}}
	c.local = &localDoor{
		frontDoor:  door,
		deleteWait: o.DeleteWait,
		waiting: newWaitingRoom(
			o.limiter.Forget,
			func(n int) { metrics.waiting.Set(float64(n)) },
		),
	}
	agents.OnChange = func(node string, ready bool) {
		capacity.agentChanged(node)
		if ready {
			c.local.waiting.nodeChanged(node)
		}
	}

	in, err := c.watch(ctx, mgr)
	if err != nil {
		return nil, err
	}
	// Runnables need the lease unless they say otherwise.
	if err := mgr.Add(manager.RunnableFunc(func(ctx context.Context) error {
		return runLibrary(ctx, kube, c.local, in, o)
	})); err != nil {
		return nil, err
	}

	heal := &volumeRestorer{
		client:  mgr.GetClient(),
		live:    mgr.GetAPIReader(),
		events:  recorder,
		metrics: metrics,
	}
	sweep := &sweeper{
		volumes: c.volumes,
		grace:   o.SweepGrace,
		now:     time.Now,
		metrics: metrics,
	}
	if err := addLoops(mgr, heal, sweep); err != nil {
		return nil, err
	}

	orphans := &orphanReporter{
		client:  mgr.GetClient(),
		live:    mgr.GetAPIReader(),
		events:  recorder,
		grace:   o.SweepGrace,
		now:     time.Now,
		metrics: metrics,
	}
	if err := addOrphans(mgr, orphans); err != nil {
		return nil, err
	}

	loss := &nodeLossHandler{
		client:  mgr.GetClient(),
		live:    mgr.GetAPIReader(),
		events:  recorder,
		enabled: o.NodeLoss,
		now:     time.Now,
		metrics: metrics,
	}
	if err := addNodeLoss(mgr, loss); err != nil {
		return nil, err
	}

	gone := &goneNodeCleaner{
		client: mgr.GetClient(),
		live:   mgr.GetAPIReader(),
		agents: agents,
		sweep:  sweep,
		grace:  defaultGoneNodeGrace,
		now:    time.Now,
	}
	if err := addGoneNodes(mgr, gone); err != nil {
		return nil, err
	}
	if err := addCapacity(mgr, capacity); err != nil {
		return nil, err
	}
	if err := addUnschedulable(mgr, &unschedulableReporter{
		door:    door,
		now:     time.Now,
		surveys: &surveyCache{door: door, now: time.Now},
	}); err != nil {
		return nil, err
	}
	if err := addExpansion(mgr, &expander{
		client: mgr.GetClient(),
		events: recorder,
	}); err != nil {
		return nil, err
	}

	for _, add := range []func(string, healthz.Checker) error{mgr.AddHealthzCheck, mgr.AddReadyzCheck} {
		if err := add("ping", healthz.Ping); err != nil {
			return nil, err
		}
	}

	return c, nil
}

// addLoops registers the loops that are driven by watches.
func addLoops(mgr manager.Manager, heal *volumeRestorer, sweep *sweeper) error {
	// A missing CRD fails every try; it may come back any minute, so tries
	// never get far apart.
	options := ctrlcontroller.Options{
		MaxConcurrentReconciles: 4,
		SkipNameValidation:      new(true),
		RateLimiter: workqueue.NewTypedItemExponentialFailureRateLimiter[reconcile.Request](
			100*time.Millisecond,
			15*time.Second,
		),
	}
	vanished := predicate.Funcs{
		CreateFunc:  func(event.CreateEvent) bool { return false },
		UpdateFunc:  func(event.UpdateEvent) bool { return false },
		GenericFunc: func(event.GenericEvent) bool { return false },
	}
	toPV := handler.EnqueueRequestsFromMapFunc(
		func(_ context.Context, o client.Object) []reconcile.Request {
			if name := o.GetLabels()[v1alpha1.LabelPVName]; name != "" {
				return []reconcile.Request{{NamespacedName: types.NamespacedName{Name: name}}}
			}
			return nil
		},
	)
	if err := builder.ControllerManagedBy(mgr).
		Named("heal").
		For(&corev1.PersistentVolume{}, builder.WithPredicates(newsOfQuiet)).
		WatchesRawSource(eachQuiet(mgr, &corev1.PersistentVolume{}, heal)).
		Watches(&v1alpha1.Volume{}, toPV, builder.WithPredicates(vanished)).
		WithOptions(options).
		Complete(heal); err != nil {
		return fmt.Errorf("set up the restoring of Volumes: %w", err)
	}

	options.RateLimiter = workqueue.NewTypedItemExponentialFailureRateLimiter[reconcile.Request](
		100*time.Millisecond,
		15*time.Second,
	)
	options.MaxConcurrentReconciles = 16 // it removes the records of a burst of deletions
	// What is published and wanted is nothing for the sweep.
	if err := builder.ControllerManagedBy(mgr).
		Named("sweep").
		For(&v1alpha1.Volume{}, builder.WithPredicates(restless)).
		WithOptions(options).
		Complete(sweep); err != nil {
		return fmt.Errorf("set up the sweep: %w", err)
	}

	return addVanished(mgr, sweep)
}

// addVanished has the sweep look at the volumes of PersistentVolumes that were
// removed.
func addVanished(mgr manager.Manager, sweep *sweeper) error {
	removed := predicate.Funcs{
		CreateFunc:  func(event.CreateEvent) bool { return false },
		UpdateFunc:  func(event.UpdateEvent) bool { return false },
		GenericFunc: func(event.GenericEvent) bool { return false },
	}
	options := ctrlcontroller.Options{
		SkipNameValidation: new(true),
		RateLimiter: workqueue.NewTypedItemExponentialFailureRateLimiter[reconcile.Request](
			100*time.Millisecond,
			15*time.Second,
		),
	}
	if err := builder.ControllerManagedBy(mgr).
		Named("vanished").
		For(&corev1.PersistentVolume{}, builder.WithPredicates(removed)).
		WithOptions(options).
		Complete(reconcile.Func(sweep.vanished)); err != nil {
		return fmt.Errorf("set up the watch of PersistentVolumes that vanish: %w", err)
	}
	return nil
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
				} else if claim := after.(*corev1.PersistentVolumeClaim); claim.Spec.VolumeName != "" {
					// Also where it was bound to another volume than ours.
					waiting.removeClaim(string(claim.UID))
				}
			},
			DeleteFunc: func(obj any) {
				lastState(
					obj,
					func(claim *corev1.PersistentVolumeClaim) { waiting.claimGone(string(claim.UID)) },
				)
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
