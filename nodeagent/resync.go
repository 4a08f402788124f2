package nodeagent

import (
	"context"
	"errors"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/backend"
	"github.com/quarry-storage/quarry/nodeagent/store"
)

// followMoved looks at the Volumes that something changed for on the disks, and
// at those whose growth waits for room; at all of them only where a pool came
// or went.
func (a *Agent) followMoved(ctx context.Context, feed *store.Feed) {
	ids, all := feed.Take()
	if all {
		a.requeueMoved(ctx)
		return
	}

	for _, id := range ids {
		if v, err := a.volumeObject(ctx, id); err != nil || v != nil && a.moved(v, a.inTrash) {
			a.queue.Add(id)
		}
	}

	a.growing.Range(func(key, _ any) bool {
		id := key.(string)
		v, err := a.volumeObject(ctx, id)
		if err == nil && v == nil {
			a.growing.Delete(id)
			return true
		}
		if there, err := a.store.Get(id); v != nil && err == nil && a.roomToGrow(v, &there) {
			a.queue.Add(id)
		}

		return true
	})
}

// volumeObject returns the newest state of a Volume object that is known here,
// nil if there is none. It must not be changed.
func (a *Agent) volumeObject(ctx context.Context, id string) (*v1alpha1.Volume, error) {
	v := &v1alpha1.Volume{}
	err := a.client.Get(ctx, client.ObjectKey{Name: id}, v)
	if apierrors.IsNotFound(err) {
		a.written.forget(id)
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read volume %s: %w", id, err)
	}

	return a.written.newest(v), nil
}

// waitsForRoom reports whether a volume is to grow, and does not fit.
func waitsForRoom(v *v1alpha1.Volume) bool {
	c := meta.FindStatusCondition(v.Status.Conditions, v1alpha1.ConditionResized)
	return c != nil && c.Status == metav1.ConditionFalse &&
		c.Reason == v1alpha1.ReasonResizeInfeasible
}

// followStore reports what changed on the disks: pools' room, volumes that
// became available or not, trash that was freed.
func (a *Agent) followStore(ctx context.Context) {
	feed := a.store.Feed()
	for {
		// Before anything is looked at, or a change in between would be seen by
		// nobody.
		changed := a.store.Changed()
		a.pools.poke()
		a.followMoved(ctx, feed)

		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

// recheck brings up now and then what failed to come up, and grows what there
// may be room for.
func (a *Agent) recheck(ctx context.Context) {
	ticker := time.NewTicker(a.opts.RecheckEvery)
	defer ticker.Stop()

	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}

		a.pools.lookForTwins(ctx)

		// Somebody else's files on a pool's filesystem may have gone: there may
		// be room to grow.
		a.requeueMoved(ctx)
		for _, v := range a.store.List() {
			if ctx.Err() != nil {
				return
			}
			if v.Unavailable != nil {
				a.queue.Add(v.ID)
			}
		}
	}
}

// requeueMoved puts into the queue the Volumes whose status does not say what
// the store says.
func (a *Agent) requeueMoved(ctx context.Context) {
	var list v1alpha1.VolumeList
	if !a.ready.Load() {
		return
	}
	if err := a.client.List(ctx, &list); err != nil {
		return
	}

	trashed := map[string]bool{}
	for _, t := range a.store.Trash() {
		if t.Volume != nil {
			trashed[t.Volume.ID] = true
		}
	}

	for i := range list.Items {
		if v := a.written.newest(&list.Items[i]); a.moved(v, func(id string) bool {
			return trashed[id]
		}) {
			a.queue.Add(v.Name)
		}
	}
}

// moved reports whether a Volume's status does not say what the store says.
func (a *Agent) moved(v *v1alpha1.Volume, inTrash func(id string) bool) bool {
	there, err := a.store.Get(v.Name)
	available := err == nil && there.Unavailable == nil
	switch v.Status.Phase {
	case v1alpha1.VolumeReady:
		return !available || a.roomToGrow(v, &there) || isEnforcedNews(v.Status.Conditions,
			there.NotEnforced)
	case v1alpha1.VolumeUnavailable, v1alpha1.VolumeLost:
		// The latter waits for us to finish it.
		return available || err != nil || there.Adopting != ""
	case v1alpha1.VolumePending: // it waits for its pool: an adoption, say
		ready := meta.FindStatusCondition(v.Status.Conditions, v1alpha1.ConditionReady)
		return ready != nil && ready.Reason == v1alpha1.ReasonPoolOffline
	case v1alpha1.VolumeTrashed:
		return !inTrash(v.Name)
	}

	return err == nil // it says that there is none
}

// roomToGrow tells a volume whose growth was refused, and that fits by now.
func (a *Agent) roomToGrow(v *v1alpha1.Volume, there *store.Volume) bool {
	if !waitsForRoom(v) {
		return false
	}

	for _, p := range a.store.Pools() {
		if p.Name == there.Pool {
			return p.Offline == nil && p.Available >= v.Spec.Capacity.Value()-there.Promise()
		}
	}

	return false
}

// isEnforcedNews reports whether what a look at a volume's size found is not
// what its condition says: that it holds or not, and for which reason.
func isEnforcedNews(conditions []metav1.Condition, found error) bool {
	said, reason := "", ""
	if c := meta.FindStatusCondition(conditions, v1alpha1.ConditionEnforced); c != nil &&
		c.Status == metav1.ConditionFalse {
		said = c.Reason
	}

	if lost, ok := errors.AsType[*backend.EnforcementError](found); ok {
		reason = lost.Reason
	}

	return said != reason
}
