package provisioner

import "sync"

// recentLimit is how many keys each half of the set holds. A key is forgotten
// after at most twice as many newer ones.
const recentLimit = 8192

// recentKeys is a set of keys that forgets the oldest ones. It spares work
// whose outcome is known. Where a key was forgotten, or is known to another
// process only, the work is done once more, which is harmless. The zero value
// is ready to use.
type recentKeys struct {
	mu       sync.Mutex
	new, old map[string]struct{}
}

func (r *recentKeys) add(key string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.new == nil || len(r.new) >= recentLimit {
		r.old, r.new = r.new, map[string]struct{}{}
	}
	r.new[key] = struct{}{}
}

func (r *recentKeys) has(key string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, isNew := r.new[key]
	_, isOld := r.old[key]
	return isNew || isOld
}
