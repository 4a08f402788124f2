package nodeagent

import (
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

// giveUp counts a failure and reports whether it was the last one that the
// volume is granted. One that is on the disk, or is to be made of data that
// is, has no other node to go to.
func (f *failures) giveUp(v *v1alpha1.Volume, err error, disks *store.Store) bool {
	_, there := disks.Get(v.Name)
	_, missing := errors.AsType[*store.NotFoundError](there)
	if v.Spec.Adopt != nil || err == nil || !missing {
		return false
	}

	f.mu.Lock()
	defer f.mu.Unlock()

	if f.tries == nil {
		f.tries = map[string]int{}
	}

	f.tries[v.Name]++
	return f.tries[v.Name] >= createTries
}

func (f *failures) forget(id string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.tries, id)
}
