package nodeagent

import (
	"maps"
	"sync"

	"github.com/quarry-storage/quarry/nodeagent/store"
)

// suspects are the volumes on disk that perhaps no Volume object speaks of: those
// that came or changed since they were looked at, and those whose object went. A
// report looks at these instead of at all volumes of the node.
type suspects struct {
	feed *store.Feed

	mu sync.Mutex
	// ids has a number for each that changes whenever it is suspected again.
	ids  map[string]uint64
	last uint64
}

// suspect has a volume looked at by the next report: its object went.
func (p *poolReporter) suspect(id string) {
	p.strangers.mu.Lock()
	defer p.strangers.mu.Unlock()
	if p.strangers.ids == nil {
		p.strangers.ids = map[string]uint64{}
	}
	p.strangers.last++
	p.strangers.ids[id] = p.strangers.last
}

// clear says that a volume is none, or none any more, if nothing happened to it
// since it was listed with its number.
func (p *poolReporter) clear(id string, number uint64) {
	p.strangers.mu.Lock()
	defer p.strangers.mu.Unlock()
	if p.strangers.ids[id] == number {
		delete(p.strangers.ids, id)
	}
}

// suspects returns them with their numbers.
func (p *poolReporter) suspects() map[string]uint64 {
	changed, all := p.strangers.feed.Take()
	if all {
		for _, v := range p.agent.store.List() {
			changed = append(changed, v.ID)
		}
	}
	for _, id := range changed {
		p.suspect(id)
	}
	p.strangers.mu.Lock()
	defer p.strangers.mu.Unlock()
	return maps.Clone(p.strangers.ids)
}
