package provisioner

import (
	"context"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/tools/events"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

// volumeRestorer keeps Volumes true to their PersistentVolumes. Disk and
// PersistentVolumes outlive the Volumes: when the CRDs were deleted by hand, or
// a Volume was, it is written again from the PersistentVolume, published and
// wanted, and the agent finds its volume under it. It is driven by the watches
// of PersistentVolumes and of Volumes that vanish.
type volumeRestorer struct {
	client  client.Client
	live    client.Reader
	events  events.EventRecorder
	metrics *Metrics
	// told is what was said of the path of each PersistentVolume.
	told sync.Map
}

// Reconcile looks at one PersistentVolume. The request's name is the
// PersistentVolume's.
func (h *volumeRestorer) Reconcile(
	ctx context.Context,
	req reconcile.Request,
) (reconcile.Result, error) {
	var pv corev1.PersistentVolume
	if err := h.client.Get(ctx, req.NamespacedName, &pv); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}

	o, ok := originOf(&pv)
	if !ok || pv.Annotations[v1alpha1.AnnotationReclaimPolicy] != "" {
		// The latter is being replaced, and its Volume with it (kubectl quarry
		// recover).
		return reconcile.Result{}, nil
	}

	var v v1alpha1.Volume
	err := h.client.Get(ctx, client.ObjectKey{Name: o.Volume}, &v)
	if apierrors.IsNotFound(err) {
		if released(&pv) {
			// Its Volume is gone, or will be; if it changes, so does the
			// PersistentVolume.
			return reconcile.Result{}, nil
		}
		return reconcile.Result{}, h.restore(ctx, &pv, o)
	}

	if err != nil {
		return reconcile.Result{}, fmt.Errorf("read Volume %s: %w", o.Volume, err)
	}

	h.tellStale(ctx, &pv, &v)
	return reconcile.Result{}, h.follow(ctx, &pv, &v, o)
}

// tellStale warns once, as long as this process leads, of a volume that is not
// where its PersistentVolume says.
func (h *volumeRestorer) tellStale(
	ctx context.Context,
	pv *corev1.PersistentVolume,
	v *v1alpha1.Volume,
) {
	why := StalePath(v, pv)
	if why == "" {
		h.told.Delete(pv.Name)
	} else if before, _ := h.told.Swap(pv.Name, why); before != why {
		(&conditionReporter{
			client: h.client,
			events: h.events,
		}).claimEvent(ctx, v, v1alpha1.EventPathChanged, why)
	}
}

// restore writes a lost Volume again.
func (h *volumeRestorer) restore(
	ctx context.Context,
	cached *corev1.PersistentVolume,
	o origin,
) error {
	var pv corev1.PersistentVolume
	if err := h.live.Get(ctx, client.ObjectKeyFromObject(cached), &pv); err != nil {
		return client.IgnoreNotFound(err)
	}
	if pv.UID != cached.UID || released(&pv) ||
		pv.Annotations[v1alpha1.AnnotationReclaimPolicy] != "" {
		return nil // it is being deleted, and so was the record: nothing was lost
	}

	v, err := volumeFromPV(&pv)
	if err != nil {
		h.events.Eventf(&pv, nil, corev1.EventTypeWarning, v1alpha1.EventRecordLost, "Heal",
			"Volume %s has no record, and it cannot be written again: %v", o.Volume, err)
		return nil // nothing about that changes before the PersistentVolume does
	}

	switch err := h.client.Create(ctx, v); {
	case apierrors.IsAlreadyExists(err):
		return nil
	case err != nil:
		return fmt.Errorf("write Volume %s again: %w", v.Name, err)
	}

	h.metrics.healed.Inc()
	log.FromContext(ctx).Info(
		"Wrote a lost record again", "volume", v.Name, "node", v.Spec.NodeName)
	h.events.Eventf(&pv, nil, corev1.EventTypeNormal, v1alpha1.EventRecordRestored, "Heal",
		"Wrote Volume %s again, which was lost", v.Name)
	return nil
}

// released reports whether a PersistentVolume and its volume are to be deleted.
func released(pv *corev1.PersistentVolume) bool {
	return pv.Status.Phase == corev1.VolumeReleased &&
		pv.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete
}

// follow carries over what people may change on a PersistentVolume, so that the
// disk knows it as well: the claim it is bound to and the reclaim policy. For a
// new volume there is nothing to change, and nothing is written. The mark that
// it is published goes with such a change, or the sweep writes it later.
func (h *volumeRestorer) follow(
	ctx context.Context,
	pv *corev1.PersistentVolume,
	v *v1alpha1.Volume,
	o origin,
) error {
	if matches(v, pv, o) != "" || v.Spec.DesiredState != v1alpha1.DesiredPresent {
		return nil
	}

	base := v.DeepCopy()
	v.Spec.Published = v.Spec.Published || WasReady(v)
	switch policy := pv.Spec.PersistentVolumeReclaimPolicy; policy {
	case corev1.PersistentVolumeReclaimDelete, corev1.PersistentVolumeReclaimRetain:
		v.Spec.ReclaimPolicy = policy
	}

	if ref := pv.Spec.ClaimRef; ref != nil && ref.UID != "" &&
		(v.Spec.Claim == nil || v.Spec.Claim.UID != ref.UID) {
		next := &v1alpha1.ClaimReference{
			Namespace: ref.Namespace,
			Name:      ref.Name,
			UID:       ref.UID,
		}
		if was := v.Spec.Claim; was != nil && was.Namespace == ref.Namespace &&
			was.Name == ref.Name {
			// Made again, from these.
			next.Labels, next.LabelsLeftOut = was.Labels, was.LabelsLeftOut
		}
		v.Spec.Claim = next
	}

	if v.Spec.ReclaimPolicy == base.Spec.ReclaimPolicy && sameClaim(v.Spec.Claim, base.Spec.Claim) {
		return nil
	}

	err := h.client.Patch(
		ctx,
		v,
		client.MergeFromWithOptions(base, client.MergeFromWithOptimisticLock{}),
	)
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf(
			"carry over PersistentVolume %s to Volume %s: %w", pv.Name, v.Name, err)
	}

	return nil
}

func sameClaim(a, b *v1alpha1.ClaimReference) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.UID == b.UID && a.Namespace == b.Namespace && a.Name == b.Name
}

// addRestore drives the volumeRestorer by PersistentVolumes, and by Volumes
// that vanish.
func addRestore(mgr manager.Manager, heal *volumeRestorer) error {
	vanished := predicate.Funcs{
		CreateFunc:  func(event.CreateEvent) bool { return false },
		UpdateFunc:  func(event.UpdateEvent) bool { return false },
		GenericFunc: func(event.GenericEvent) bool { return false },
	}
	toPV := handler.EnqueueRequestsFromMapFunc(
		func(_ context.Context, o client.Object) []reconcile.Request {
			return requests(o.GetLabels()[v1alpha1.LabelPVName])
		},
	)

	err := builder.ControllerManagedBy(mgr).
		Named("heal").
		For(&corev1.PersistentVolume{}, builder.WithPredicates(newsOfQuiet)).
		WatchesRawSource(eachQuiet(mgr, &corev1.PersistentVolume{}, heal)).
		Watches(&v1alpha1.Volume{}, toPV, builder.WithPredicates(vanished)).
		WithOptions(steadyTries(4)).
		Complete(heal)
	if err != nil {
		return fmt.Errorf("set up the restoring of Volumes: %w", err)
	}

	return nil
}

// steadyTries are the options of a controller whose tries never get far apart:
// a missing CRD fails all of them, and it may come back any minute.
func steadyTries(workers int) controller.Options {
	return controller.Options{
		MaxConcurrentReconciles: workers,
		SkipNameValidation:      new(true),
		RateLimiter: workqueue.NewTypedItemExponentialFailureRateLimiter[reconcile.Request](
			100*time.Millisecond,
			15*time.Second,
		),
	}
}
