package nodeagent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/backend"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/store"
	"github.com/quarry-storage/quarry/nodeagent/translate"
)

// reconcile brings one volume from what there is to what is wanted, and says so
// in its status. It can be called at any time and any number of times. An error
// means that it has to be called again.
func (a *Agent) reconcile(ctx context.Context, name string) error {
	v, err := a.volumeObject(ctx, name)
	if err != nil {
		return err
	}
	if v == nil {
		// No object is no wish. What was promised and never begun is let go;
		// what is on disk stays, as an orphan.
		a.groups.cancel(name)
		a.failures.forget(name)
		a.inUse.Delete(name)
		a.untold.Delete(name)
		a.early.Delete(name)
		a.pools.suspect(name)
		a.pools.poke()

		return nil
	}
	if v.DeletionTimestamp != nil && v.Spec.DesiredState == v1alpha1.DesiredPresent {
		a.groups.cancel(name)
		return nil
	}

	status := v.Status.DeepCopy()
	status.ObservedGeneration = v.Generation
	start := time.Now()

	switch v.Spec.DesiredState {
	case v1alpha1.DesiredTrashed, v1alpha1.DesiredDeleted:
		err = a.remove(ctx, v, status)
	default:
		err = a.present(ctx, v, status)
	}

	if errors.Is(err, errNoLane) {
		return err // nothing was done, so there is nothing to say
	}

	a.meter.observe(v.Status.Phase, status.Phase, time.Since(start))
	return errors.Join(err, a.writeStatus(ctx, v, status))
}

// writeStatus writes only news.
func (a *Agent) writeStatus(ctx context.Context, v *v1alpha1.Volume,
	status *v1alpha1.VolumeStatus) error {
	if !isNews(&v.Status, status) {
		return nil
	}

	changed := v.DeepCopy()
	changed.Status = *status
	uid, untold := a.untold.LoadAndDelete(v.Name)

	// What was decided is about this very object as it was read: names are used
	// again, and a late word about a former object must not be said of the
	// present one. On a conflict the cache is behind, and the volume is looked
	// at again.
	err := a.client.Status().Patch(ctx, changed, client.MergeFromWithOptions(v,
		client.MergeFromWithOptimisticLock{}))
	if apierrors.IsNotFound(err) {
		return nil
	}
	if untold && apierrors.IsConflict(err) { // surely not written
		a.untold.Store(v.Name, uid)
	}

	if err != nil {
		return fmt.Errorf("write the status of volume %s: %w", v.Name, err)
	}

	a.written.note(changed)
	return nil
}

// isNews reports whether a status says what the one that is written does not.
// Of a volume that is Ready and that nothing is wrong with, it is none that a
// newer spec was seen: nobody waits for that (what was waited for is in the
// status).
func isNews(written, now *v1alpha1.VolumeStatus) bool {
	if !isWell(written) || !isWell(now) {
		return !equality.Semantic.DeepEqual(written, now)
	}

	now = now.DeepCopy()
	now.ObservedGeneration = written.ObservedGeneration
	for i := range now.Conditions {
		if c := meta.FindStatusCondition(written.Conditions, now.Conditions[i].Type); c != nil {
			now.Conditions[i].ObservedGeneration = c.ObservedGeneration
		}
	}

	return !equality.Semantic.DeepEqual(written, now)
}

// isWell reports whether a status asks nothing of anybody: Ready, all of its
// size in force, and no wish is open.
func isWell(s *v1alpha1.VolumeStatus) bool {
	return s.Phase == v1alpha1.VolumeReady && !meta.IsStatusConditionTrue(s.Conditions,
		v1alpha1.ConditionInUse) &&
		!meta.IsStatusConditionFalse(s.Conditions, v1alpha1.ConditionResized)
}

// present makes the volume, or brings up the one that is there.
func (a *Agent) present(ctx context.Context, v *v1alpha1.Volume,
	status *v1alpha1.VolumeStatus) error {
	a.inUse.Delete(v.Name)
	found, err := a.store.Find(ctx, v.Name)
	missing, isMissing := errors.AsType[*store.NotFoundError](err)
	copied, isCopy := errors.AsType[*disk.CopyError](err)
	switch {
	case err == nil:
		a.groups.done(v.Name) // its promise has become the volume's
		a.early.Delete(v.Name)
		if doubt := a.doubt(ctx, v, &found); doubt != nil {
			return setDoubt(status, doubt)
		}
		return a.keep(ctx, v, status)
	case isCopy && wasReady(v):
		if !a.wasMoved(v, copied) {
			return setDoubt(status, err)
		}
		if err := a.store.TakeCopy(ctx, v.Name); err != nil {
			return setDoubt(status, err)
		}
		return a.keep(ctx, v, status)
	case !isMissing && wasReady(v):
		// It is on its disk, and not to be read: that is not lost.
		reason, _ := store.Reason(err)
		translate.SetReady(status, v1alpha1.VolumeUnavailable, reason, err.Error())
		return err
	case status.Phase == v1alpha1.VolumeRefused:
		// Final for this attempt: the controller has been told, and makes
		// another.
		a.groups.cancel(v.Name)
		return nil
	case status.Phase == v1alpha1.VolumeTrashed || a.inTrash(v.Name):
		if offline := a.unseen(ctx, v, missing); offline != nil && !a.inTrash(v.Name) {
			setOffline(status, offline)
			return nil
		}

		_, err := a.store.Restore(ctx, v.Name)
		if _, gone := errors.AsType[*store.NotFoundError](err); err != nil && !gone {
			translate.SetReady(status, v1alpha1.VolumeUnavailable, v1alpha1.ReasonFailed,
				err.Error())
			return err
		} else if err == nil {
			status.ExpiresAt = nil
			return a.keep(ctx, v, status)
		}

		translate.SetReady(status, v1alpha1.VolumeLost, v1alpha1.ReasonLost,
			"its space was freed before it was wanted back")
		return nil
	case wasReady(v) && !stillToAdopt(v):
		return a.absent(ctx, v, status, missing)
	}

	if uid, early := a.early.Load(v.Name); early && uid == v.UID && !isMissing {
		// Something is there that cannot be read: it may be the volume.
		reason, _ := store.Reason(err)
		translate.SetReady(status, v1alpha1.VolumePending, reason, err.Error())
		return err
	}
	if off := a.away(v, missing); off != nil {
		translate.SetReady(status, v1alpha1.VolumePending, v1alpha1.ReasonPoolOffline,
			"an agent before this one may have made it where nobody can look now, and it is "+
				"not made anew meanwhile: "+off.Error())
		return nil // the pool's return wakes it
	}

	return a.create(ctx, v, status)
}

// noteEarly notes the Volumes that were there before this agent served any, and
// of which nothing was said that could tell whether they were made: the word of
// the agent that made one may have been lost with it.
func (a *Agent) noteEarly(ctx context.Context) error {
	var list v1alpha1.VolumeList
	// Live: what the cache was filled from may be of before the last agent read it.
	mine := client.MatchingFields{"spec.nodeName": a.opts.Node}
	if err := a.live.List(ctx, &list, mine); err != nil {
		return fmt.Errorf("list volumes: %w", err)
	}
	for i := range list.Items {
		if v := &list.Items[i]; v.Status.Phase == "" || v.Status.Phase == v1alpha1.VolumePending {
			a.early.Store(v.Name, v.UID)
		}
	}
	return nil
}

// away returns why a volume that is on no disk that could be looked at may be on
// another one, or nil. What this agent made it would know of, so that only an
// early one can be. A nil missing is one that was not looked for.
func (a *Agent) away(v *v1alpha1.Volume, missing *store.NotFoundError) error {
	uid, early := a.early.Load(v.Name)
	if !early || uid != v.UID || missing == nil {
		return nil
	}
	request, err := translate.RequestOf(v)
	if err != nil {
		return nil // it is refused for that
	}
	if off := a.store.Away(&request, missing.Unseen); off != nil {
		return off
	}
	a.early.Delete(v.Name) // all disks were looked at
	return nil
}

// wasReady reports whether somebody may have data in a volume. It
// is never made anew, empty.
func wasReady(v *v1alpha1.Volume) bool {
	return v.Spec.Published || v.Status.Phase == v1alpha1.VolumeReady ||
		v.Status.Phase == v1alpha1.VolumeUnavailable || v.Status.Phase == v1alpha1.VolumeLost
}

// stillToAdopt reports whether a volume is to be made of data that is on the
// node already, and never was here yet. Somebody may write it with published
// set, for the PersistentVolume of the data is there before the volume is. That
// does no harm: a published volume is only ever made of what is at its path
// (translate.RequestOf), and never empty. Once it was Ready its data is in its
// pool, and what is at the path then is not it.
func stillToAdopt(v *v1alpha1.Volume) bool {
	fresh := v.Status.Phase == "" || v.Status.Phase == v1alpha1.VolumePending
	return v.Spec.Adopt != nil && fresh && v.Status.Path == "" && v.Status.PoolUID == ""
}

// absent says why a volume that was there once is not, after the disks were
// looked at.
func (a *Agent) absent(ctx context.Context, v *v1alpha1.Volume, status *v1alpha1.VolumeStatus,
	missing *store.NotFoundError) error {
	if offline := a.unseen(ctx, v, missing); offline != nil {
		setOffline(status, offline)
		return nil
	}
	translate.SetReady(status, v1alpha1.VolumeLost, v1alpha1.ReasonLost,
		"its pool is there without it: the disk was replaced or emptied, or the node rebuilt; "+
			"nothing was made in its place")
	return nil
}

// setOffline says that the volume's pool cannot be looked at: its disk may
// come back, unless the node was rebuilt.
func setOffline(status *v1alpha1.VolumeStatus, offline error) {
	off, ok := errors.AsType[*disk.OfflineError](offline)
	if ok && off.Reason == disk.OfflineRebuilt {
		translate.SetReady(status, v1alpha1.VolumeLost, v1alpha1.ReasonLost, offline.Error())
		return
	}
	translate.SetReady(status, v1alpha1.VolumeUnavailable, v1alpha1.ReasonPoolOffline,
		offline.Error())
}

// offline returns why a pool that may hold the volume cannot be looked at, or
// nil.
func (a *Agent) offline(ctx context.Context, v *v1alpha1.Volume) error {
	pool := v.Status.Pool
	if pool == "" {
		pool = v.Spec.Pool
	}

	known := false
	for _, p := range a.store.Pools() {
		if pool != "" && p.Name != pool {
			continue
		}

		known = true
		if p.Offline != nil {
			return a.pools.offline(ctx, &p)
		}
	}

	// A volume that never was cannot be in a pool that is not here.
	if !known && (v.Spec.Published || v.Status.Pool != "") {
		return fmt.Errorf("the agent's configuration has no pool %q on this node", pool)
	}

	return nil
}

// unseen returns why a pool that may hold the volume could not be looked at
// when the volume was looked for, or cannot be now. A nil missing is one that
// was not looked for.
func (a *Agent) unseen(ctx context.Context, v *v1alpha1.Volume,
	missing *store.NotFoundError) error {
	if offline := a.offline(ctx, v); offline != nil || missing == nil {
		return offline
	}
	return mayHold(v, missing.Unseen)
}

// mayHold returns the first of the pools that the volume may be on, or nil. One
// that was made is on the pool that its status names.
func mayHold(v *v1alpha1.Volume, pools []*disk.OfflineError) error {
	pool := v.Status.Pool
	if pool == "" {
		pool = v.Spec.Pool
	}

	for _, off := range pools {
		if pool == "" || off.Pool == pool {
			return off
		}
	}

	return nil
}

// create makes a volume that is not there.
func (a *Agent) create(ctx context.Context, v *v1alpha1.Volume,
	status *v1alpha1.VolumeStatus) error {
	adm, err := a.admit(ctx, v)
	if waiting, ok := errors.AsType[*waitingError](err); ok {
		translate.SetReady(status, v1alpha1.VolumePending, v1alpha1.ReasonWaitingForGroup,
			waiting.Error())
		return nil
	}

	var there store.Volume
	if err == nil {
		if there, err = a.carve(ctx, v.Name, adm); errors.Is(err, errNoLane) {
			return err // it stays admitted
		}
		a.groups.done(v.Name)
	}

	if err == nil {
		a.failures.forget(v.Name)
		if v.Spec.Adopt == nil { // what is adopted was somebody's before
			a.untold.Store(v.Name, v.UID)
		}
		return a.serve(ctx, v, status, there) // it is up already
	}

	reason, refused := store.Reason(err)
	if _, kept := errors.AsType[*store.KeptError](err); kept && v.Spec.Adopt == nil {
		// It is on this disk and on no other: from now on it is looked for
		// here.
		translate.SetReady(status, v1alpha1.VolumeUnavailable, reason, err.Error())
		return err
	}
	if !refused && a.isHopeless(ctx, v) {
		reason, refused = v1alpha1.ReasonCreateFailed, true
		err = fmt.Errorf("it could not be made in %d tries: %w", createTries, err)
	}

	if !refused {
		translate.SetReady(status, v1alpha1.VolumePending, reason, err.Error())
		return err
	}

	a.failures.forget(v.Name)
	if reason == v1alpha1.ReasonPoolOffline {
		a.store.Glance(ctx) // what failed on the disk is looked at, and told below
	}

	if v.Spec.Adopt != nil && reason == v1alpha1.ReasonPoolOffline {
		// No other node or pool has the data: it waits for its disk, whose
		// return wakes it.
		translate.SetReady(status, v1alpha1.VolumePending, reason, err.Error())
		return nil
	}

	// The controller reads the pools after a refusal, so they are written
	// first.
	a.pools.flush(ctx)
	translate.SetReady(status, v1alpha1.VolumeRefused, reason, err.Error())
	return nil
}

// keep brings up a volume that is there, and serves it.
func (a *Agent) keep(ctx context.Context, v *v1alpha1.Volume, status *v1alpha1.VolumeStatus) error {
	there, err := a.store.Activate(ctx, v.Name)
	if err != nil {
		reason, _ := store.Reason(err)
		translate.SetReady(status, v1alpha1.VolumeUnavailable, reason, err.Error())
		if reason == v1alpha1.ReasonPoolOffline {
			return nil // the pool's return wakes it
		}
		return err
	}

	return a.serve(ctx, v, status, there)
}

// serve grows a volume that is up if that is wanted, and describes it.
func (a *Agent) serve(ctx context.Context, v *v1alpha1.Volume, status *v1alpha1.VolumeStatus,
	there store.Volume) error {
	// The record follows the object (G7). A volume whose disk does not take it
	// is of use all the same.
	originErr := a.store.SetOrigin(ctx, v.Name, translate.OriginOf(v))
	growErr := a.grow(ctx, v, status, &there)
	translate.SetPlace(status, &there, a.store.FilesystemOf(there.Pool))
	status.ExpiresAt = nil
	meta.RemoveStatusCondition(&status.Conditions, v1alpha1.ConditionInUse)
	setEnforced(status, there.NotEnforced)
	translate.SetReady(status, v1alpha1.VolumeReady, v1alpha1.ReasonReady, "")

	return errors.Join(originErr, growErr)
}

// setEnforced says when a size is not in force. A volume that never had a
// problem has no such condition.
func setEnforced(status *v1alpha1.VolumeStatus, err error) {
	if lost, ok := errors.AsType[*backend.EnforcementError](err); ok {
		translate.SetCondition(status, v1alpha1.ConditionEnforced, metav1.ConditionFalse,
			lost.Reason, lost.Error())
	} else if meta.FindStatusCondition(status.Conditions, v1alpha1.ConditionEnforced) != nil {
		translate.SetCondition(status, v1alpha1.ConditionEnforced, metav1.ConditionTrue,
			v1alpha1.ReasonEnforced, "")
	}
}

// grow raises the volume's size where the spec asks for more than there is.
func (a *Agent) grow(ctx context.Context, v *v1alpha1.Volume, status *v1alpha1.VolumeStatus,
	there *store.Volume) error {
	a.growing.Delete(v.Name)
	want := v.Spec.Capacity.Value()
	if want <= there.SizeBytes && there.GrowingTo == 0 {
		if meta.FindStatusCondition(status.Conditions, v1alpha1.ConditionResized) != nil {
			translate.SetCondition(status, v1alpha1.ConditionResized, metav1.ConditionTrue,
				v1alpha1.ReasonResized, "")
		}
		return nil
	}

	grown, err := a.store.Grow(ctx, v.Name, want)
	_, full := errors.AsType[*disk.CapacityError](err)
	switch {
	case err == nil:
		*there = grown
		translate.SetCondition(status, v1alpha1.ConditionResized, metav1.ConditionTrue,
			v1alpha1.ReasonResized, "")
		return nil
	case full:
		a.growing.Store(v.Name, true) // more room wakes it
		a.pools.flush(ctx)
		translate.SetCondition(status, v1alpha1.ConditionResized, metav1.ConditionFalse,
			v1alpha1.ReasonResizeInfeasible, err.Error())
		return nil
	default:
		translate.SetCondition(status, v1alpha1.ConditionResized, metav1.ConditionFalse,
			v1alpha1.ReasonResizing, err.Error())
		return err
	}
}
