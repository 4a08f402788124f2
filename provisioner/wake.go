package provisioner

import (
	"iter"
	"maps"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

// waitingRoom holds the claims that could not be served and the
// PersistentVolumes that could not be deleted yet, and wakes them when what
// they wait for may have come. The library retries them in any case, with
// growing delays; waking takes the delay away. Waking one too many costs only a
// look at the cache, so the conditions here are generous.
//
// The library offers no way to retry one object at once. But its handlers on
// the informers do no more than put an object's key into its queue, so the
// informers given to it (libraryView) remember the handler, and waking calls
// it.
type waitingRoom struct {
	mu      sync.Mutex
	claims  waiters // by claim UID, the library's key
	volumes waiters // by the PersistentVolume's name, the library's key

	claimHandler, volumeHandler cache.ResourceEventHandler
	// claimStore is what the library sees of the claims; nil on a replica that
	// does not lead.
	claimStore *libraryStore
	// forget clears the library's count of failures of a key.
	forget func(key any)
	// count is told how many claims wait.
	count func(claims int)
}

// waiter is one claim or PersistentVolume, and what it waits for.
type waiter struct {
	object any
	// node is empty for a claim whose node is still to be chosen.
	node string
	// class and size belong to claims.
	class string
	size  int64
	// refused counts refusals by node, for Immediate claims.
	refused map[string]int
	// reason is why the claim waits, woken how many times in a row it was woken
	// in vain by what might have helped, and last when.
	reason string
	woken  int
	last   time.Time
	// later wakes a claim that rests when something happens that may help; nil:
	// nothing has.
	later *time.Timer
}

func newWaitingRoom(forget func(key any), count func(int)) *waitingRoom {
	return &waitingRoom{forget: forget, count: count}
}

// addClaim puts a claim into the room; refusedBy, if not empty, is a node that
// just refused it.
func (r *waitingRoom) addClaim(claim *corev1.PersistentVolumeClaim, w waiter, refusedBy string) {
	w.object = claim
	r.mu.Lock()
	defer r.mu.Unlock()

	w.refused = map[string]int{}
	before := r.claims.all[string(claim.UID)]
	if before.reason == w.reason {
		w.woken, w.last = before.woken, before.last
	}

	before.rested()
	maps.Copy(w.refused, before.refused)

	if refusedBy != "" {
		w.refused[refusedBy]++
	}

	r.claims.put(string(claim.UID), w)
	r.count(len(r.claims.all))
}

// removeClaim takes a claim out, when it was served or is gone.
func (r *waitingRoom) removeClaim(uid string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if w, waits := r.claims.all[uid]; waits {
		w.rested()
		r.claims.drop(uid)
		r.count(len(r.claims.all))
	}
}

// claimGone is removeClaim for one that does not exist any more.
func (r *waitingRoom) claimGone(uid string) {
	r.removeClaim(uid)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.claimStore != nil {
		r.claimStore.forget(uid)
	}
}

// refusals is how often each node refused the claim since it came into the
// room.
func (r *waitingRoom) refusals(uid string) map[string]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := map[string]int{}
	maps.Copy(out, r.claims.all[uid].refused)
	return out
}

func (r *waitingRoom) addVolume(pv *corev1.PersistentVolume, node string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.volumes.put(pv.Name, waiter{object: pv, node: node})
}

func (r *waitingRoom) removeVolume(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.volumes.drop(name)
}

// rested ends the rest of a claim.
func (w *waiter) rested() {
	if w.later != nil {
		w.later.Stop()
		w.later = nil
	}
}

// wakeClaims wakes those of some claims that a condition holds for, if the
// cause may end their wait. It wakes them now or, where the cause may only help
// and a claim was often woken in vain, once that claim has rested. It goes
// through the keys with the lock held.
func (r *waitingRoom) wakeClaims(why cause, keys iter.Seq[string], may func(w waiter) bool) {
	r.mu.Lock()
	handler := r.claimHandler
	var found []waiter
	for uid, w := range r.claims.these(keys) {
		if handler == nil || !why.wakes(w.reason) || !may(w) {
			continue
		}
		if why.certain(w.reason) {
			r.forget(uid)
			found = append(found, w)
			continue
		}
		switch rest := w.rest(time.Now()); {
		case w.later != nil: // it will be woken
		case rest > 0:
			w.later = time.AfterFunc(rest, func() { r.wakeRested(uid) })
			r.claims.put(uid, w)
		default:
			w.wake(time.Now())
			r.claims.put(uid, w)
			found = append(found, w)
		}
	}

	r.mu.Unlock()
	for _, w := range found {
		handler.OnUpdate(w.object, w.object)
	}
}

// wakeRested wakes a claim that has rested, if it still is here.
func (r *waitingRoom) wakeRested(uid string) {
	r.mu.Lock()
	handler := r.claimHandler
	w, waits := r.claims.all[uid]
	if waits = waits && w.later != nil; waits {
		w.later = nil
		w.wake(time.Now())
		r.claims.put(uid, w)
	}

	r.mu.Unlock()
	if waits && handler != nil {
		handler.OnUpdate(w.object, w.object)
	}
}

// wakeVolumes wakes some PersistentVolumes, if they wait. The keys are gone
// through with the lock held.
func (r *waitingRoom) wakeVolumes(keys iter.Seq[string]) {
	r.mu.Lock()
	handler := r.volumeHandler
	var found []waiter
	for name, w := range r.volumes.these(keys) {
		if handler != nil {
			r.forget(name)
			found = append(found, w)
		}
	}

	r.mu.Unlock()
	for _, w := range found {
		handler.OnUpdate(w.object, w.object)
	}
}

// always is the condition for waiters that an index found already.
func always(waiter) bool { return true }

// nodeChanged wakes all that wait for a node: its agent became ready, or the
// Node came, changed or went.
func (r *waitingRoom) nodeChanged(node string) {
	r.wakeClaims(byNode, r.claims.perhapsAtNode(node), always)
	r.wakeVolumes(r.volumes.atNode(node))
}

// classChanged wakes the claims of a class that was made (again).
func (r *waitingRoom) classChanged(class string) {
	r.wakeClaims(byClass, r.claims.ofClass(class), always)
}

// poolChanged wakes the claims that a pool's change may serve. before is nil
// for a new pool.
func (r *waitingRoom) poolChanged(before, after *v1alpha1.Pool) {
	if before != nil && !offersMore(before, after) {
		return
	}

	largest := int64(0)
	if m := after.Status.MaximumVolumeSize; m != nil {
		largest = m.Value()
	}

	r.wakeClaims(
		byPool,
		r.claims.perhapsAtNode(after.Spec.NodeName),
		func(w waiter) bool { return w.size <= largest },
	)
}

// volumeChanged wakes the claim or the PersistentVolume of a Volume that came
// to an end.
func (r *waitingRoom) volumeChanged(v *v1alpha1.Volume) {
	if v.Spec.DesiredState == v1alpha1.DesiredPresent {
		if v.Spec.Claim != nil && (isReady(v) || isRefused(v)) && !v.Spec.Published {
			r.wakeClaims(byVolume, one(string(v.Spec.Claim.UID)), func(w waiter) bool {
				// A refusal that the claim's own worker has seen is what made
				// it wait: it must not wake it.
				return isReady(v) || w.refused[v.Spec.NodeName] == 0
			})
		}
		return
	}
	if isGone(v) {
		r.wakeVolumes(one(v.Labels[v1alpha1.LabelPVName]))
	}
}

// claimsFor and volumesFor are the informers that the library is given.
func (r *waitingRoom) claimsFor(informer cache.SharedIndexInformer) cache.SharedIndexInformer {
	view := newLibraryView(informer, func(h cache.ResourceEventHandler) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.claimHandler = h
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	r.claimStore = view.store
	return view
}

func (r *waitingRoom) volumesFor(informer cache.SharedIndexInformer) cache.SharedIndexInformer {
	return newLibraryView(informer, func(h cache.ResourceEventHandler) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.volumeHandler = h
	})
}
