package provisioner

import (
	"context"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

// expander grows classic volumes. Kubernetes has no resizer for local
// PersistentVolumes: the controller manager says that it waits for an external
// one, and kubelet would only finish what it finds begun. The agent grows
// image, filesystem and quota in one go, with and without a running pod, so
// nothing is left for kubelet.
//
// What of the claim's status is set, and when, is kubelet's contract
// (node_expander.go in Kubernetes): with allocatedResources set and the status
// ControllerResizeInProgress kubelet leaves the volume alone, also while the
// PersistentVolume is larger than status.capacity already. The last write
// raises status.capacity and takes the status away; allocatedResources stays,
// as the new size, which is what external-resizer leaves and quotas count.
type expander struct {
	client client.Client
	events events.EventRecorder

	told toldAttributes
}

// Reconcile looks at one claim.
func (e *expander) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	var claim corev1.PersistentVolumeClaim
	if err := e.client.Get(ctx, req.NamespacedName, &claim); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}

	if claim.DeletionTimestamp != nil {
		e.told.news(claim.UID, "")
		return reconcile.Result{}, nil
	}

	if claim.Status.Phase != corev1.ClaimBound {
		return reconcile.Result{}, nil
	}

	e.attributes(ctx, &claim)
	want := claim.Spec.Resources.Requests[corev1.ResourceStorage]
	have := claim.Status.Capacity[corev1.ResourceStorage]
	if want.Cmp(have) <= 0 && !expanding(&claim) {
		return reconcile.Result{}, nil
	}

	pv, v, err := e.volumeOf(ctx, &claim)
	if pv == nil || err != nil {
		return reconcile.Result{}, err
	}

	if tooLarge(want) {
		why := fmt.Sprintf("no volume is larger than %s", largestVolume.String())
		return reconcile.Result{}, e.infeasible(ctx, &claim, v, want, why)
	}

	if why := StalePath(v, pv); why != "" {
		return reconcile.Result{}, e.failing(ctx, &claim, want, why)
	}

	return reconcile.Result{}, e.expand(
		ctx,
		&claim,
		pv,
		v,
		*resource.NewQuantity(want.Value(), resource.BinarySI),
	)
}

// expanding reports whether a growth was begun and not finished.
func expanding(claim *corev1.PersistentVolumeClaim) bool {
	_, status := claim.Status.AllocatedResourceStatuses[corev1.ResourceStorage]
	allocated := claim.Status.AllocatedResources[corev1.ResourceStorage]
	have := claim.Status.Capacity[corev1.ResourceStorage]
	return status || allocated.Cmp(have) > 0
}

// volumeOf finds what is behind a claim; nil if it is not a classic volume of
// ours that is there to be used.
func (e *expander) volumeOf(
	ctx context.Context,
	claim *corev1.PersistentVolumeClaim,
) (*corev1.PersistentVolume, *v1alpha1.Volume, error) {
	pv, v := &corev1.PersistentVolume{}, &v1alpha1.Volume{}
	if err := e.client.Get(ctx, client.ObjectKey{Name: claim.Spec.VolumeName}, pv); err != nil {
		return nil, nil, client.IgnoreNotFound(err)
	}

	o, ok := originOf(pv)
	if !ok || o.Provisioner != v1alpha1.LocalProvisioner || pv.Spec.ClaimRef == nil ||
		pv.Spec.ClaimRef.UID != claim.UID {
		return nil, nil, nil
	}
	if err := e.client.Get(ctx, client.ObjectKey{Name: o.Volume}, v); err != nil {
		return nil, nil, client.IgnoreNotFound(err) // the healer writes it again, and that wakes us
	}
	if matches(v, pv, o) != "" || v.Spec.DesiredState != v1alpha1.DesiredPresent {
		return nil, nil, nil
	}

	return pv, v, nil
}

// expand takes the next step. Every step is a write whose watch event brings
// the following one.
func (e *expander) expand(
	ctx context.Context,
	claim *corev1.PersistentVolumeClaim,
	pv *corev1.PersistentVolume,
	v *v1alpha1.Volume,
	want resource.Quantity,
) error {
	if v.Spec.Capacity.Cmp(want) != 0 {
		// The claim says first what is going on, so that kubelet keeps away
		// from the beginning.
		if err := e.mark(ctx, claim, want, corev1.PersistentVolumeClaimControllerResizeInProgress,
			""); err != nil {
			return err
		}

		e.events.Eventf(claim, nil, corev1.EventTypeNormal, v1alpha1.EventResizing, "Expand",
			"The agent of node %s resizes volume %s to %s", v.Spec.NodeName, v.Name, want.String())
		base := v.DeepCopy()
		v.Spec.Capacity = want
		if err := e.client.Patch(ctx, v,
			client.MergeFromWithOptions(base, client.MergeFromWithOptimisticLock{})); err != nil {
			return fmt.Errorf("ask for %s of Volume %s: %w", want.String(), v.Name, err)
		}

		return nil
	}

	c := meta.FindStatusCondition(v.Status.Conditions, v1alpha1.ConditionResized)
	answered := c != nil && max(c.ObservedGeneration, v.Status.ObservedGeneration) >= v.Generation
	switch {
	case v.Status.Capacity != nil && v.Status.Capacity.Cmp(want) >= 0:
		// A size in force never shrinks.
		return e.finish(ctx, claim, pv, *v.Status.Capacity)
	case answered && c.Status == metav1.ConditionFalse &&
		c.Reason == v1alpha1.ReasonResizeInfeasible:
		return e.infeasible(ctx, claim, v, want, c.Message)
	case answered && c.Status == metav1.ConditionFalse && c.Message != "":
		return e.failing(ctx, claim, want, fmt.Sprintf(
			"node %s, which tries again: %s", v.Spec.NodeName, c.Message))
	default:
		return e.mark(ctx, claim, want, corev1.PersistentVolumeClaimControllerResizeInProgress, "")
	}
}

// infeasible reports that a growth cannot be had. Only another request, or
// room, changes that.
func (e *expander) infeasible(
	ctx context.Context,
	claim *corev1.PersistentVolumeClaim,
	v *v1alpha1.Volume,
	want resource.Quantity,
	why string,
) error {
	status := claim.Status.AllocatedResourceStatuses[corev1.ResourceStorage]
	if status != corev1.PersistentVolumeClaimControllerResizeInfeasible {
		e.events.Eventf(
			claim,
			nil,
			corev1.EventTypeWarning,
			v1alpha1.EventVolumeResizeFailed,
			"Expand",
			"Volume %s cannot be resized to %s: %s (lower the claim's request, or make room)",
			v.Name,
			want.String(),
			why,
		)
	}
	return e.mark(ctx, claim, want, corev1.PersistentVolumeClaimControllerResizeInfeasible, why)
}

// failing reports why a growth that goes on has not come to its end.
func (e *expander) failing(
	ctx context.Context,
	claim *corev1.PersistentVolumeClaim,
	want resource.Quantity,
	why string,
) error {
	if conditionOf(claim, corev1.PersistentVolumeClaimControllerResizeError) != why {
		e.events.Eventf(
			claim,
			nil,
			corev1.EventTypeWarning,
			v1alpha1.EventVolumeResizeFailed,
			"Expand",
			"Not resized to %s yet: %s",
			want.String(),
			why,
		)
	}
	return e.mark(ctx, claim, want, corev1.PersistentVolumeClaimControllerResizeInProgress, why)
}

// mark writes into the claim's status how far a growth is; why is what keeps it
// from its end, if anything does.
func (e *expander) mark(
	ctx context.Context,
	claim *corev1.PersistentVolumeClaim,
	want resource.Quantity,
	status corev1.ClaimResourceStatus,
	why string,
) error {
	base := claim.DeepCopy()
	claim.Status.AllocatedResources = corev1.ResourceList{corev1.ResourceStorage: want}
	claim.Status.AllocatedResourceStatuses = map[corev1.ResourceName]corev1.ClaimResourceStatus{
		corev1.ResourceStorage: status,
	}
	if status == corev1.PersistentVolumeClaimControllerResizeInfeasible {
		dropCondition(claim, corev1.PersistentVolumeClaimResizing)
	} else {
		setCondition(claim, corev1.PersistentVolumeClaimResizing, "")
	}

	if why != "" {
		setCondition(claim, corev1.PersistentVolumeClaimControllerResizeError, why)
	} else {
		dropCondition(claim, corev1.PersistentVolumeClaimControllerResizeError)
	}

	return e.write(ctx, claim, base)
}

// finish writes the new size into the objects of Kubernetes: first into the
// PersistentVolume, then into the claim, in one write.
func (e *expander) finish(
	ctx context.Context,
	claim *corev1.PersistentVolumeClaim,
	pv *corev1.PersistentVolume,
	size resource.Quantity,
) error {
	if have := pv.Spec.Capacity[corev1.ResourceStorage]; have.Cmp(size) < 0 {
		base := pv.DeepCopy()
		pv.Spec.Capacity = corev1.ResourceList{corev1.ResourceStorage: size}
		if err := e.client.Patch(ctx, pv, client.MergeFrom(base)); err != nil {
			return fmt.Errorf("raise the capacity of PersistentVolume %s: %w", pv.Name, err)
		}
	}

	base := claim.DeepCopy()
	claim.Status.Capacity = corev1.ResourceList{corev1.ResourceStorage: size}
	claim.Status.AllocatedResources = corev1.ResourceList{corev1.ResourceStorage: size}
	delete(claim.Status.AllocatedResourceStatuses, corev1.ResourceStorage)
	for _, kind := range []corev1.PersistentVolumeClaimConditionType{
		corev1.PersistentVolumeClaimResizing,
		corev1.PersistentVolumeClaimControllerResizeError,
		corev1.PersistentVolumeClaimFileSystemResizePending,
	} {
		dropCondition(claim, kind)
	}

	if err := e.write(ctx, claim, base); err != nil {
		return err
	}
	if had := base.Status.Capacity[corev1.ResourceStorage]; had.Cmp(size) < 0 {
		e.events.Eventf(
			claim,
			nil,
			corev1.EventTypeNormal,
			v1alpha1.EventVolumeResizeSuccessful,
			"Expand",
			"The volume is %s now",
			size.String(),
		)
	}

	return nil
}

// write patches the claim's status where it changed.
func (e *expander) write(ctx context.Context, claim, base *corev1.PersistentVolumeClaim) error {
	if equality.Semantic.DeepEqual(claim.Status, base.Status) {
		return nil
	}

	patch := client.MergeFromWithOptions(base, client.MergeFromWithOptimisticLock{})
	if err := e.client.Status().Patch(ctx, claim, patch); err != nil {
		return fmt.Errorf("write the status of claim %s/%s: %w", claim.Namespace, claim.Name, err)
	}
	return nil
}

func setCondition(
	claim *corev1.PersistentVolumeClaim,
	kind corev1.PersistentVolumeClaimConditionType,
	message string,
) {
	for i := range claim.Status.Conditions {
		if c := &claim.Status.Conditions[i]; c.Type == kind {
			c.Status, c.Message = corev1.ConditionTrue, message
			return
		}
	}
	claim.Status.Conditions = append(claim.Status.Conditions, corev1.PersistentVolumeClaimCondition{
		Type:               kind,
		Status:             corev1.ConditionTrue,
		LastTransitionTime: metav1.Now(),
		Message:            message,
	})
}

// conditionOf is a condition's message, "" if the claim does not have it.
func conditionOf(
	claim *corev1.PersistentVolumeClaim,
	kind corev1.PersistentVolumeClaimConditionType,
) string {
	for _, c := range claim.Status.Conditions {
		if c.Type == kind {
			return c.Message
		}
	}
	return ""
}

func dropCondition(
	claim *corev1.PersistentVolumeClaim,
	kind corev1.PersistentVolumeClaimConditionType,
) {
	claim.Status.Conditions = slices.DeleteFunc(
		claim.Status.Conditions,
		func(c corev1.PersistentVolumeClaimCondition) bool { return c.Type == kind },
	)
}

// addExpansion drives the expander by claims and by the Volumes behind them.
func addExpansion(mgr manager.Manager, e *expander) error {
	toClaim := handler.EnqueueRequestsFromMapFunc(
		func(_ context.Context, o client.Object) []reconcile.Request {
			v, ok := whole[*v1alpha1.Volume](o)
			if !ok || v.Spec.Claim == nil || v.Spec.Provisioner != v1alpha1.LocalProvisioner ||
				!isServed(v) {
				return nil
			}
			return []reconcile.Request{{NamespacedName: client.ObjectKey{
				Namespace: v.Spec.Claim.Namespace,
				Name:      v.Spec.Claim.Name,
			}}}
		},
	)
	err := builder.ControllerManagedBy(mgr).
		Named("expansion").
		For(&corev1.PersistentVolumeClaim{}, builder.WithPredicates(newsOfQuiet)).
		Watches(&v1alpha1.Volume{}, toClaim, builder.WithPredicates(newsOfQuiet)).
		WithOptions(controller.Options{
			MaxConcurrentReconciles: 4,
			SkipNameValidation:      new(true),
			RateLimiter: workqueue.NewTypedItemExponentialFailureRateLimiter[reconcile.Request](
				50*time.Millisecond,
				time.Minute,
			),
		}).
		Complete(e)
	if err != nil {
		return fmt.Errorf("set up the expander: %w", err)
	}
	return nil
}
