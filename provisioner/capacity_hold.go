package provisioner

import (
	"context"
	"encoding/json"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

// The scheduler looks at each claim of a pod alone, and scores nodes the same
// way each time. A node that has room for either claim and not for both, or one
// that fails to make volumes, is chosen again as soon as it has refused, while
// another node would do. So a node is not offered for some time what it refused
// although it had room for it: the largest volume that is published for that
// node and class stays just below that size. Smaller claims pass meanwhile.

const (
	firstHold   = time.Minute
	longestHold = 16 * time.Minute
)

// nodeRefusal is a node's refusal of a claim, as the scheduler is to know of
// it.
type nodeRefusal struct {
	Node, Class string
	// Below is the smallest size, in bytes, that is of no use there: that of
	// the smallest claim that has to be admitted together with the one refused.
	Below int64
	// Claim is the claim whose end ends the hold, where room is missing. Nil:
	// the node refuses all that is asked of it, and more room changes nothing.
	Claim *v1alpha1.ClaimReference
}

// hold keeps sizes from a node. It is an annotation of the object that it is
// about, so that another replica, which may be the leader or become it, heeds
// it.
type hold struct {
	Below int64     `json:"below"`
	Until time.Time `json:"until"`
	// For is how long the hold was made for. The next one is twice as long.
	For time.Duration `json:"for"`
	// Room is the largest volume when it was made. It ends when there is more.
	Room      int64     `json:"room"`
	Namespace string    `json:"namespace,omitempty"`
	Name      string    `json:"name,omitempty"`
	UID       types.UID `json:"uid,omitempty"`
}

// after is the hold that follows from a refusal, given the one before, if any.
func (r *nodeRefusal) after(before *hold, largest int64, now time.Time) *hold {
	h := &hold{Below: r.Below, For: firstHold, Room: largest}
	if r.Claim != nil {
		h.Namespace, h.Name, h.UID = r.Claim.Namespace, r.Claim.Name, r.Claim.UID
	}

	switch {
	case before == nil || now.After(before.Until.Add(before.For)):
	case now.Before(before.Until):
		// Another claim of the group, or a scheduler that had not seen it yet.
		h.For, h.Below = before.For, min(before.Below, h.Below)
		h.Until = before.Until
		return h
	default:
		h.For = min(2*before.For, longestHold)
	}

	h.Until = now.Add(h.For).UTC().Truncate(time.Second)
	return h
}

// grown reports whether there is more room than when the hold was made: more
// than what measuring a disk twice may make out.
func (h *hold) grown(largest int64) bool { return h.UID != "" && largest > h.Room+h.Below/20 }

// madeBefore reports whether what a node refuses whatever is asked of it was
// refused by an agent before this one: a person may have mended it.
func (h *hold) madeBefore(agent time.Time) bool {
	return h.UID == "" && agent.After(h.Until.Add(-h.For))
}

// readySince is when a node's agent became ready; zero if that is not known.
func (c *capacityPublisher) readySince(node string) time.Time {
	if agents, ok := c.agents.(interface{ ReadySince(string) time.Time }); ok {
		return agents.ReadySince(node)
	}
	return time.Time{}
}

func (h *hold) text() string {
	text, err := json.Marshal(h)
	if err != nil {
		return "" // cannot be: they are numbers and names
	}
	return string(text)
}

// holdIn reads a hold from an object's annotation; nil if there is none that
// can be read.
func holdIn(object *storagev1.CSIStorageCapacity) *hold {
	h := &hold{}
	if text := object.Annotations[v1alpha1.AnnotationHold]; text == "" ||
		json.Unmarshal([]byte(text), h) != nil ||
		h.Below <= 0 {
		return nil
	}
	return h
}

// PublishRefusal implements capacityNotifier.
func (c *capacityPublisher) PublishRefusal(ctx context.Context, r nodeRefusal) error {
	if err := c.readPools(ctx, r.Node); err != nil {
		return err
	}
	if err := c.holdOff(ctx, r); err != nil {
		return err
	}

	_, err := c.publish(ctx, r.Node, true)
	return err
}

// holdOff remembers a refusal that the node's room does not explain.
func (c *capacityPublisher) holdOff(ctx context.Context, r nodeRefusal) error {
	want, _, err := c.wanted(ctx, r.Node)
	if err != nil {
		return err
	}

	for name, wish := range want {
		largest := bytesOf(wish.MaximumVolumeSize)
		if wish.StorageClassName != r.Class || largest < r.Below || r.Below <= 0 {
			continue
		}

		var have storagev1.CSIStorageCapacity
		if err := c.client.Get(ctx, client.ObjectKeyFromObject(wish),
			&have); client.IgnoreNotFound(err) != nil {
			return &apiError{"read CSIStorageCapacity " + name, err}
		}

		c.mu.Lock()
		if c.holds == nil {
			c.holds = map[string]*hold{}
		}

		c.holds[name] = r.after(latest(c.holds[name], holdIn(&have)), largest, time.Now())
		c.mu.Unlock()
	}

	return nil
}

// latest is the hold that was made last.
func latest(a, b *hold) *hold {
	if a == nil || b != nil && b.Until.After(a.Until) {
		return b
	}
	return a
}

// applyHolds keeps from a node's objects what it is not to be offered, and
// returns after how long the first of the holds ends; 0: there is none.
func (c *capacityPublisher) applyHolds(
	ctx context.Context,
	node string,
	want map[string]*storagev1.CSIStorageCapacity,
	have []storagev1.CSIStorageCapacity,
) time.Duration {
	there := map[string]*hold{}
	for i := range have {
		there[have[i].Name] = holdIn(&have[i])
	}

	var first time.Duration
	var claims []types.UID
	for name, wish := range want {
		c.mu.Lock()
		h := latest(c.holds[name], there[name])
		c.mu.Unlock()
		if h == nil {
			continue
		}

		now := time.Now()
		largest := bytesOf(wish.MaximumVolumeSize)
		if now.After(h.Until.Add(h.For)) || h.grown(largest) || !c.claimWaitsStill(ctx, h) ||
			h.madeBefore(c.readySince(node)) {
			c.mu.Lock()
			delete(c.holds, name)
			c.mu.Unlock()
			continue
		}

		// Also when it is over: the next one is longer.
		wish.Annotations[v1alpha1.AnnotationHold] = h.text()
		left := h.Until.Sub(now)
		if left <= 0 {
			continue
		}

		wish.MaximumVolumeSize = resource.NewQuantity(min(largest, h.Below-1), resource.BinarySI)
		if first == 0 || left < first {
			first = left
		}
		if h.UID != "" {
			claims = append(claims, h.UID)
		}
	}

	c.holders.set(node, claims)
	return first
}

// claimWaitsStill reports whether the claim of a hold is there and unbound.
func (c *capacityPublisher) claimWaitsStill(ctx context.Context, h *hold) bool {
	if h.UID == "" {
		return true
	}

	var claim corev1.PersistentVolumeClaim
	err := c.client.Get(ctx, client.ObjectKey{Namespace: h.Namespace, Name: h.Name}, &claim)
	if err != nil {
		return client.IgnoreNotFound(err) != nil
	}

	return claim.UID == h.UID && claim.Spec.VolumeName == "" && claim.DeletionTimestamp == nil
}

// holders knows on which nodes something is held off for a claim.
type holders struct {
	mu    sync.Mutex
	nodes map[string][]types.UID
}

// set notes for which claims a node is held off.
func (h *holders) set(node string, claims []types.UID) {
	h.mu.Lock()
	defer h.mu.Unlock()

	if len(claims) == 0 {
		delete(h.nodes, node)
		return
	}

	if h.nodes == nil {
		h.nodes = map[string][]types.UID{}
	}

	h.nodes[node] = claims
}

// of are the nodes that are held off for a claim.
func (h *holders) of(claim types.UID) []string {
	h.mu.Lock()
	defer h.mu.Unlock()

	var nodes []string
	for node, claims := range h.nodes {
		if slices.Contains(claims, claim) {
			nodes = append(nodes, node)
		}
	}

	return nodes
}

// handler has the nodes published that are held off for a claim that changes or
// goes.
func (h *holders) handler() handler.EventHandler {
	type queue = workqueue.TypedRateLimitingInterface[reconcile.Request]
	add := func(claim client.Object, q queue) {
		for _, r := range requests(h.of(claim.GetUID())...) {
			q.Add(r)
		}
	}
	return handler.Funcs{
		UpdateFunc: func(_ context.Context, e event.UpdateEvent, q queue) { add(e.ObjectNew, q) },
		DeleteFunc: func(_ context.Context, e event.DeleteEvent, q queue) { add(e.Object, q) },
	}
}
