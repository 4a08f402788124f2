package provisioner

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

// orphanReporter reports volumes that were published and that no
// PersistentVolume points at any more: a person set the policy to Retain,
// deleted the claim and then the PersistentVolume, the usual way to rescue
// data. A label and an event say so; the data stays until a person decides
// (kubectl quarry orphans). The same comes of a controller that died between
// publishing a volume and writing its PersistentVolume, if the claim was
// deleted before another one went on.
type orphanReporter struct {
	client  client.Client
	live    client.Reader
	events  events.EventRecorder
	grace   time.Duration
	now     func() time.Time
	metrics *Metrics

	mu   sync.Mutex
	held map[string]bool // the orphans, by name, for the metric
}

// Reconcile looks at one Volume.
func (o *orphanReporter) Reconcile(
	ctx context.Context,
	req reconcile.Request,
) (reconcile.Result, error) {
	var v v1alpha1.Volume
	if err := o.client.Get(ctx, req.NamespacedName, &v); err != nil {
		o.count(req.Name, false)
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}

	if !v.Spec.Published || v.Spec.DesiredState != v1alpha1.DesiredPresent {
		o.count(v.Name, false)
		return reconcile.Result{}, nil
	}

	if age := o.now().Sub(v.CreationTimestamp.Time); age < o.grace {
		// Its PersistentVolume is being written.
		return reconcile.Result{RequeueAfter: o.grace - age}, nil
	}

	orphaned, waits, err := o.orphaned(ctx, &v)
	if err != nil {
		return reconcile.Result{}, err
	}
	if waits { // for a claim, whose end nobody tells
		return reconcile.Result{RequeueAfter: o.grace}, nil
	}

	o.count(v.Name, orphaned)
	if orphaned == (v.Labels[v1alpha1.LabelOrphaned] != "") {
		return reconcile.Result{}, nil
	}

	base := v.DeepCopy()
	if orphaned {
		if v.Labels == nil {
			v.Labels = map[string]string{}
		}
		v.Labels[v1alpha1.LabelOrphaned] = "true"
	} else {
		delete(v.Labels, v1alpha1.LabelOrphaned)
	}

	if err := o.client.Patch(ctx, &v, client.MergeFrom(base)); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	if orphaned {
		o.events.Eventf(&v, nil, corev1.EventTypeWarning, v1alpha1.EventOrphaned, "Report",
			"No PersistentVolume points at the volume any more. Its data stays on node %s until "+
				"somebody decides: "+
				"kubectl quarry orphans restore %s, or kubectl quarry orphans delete %s",
			v.Spec.NodeName, v.Name, v.Name)
	}

	return reconcile.Result{}, nil
}

// orphaned reports whether nothing points at a volume, and nothing will; waits,
// whether it is a claim's that is still to be served from it.
func (o *orphanReporter) orphaned(
	ctx context.Context,
	v *v1alpha1.Volume,
) (orphaned, waits bool, err error) {
	name := v.Labels[v1alpha1.LabelPVName]
	// That it is gone is only concluded from a live read.
	for _, reader := range []client.Reader{o.client, o.live} {
		var pv corev1.PersistentVolume
		err := reader.Get(ctx, client.ObjectKey{Name: name}, &pv)
		if err == nil {
			of, ok := originOf(&pv)
			// One that is not ours is a hand-made one, which points at the
			// path.
			return ok && of.Volume != v.Name, false, nil
		}

		if !apierrors.IsNotFound(err) {
			return false, false, fmt.Errorf("read PersistentVolume %s: %w", name, err)
		}
	}

	leading, err := leadingTo(ctx, o.client, v)
	if err != nil || len(leading) > 0 {
		return false, false, err // of another name: made by hand, to have the data back
	}

	ref := v.Spec.Claim
	if ref == nil {
		return true, false, nil
	}

	var claim corev1.PersistentVolumeClaim
	err = o.live.Get(ctx, client.ObjectKey{
		Namespace: ref.Namespace,
		Name:      ref.Name,
	}, &claim)
	switch {
	case apierrors.IsNotFound(err):
		return true, false, nil
	case err != nil:
		return false, false, fmt.Errorf("read claim %s/%s: %w", ref.Namespace, ref.Name, err)
	}

	// A claim that is not bound yet is served from this very volume.
	waits = (ref.UID == "" || claim.UID == ref.UID) && claim.Status.Phase == corev1.ClaimPending
	return !waits, waits, nil
}

func (o *orphanReporter) count(name string, orphaned bool) {
	o.mu.Lock()
	defer o.mu.Unlock()

	if o.held == nil {
		o.held = map[string]bool{}
	}

	if orphaned {
		o.held[name] = true
	} else {
		delete(o.held, name)
	}

	o.metrics.orphans.Set(float64(len(o.held)))
}

// namedBy are the volumes that a PersistentVolume may lead to, by whatever way
// LeadsTo knows, and those that were made for one of its name.
func (o *orphanReporter) namedBy(ctx context.Context, pv *corev1.PersistentVolume) map[string]bool {
	names := map[string]bool{}
	if of, ok := originOf(pv); ok {
		names[of.Volume] = true
	}

	switch {
	case pv.Spec.CSI != nil && pv.Spec.CSI.Driver == v1alpha1.CSIDriver:
		names[pv.Spec.CSI.VolumeHandle] = true
	case pv.Spec.Local != nil:
		for element := range strings.SplitSeq(pv.Spec.Local.Path, "/") {
			if v1alpha1.IsVolumeID(element) && pvOf(element) != "" {
				names[element] = true
			}
		}
	}

	var list v1alpha1.VolumeList
	if err := o.client.List(ctx, &list, client.MatchingFields{indexPVName: pv.Name}); err == nil {
		for i := range list.Items {
			names[list.Items[i].Name] = true
		}
	}

	return names
}

// addOrphans drives it by Volumes, and by PersistentVolumes that come and go.
func addOrphans(mgr manager.Manager, o *orphanReporter) error {
	toVolume := handler.EnqueueRequestsFromMapFunc(
		func(ctx context.Context, object client.Object) []reconcile.Request {
			if p, quiet := object.(*packed); quiet && p.volume == "" {
				return nil // it is nobody's of ours
			}

			pv, isPV := whole[*corev1.PersistentVolume](object)
			if !isPV {
				return nil
			}

			var out []reconcile.Request
			for name := range o.namedBy(ctx, pv) {
				out = append(out, reconcile.Request{NamespacedName: client.ObjectKey{Name: name}})
			}

			return out
		},
	)
	err := builder.ControllerManagedBy(mgr).
		Named("orphans").
		For(&v1alpha1.Volume{}, builder.WithPredicates(newsOfQuiet)).
		WatchesRawSource(eachQuiet(mgr, &v1alpha1.Volume{}, o)).
		// Of those seen first the Volumes are.
		Watches(&corev1.PersistentVolume{}, toVolume, builder.WithPredicates(newsOfQuiet)).
		WithOptions(controller.Options{
			MaxConcurrentReconciles: 2,
			SkipNameValidation:      new(true),
		}).Complete(o)
	if err != nil {
		return fmt.Errorf("set up the report of orphans: %w", err)
	}
	return nil
}
