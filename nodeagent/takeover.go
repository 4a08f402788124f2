package nodeagent

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/store"
)

// A disk that another node had last is there: it was moved, or both nodes see
// it. The second must not be taken for the first, for two kernels that mount
// one image destroy it. A node that is known to be gone, or that says itself
// that it has the disk no more, is believed; one that is silent is not.

const (
	// askFirst is after how long it is asked again about a disk that another
	// node had; then after ever longer times, up to askLast.
	askFirst, askLast = 30 * time.Second, 2 * time.Minute
	// silence is how long a node that lives may take to say that a pool is its
	// own: it says so within seconds of making one.
	silence = 2 * time.Minute
)

// elsewhere is what is known of a pool that another node had last.
type elsewhere struct {
	pool     string // its identity, and the holder's text: what was asked about
	since    time.Time
	because  string // why it is not taken
	takeFrom string // whom it may be taken from

	wait  time.Duration // after which it is asked again, since
	asked time.Time
	timer *time.Timer
}

// again is after how long it is to be asked again, now that it was asked. What
// else made somebody ask in between does not count.
func (e *elsewhere) again(now time.Time) time.Duration {
	since := now.Sub(e.asked)
	switch {
	case e.wait == 0:
		e.wait = askFirst
	case since >= e.wait:
		e.wait = min(2*e.wait, askLast)
	default:
		return e.wait - since
	}

	e.asked = now
	return e.wait
}

// askElsewhere finds out whether the pool that another node had last may be
// taken. It is called with mu held.
func (p *poolReporter) askElsewhere(ctx context.Context, pool *store.Pool) {
	off := pool.Offline
	if off == nil || off.Reason != disk.OfflineInUseElsewhere {
		former := p.elsewhere[pool.Name]
		former.stop()
		if off == nil {
			delete(p.elsewhere, pool.Name)
		}
		return
	}

	at := p.elsewhere[pool.Name]
	at.stop()
	if about := off.UID + " of " + off.Holder.String(); at.pool != about {
		at = elsewhere{pool: about, since: time.Now()}
	}

	at.takeFrom = ""
	has, err := p.hasIt(ctx, pool.Name, off, time.Since(at.since) > silence)
	switch {
	case err != nil:
		at.because = fmt.Sprintf("it could not be found out whether that node has it still (%v)",
			err)
	case has != "":
		at.because = has
	default:
		at.takeFrom = off.Holder.String()
	}

	if at.takeFrom == "" {
		at.timer = time.AfterFunc(at.again(time.Now()), p.poke) // one, whoever asked
	}

	p.elsewhere[pool.Name] = at
}

func (e *elsewhere) stop() {
	if e.timer != nil {
		e.timer.Stop()
	}
}

// hasIt says which other node has the pool with the identity, as the cluster's
// objects tell; empty: none.
func (p *poolReporter) hasIt(ctx context.Context, name string, off *disk.OfflineError,
	patient bool) (string, error) {
	a := p.agent
	var pools v1alpha1.PoolList
	if err := a.live.List(ctx, &pools); err != nil {
		return "", fmt.Errorf("list all pools: %w", err)
	}

	said := false
	for i := range pools.Items {
		other := &pools.Items[i]
		if other.Spec.NodeName == a.opts.Node {
			continue
		}

		said = said || other.Spec.NodeName == off.Holder.Node &&
			(other.Spec.UID == off.UID || hasAnother(other, name))
		if other.Spec.UID != off.UID || !hasDisk(other) {
			continue
		}

		lives, err := p.nodeExists(ctx, other.Spec.NodeName)
		if err != nil {
			return "", err
		}
		if lives {
			return fmt.Sprintf("node %s has it, by its Pool object %s; unmount it there, or, once "+
				"that machine is off for good, delete its Node object", other.Spec.NodeName,
				other.Name), nil
		}
	}

	if said || patient || off.Holder.Node == a.opts.Node {
		return "", nil
	}

	lives, err := p.nodeExists(ctx, off.Holder.Node)
	if lives && err == nil {
		return fmt.Sprintf("node %s is there and has not said yet whether it has it",
			off.Holder.Node), nil
	}

	return "", err
}

// hasAnother reports whether the node's agent has said that another disk is
// where this one would be: two nodes' disks were exchanged, and the other one
// has been told to take what it found.
func hasAnother(pool *v1alpha1.Pool, name string) bool {
	ready := meta.FindStatusCondition(pool.Status.Conditions, v1alpha1.ConditionReady)
	return pool.Spec.Pool == name && pool.Spec.UID != "" && ready != nil &&
		ready.Status == metav1.ConditionTrue
}

// hasDisk reports whether the pool's disk was in its place when its node was
// last heard, whatever state it was in.
func hasDisk(pool *v1alpha1.Pool) bool {
	ready := meta.FindStatusCondition(pool.Status.Conditions, v1alpha1.ConditionReady)
	if ready == nil || ready.Status == metav1.ConditionTrue {
		return true
	}
	return !slices.Contains([]string{disk.OfflineMissing, disk.OfflineSwapped,
		disk.OfflineNoMountpoint, disk.OfflineForeign,
		disk.OfflineRebuilt, disk.OfflineNotConfigured, disk.OfflineInUseElsewhere},
		ready.Reason)
}

// nodeExists reports whether the cluster has a node of that name: its Lease
// goes with the Node object. An agent may not read nodes.
func (p *poolReporter) nodeExists(ctx context.Context, node string) (bool, error) {
	var lease coordinationv1.Lease
	err := p.agent.live.Get(ctx, client.ObjectKey{Namespace: corev1.NamespaceNodeLease, Name: node},
		&lease)
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return true, fmt.Errorf("ask for the lease of node %s: %w", node, err)
	}

	return true, nil
}

// elsewhereOffline adds to a pool that another node had why it is not taken.
func (p *poolReporter) elsewhereOffline(pool *store.Pool,
	off *disk.OfflineError) *disk.OfflineError {
	at, asked := p.elsewhere[pool.Name]
	if !asked || off.Reason != disk.OfflineInUseElsewhere || at.because == "" {
		return off
	}
	return &disk.OfflineError{Pool: off.Pool, Reason: off.Reason, UID: off.UID, Holder: off.Holder,
		Err: fmt.Errorf("%w: %s", off.Err, at.because)}
}

// lookForTwins finds out which pools of this node another node's Pool objects
// name too: a disk that was copied, or that both see.
func (p *poolReporter) lookForTwins(ctx context.Context) {
	var list v1alpha1.PoolList
	if err := p.agent.live.List(ctx, &list); err != nil {
		p.agent.log.WarnContext(ctx, "look for pools with one identity", "error", err)
		return
	}

	twins := map[string]string{}
	for _, pool := range p.agent.store.Pools() {
		var names []string
		for i := range list.Items {
			other := &list.Items[i]
			if pool.UID != "" && other.Spec.UID == pool.UID && other.Name != p.name(pool.Name) {
				names = append(names, other.Name)
			}
		}

		twins[pool.Name] = strings.Join(names, ", ")
	}

	p.mu.Lock()
	changed := fmt.Sprint(p.twins) != fmt.Sprint(twins)
	p.twins = twins
	p.mu.Unlock()

	if changed {
		p.poke()
	}
}

// setTwins says which other Pool objects name a pool's identity.
func (p *poolReporter) setTwins(pool string, status *v1alpha1.PoolStatus) {
	twins := p.twins[pool]
	if twins == "" {
		meta.RemoveStatusCondition(&status.Conditions, v1alpha1.ConditionSharedIdentity)
		return
	}

	setPoolCondition(status, v1alpha1.ConditionSharedIdentity, metav1.ConditionTrue,
		v1alpha1.ConditionSharedIdentity,
		"its identity is also that of "+twins+": one disk that two nodes see, a copy of it, or an "+
			"object that was left when the disk moved; delete the Pool object whose disk it is not")
}
