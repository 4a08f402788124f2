package provisioner

import (
	"fmt"
	"sync"
	"time"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

// Workers are shared by all claims. A worker waits for a node while that node
// is making the volume, and for seconds only where it is not: the Volume object
// stays, its change wakes the claim (wake.go), and the worker serves other
// claims meanwhile.
const (
	// failurePatience is how long a worker waits for a volume that its node
	// said it fails to make.
	failurePatience = 5 * time.Second
	// silencePatience is how long it waits for a node from which nothing at all
	// is heard meanwhile. A large image takes some seconds.
	silencePatience = 10 * time.Second
	// groupPatience is how long a worker waits for the other claims of a pod: a
	// little more than agents do before they make the volume alone.
	groupPatience = 8 * time.Second
	// givenUpAfter is for how long a node may fail to make a volume, or be
	// silent, before another one is tried. Agents refuse long before, where
	// they can.
	givenUpAfter = 5 * time.Minute
)

// patienceFor is how long a worker waits for a volume whose condition Ready has
// the reason; 0: as long as the try may take.
func patienceFor(reason string) time.Duration {
	switch reason {
	case v1alpha1.ReasonCreating:
		return 0
	case v1alpha1.ReasonWaitingForGroup:
		return groupPatience
	case "":
		return silencePatience
	}
	return failurePatience
}

// workerPatience is that of one worker with one volume.
type workerPatience struct {
	reason string
	begun  bool
	// over is when it ends; nil: not.
	over  <-chan time.Time
	since time.Time
}

// with begins anew when the reason to wait has become another one.
func (p *workerPatience) with(reason string) {
	if p.begun && p.reason == reason {
		return
	}
	p.begun, p.reason = true, reason
	p.again()
}

func (p *workerPatience) again() {
	p.since, p.over = time.Now(), nil
	if d := patienceFor(p.reason); d > 0 {
		p.over = time.After(d)
	}
}

// lastHeard remembers when a node last answered any of its Volumes. In a burst
// the last one waits for all others, and a node that works them off is not
// waited for in vain.
type lastHeard struct {
	mu    sync.Mutex
	nodes map[string]time.Time
}

func (h *lastHeard) from(node string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.nodes == nil {
		h.nodes = map[string]time.Time{}
	}
	h.nodes[node] = time.Now()
}

func (h *lastHeard) since(node string, t time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	at, any := h.nodes[node]
	return any && at.After(t)
}

// answered reports whether an agent has said something of a Volume between two
// states of it.
func answered(before, after *v1alpha1.Volume) bool {
	return before.Status.Phase != after.Status.Phase ||
		before.Status.ObservedGeneration != after.Status.ObservedGeneration
}

// hopeless says why an attempt is given up for another node, "" if it is not:
// its node has failed to make it, or has been silent, for long enough.
func hopeless(v *v1alpha1.Volume, now time.Time) string {
	reason, message := readyCondition(v.Status.Conditions)
	began := v.CreationTimestamp.Time
	switch reason {
	case v1alpha1.ReasonCreating, v1alpha1.ReasonWaitingForGroup:
		return ""
	case "":
		message = "its agent has not answered"
	default:
		for _, c := range v.Status.Conditions {
			if c.Type == v1alpha1.ConditionReady && !c.LastTransitionTime.IsZero() {
				began = c.LastTransitionTime.Time
			}
		}
	}

	if v.Spec.Published || v.Spec.Adopt != nil || began.IsZero() || now.Sub(began) < givenUpAfter {
		return ""
	}

	return fmt.Sprintf("given up after %s: %s", givenUpAfter, message)
}
