package nodeagent

import (
	"context"
	"errors"
	"sync"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/store"
)

// createTries is how many times in a row a volume may fail to be made before
// it is refused, so that another node is tried: with the queue's growing waits
// some half a minute.
const createTries = 9

// failures counts, by volume, the tries to make it that failed in a row. What
// fails again and again here (no loop devices, no quota id that is free, no
// descriptors left) would else keep its claim on this node for ever.
type failures struct {
	mu    sync.Mutex
	tries map[string]int
}

// again counts a failure and reports whether it was one too many: the volume is
// given up, unless it is on a disk of this node.
func (f *failures) again(id string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()

	if f.tries == nil {
		f.tries = map[string]int{}
	}

	f.tries[id]++
	return f.tries[id] >= createTries
}

func (f *failures) forget(id string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.tries, id)
}

// isHopeless reports whether a volume, which could not be made once more, is to
// be tried on another node. What is on a disk here, or may be on one that is
// away, or is to be made of data that is here, has no other node to go to.
func (a *Agent) isHopeless(ctx context.Context, v *v1alpha1.Volume) bool {
	if v.Spec.Adopt != nil || !a.failures.again(v.Name) {
		return false
	}

	_, err := a.store.Find(ctx, v.Name)
	missing, is := errors.AsType[*store.NotFoundError](err)
	return is && a.away(v, missing) == nil
}
