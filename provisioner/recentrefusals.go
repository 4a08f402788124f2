package provisioner

import (
	"maps"
	"sync"
	"time"
)

// recentRefusals remembers for a while which nodes refused which volume. Where
// this process alone chooses the node, it would otherwise choose the one with
// the most room again, whatever that node said. It is only a preference: what
// is forgotten, or known to another replica, costs one more refusal.
type recentRefusals struct {
	mu       sync.Mutex
	byVolume map[string]*volumeRefusals // by PersistentVolume
}

type volumeRefusals struct {
	nodes map[string]int
	last  time.Time
}

// refusalsKeptFor is how long a refusal is remembered after the last one.
const refusalsKeptFor = 10 * time.Minute

// add notes a refusal.
func (r *recentRefusals) add(pv, node string, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()

	for name, old := range r.byVolume {
		if now.Sub(old.last) > refusalsKeptFor {
			delete(r.byVolume, name)
		}
	}

	if r.byVolume == nil {
		r.byVolume = map[string]*volumeRefusals{}
	}
	if r.byVolume[pv] == nil {
		r.byVolume[pv] = &volumeRefusals{nodes: map[string]int{}}
	}

	r.byVolume[pv].nodes[node]++
	r.byVolume[pv].last = now
}

// of counts the refusals of a volume by node.
func (r *recentRefusals) of(pv string) map[string]int {
	r.mu.Lock()
	defer r.mu.Unlock()

	counts := map[string]int{}
	if refused := r.byVolume[pv]; refused != nil {
		maps.Copy(counts, refused.nodes)
	}

	return counts
}
