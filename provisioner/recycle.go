package provisioner

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/client-go/tools/events"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrlcontroller "sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v10/controller"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

// recycler offers the space of deleted volumes whose class says onDelete: recycle as new volumes: of a new id, so that
// nothing that remembers the old one can meet it, and with a new, Available PersistentVolume of the same class.
//
// The old record is the durable intent. It stays, with phase Deleted, until the new PersistentVolume is there; every step
// until then finds what an earlier try left. The new volume takes its room like any other one: the old one's is counted
// until it has been scrubbed, so that in a full pool the offer comes when that is done.
type recycler struct {
	records *Records
	local   *Local
	events  events.EventRecorder
	wait    time.Duration
}

// recycles reports whether a record is kept after its volume was deleted, because its space is to be offered again.
// An attempt that nobody was ever served from has no space to speak of.
func recycles(v *v1alpha1.Volume) bool {
	return v.Spec.DesiredState == v1alpha1.DesiredDeleted && v.Spec.Deletion.OnDelete == v1alpha1.OnDeleteRecycle && v.Spec.Published
}

// Reconcile looks at one Volume.
func (r *recycler) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	var v v1alpha1.Volume
	if err := r.records.Client.Get(ctx, req.NamespacedName, &v); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	if !recycles(&v) || v.Status.Phase != v1alpha1.VolumeDeleted {
		return reconcile.Result{}, nil
	}
	if gone, err := r.released(ctx, &v); !gone || err != nil {
		return reconcile.Result{}, err // the end of the PersistentVolume wakes it
	}
	if !r.hasRoom(ctx, &v) {
		return reconcile.Result{}, nil // the pool's change wakes it
	}
	err := r.offer(ctx, &v)
	var refused *RefusedError
	switch {
	case err == nil:
		return reconcile.Result{}, r.records.removeRecord(ctx, &v)
	case errors.As(err, &refused) && Judge(err).State == controller.ProvisioningReschedule && refused.Code != v1alpha1.ReasonPoolNotFound:
		return reconcile.Result{}, nil // the pool's change wakes it
	case errors.As(err, &refused):
		log.FromContext(ctx).Info("The space of a deleted volume is not offered again", "volume", v.Name, "node", v.Spec.NodeName, "why", err.Error())
		return reconcile.Result{}, r.records.removeRecord(ctx, &v)
	}
	return reconcile.Result{}, err
}

// released reports whether the deleted volume's PersistentVolume is gone. While it is there its deletion may be asked for once
// more, and without the record that says that all is done, one would be written anew and its space offered a second time.
func (r *recycler) released(ctx context.Context, v *v1alpha1.Volume) (bool, error) {
	name := v.Labels[v1alpha1.LabelPVName]
	var pv corev1.PersistentVolume
	err := r.records.Live.Get(ctx, client.ObjectKey{Name: name}, &pv)
	switch {
	case apierrors.IsNotFound(err):
		return true, nil
	case err != nil:
		return false, &APIError{"reading PersistentVolume " + name, err}
	}
	of, ours := originOf(&pv)
	return !ours || of.Volume != v.Name, nil
}

// offer makes the new volume and its PersistentVolume. A class that does not exist any more offers nothing.
func (r *recycler) offer(ctx context.Context, old *v1alpha1.Volume) error {
	name := "recycled-" + string(old.UID) // the same at every try
	if same, err := r.sameClass(ctx, old); err != nil {
		return err
	} else if !same {
		return r.records.AbandonAll(ctx, name)
	}
	node, err := getNode(ctx, r.records.Client, r.records.Live, old.Spec.NodeName)
	if gone := (*NodeGoneError)(nil); errors.As(err, &gone) {
		return r.records.AbandonAll(ctx, name)
	}
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, r.wait)
	defer cancel()
	v, err := r.records.Ensure(ctx, name, offered(old))
	if err != nil {
		return err
	}
	pv, err := PersistentVolumeOf(name, v, node, r.local.poolLabels(ctx, v))
	if err != nil {
		return err
	}
	switch err := r.records.Client.Create(ctx, pv); {
	case apierrors.IsAlreadyExists(err):
		return nil
	case err != nil:
		return &APIError{"creating PersistentVolume " + name, err}
	}
	r.events.Eventf(pv, nil, corev1.EventTypeNormal, v1alpha1.EventRecycled, "Recycle", "Made of the space of volume %s, which was deleted", old.Name)
	return nil
}

// sameClass reports whether the class still is the one the volume was made by: what is offered under its name has to be what it
// gives now.
func (r *recycler) sameClass(ctx context.Context, old *v1alpha1.Volume) (bool, error) {
	var class storagev1.StorageClass
	err := r.records.Client.Get(ctx, client.ObjectKey{Name: old.Spec.StorageClassName}, &class)
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, &APIError{"reading StorageClass " + old.Spec.StorageClassName, err}
	}
	p, err := ParseParameters(class.Parameters)
	return err == nil && class.Provisioner == old.Spec.Provisioner && p.JSON() == ParametersOf(&old.Spec), nil
}

// offered is the wish for the new volume: the old one's, without all that ties it to a claim, in the same pool.
func offered(old *v1alpha1.Volume) v1alpha1.VolumeSpec {
	spec := *old.Spec.DeepCopy()
	spec.DesiredState, spec.Published = v1alpha1.DesiredPresent, false
	spec.Claim, spec.Admission, spec.Source, spec.Adopt, spec.Attributes = nil, nil, nil, nil, nil
	spec.SpreadGroup = ""
	if old.Status.Pool != "" {
		spec.Pool, spec.PoolSelector = old.Status.Pool, nil
	}
	return spec
}

// hasRoom reports whether the volume's pool may have room for a new one like it. Without a look, every one of many that wait
// would make an attempt, be refused and be cleared away whenever the pool has room for one.
func (r *recycler) hasRoom(ctx context.Context, old *v1alpha1.Volume) bool {
	var pool v1alpha1.Pool
	if old.Status.Pool == "" || r.records.Client.Get(ctx, client.ObjectKey{Name: old.Spec.NodeName + "." + old.Status.Pool}, &pool) != nil {
		return true // its agent knows
	}
	return meta.IsStatusConditionTrue(pool.Status.Conditions, v1alpha1.ConditionReady) && bytesOf(pool.Status.MaximumVolumeSize) >= old.Spec.Capacity.Value()
}

// fitting are the offers that wait for room on a pool's node, oldest first, as many as the pool has room for. One whose
// volume was in another pool of the node is woken by that one.
func (r *recycler) fitting(ctx context.Context, pool *v1alpha1.Pool) []reconcile.Request {
	var waiting v1alpha1.VolumeList
	if err := r.records.Client.List(ctx, &waiting, client.MatchingFields{indexRecycling: pool.Spec.NodeName}); err != nil {
		return nil // the cache is not there, so neither is the process for long
	}
	slices.SortFunc(waiting.Items, func(a, b v1alpha1.Volume) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
	})
	room, largest := max(bytesOf(pool.Status.Available), bytesOf(pool.Status.MaximumVolumeSize)), bytesOf(pool.Status.MaximumVolumeSize)
	var out []reconcile.Request
	for i := range waiting.Items {
		v := &waiting.Items[i]
		size := v.Spec.Capacity.Value()
		if v.Status.Phase != v1alpha1.VolumeDeleted || v.Status.Pool != "" && v.Status.Pool != pool.Spec.Pool || size > largest || size > room {
			continue
		}
		room -= size
		out = append(out, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(v)})
	}
	return out
}

// addRecycler drives it by Volumes that were deleted, and by pools that have more room.
func addRecycler(mgr manager.Manager, r *recycler) error {
	deleted := predicate.NewPredicateFuncs(func(o client.Object) bool {
		v, ok := o.(*v1alpha1.Volume) // a packed one is wanted
		return ok && recycles(v) && v.Status.Phase == v1alpha1.VolumeDeleted
	})
	waiting := handler.EnqueueRequestsFromMapFunc(func(ctx context.Context, o client.Object) []reconcile.Request {
		pool, ok := o.(*v1alpha1.Pool)
		if !ok {
			return nil
		}
		return r.fitting(ctx, pool)
	})
	ofPV := handler.EnqueueRequestsFromMapFunc(func(_ context.Context, o client.Object) []reconcile.Request {
		pv, ok := whole[*corev1.PersistentVolume](o)
		if !ok {
			return nil
		}
		of, ours := originOf(pv)
		if !ours {
			return nil
		}
		return []reconcile.Request{{NamespacedName: client.ObjectKey{Name: of.Volume}}}
	})
	end := predicate.Funcs{
		CreateFunc: func(event.CreateEvent) bool { return false },
		UpdateFunc: func(event.UpdateEvent) bool { return false },
	}
	err := builder.ControllerManagedBy(mgr).Named("recycle").
		For(&v1alpha1.Volume{}, builder.WithPredicates(deleted)).
		Watches(&corev1.PersistentVolume{}, ofPV, builder.WithPredicates(end)).
		Watches(&v1alpha1.Pool{}, waiting, builder.WithPredicates(moreRoom)).
		WithOptions(ctrlcontroller.Options{MaxConcurrentReconciles: 4, SkipNameValidation: new(true),
			RateLimiter: workqueue.NewTypedItemExponentialFailureRateLimiter[reconcile.Request](100*time.Millisecond, time.Minute)}).
		Complete(r)
	if err != nil {
		return fmt.Errorf("setting up the recycler: %w", err)
	}
	return nil
}

// moreRoom lets pools through that may take a volume now that they could not before.
var moreRoom = predicate.Funcs{
	UpdateFunc: func(e event.UpdateEvent) bool {
		before, wasPool := e.ObjectOld.(*v1alpha1.Pool)
		after, isPool := e.ObjectNew.(*v1alpha1.Pool)
		return wasPool && isPool && offersMore(before, after)
	},
	DeleteFunc: func(event.DeleteEvent) bool { return false },
}
