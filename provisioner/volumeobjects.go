package provisioner

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/provisioner/parameters"
)

// indexPVName is the cache's index of Volumes by the PersistentVolume they are
// made for.
const indexPVName = "pvName"

// indexOfPVName is the function of that index.
func indexOfPVName(o client.Object) []string {
	if p, quiet := o.(*packed); quiet {
		if p.volume == "" {
			return nil
		}
		return []string{p.volume}
	}
	if name := o.GetLabels()[v1alpha1.LabelPVName]; name != "" {
		return []string{name}
	}
	return nil
}

// agentReadiness reports whether the work on a node would be done now.
type agentReadiness interface {
	// Ready reports it, and if it is not, why.
	Ready(node string) (ready bool, why string)
}

// volumeObjects is the one way in which Volume objects are made, waited for and
// given up. Both front doors use it, on every replica: it keeps no state, and
// two of them working on one volume meet in the API server.
type volumeObjects struct {
	// client reads Volumes from a cache that has the index indexOfPVName, and
	// writes.
	client client.Client
	// live reads past the cache.
	live client.Reader
	// agents is asked before any worker is made to wait.
	agents agentReadiness
	// agentChanged wakes workers that wait for a node whose agent goes away.
	// Nil: they wait for their deadline.
	agentChanged *broadcaster[bool]

	changed broadcaster[*v1alpha1.Volume] // by name: the newest state, the last one after a delete
	heard   lastHeard
	// onChange is told every change as well. May be nil.
	onChange func(*v1alpha1.Volume)
	// confirmed are the volumes whose deletion their agents confirmed while
	// this process waited for it.
	confirmed recentKeys
}

// OnAdd, OnUpdate and OnDelete implement cache.ResourceEventHandler: register
// volumeObjects on the informer of Volumes.
func (r *volumeObjects) OnAdd(obj any, first bool) {
	if first && isPacked(obj) {
		return // nobody waits for what is as it is to be since before this process was
	}
	if v, ok := whole[*v1alpha1.Volume](obj); ok {
		r.changed.publish(v.Name, v)
		if r.onChange != nil {
			r.onChange(v)
		}
	}
}

// OnUpdate is called with a Volume's old and new state.
func (r *volumeObjects) OnUpdate(old, obj any) {
	before, was := old.(*v1alpha1.Volume)
	if after, is := obj.(*v1alpha1.Volume); was && is && answered(before, after) {
		r.heard.from(after.Spec.NodeName)
	}
	r.OnAdd(obj, false)
}

// OnDelete is called with a Volume's last state.
func (r *volumeObjects) OnDelete(obj any) {
	r.OnAdd(obj, false)
}

// Ensure makes the volume of a PersistentVolume and returns it ready. From then
// on it counts as served. It may be called any number of times, by any number
// of callers: it goes on with what is there, and gives up attempts that were
// made for another node or another wish. wish is complete but for desiredState
// and published.
//
// Errors: *refusedError when the agent made nothing (the attempt has been given
// up already), *agentNotReadyError, *pendingError when ctx ended first (the
// record stays; call again), *unavailableError, *apiError.
func (r *volumeObjects) Ensure(
	ctx context.Context,
	pvName string,
	wish v1alpha1.VolumeSpec,
) (*v1alpha1.Volume, error) {
	// Each turn of the loop is caused by another writer; the bound only keeps a
	// broken server from holding a worker.
	for range 10 {
		v, err := r.attempt(ctx, pvName, &wish)
		if err == nil && v == nil {
			continue
		}
		return v, err
	}
	return nil, &pendingError{wish.NodeName, "somebody else keeps changing its record"}
}

// attempt is one turn of Ensure; nil, nil asks for another.
func (r *volumeObjects) attempt(
	ctx context.Context,
	pvName string,
	wish *v1alpha1.VolumeSpec,
) (*v1alpha1.Volume, error) {
	existing, err := r.Of(ctx, pvName)
	if err != nil {
		return nil, err
	}
	if existing, err = r.leaveToPerson(ctx, existing, wish.NodeName); err != nil {
		return nil, err
	}

	p := planAttempt(pvName, wish, existing)
	for _, v := range p.abandon {
		if err := r.Abandon(ctx, v); err != nil {
			return nil, err
		}
	}

	node, name := wish.NodeName, p.next
	if p.use != nil {
		node, name = p.use.Spec.NodeName, p.use.Name
	}
	if ready, why := r.agents.Ready(node); !ready && (p.use == nil || !isReady(p.use)) {
		return nil, &agentNotReadyError{Node: node, Why: why, Recorded: p.use != nil}
	}

	// Before the cache is read or written, so that no change is missed in
	// between.
	changes := r.changed.subscribe(name)
	defer changes.Close()

	var v *v1alpha1.Volume
	if p.use == nil {
		v, err = r.create(ctx, pvName, name, wish)
	} else {
		v, err = r.resume(ctx, p.use, wish)
	}

	if v == nil || err != nil {
		return nil, err
	}

	if v, err = r.settle(ctx, v, changes.C); err != nil {
		if refused, is := errors.AsType[*refusedError](err); is {
			refused.wish = wish
			if err := r.Abandon(ctx, v); err != nil {
				return nil, err
			}
		}
		return nil, err
	}

	return v, nil
}

// Of lists the Volumes of a PersistentVolume, from the cache.
func (r *volumeObjects) Of(ctx context.Context, pvName string) ([]v1alpha1.Volume, error) {
	var list v1alpha1.VolumeList
	if err := r.client.List(ctx, &list, client.MatchingFields{indexPVName: pvName}); err != nil {
		return nil, &apiError{"list the volumes of " + pvName, err}
	}
	return list.Items, nil
}

// leaveToPerson takes Volumes out of the plan that are on other nodes, that may
// have been served, and whose node is gone for good. They are neither used nor
// given up here. The claim is still unbound, so as far as it knows it was not
// served from them, and it can start over. The sweep, or a person, ends them.
func (r *volumeObjects) leaveToPerson(
	ctx context.Context,
	existing []v1alpha1.Volume,
	node string,
) ([]v1alpha1.Volume, error) {
	for i := range existing {
		v := &existing[i]
		if !isServed(v) || v.Spec.NodeName == node ||
			v.Spec.DesiredState != v1alpha1.DesiredPresent {
			continue
		}

		exists, err := nodeExists(ctx, r.live, v.Spec.NodeName)
		if err != nil {
			return nil, err
		}

		if !exists {
			log.FromContext(ctx).Info(
				"A volume stays behind on a node that does not exist; the claim starts over",
				"volume", v.Name, "node", v.Spec.NodeName)
			// In this copy only: the plan skips it and its number.
			v.Spec.DesiredState = v1alpha1.DesiredTrashed
		}
	}
	return existing, nil
}

// create writes the Volume of a new attempt. Nil, nil: another replica was
// faster, look again.
func (r *volumeObjects) create(
	ctx context.Context,
	pvName, name string,
	wish *v1alpha1.VolumeSpec,
) (*v1alpha1.Volume, error) {
	if !v1alpha1.IsVolumeID(name) || len(validation.IsValidLabelValue(pvName)) > 0 {
		return nil, &claimError{"name", fmt.Sprintf("%q cannot be a volume's name", pvName)}
	}

	v := newVolumeObject(pvName, name, wish)
	v.Spec.DesiredState, v.Spec.Published = v1alpha1.DesiredPresent, false
	err := r.client.Create(ctx, v)
	switch {
	case err == nil:
		return v, nil
	case apierrors.IsAlreadyExists(err):
		return nil, r.catchUp(ctx, name)
	case apierrors.IsInvalid(err) || apierrors.IsBadRequest(err):
		return nil, &parameters.Error{
			Parameter: "(all)",
			Message:   "the API server does not take the volume: " + err.Error(),
		}
	}

	return nil, &apiError{"create Volume " + name, err}
}

// newVolumeObject is a Volume with the labels every Volume has.
func newVolumeObject(pvName, name string, spec *v1alpha1.VolumeSpec) *v1alpha1.Volume {
	v := &v1alpha1.Volume{ObjectMeta: metav1.ObjectMeta{
		Name:   name,
		Labels: map[string]string{v1alpha1.LabelPVName: pvName},
	}}
	// Node names may be longer than a label's value.
	if len(validation.IsValidLabelValue(spec.NodeName)) == 0 {
		v.Labels[v1alpha1.LabelNode] = spec.NodeName
	}

	spec.DeepCopyInto(&v.Spec)
	return v
}

// catchUp waits until the cache has seen a Volume that the API server already
// has.
func (r *volumeObjects) catchUp(ctx context.Context, name string) error {
	changes := r.changed.subscribe(name)
	defer changes.Close()

	var v v1alpha1.Volume
	if err := r.client.Get(ctx, client.ObjectKey{Name: name}, &v); err == nil {
		return nil
	}

	if err := r.live.Get(ctx, client.ObjectKey{Name: name}, &v); err != nil {
		if apierrors.IsNotFound(err) {
			return nil
		}
		return &apiError{"read Volume " + name, err}
	}

	if v.DeletionTimestamp != nil {
		return &pendingError{v.Spec.NodeName, "an earlier record of that name is being removed"}
	}

	select {
	case <-changes.C:
		return nil
	case <-ctx.Done():
		return &pendingError{v.Spec.NodeName, "waiting for the watch of Volumes"}
	}
}

// resume goes on with a Volume that exists: its newest state, and the group its
// claim belongs to now, which may have changed since (a claim of the same pod
// was deleted).
func (r *volumeObjects) resume(
	ctx context.Context,
	use *v1alpha1.Volume,
	wish *v1alpha1.VolumeSpec,
) (*v1alpha1.Volume, error) {
	v := &v1alpha1.Volume{}
	if err := r.client.Get(ctx, client.ObjectKeyFromObject(use), v); err != nil {
		if apierrors.IsNotFound(err) {
			return nil, nil
		}
		return nil, &apiError{"read Volume " + use.Name, err}
	}

	if isServed(v) || isReady(v) || equality.Semantic.DeepEqual(v.Spec.Admission, wish.Admission) {
		return v, nil
	}
	if v.Spec.Admission == nil && time.Since(v.CreationTimestamp.Time) > groupPatience {
		return v, nil // what goes alone has waited long enough for others
	}

	base := v.DeepCopy()
	v.Spec.Admission = wish.Admission.DeepCopy()
	err := r.client.Patch(
		ctx,
		v,
		client.MergeFromWithOptions(base, client.MergeFromWithOptimisticLock{}),
	)
	switch {
	case err == nil:
		return v, nil
	case apierrors.IsConflict(err) || apierrors.IsNotFound(err):
		return nil, r.catchUp(ctx, use.Name)
	}

	return nil, &apiError{"change the admission group of Volume " + use.Name, err}
}

// settle waits until the agent made the volume or refused it, as long as
// patience lasts. It returns the newest state also with an error.
func (r *volumeObjects) settle(
	ctx context.Context,
	v *v1alpha1.Volume,
	changes <-chan *v1alpha1.Volume,
) (*v1alpha1.Volume, error) {
	var agent <-chan bool
	if r.agentChanged != nil {
		s := r.agentChanged.subscribe(v.Spec.NodeName)
		defer s.Close()
		agent = s.C
	}

	uid := v.UID
	var patience workerPatience
	for {
		reason, message := readyCondition(v.Status.Conditions)
		patience.with(reason)
		switch {
		case v.Spec.DesiredState != v1alpha1.DesiredPresent || v.DeletionTimestamp != nil:
			return v, &pendingError{v.Spec.NodeName, "this attempt was given up; another " +
				"one follows"}
		case isReady(v):
			return v, nil
		case isServed(v): // it was ready once: wait for nothing, and give nothing up
			if message == "" {
				message = "its agent has not found it yet"
			}
			return v, &unavailableError{v.Spec.NodeName, v.Name, message}
		case isRefused(v):
			return v, &refusedError{Node: v.Spec.NodeName, Code: reason, Message: message}
		}

		// Asked here and not only on a change: it may have gone before the
		// subscription.
		if agent != nil {
			if ready, why := r.agents.Ready(v.Spec.NodeName); !ready {
				return v, &agentNotReadyError{Node: v.Spec.NodeName, Why: why, Recorded: true}
			}
		}

		select {
		case newer := <-changes:
			if newer.UID == uid || uid == "" {
				v = newer.DeepCopy()
			}
		case <-agent:
		case <-patience.over:
			if reason == "" && r.heard.since(v.Spec.NodeName, patience.since) {
				patience.again()
				continue
			}
			if why := hopeless(v, time.Now()); why != "" {
				return v, &refusedError{
					Node:    v.Spec.NodeName,
					Code:    v1alpha1.ReasonCreateFailed,
					Message: why,
				}
			}
			if message == "" {
				message = "its agent has not answered yet"
			}
			return v, &pendingError{v.Spec.NodeName, message}
		case <-ctx.Done():
			if message == "" {
				message = "its agent has not answered yet"
			}
			return v, &pendingError{v.Spec.NodeName, message}
		}
	}
}

// Abandon gives up an attempt: its agent removes what it holds, and the Volume
// stays as a tombstone until it has. A record that is gone, or given up
// already, is fine. What a claim may have been served from, by now, is never
// given up here: that is an *existsError, or a *pendingError where it became so
// after v was read.
func (r *volumeObjects) Abandon(ctx context.Context, v *v1alpha1.Volume) error {
	return r.abandon(ctx, v, func(now *v1alpha1.Volume) error {
		switch {
		case !isServed(now):
			return nil
		case now == v:
			return &existsError{now.Name, "somebody may have been served from it, so it is " +
				"not given up"}
		}
		return &pendingError{now.Spec.NodeName, "its record changed: it is there by now"}
	})
}

// abandonUnwanted gives up what no claim waits for, by live reads of the
// caller: also what was ready, if no PersistentVolume leads to it. What was
// published is an *existsError. If there is anything in the volume, the reads
// were wrong, so the agent looks before it deletes.
func (r *volumeObjects) abandonUnwanted(ctx context.Context, v *v1alpha1.Volume) error {
	return r.abandon(ctx, v, func(now *v1alpha1.Volume) error {
		if now.Spec.Published {
			return &existsError{now.Name, "it was published and is not given up"}
		}
		return nil
	})
}

// abandon gives up an attempt in a state for which may returns nil.
func (r *volumeObjects) abandon(
	ctx context.Context,
	v *v1alpha1.Volume,
	may func(*v1alpha1.Volume) error,
) error {
	for {
		if v.Spec.DesiredState == v1alpha1.DesiredDeleted {
			return nil
		}
		if err := may(v); err != nil {
			return err
		}

		if led, err := r.led(ctx, v); err != nil {
			return err
		} else if led {
			return &existsError{v.Name, "a PersistentVolume leads to it, so it is not given up"}
		}

		changed := v.DeepCopy()
		changed.Spec.DesiredState = v1alpha1.DesiredDeleted
		metav1.SetMetaDataAnnotation(&changed.ObjectMeta, v1alpha1.AnnotationGivenUp,
			"nobody was served from it")
		err := r.client.Patch(
			ctx,
			changed,
			client.MergeFromWithOptions(v, client.MergeFromWithOptimisticLock{}),
		)
		switch {
		case err == nil || apierrors.IsNotFound(err):
			return nil
		case !apierrors.IsConflict(err):
			return &apiError{"give up Volume " + v.Name, err}
		}

		newer := &v1alpha1.Volume{}
		if err := r.live.Get(ctx, client.ObjectKeyFromObject(v), newer); err != nil {
			if apierrors.IsNotFound(err) {
				return nil
			}
			return &apiError{"read Volume " + v.Name, err}
		}

		if newer.UID != v.UID {
			return nil // another attempt, made after this one was removed
		}

		v = newer
	}
}

// led reports whether the PersistentVolume that an attempt was made for leads
// to it, by a live read. What never was ready needs no read: no
// PersistentVolume is written of it.
func (r *volumeObjects) led(ctx context.Context, v *v1alpha1.Volume) (bool, error) {
	name := v.Labels[v1alpha1.LabelPVName]
	if !WasReady(v) || name == "" {
		return false, nil
	}

	var pv corev1.PersistentVolume
	err := r.live.Get(ctx, client.ObjectKey{Name: name}, &pv)
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, &apiError{"read PersistentVolume " + name, err}
	}

	o, ours := originOf(&pv)
	// One that is not ours was made by a person, who knows what it leads to.
	return !ours || o.Volume == v.Name, nil
}

// AbandonAll gives up every attempt for a PersistentVolume that no claim was
// served from, except those on the nodes to keep.
func (r *volumeObjects) AbandonAll(ctx context.Context, pvName string, keep ...string) error {
	existing, err := r.Of(ctx, pvName)
	if err != nil {
		return err
	}

	for i := range existing {
		v := &existing[i]
		if isServed(v) || slices.Contains(keep, v.Spec.NodeName) {
			continue
		}

		err := r.Abandon(ctx, v)
		if _, is := errors.AsType[*pendingError](err); is {
			continue // it is served by now
		}
		if err != nil {
			return err
		}
	}

	return nil
}
