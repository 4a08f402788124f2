package nodeagent

import (
	"context"
	"maps"
	"slices"
	"sync"

	"github.com/quarry-storage/quarry/nodeagent/store"
	"github.com/quarry-storage/quarry/nodeagent/translate"
)

// suspects are the volumes on disk that perhaps no Volume object speaks of:
// those that came or changed since they were looked at, and those whose object
// went. A report looks at these instead of at all volumes of the node.
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

// orphans are the pool's volumes that no Volume object speaks of. moved is the
// node where the disk was made, if that is another one and there are volumes
// among them that came with it.
func (p *poolReporter) orphans(ctx context.Context, pool *store.Pool) (ids []string, moved string) {
	for id, number := range p.suspects() {
		v, err := p.agent.store.Get(id)
		if err != nil || translate.IsInline(&v.Volume) {
			p.clear(id, number)
			continue
		}
		if v.Pool != pool.Name {
			continue
		}

		spoken, err := p.agent.volumeObject(ctx, id)
		if err != nil {
			return nil, "" // it cannot be told
		}
		if spoken != nil {
			p.clear(id, number)
			continue
		}

		ids = append(ids, v.ID)
		if pool.MadeOn != p.agent.opts.Node && v.Origin.Node != p.agent.opts.Node {
			moved = pool.MadeOn
		}
	}

	slices.Sort(ids)
	return ids, moved
}
