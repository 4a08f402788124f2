package nodeagent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/backend"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/store"
	"github.com/quarry-storage/quarry/nodeagent/translate"
)

// remove trashes or deletes the volume. That it is gone is said only of a pool
// that can be looked at.
func (a *Agent) remove(ctx context.Context, v *v1alpha1.Volume,
	status *v1alpha1.VolumeStatus) error {
	a.groups.cancel(v.Name)
	found, err := a.store.Find(ctx, v.Name)
	if err == nil {
		if doubt := a.doubt(ctx, v, &found); doubt != nil {
			return setDoubt(status, doubt)
		}
	}

	// What was refused was never on disk, whatever pools there are.
	_, missing := errors.AsType[*store.NotFoundError](err)
	if missing && v.Status.Phase != v1alpha1.VolumeRefused {
		if offline := a.offline(ctx, v); offline != nil {
			setOffline(status, offline)
			return nil
		}
	}

	end := a.store.Delete
	if a.mayBeServed(v) {
		end = a.store.DeleteUntouched
	}

	if err = nil; !a.store.Abandoned(v.Name) {
		err = end(ctx, v.Name, translate.RemovalOf(v))
	}

	unseen, ok := errors.AsType[*store.UnseenError](err)
	if ok && (v.Status.Phase == v1alpha1.VolumeRefused || mayHold(v, unseen.Unseen) == nil) {
		err = nil // all pools that it can be on were looked at
	}

	if err != nil {
		return a.stays(v, status, err)
	}

	a.inUse.Delete(v.Name)
	a.untold.Delete(v.Name)
	meta.RemoveStatusCondition(&status.Conditions, v1alpha1.ConditionInUse)
	status.Path = ""
	status.ExpiresAt = nil
	if v.Spec.DesiredState == v1alpha1.DesiredTrashed {
		if left, ok := a.retention(v.Name); ok {
			if v.Status.ExpiresAt != nil && v.Status.Phase == v1alpha1.VolumeTrashed {
				// It moves only with the retention, not with every look.
				status.ExpiresAt = v.Status.ExpiresAt
			} else {
				at := metav1.NewTime(time.Now().Add(left).Truncate(time.Second))
				status.ExpiresAt = &at
			}

			translate.SetReady(status, v1alpha1.VolumeTrashed, v1alpha1.ReasonRemoved,
				"in the trash")
			return nil
		}
	}

	status.Capacity = resource.NewQuantity(0, resource.BinarySI)
	translate.SetReady(status, v1alpha1.VolumeDeleted, v1alpha1.ReasonRemoved, "")
	return nil
}

// stays says why a volume that is to go is still there. An error has it tried
// again; without one something else will.
func (a *Agent) stays(v *v1alpha1.Volume, status *v1alpha1.VolumeStatus, err error) error {
	if holds, ok := errors.AsType[*store.NotEmptyError](err); ok {
		translate.SetCondition(status, v1alpha1.ConditionInUse, metav1.ConditionTrue,
			v1alpha1.ReasonNotEmpty, "it was given up as one that nobody was served from, but "+
				holds.Why+"; to have it deleted set spec.published, to keep it delete this object")
		a.queue.AddAfter(v.Name, a.waitForUsers(v.Name))
		return nil
	}

	if inUse, ok := errors.AsType[*backend.InUseError](err); ok {
		// Not every mount namespace tells us when it changes, so it is also
		// tried again now and then.
		wait := a.waitForUsers(v.Name)
		translate.SetCondition(status, v1alpha1.ConditionInUse, metav1.ConditionTrue, inUse.Reason,
			fmt.Sprintf("%v; tried again at the next change of the node's mounts, and every %v",
				inUse, wait))
		a.queue.AddAfter(v.Name, wait)
		return nil
	}

	if offline, ok := errors.AsType[*disk.OfflineError](err); ok {
		translate.SetReady(status, v1alpha1.VolumeUnavailable, v1alpha1.ReasonPoolOffline,
			offline.Error())
		return nil
	}

	reason, _ := store.Reason(err)
	translate.SetReady(status, v1alpha1.VolumeUnavailable, reason, err.Error())
	return err
}

// mayBeServed reports whether a volume was given up by the controller that
// somebody may have been served from for all that is known here: what is in it
// would prove that. Nobody was from one that this process made and never told
// of.
func (a *Agent) mayBeServed(v *v1alpha1.Volume) bool {
	if v.Annotations[v1alpha1.AnnotationGivenUp] == "" || v.Spec.Published {
		return false
	}
	uid, untold := a.untold.Load(v.Name)
	return !untold || uid != v.UID
}

// A volume that was in use is looked at without being told of a change after
// ever longer times: it can be months until the last container ends that has a
// copy of the host's mounts.
const inUseFirst, inUseLast = 10 * time.Second, 5 * time.Minute

// waitForUsers notes that a volume is in use, and returns how long to wait
// until it is looked at again.
func (a *Agent) waitForUsers(name string) time.Duration {
	now := time.Now()
	found, known := a.inUse.Load(name)
	w, _ := found.(userWait)
	switch {
	case !known:
		w = userWait{wait: inUseFirst, last: now}
	case now.Sub(w.last) >= w.wait: // a change of mounts, which asked sooner, does not count
		w = userWait{wait: min(2*w.wait, inUseLast), last: now}
	}

	a.inUse.Store(name, w)
	return w.wait
}

// userWait is how long a volume in use is left alone, since when.
type userWait struct {
	wait time.Duration
	last time.Time
}

// retention is how long the volume is still kept in the trash; ok is false when
// it is not there.
func (a *Agent) retention(id string) (left time.Duration, ok bool) {
	for _, t := range a.store.Trash() {
		if t.Volume != nil && t.Volume.ID == id &&
			t.Deletion.OnDelete == string(v1alpha1.OnDeleteTrash) {
			left, ok = max(left, t.Remaining), true
		}
	}
	return left, ok
}

func (a *Agent) inTrash(id string) bool {
	for _, t := range a.store.Trash() {
		if t.Volume != nil && t.Volume.ID == id && t.Remaining > 0 {
			return true
		}
	}
	return false
}
