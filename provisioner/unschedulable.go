package provisioner

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/provisioner/parameters"
)

// unschedulableReporter emits an event on a claim that says why the scheduler
// finds no node for it. With capacity published, a claim that fits nowhere
// never gets a node and so never reaches Provision; all a user would see is
// "did not have enough free storage" on the pod. Only a claim that a pod waits
// for, and that no node at all can take, gets the event.
type unschedulableReporter struct {
	door    *frontDoor
	now     func() time.Time
	surveys *surveyCache

	bypasses bypasses

	mu   sync.Mutex
	said map[types.NamespacedName]advice // the last on each claim, so that it is not repeated
}

type advice struct {
	claim types.UID
	text  string
	at    time.Time
}

const (
	reportAfter = 2 * time.Second // the scheduler's own time to choose
	reportEvery = 30 * time.Second
	// reportAgain is the time after which the same is said once more: the API
	// server keeps events for an hour.
	reportAgain = 30 * time.Minute
)

// Reconcile looks at one claim, again and again as long as it has no node.
func (a *unschedulableReporter) Reconcile(
	ctx context.Context,
	req reconcile.Request,
) (reconcile.Result, error) {
	var claim corev1.PersistentVolumeClaim
	if err := a.door.client.Get(ctx, req.NamespacedName, &claim); err != nil {
		a.forget(req.NamespacedName)
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}

	waits := claim.Spec.VolumeName == "" && claim.DeletionTimestamp == nil &&
		claim.Annotations[annSelectedNode] == ""
	if !waits || !a.door.isOurs(&claim) {
		a.forget(req.NamespacedName)
		return reconcile.Result{}, nil
	}

	if age := a.now().Sub(claim.CreationTimestamp.Time); age < reportAfter {
		return reconcile.Result{RequeueAfter: reportAfter - age}, nil
	}

	return reconcile.Result{
			RequeueAfter: reportEvery,
		}, errors.Join(
			a.bypassed(ctx, &claim),
			a.advise(ctx, &claim),
		)
}

func (a *unschedulableReporter) advise(
	ctx context.Context,
	claim *corev1.PersistentVolumeClaim,
) error {
	var class storagev1.StorageClass
	if err := a.door.client.Get(ctx, client.ObjectKey{Name: *claim.Spec.StorageClassName},
		&class); err != nil {
		return client.IgnoreNotFound(err)
	}

	params, err := parameters.Parse(class.Parameters)
	if err != nil {
		return nil // the scheduler finds a node, and Provision says what is wrong
	}

	size := claim.Spec.Resources.Requests[corev1.ResourceStorage]
	largest, none, err := a.surveys.room(ctx, &class, params)
	if err != nil {
		return err
	}

	if size.Value() <= largest {
		a.forget(client.ObjectKeyFromObject(claim))
		return nil
	}

	waited, err := a.surveys.waited(ctx, claim)
	if err != nil || !waited {
		return err
	}
	if text := explanation(none); a.isNew(claim, text) {
		a.door.events.Eventf(
			claim,
			nil,
			corev1.EventTypeWarning,
			v1alpha1.ReasonNoSuitableNode,
			"Schedule",
			"%s",
			text,
		)
	}

	return nil
}

// isNew remembers an advice, and reports whether it is to be given (again).
func (a *unschedulableReporter) isNew(claim *corev1.PersistentVolumeClaim, text string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()

	key, now := client.ObjectKeyFromObject(claim), advice{claim.UID, text, a.now()}
	if last := a.said[key]; last.claim == now.claim && last.text == text &&
		now.at.Sub(last.at) < reportAgain {
		return false
	}
	if a.said == nil {
		a.said = map[types.NamespacedName]advice{}
	}

	a.said[key] = now
	return true
}

func (a *unschedulableReporter) forget(claim types.NamespacedName) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.said, claim)
}

// addUnschedulable drives the reporter by claims.
func addUnschedulable(mgr manager.Manager, a *unschedulableReporter) error {
	err := builder.ControllerManagedBy(mgr).
		Named("advice").
		For(&corev1.PersistentVolumeClaim{}, builder.WithPredicates(newsOfQuiet)).
		WithOptions(controller.Options{
			MaxConcurrentReconciles: 1,
			SkipNameValidation:      new(true),
		}).
		Complete(a)
	if err != nil {
		return fmt.Errorf("set up the reporter of unschedulable claims: %w", err)
	}
	return nil
}
