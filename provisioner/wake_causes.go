package provisioner

import (
	"slices"
	"time"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

// cause is what may have ended a claim's wait.
type cause int

const (
	byVolume cause = iota
	byNode
	byClass
	byPool
)

// heardOf is what ends the wait for a reason. What is wrong with a class does
// not change when a pool does: a claim that every cause woke was tried again
// and again for nothing. Every cause ends the wait for a reason that is not
// listed.
var heardOf = map[string][]cause{
	v1alpha1.ReasonInvalidParameter:  {byClass},
	v1alpha1.ReasonUnsupportedClaim:  {byClass, byNode},
	v1alpha1.ReasonTooSmall:          {byClass},
	v1alpha1.ReasonInvalidOptions:    {byClass, byNode},
	v1alpha1.ReasonAgentNotReady:     {byClass, byNode},
	v1alpha1.ReasonNodeGone:          {byClass, byNode},
	v1alpha1.ReasonPending:           {byClass, byNode},
	v1alpha1.ReasonVolumeUnavailable: {byNode},
}

// wakes reports whether a cause may end the wait for a reason. The Volume of a
// claim is always about that very claim.
func (c cause) wakes(reason string) bool {
	causes, known := heardOf[reason]
	if !known || c == byVolume {
		return true
	}

	return slices.Contains(causes, c)
}

// certain reports whether a cause is what the claim waits for, and not only
// something that may help: then it is tried at once, and as if it was new.
func (c cause) certain(reason string) bool {
	switch c {
	case byVolume, byClass:
		return true
	case byNode:
		return reason == v1alpha1.ReasonAgentNotReady || reason == v1alpha1.ReasonNodeGone
	}
	return false
}

// rest is how much longer a claim is left alone by what may help: longer each
// time that it was woken in vain, as the library's own tries are. What was
// woken long ago is woken at once.
func (w *waiter) rest(now time.Time) time.Duration {
	since := now.Sub(w.last)
	if w.woken == 0 || since > 2*lastRetry {
		return 0
	}
	return min(firstRetry<<min(w.woken-1, 20), lastRetry) - since
}

// wake notes that a claim is woken by what may help.
func (w *waiter) wake(now time.Time) {
	if now.Sub(w.last) > 2*lastRetry {
		w.woken = 0
	}
	w.woken++
	w.last = now
}
