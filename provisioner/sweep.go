package provisioner

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

// defaultSweepGrace is how old an attempt is before the sweep looks at it, and
// how often it looks again.
const defaultSweepGrace = time.Minute

// publishAfter is how old a volume is before it is marked as published. Most
// volumes that are made and deleted again in a burst never cost that write. A
// volume that lives is protected by more than its PersistentVolume from then
// on.
const publishAfter = 5 * time.Minute

// sweeper ends what nothing else ends. It looks at every Volume when it
// changes, and once more every grace period at an attempt that no claim was
// served from yet:
//   - a Volume whose agent reported phase Deleted is removed, and only such a
//     one;
//   - an attempt that was never published, and whose claim and PersistentVolume
//     are absent by live reads, is given up. This is what a crash between
//     writing the Volume and the PersistentVolume leaves when the claim is
//     deleted then;
//   - a volume that has had its PersistentVolume for a while, or whose
//     PersistentVolume vanished, is marked as published.
//
// What was published is never swept: a person may have taken the
// PersistentVolume away to rescue the data.
type sweeper struct {
	volumes *volumeObjects
	grace   time.Duration
	now     func() time.Time
	metrics *Metrics
}

// Reconcile looks at one Volume.
func (s *sweeper) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	var v v1alpha1.Volume
	if err := s.volumes.client.Get(ctx, req.NamespacedName, &v); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	if v.Spec.DesiredState != v1alpha1.DesiredPresent {
		return reconcile.Result{}, s.volumes.remove(ctx, &v)
	}
	if v.Spec.Published {
		return reconcile.Result{}, nil
	}
	if WasReady(&v) {
		if served, wait, err := s.served(ctx, &v); served || err != nil {
			return reconcile.Result{RequeueAfter: wait}, err
		}
	}
	if age := s.now().Sub(v.CreationTimestamp.Time); age < s.grace {
		return reconcile.Result{RequeueAfter: s.grace - age}, nil
	}

	wanted, err := s.wanted(ctx, &v)
	if err != nil {
		return reconcile.Result{}, err
	}
	if wanted {
		return reconcile.Result{RequeueAfter: s.grace}, nil
	}

	log.FromContext(ctx).Info(
		"Giving up an attempt nobody wants any more", "volume", v.Name, "node", v.Spec.NodeName)
	// The write is against the resource version that was judged: it fails for
	// an attempt that was published meanwhile, which is then left alone.
	if err := s.volumes.abandonUnwanted(ctx, &v); err != nil {
		return reconcile.Result{}, err
	}

	s.metrics.swept.Inc()
	return reconcile.Result{}, nil
}

// served looks after a volume that may be in use: its PersistentVolume
// is there, by the cache, or it has none because it was not made for a claim.
// It is marked as published once it is old enough; wait is how long that is
// from now.
func (s *sweeper) served(
	ctx context.Context,
	v *v1alpha1.Volume,
) (served bool, wait time.Duration, err error) {
	if pvName := v.Labels[v1alpha1.LabelPVName]; pvName != "" && v.Spec.Claim != nil {
		var pv corev1.PersistentVolume
		err := s.volumes.client.Get(ctx, client.ObjectKey{Name: pvName}, &pv)
		o, ours := originOf(&pv)
		if apierrors.IsNotFound(err) || err == nil && ours && o.Volume != v.Name {
			return false, 0, nil
		}
		if err != nil {
			return false, 0, fmt.Errorf("read PersistentVolume %s: %w", pvName, err)
		}
	}
	if wait := publishAfter - s.now().Sub(v.CreationTimestamp.Time); wait > 0 {
		return true, wait, nil
	}
	return true, 0, s.volumes.publish(ctx, v)
}

// vanished marks the volumes as published whose PersistentVolume was taken
// away: a person decides over the data that is left in them.
func (s *sweeper) vanished(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	var pv corev1.PersistentVolume
	if err := s.volumes.client.Get(ctx, req.NamespacedName, &pv); !apierrors.IsNotFound(err) {
		return reconcile.Result{}, err // it was made again
	}

	of, err := s.volumes.Of(ctx, req.Name)
	if err != nil {
		return reconcile.Result{}, err
	}

	for i := range of {
		v := &of[i]
		if v.Spec.DesiredState != v1alpha1.DesiredPresent || v.Spec.Published || !WasReady(v) {
			continue
		}
		if err := s.volumes.publish(ctx, v); err != nil {
			return reconcile.Result{}, err
		}
	}

	return reconcile.Result{}, nil
}

// publish marks a volume as published.
func (r *volumeObjects) publish(ctx context.Context, v *v1alpha1.Volume) error {
	base := v.DeepCopy()
	v.Spec.Published = true
	err := r.client.Patch(
		ctx,
		v,
		client.MergeFromWithOptions(base, client.MergeFromWithOptimisticLock{}),
	)
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("mark Volume %s as published: %w", v.Name, err)
	}

	return nil
}

// wanted reports whether a claim still waits for an attempt, by live reads.
func (s *sweeper) wanted(ctx context.Context, v *v1alpha1.Volume) (bool, error) {
	pvName := v.Labels[v1alpha1.LabelPVName]
	if pvName == "" || v.Spec.Claim == nil {
		return true, nil // not made by a front door: a person's, and a person's to remove
	}

	var pv corev1.PersistentVolume
	err := s.volumes.live.Get(ctx, client.ObjectKey{Name: pvName}, &pv)
	if err == nil {
		// Another attempt became the volume, or this one did and the
		// volumeRestorer publishes it.
		o, ok := originOf(&pv)
		return !ok || o.Volume == v.Name, nil
	}

	if !apierrors.IsNotFound(err) {
		return false, fmt.Errorf("read PersistentVolume %s: %w", pvName, err)
	}

	ref := v.Spec.Claim
	var claim corev1.PersistentVolumeClaim
	err = s.volumes.live.Get(ctx, client.ObjectKey{
		Namespace: ref.Namespace,
		Name:      ref.Name,
	}, &claim)
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read claim %s/%s: %w", ref.Namespace, ref.Name, err)
	}
	if ref.UID != "" && claim.UID != ref.UID {
		return false, nil // another claim of the same name
	}

	// Bound to something else, it never comes back to this attempt.
	return claim.Spec.VolumeName == "" || claim.Spec.VolumeName == pvName, nil
}

// addSweep drives the sweeper by Volumes, and by PersistentVolumes that are
// removed.
func addSweep(mgr manager.Manager, sweep *sweeper) error {
	// The sweep has nothing to do with what is published and wanted. It removes
	// the Volumes of a burst of deletions, so it has many workers.
	err := builder.ControllerManagedBy(mgr).
		Named("sweep").
		For(&v1alpha1.Volume{}, builder.WithPredicates(restless)).
		WithOptions(steadyTries(16)).
		Complete(sweep)
	if err != nil {
		return fmt.Errorf("set up the sweep: %w", err)
	}

	removed := predicate.Funcs{
		CreateFunc:  func(event.CreateEvent) bool { return false },
		UpdateFunc:  func(event.UpdateEvent) bool { return false },
		GenericFunc: func(event.GenericEvent) bool { return false },
	}
	err = builder.ControllerManagedBy(mgr).
		Named("vanished").
		For(&corev1.PersistentVolume{}, builder.WithPredicates(removed)).
		WithOptions(steadyTries(1)).
		Complete(reconcile.Func(sweep.vanished))
	if err != nil {
		return fmt.Errorf("set up the watch of PersistentVolumes that vanish: %w", err)
	}

	return nil
}
