package provisioner

import (
	"sync"
	"time"
)

// lately remembers for a while which nodes refused which volume. Where nobody
// but this process chooses the node, the one with the most room would else be
// chosen again, whatever it said. It is a preference only: what is forgotten, or
// known to another replica, costs one more refusal.
type lately struct {
	mu      sync.Mutex
	refused map[string]*refusals // by PersistentVolume
}

type refusals struct {
	nodes map[string]int
	last  time.Time
}

// latelyFor is how long a refusal is remembered after the last one.
const latelyFor = 10 * time.Minute

// add notes a refusal.
func (l *lately) add(pv, node string, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for name, r := range l.refused {
		if now.Sub(r.last) > latelyFor {
			delete(l.refused, name)
		}
	}
	if l.refused == nil {
		l.refused = map[string]*refusals{}
	}
	if l.refused[pv] == nil {
		l.refused[pv] = &refusals{nodes: map[string]int{}}
	}
	l.refused[pv].nodes[node]++
	l.refused[pv].last = now
}

// of counts the refusals of a volume by node.
func (l *lately) of(pv string) map[string]int {
	l.mu.Lock()
	defer l.mu.Unlock()
	counts := map[string]int{}
	if r := l.refused[pv]; r != nil {
		for node, n := range r.nodes {
			counts[node] = n
		}
	}
	return counts
}
