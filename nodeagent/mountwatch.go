package nodeagent

import (
	"context"
	"time"
)

// lookEvery is how often the pools are looked at without being told of a
// change: a few system calls for each.
const lookEvery = 5 * time.Second

// followMounts looks at the pools, and at volumes that were in use, whenever a
// mount of the node changed; at the pools also without being told, since a disk
// can fail without any mount changing.
func (a *Agent) followMounts(ctx context.Context, changed <-chan struct{}) {
	ticker := time.NewTicker(lookEvery)
	defer ticker.Stop()

	for {
		select {
		case _, open := <-changed:
			if !open {
				return
			}
			a.inUse.Range(func(name, _ any) bool { a.queue.Add(name.(string)); return true })
		case <-ticker.C:
		}

		a.store.Glance(ctx)
	}
}
