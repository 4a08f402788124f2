package provisioner

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/keymutex"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/provisioner/parameters"
)

// capacityPublisher tells the scheduler what fits where: one CSIStorageCapacity
// for every node and every class that waits for the scheduler, of either front
// door. The scheduler looks for a CSIDriver named like the class's provisioner
// and asks no further, so this serves local PersistentVolumes as well
// (KEP-1472).
//
// It is driven by the watches of nodes, pools, classes and agents, and writes
// nothing without news. A change of room is news when it is one percent of the
// node, or may decide over a claim that waits; a node's objects are then
// written together, once a second at most (capacity_changes.go). After a
// refusal they are written at once, as they are. It does not reserve: several
// claims may race for the same room, and the agent decides.
type capacityPublisher struct {
	client    client.Client
	live      client.Reader
	agents    agentReadiness
	namespace string
	owner     *metav1.OwnerReference
	metrics   *Metrics

	// queue takes nodes to publish while the loop runs; nil before.
	queue atomic.Pointer[workQueue]

	mu sync.Mutex
	// fresh are Pools by name that were read live, and were newer than the
	// cache then.
	fresh     map[string]*v1alpha1.Pool
	nodes     keymutex.KeyMutex // nodes that share one wait for each other
	published publishLog
	demand    *demand

	// templateSize is the largest volume of nodes that do not exist yet, in
	// bytes; 0: nothing is published for them.
	templateSize int64
	// leaveOff keeps the scheduler from heeding capacity.
	leaveOff bool

	holds   map[string]*hold // by object, as far as this process made them
	holders holders
}

func newCapacityPublisher(c *capacityPublisher) *capacityPublisher {
	c.demand, c.nodes = newDemand(c.claimWaits), keymutex.NewHashed(64)
	return c
}

const (
	// indexCapacityNode is the cache's index of CSIStorageCapacity objects by
	// the node they are about.
	indexCapacityNode = "node"
	// managedBy marks the objects that are ours, by the convention of
	// external-provisioner.
	labelManagedBy  = "csi.storage.k8s.io/managed-by"
	labelDriverName = "csi.storage.k8s.io/drivername"
	managedBy       = "quarry-controller"

	// anySize is published for a class whose parameters are wrong. With nothing
	// published the scheduler would say that every node is full; so it chooses
	// one, and the claim gets the event that says what is wrong.
	anySize = math.MaxInt64
)

// CapacityLabels are the labels of the CSIStorageCapacity objects that the
// controller publishes.
func CapacityLabels() map[string]string { return map[string]string{labelManagedBy: managedBy} }

// indexPoolNode is the cache's index of Pools by their node.
const indexPoolNode = "spec.nodeName"

func indexPool(o client.Object) []string {
	if pool, ok := o.(*v1alpha1.Pool); ok {
		return []string{pool.Spec.NodeName}
	}
	return nil
}

// indexCapacity is the function of that index. A node's name may be longer than
// a label's value, so it is an annotation.
func indexCapacity(o client.Object) []string {
	if o.GetLabels()[labelManagedBy] != managedBy {
		return nil
	}
	return []string{o.GetAnnotations()[v1alpha1.AnnotationNode]}
}

// PublishNode implements capacityNotifier: it reads the node's pools live, and
// whatever they say is written.
func (c *capacityPublisher) PublishNode(ctx context.Context, node string) error {
	if err := c.readPools(ctx, node); err != nil {
		return err
	}
	_, err := c.publish(ctx, node, true)
	return err
}

// readPools reads a node's pools live.
func (c *capacityPublisher) readPools(ctx context.Context, node string) error {
	var cached v1alpha1.PoolList
	if err := c.client.List(ctx, &cached, client.MatchingFields{indexPoolNode: node}); err != nil {
		return &apiError{"list the pools of node " + node, err}
	}

	for i := range cached.Items {
		pool := &v1alpha1.Pool{}
		if err := c.live.Get(ctx, client.ObjectKeyFromObject(&cached.Items[i]),
			pool); client.IgnoreNotFound(err) != nil {
			return &apiError{"read Pool " + cached.Items[i].Name, err}
		} else if err == nil {
			c.mu.Lock()
			if c.fresh == nil {
				c.fresh = map[string]*v1alpha1.Pool{}
			}
			c.fresh[pool.Name] = pool
			c.mu.Unlock()
		}
	}

	return nil
}

// Reconcile publishes one node, named by the request.
func (c *capacityPublisher) Reconcile(
	ctx context.Context,
	req reconcile.Request,
) (reconcile.Result, error) {
	wait, err := c.publish(ctx, req.Name, false)
	return reconcile.Result{RequeueAfter: wait}, err
}

// pools are a node's, in the newest state that is known: the cache may be
// behind what PublishNode has read.
func (c *capacityPublisher) pools(ctx context.Context, node string) ([]v1alpha1.Pool, error) {
	var all v1alpha1.PoolList
	if err := c.client.List(ctx, &all, client.MatchingFields{indexPoolNode: node}); err != nil {
		return nil, &apiError{"list the pools of node " + node, err}
	}

	c.mu.Lock()
	defer c.mu.Unlock()

	var pools []v1alpha1.Pool
	for _, pool := range all.Items {
		if fresh, ok := c.fresh[pool.Name]; ok {
			if fresh.UID == pool.UID && newer(fresh, &pool) {
				pool = *fresh
			} else {
				delete(c.fresh, pool.Name)
			}
		}
		pools = append(pools, pool)
	}

	return pools, nil
}

// newer compares resource versions, which are ordered numbers (KEP-5504).
func newer(a, b *v1alpha1.Pool) bool {
	x, errX := strconv.ParseUint(a.ResourceVersion, 10, 64)
	y, errY := strconv.ParseUint(b.ResourceVersion, 10, 64)
	return errX == nil && errY == nil && x > y
}

// publish writes a node's objects as they have to be: those whose change is
// worth a write or, with exact set, all that differ. It returns after what time
// it is to be called again, for a change that has to wait for its turn or for a
// hold that ends; 0: there is neither. Calls for one node exclude each other,
// so that an older state is never written over a newer one.
func (c *capacityPublisher) publish(
	ctx context.Context,
	name string,
	exact bool,
) (wait time.Duration, err error) {
	c.nodes.LockKey(name)
	defer func() { _ = c.nodes.UnlockKey(name) }() // it is held, so there is no error

	want, totals, err := c.wanted(ctx, name)
	if err != nil {
		return 0, err
	}

	var have storagev1.CSIStorageCapacityList
	if err := c.client.List(ctx, &have, client.InNamespace(c.namespace),
		client.MatchingFields{indexCapacityNode: name}); err != nil {
		return 0, &apiError{"list the capacity objects of node " + name, err}
	}

	wait = c.applyHolds(ctx, name, want, have.Items)
	if len(want) == 0 {
		c.published.forget(name)
	}

	var writes []func() error
	left := map[string]leftOut{}
	turn := c.published.wait(name, time.Now())
	for i := range have.Items {
		old := &have.Items[i]
		wish, keep := want[old.Name]
		delete(want, old.Name)
		switch {
		case !keep:
			writes = append(
				writes,
				func() error { return client.IgnoreNotFound(c.client.Delete(ctx, old)) },
			)
			continue
		case !equality.Semantic.DeepEqual(old.OwnerReferences, wish.OwnerReferences):
		case sameCapacity(old, wish):
			continue
		case exact || isHeld(old) || isHeld(wish):
		default:
			how := c.urgencyOf(old, wish, totals[old.Name])
			if how == soon && turn > 0 && (wait == 0 || turn < wait) {
				wait = turn
			}
			if how == never || how == soon && turn > 0 {
				left[wish.StorageClassName] = leftOut{
					bytesOf(old.MaximumVolumeSize),
					bytesOf(wish.MaximumVolumeSize),
				}
				continue
			}
		}

		writes = append(writes, func() error { return c.change(ctx, old, wish) })
	}

	for _, object := range want {
		writes = append(writes, func() error { return c.create(ctx, object) })
	}

	c.published.leave(name, left)
	if len(writes) == 0 {
		return wait, nil
	}

	c.metrics.capacity.Add(float64(len(writes)))
	err = together(writes)
	c.published.wrote(name, time.Now())
	if err != nil {
		return 0, &apiError{"publish the capacity of node " + name, err}
	}

	return wait, nil
}

func (c *capacityPublisher) change(
	ctx context.Context,
	old, wish *storagev1.CSIStorageCapacity,
) error {
	changed := old.DeepCopy()
	changed.Capacity, changed.MaximumVolumeSize = wish.Capacity, wish.MaximumVolumeSize
	changed.OwnerReferences = wish.OwnerReferences
	if text := wish.Annotations[v1alpha1.AnnotationHold]; text != "" {
		metav1.SetMetaDataAnnotation(&changed.ObjectMeta, v1alpha1.AnnotationHold, text)
	} else {
		delete(changed.Annotations, v1alpha1.AnnotationHold)
	}

	return c.client.Patch(ctx, changed, client.MergeFrom(old))
}

func (c *capacityPublisher) create(
	ctx context.Context,
	object *storagev1.CSIStorageCapacity,
) error {
	err := c.client.Create(ctx, object)
	if apierrors.IsAlreadyExists(err) { // made by the other replica, or not in the cache yet
		err = c.client.Patch(ctx, object, client.Merge)
	}
	return err
}

// together does the writes of one node side by side: its classes see the same
// pools, and the scheduler may ask for any of them.
func together(writes []func() error) error {
	var g errgroup.Group
	g.SetLimit(8)
	errs := make([]error, len(writes))
	for i, write := range writes {
		g.Go(func() error { errs[i] = write(); return nil })
	}

	_ = g.Wait()
	return errors.Join(errs...)
}

func sameCapacity(a, b *storagev1.CSIStorageCapacity) bool {
	return bytesOf(a.Capacity) == bytesOf(b.Capacity) &&
		bytesOf(a.MaximumVolumeSize) == bytesOf(b.MaximumVolumeSize) &&
		a.Annotations[v1alpha1.AnnotationHold] == b.Annotations[v1alpha1.AnnotationHold]
}

// isHeld reports whether a refusal is remembered in an object; then it says
// exactly what is to be offered.
func isHeld(c *storagev1.CSIStorageCapacity) bool {
	return c.Annotations[v1alpha1.AnnotationHold] != ""
}

// wanted is the objects a node should have, by name, and the sizes of the pools
// that each is about. A node that is gone, or has no pool, has none, and the
// scheduler passes it by.
func (c *capacityPublisher) wanted(
	ctx context.Context,
	name string,
) (want map[string]*storagev1.CSIStorageCapacity, totals map[string]int64, err error) {
	if name == templateNodes {
		var classes storagev1.StorageClassList
		if err := c.client.List(ctx, &classes); err != nil {
			return nil, nil, &apiError{"list classes", err}
		}
		return c.template(classes.Items), nil, nil
	}

	var node corev1.Node
	if err := c.client.Get(ctx, client.ObjectKey{Name: name}, &node); err != nil {
		return nil, nil, client.IgnoreNotFound(err)
	}

	pools, err := c.pools(ctx, name)
	if err != nil || len(pools) == 0 {
		return nil, nil, err
	}

	var classes storagev1.StorageClassList
	if err := c.client.List(ctx, &classes); err != nil {
		return nil, nil, &apiError{"list classes", err}
	}

	ready, _ := c.agents.Ready(name)
	want, totals = map[string]*storagev1.CSIStorageCapacity{}, map[string]int64{}
	for i := range classes.Items {
		class := &classes.Items[i]
		topology := topologyOf(class, &node)
		if !isOurClass(class) || !waitsForConsumer(class) || topology == nil {
			continue
		}

		free, total := room{Available: anySize, Largest: anySize}, int64(0)
		if params, err := parameters.Parse(class.Parameters); err == nil {
			free, total = roomIn(pools, params), totalOf(pools, params)
		} else {
			log.FromContext(ctx).V(1).Info(
				"A class cannot be served", "class", class.Name, "why", err.Error())
		}

		if !ready {
			free = room{}
		}

		object := c.object(class, name, topology, free)
		want[object.Name], totals[object.Name] = object, total
	}

	return want, totals, nil
}

// topologyOf selects a node as the PersistentVolumes of a class do: by the CSI
// driver's own label, which kubelet sets when the driver registers there, or by
// the host name. Nil for a node without a host name, which no classic volume
// could name.
func topologyOf(class *storagev1.StorageClass, node *corev1.Node) map[string]string {
	if class.Provisioner == v1alpha1.CSIDriver {
		return map[string]string{v1alpha1.TopologyNode: node.Name}
	}
	if host := node.Labels[corev1.LabelHostname]; host != "" {
		return map[string]string{corev1.LabelHostname: host}
	}
	return nil
}

// object is one CSIStorageCapacity. Its name follows from what in it cannot be
// changed.
func (c *capacityPublisher) object(
	class *storagev1.StorageClass,
	node string,
	topology map[string]string,
	free room,
) *storagev1.CSIStorageCapacity {
	id := class.Name + "\x00" + node
	for _, key := range slices.Sorted(maps.Keys(topology)) {
		id += "\x00" + key + "\x00" + topology[key]
	}

	sum := sha256.Sum256([]byte(id))
	object := &storagev1.CSIStorageCapacity{
		ObjectMeta: metav1.ObjectMeta{
			Name:      "quarry-" + hex.EncodeToString(sum[:10]),
			Namespace: c.namespace,
			Labels: map[string]string{
				labelManagedBy:  managedBy,
				labelDriverName: class.Provisioner,
			},
			Annotations: map[string]string{v1alpha1.AnnotationNode: node},
		},
		StorageClassName:  class.Name,
		NodeTopology:      &metav1.LabelSelector{MatchLabels: topology},
		Capacity:          resource.NewQuantity(free.Available, resource.BinarySI),
		MaximumVolumeSize: resource.NewQuantity(free.Largest, resource.BinarySI),
	}
	if c.owner != nil {
		object.OwnerReferences = []metav1.OwnerReference{*c.owner}
	}

	return object
}

// isOurClass reports whether a class is served through one of the two front
// doors.
func isOurClass(class *storagev1.StorageClass) bool {
	return class.Provisioner == v1alpha1.LocalProvisioner || class.Provisioner == v1alpha1.CSIDriver
}

// switchOn has the scheduler heed the objects, once those of every node were
// published: from then on the scheduler passes by a node without an object.
// With leaveOff set it has the scheduler ignore them. CSIDriver objects come
// with the chart; one that is not there is not made.
func (c *capacityPublisher) switchOn(ctx context.Context) error {
	for _, name := range []string{v1alpha1.LocalProvisioner, v1alpha1.CSIDriver} {
		var driver storagev1.CSIDriver
		if err := c.client.Get(ctx, client.ObjectKey{Name: name}, &driver); err != nil {
			if apierrors.IsNotFound(err) {
				continue
			}
			return fmt.Errorf("read CSIDriver %s: %w", name, err)
		}

		heed := !c.leaveOff
		if on := driver.Spec.StorageCapacity != nil && *driver.Spec.StorageCapacity; on == heed {
			continue
		}

		base := driver.DeepCopy()
		driver.Spec.StorageCapacity = &heed
		if err := c.client.Patch(ctx, &driver, client.MergeFrom(base)); err != nil {
			return fmt.Errorf("switch on the capacity of CSIDriver %s: %w", name, err)
		}

		log.FromContext(ctx).Info(
			"Whether the scheduler heeds published capacity has changed", "driver",
			name, "heeds", heed)
	}
	return nil
}

// publishAll publishes every node.
func (c *capacityPublisher) publishAll(ctx context.Context) error {
	var nodes corev1.NodeList
	if err := c.client.List(ctx, &nodes); err != nil {
		return fmt.Errorf("list nodes: %w", err)
	}

	for i := range nodes.Items {
		if _, err := c.publish(ctx, nodes.Items[i].Name, false); err != nil {
			return err
		}
	}

	return nil
}
