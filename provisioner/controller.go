package provisioner

import (
	"context"
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/manager"
)

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

	if err := c.addControllers(mgr, o, capacity); err != nil {
		return nil, err
	}

	checks := []func(string, healthz.Checker) error{mgr.AddHealthzCheck, mgr.AddReadyzCheck}
	for _, add := range checks {
		if err := add("ping", healthz.Ping); err != nil {
			return nil, err
		}
	}

	return c, nil
}

// addControllers registers the reconcilers, which run on the leader.
func (c *provisioner) addControllers(
	mgr manager.Manager,
	o Options,
	capacity *capacityPublisher,
) error {
	door := c.local.frontDoor
	heal := &volumeRestorer{
		client:  door.client,
		live:    door.live,
		events:  door.events,
		metrics: door.metrics,
	}
	sweep := &sweeper{
		volumes: c.volumes,
		grace:   o.SweepGrace,
		now:     time.Now,
		metrics: door.metrics,
	}
	if err := addRestore(mgr, heal); err != nil {
		return err
	}
	if err := addSweep(mgr, sweep); err != nil {
		return err
	}

	orphans := &orphanReporter{
		client:  door.client,
		live:    door.live,
		events:  door.events,
		grace:   o.SweepGrace,
		now:     time.Now,
		metrics: door.metrics,
	}
	if err := addOrphans(mgr, orphans); err != nil {
		return err
	}

	loss := &nodeLossHandler{
		client:  door.client,
		live:    door.live,
		events:  door.events,
		enabled: o.NodeLoss,
		now:     time.Now,
		metrics: door.metrics,
	}
	if err := addNodeLoss(mgr, loss); err != nil {
		return err
	}

	gone := &goneNodeCleaner{
		client: door.client,
		live:   door.live,
		agents: c.agents,
		sweep:  sweep,
		grace:  defaultGoneNodeGrace,
		now:    time.Now,
	}
	if err := addGoneNodes(mgr, gone); err != nil {
		return err
	}
	if err := addCapacity(mgr, capacity); err != nil {
		return err
	}
	if err := addUnschedulable(mgr, &unschedulableReporter{
		door:    door,
		now:     time.Now,
		surveys: &surveyCache{door: door, now: time.Now},
	}); err != nil {
		return err
	}

	return addExpansion(mgr, &expander{client: door.client, events: door.events})
}
