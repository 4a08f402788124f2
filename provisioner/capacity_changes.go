package provisioner

import (
	"cmp"
	"sync"
	"time"

	storagev1 "k8s.io/api/storage/v1"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/provisioner/parameters"
)

const (
	// capacityEvery bounds how often a node's capacity is written while its
	// room changes by itself.
	capacityEvery = time.Second
	// capacityStep is one over the share of a class's pools that has to come or
	// go before a change is written that decides over no claim.
	capacityStep = 100
)

// publishLog remembers what was published of each node, and when.
type publishLog struct {
	mu    sync.Mutex
	nodes map[string]*toldNode
}

// toldNode is when a node's capacity was written last, and what was left out
// since, by class.
type toldNode struct {
	at   time.Time
	left map[string]leftOut
}

// leftOut is the largest volume that is published, and what it would be now.
type leftOut struct{ published, now int64 }

func (t *publishLog) node(name string) *toldNode {
	if t.nodes == nil {
		t.nodes = map[string]*toldNode{}
	}
	if t.nodes[name] == nil {
		t.nodes[name] = &toldNode{}
	}
	return t.nodes[name]
}

// wait is how long a change that can wait has to.
func (t *publishLog) wait(name string, now time.Time) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	return max(0, capacityEvery-now.Sub(t.node(name).at))
}

// wrote notes that a node's capacity was written.
func (t *publishLog) wrote(name string, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.node(name).at = now
}

// leave notes what of a node is not published as it is.
func (t *publishLog) leave(name string, left map[string]leftOut) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.node(name).left = left
}

// forget drops a node that has no objects any more.
func (t *publishLog) forget(name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.nodes, name)
}

// behind returns the nodes whose published capacity of a class is not current,
// where the difference matters.
func (t *publishLog) behind(class string, matters func(published, now int64) bool) []string {
	t.mu.Lock()
	defer t.mu.Unlock()

	var names []string
	for name, n := range t.nodes {
		if left, ok := n.left[class]; ok && matters(left.published, left.now) {
			names = append(names, name)
		}
	}

	return names
}

// urgency is how soon a change has to be written.
type urgency int

const (
	never  urgency = iota // it decides nothing, and is written with the next one that does
	soon                  // once the node's capacity was not written for a while
	atOnce                // a node comes or goes
)

// urgencyOf compares what is published with what there is. total is the size of
// the pools that it is about.
func (c *capacityPublisher) urgencyOf(
	published, now *storagev1.CSIStorageCapacity,
	total int64,
) urgency {
	was, is := bytesOf(published.MaximumVolumeSize), bytesOf(now.MaximumVolumeSize)
	wasAll, isAll := bytesOf(published.Capacity), bytesOf(now.Capacity)
	step := total / capacityStep
	switch {
	case (was == 0) != (is == 0):
		return atOnce
	case distance(was, is) >= step || distance(wasAll, isAll) >= step,
		c.demand.decides(now.StorageClassName, was, is):
		return soon
	}

	return never
}

func distance(a, b int64) int64 { return max(a, b) - min(a, b) }

// totalOf is the size of the pools that the parameters allow; pools that share
// a filesystem share its size.
func totalOf(pools []v1alpha1.Pool, p parameters.Set) (total int64) {
	byFilesystem := map[string]int64{}
	for i := range pools {
		if pool := &pools[i]; p.Allows(pool) {
			filesystem := cmp.Or(pool.Status.FilesystemID, "pool "+pool.Name)
			byFilesystem[filesystem] = max(byFilesystem[filesystem], bytesOf(pool.Status.Capacity))
		}
	}

	for _, size := range byFilesystem {
		total += size
	}

	return total
}

// claimWaits has the nodes published whose room may decide over a claim that
// has begun to wait.
func (c *capacityPublisher) claimWaits(class string, _ int64) {
	queue := c.queue.Load()
	if queue == nil {
		return
	}

	decides := func(published, now int64) bool { return c.demand.decides(class, published, now) }
	for _, r := range requests(c.published.behind(class, decides)...) {
		(*queue).Add(r)
	}
}
