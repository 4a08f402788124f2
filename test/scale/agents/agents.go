// Package agents stands for the agents of thousands of nodes in one process: it
// answers Volume objects as they do, by their translation (package nodeagent),
// and keeps volumes in memory where they keep them on disk.
//
// What is real: every request to the API server, its content and its order, one
// Pool object for each node, written as often as an agent writes it. What is
// not: one watch on all Volumes instead of one for each node, no disk, and so
// no time that a disk takes.
package agents

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	toolscache "k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/record"
	"github.com/quarry-storage/quarry/nodeagent/store"
	"github.com/quarry-storage/quarry/nodeagent/translate"
)

const (
	// pool is the one pool of each node.
	pool = "default"
	// filesystem is what it lies on.
	filesystem = "xfs"
	// reportEvery and roomStep are the agent's own.
	reportEvery = 200 * time.Millisecond
	roomStep    = 1 << 20
	// workers answer Volumes, and as many report Pools.
	workers = 32
)

// Fleet is the agents of all nodes.
type Fleet struct {
	client client.Client
	cache  cache.Cache
	size   int64

	volumes workqueue.TypedRateLimitingInterface[string]
	reports workqueue.TypedRateLimitingInterface[string]

	mu    sync.Mutex
	nodes map[string]*node
}

// node is what an agent knows of its node.
type node struct {
	uid      string           // of its pool
	held     map[string]int64 // bytes, by Volume
	promised int64
	reported time.Time // when its Pool was written last
}

// New makes the agents of all nodes there are, each with a pool of the given
// size in bytes.
func New(config *rest.Config, size int64) (*Fleet, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, v1alpha1.AddToScheme} {
		if err := add(scheme); err != nil {
			return nil, err
		}
	}
	c, err := client.New(config, client.Options{Scheme: scheme})
	if err != nil {
		return nil, fmt.Errorf("make the agents' client: %w", err)
	}
	objects, err := cache.New(config, cache.Options{Scheme: scheme,
		DefaultTransform: cache.TransformStripManagedFields()})
	if err != nil {
		return nil, fmt.Errorf("make the agents' cache: %w", err)
	}
	queue := func() workqueue.TypedRateLimitingInterface[string] {
		return workqueue.NewTypedRateLimitingQueue(workqueue.DefaultTypedControllerRateLimiter[string]())
	}
	return &Fleet{client: c, cache: objects, size: size, volumes: queue(), reports: queue(),
		nodes: map[string]*node{}}, nil
}

// Run reports every node's Pool and answers Volumes until ctx ends. ready is
// called once every Pool was reported.
func (f *Fleet) Run(ctx context.Context, ready func()) error {
	informer, err := f.cache.GetInformer(ctx, &v1alpha1.Volume{}, cache.BlockUntilSynced(false))
	if err != nil {
		return fmt.Errorf("watch Volumes: %w", err)
	}
	if _, err := informer.AddEventHandler(f.handler()); err != nil {
		return fmt.Errorf("watch Volumes: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- f.cache.Start(ctx) }()
	if !f.cache.WaitForCacheSync(ctx) {
		return context.Cause(ctx)
	}
	if err := f.remember(ctx); err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { f.volumes.ShutDown(); f.reports.ShutDown() })

	if err := f.reportAll(ctx); err != nil {
		return err
	}
	for range workers {
		go work(ctx, f.volumes, f.answer)
		go work(ctx, f.reports, f.report)
	}
	ready()
	return <-ended
}

func (f *Fleet) handler() toolscache.ResourceEventHandler {
	add := func(o any) {
		if v, ok := o.(*v1alpha1.Volume); ok {
			f.volumes.Add(v.Name)
		}
	}
	return toolscache.ResourceEventHandlerFuncs{AddFunc: add, UpdateFunc: func(_, o any) { add(o) }}
}

// work takes names from a queue until it is shut down; what failed is tried
// again, later and later.
func work(ctx context.Context, queue workqueue.TypedRateLimitingInterface[string],
	do func(context.Context, string) error) {
	for {
		name, shutdown := queue.Get()
		if shutdown {
			return
		}
		if err := do(ctx, name); err != nil {
			queue.AddRateLimited(name)
		} else {
			queue.Forget(name)
		}
		queue.Done(name)
	}
}

// remember takes the Volumes there are for what is on the nodes' disks.
func (f *Fleet) remember(ctx context.Context) error {
	var nodes corev1.NodeList
	if err := f.client.List(ctx, &nodes); err != nil {
		return fmt.Errorf("list nodes: %w", err)
	}
	for i := range nodes.Items {
		f.nodes[nodes.Items[i].Name] = &node{uid: uuid.NewString(), held: map[string]int64{}}
	}
	var volumes v1alpha1.VolumeList
	if err := f.cache.List(ctx, &volumes, client.UnsafeDisableDeepCopy); err != nil {
		return fmt.Errorf("list Volumes: %w", err)
	}
	for i := range volumes.Items {
		v := &volumes.Items[i]
		if n := f.nodes[v.Spec.NodeName]; n != nil && v.Status.Phase == v1alpha1.VolumeReady {
			n.held[v.Name] = v.Status.Capacity.Value()
			n.promised += v.Status.Capacity.Value()
		}
	}
	return nil
}

// reportAll makes every node's Pool, as agents do when they start.
func (f *Fleet) reportAll(ctx context.Context) error {
	names := make(chan string)
	done := make(chan error, workers)
	for range workers {
		go func() {
			var first error
			for name := range names {
				if err := f.report(ctx, name); err != nil && first == nil {
					first = err
				}
			}
			done <- first
		}()
	}
	for name := range f.nodes {
		names <- name
	}
	close(names)
	var first error
	for range workers {
		if err := <-done; err != nil && first == nil {
			first = err
		}
	}
	return first
}

// answer does what a Volume asks of its node's agent.
func (f *Fleet) answer(ctx context.Context, name string) error {
	v := &v1alpha1.Volume{}
	if err := f.cache.Get(ctx, client.ObjectKey{Name: name}, v); err != nil {
		return client.IgnoreNotFound(err)
	}
	status := v.Status.DeepCopy()
	status.ObservedGeneration = v.Generation
	switch v.Spec.DesiredState {
	case v1alpha1.DesiredTrashed, v1alpha1.DesiredDeleted:
		if v.Status.Phase == v1alpha1.VolumeDeleted {
			return nil
		}
		f.free(v)
		removed(status)
	default:
		if v.Status.Phase == v1alpha1.VolumeReady || v.Status.Phase == v1alpha1.VolumeRefused {
			return nil // no news
		}
		made, err := f.make(v)
		if err != nil {
			return err
		}
		made.ObservedGeneration = status.ObservedGeneration
		for i := range made.Conditions {
			made.Conditions[i].ObservedGeneration = status.ObservedGeneration
		}
		status = made
	}
	changed := v.DeepCopy()
	changed.Status = *status
	if err := f.client.Status().Patch(ctx, changed, client.MergeFrom(v)); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("write the status of volume %s: %w", name, err)
	}
	return nil
}

// make finds room for a volume and returns what its agent would say of it.
func (f *Fleet) make(v *v1alpha1.Volume) (*v1alpha1.VolumeStatus, error) {
	request, err := translate.RequestOf(v)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	n := f.nodes[v.Spec.NodeName]
	if n == nil {
		f.mu.Unlock()
		return nil, fmt.Errorf("volume %s is on %s, which is no node of ours", v.Name, v.Spec.NodeName)
	}
	if _, again := n.held[v.Name]; !again {
		if n.promised+request.SizeBytes > f.size {
			f.mu.Unlock()
			return refused(), nil
		}
		n.held[v.Name] = request.SizeBytes
		n.promised += request.SizeBytes
	}
	uid := n.uid
	f.mu.Unlock()
	f.soon(v.Spec.NodeName)

	there := &store.Volume{
		Volume: record.Volume{
			ID: request.ID, CreatedAt: time.Now(), Backend: record.BackendDirectory, Enforcement: request.Enforcement,
			VolumeMode: request.VolumeMode, SizeBytes: request.SizeBytes, Origin: request.Origin,
		},
		Pool: pool, PoolUID: uid, Path: "/var/lib/quarry/pool/volumes/" + request.ID + "/mount/data",
	}
	return &translate.VolumeOnDisk(there, filesystem).Status, nil
}

func (f *Fleet) free(v *v1alpha1.Volume) {
	f.mu.Lock()
	if n := f.nodes[v.Spec.NodeName]; n != nil {
		n.promised -= n.held[v.Name]
		delete(n.held, v.Name)
	}
	f.mu.Unlock()
	f.soon(v.Spec.NodeName)
}

// removed is what an agent says of a volume whose data is gone.
func removed(status *v1alpha1.VolumeStatus) {
	status.Path = ""
	status.Capacity = resource.NewQuantity(0, resource.BinarySI)
	status.Phase = v1alpha1.VolumeDeleted
	meta.SetStatusCondition(&status.Conditions, metav1.Condition{Type: v1alpha1.ConditionReady,
		Status: metav1.ConditionFalse,
		Reason: v1alpha1.ReasonRemoved, ObservedGeneration: status.ObservedGeneration})
}

func refused() *v1alpha1.VolumeStatus {
	status := &v1alpha1.VolumeStatus{Phase: v1alpha1.VolumeRefused}
	meta.SetStatusCondition(&status.Conditions, metav1.Condition{Type: v1alpha1.ConditionReady,
		Status: metav1.ConditionFalse,
		Reason: v1alpha1.ReasonInsufficientCapacity, Message: "no pool has room for it"})
	return status
}

// soon has a node's Pool written: at once, or when its last writing is
// reportEvery ago.
func (f *Fleet) soon(name string) {
	f.mu.Lock()
	wait := time.Duration(0)
	if n := f.nodes[name]; n != nil {
		wait = time.Until(n.reported.Add(reportEvery))
	}
	f.mu.Unlock()
	f.reports.AddAfter(name, wait)
}

// report makes and writes a node's Pool.
func (f *Fleet) report(ctx context.Context, name string) error {
	f.mu.Lock()
	n := f.nodes[name]
	n.reported = time.Now()
	uid := n.uid
	room := (f.size - n.promised) / roomStep * roomStep
	want := v1alpha1.PoolStatus{
		Path: "/var/lib/quarry/pool", MachineID: name, Filesystem: filesystem, FilesystemID: uid,
		Features: v1alpha1.PoolFeatures{ProjectQuota: true, Reflink: true, DirectIO: true, QuotactlFD: true},
		Capacity: quantity(f.size), Promised: quantity(n.promised),
		Available: quantity(room), MaximumVolumeSize: quantity(room),
		Volumes: int32(len(n.held)),
	}
	f.mu.Unlock()

	object := &v1alpha1.Pool{
		ObjectMeta: metav1.ObjectMeta{Name: name + "." + pool, Labels: map[string]string{v1alpha1.LabelPool: pool,
			v1alpha1.LabelNode: name}},
		Spec: v1alpha1.PoolSpec{NodeName: name, Pool: pool, UID: uid},
	}
	// From the agents' cache, as an agent does it; what was made a moment ago
	// may not be in there yet.
	err := f.cache.Get(ctx, client.ObjectKeyFromObject(object), object)
	if apierrors.IsNotFound(err) {
		if err = f.client.Create(ctx, object); apierrors.IsAlreadyExists(err) {
			err = f.client.Get(ctx, client.ObjectKeyFromObject(object), object)
		}
	}
	if err != nil {
		return fmt.Errorf("pool object %s: %w", object.Name, err)
	}
	want.Conditions = object.Status.Conditions
	meta.SetStatusCondition(&want.Conditions, metav1.Condition{Type: v1alpha1.ConditionReady,
		Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonReady})
	changed := object.DeepCopy()
	changed.Status = want
	if err := f.client.Status().Patch(ctx, changed, client.MergeFrom(object)); err != nil {
		return fmt.Errorf("write the status of pool %s: %w", object.Name, err)
	}
	return nil
}

func quantity(bytes int64) *resource.Quantity { return resource.NewQuantity(bytes, resource.BinarySI) }
