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

// adviser says on a claim why the scheduler finds no node for it. With capacity published, a claim that fits nowhere
// never gets a node and so never reaches Provision; all a user would see is "did not have enough free storage" on the
// pod. Only a claim that a pod waits for, and that no node at all can take, gets the event.
type adviser struct {
	local   *Local
	now     func() time.Time
	surveys *surveys

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
	adviceAfter = 2 * time.Second // the scheduler's own time to choose
	adviceEvery = 30 * time.Second
	// adviceAgain is after how long the same is said once more: the API server keeps events for an hour.
	adviceAgain = 30 * time.Minute
)

// Reconcile looks at one claim, again and again as long as it has no node.
func (a *adviser) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	var claim corev1.PersistentVolumeClaim
	if err := a.local.Client.Get(ctx, req.NamespacedName, &claim); err != nil {
		a.forget(req.NamespacedName)
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	waits := claim.Spec.VolumeName == "" && claim.DeletionTimestamp == nil && claim.Annotations[annSelectedNode] == ""
	if !waits || !a.local.isOurs(&claim) {
		a.forget(req.NamespacedName)
		return reconcile.Result{}, nil
	}
	if age := a.now().Sub(claim.CreationTimestamp.Time); age < adviceAfter {
		return reconcile.Result{RequeueAfter: adviceAfter - age}, nil
	}
	return reconcile.Result{RequeueAfter: adviceEvery}, errors.Join(a.bypassed(ctx, &claim), a.advise(ctx, &claim))
}

func (a *adviser) advise(ctx context.Context, claim *corev1.PersistentVolumeClaim) error {
	var class storagev1.StorageClass
	if err := a.local.Client.Get(ctx, client.ObjectKey{Name: *claim.Spec.StorageClassName}, &class); err != nil {
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
	if text := Explain(none); a.news(claim, text) {
		a.local.Events.Eventf(claim, nil, corev1.EventTypeWarning, ReasonNoNode, "Schedule", "%s", text)
	}
	return nil
}

// news remembers an advice, and reports whether it is to be given (again).
func (a *adviser) news(claim *corev1.PersistentVolumeClaim, text string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	key, now := client.ObjectKeyFromObject(claim), advice{claim.UID, text, a.now()}
	if last := a.said[key]; last.claim == now.claim && last.text == text && now.at.Sub(last.at) < adviceAgain {
		return false
	}
	if a.said == nil {
		a.said = map[types.NamespacedName]advice{}
	}
	a.said[key] = now
	return true
}

func (a *adviser) forget(claim types.NamespacedName) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.said, claim)
}

// addAdvice drives the adviser by claims.
func addAdvice(mgr manager.Manager, a *adviser) error {
	err := builder.ControllerManagedBy(mgr).Named("advice").For(&corev1.PersistentVolumeClaim{}, builder.WithPredicates(newsOfQuiet)).
		WithOptions(controller.Options{MaxConcurrentReconciles: 1, SkipNameValidation: new(true)}).Complete(a)
	if err != nil {
		return fmt.Errorf("setting up the adviser: %w", err)
	}
	return nil
}

// pickNode chooses among all nodes by what the caches say; the error is a *NoNodeError if none can take the volume.
func (l *Local) pickNode(ctx context.Context, class *storagev1.StorageClass, p parameters.Set, size int64, refused map[string]int) (string, error) {
	pl, err := l.placement(ctx, refused)
	if err != nil {
		return "", err
	}
	return pl.pick(class, p, size)
}

// placement is what the caches say of all nodes.
func (l *Local) placement(ctx context.Context, refused map[string]int) (placement, error) {
	pl := placement{ready: l.Agents.Ready, refused: refused, pools: map[string][]v1alpha1.Pool{}}
	var nodes corev1.NodeList
	if err := l.Client.List(ctx, &nodes, client.UnsafeDisableDeepCopy); err != nil { // read only, and there may be thousands
		return pl, &APIError{"listing nodes", err}
	}
	var pools v1alpha1.PoolList
	if err := l.Client.List(ctx, &pools, client.UnsafeDisableDeepCopy); err != nil {
		return pl, &APIError{"listing pools", err}
	}
	pl.nodes = nodes.Items
	for i := range pools.Items {
		node := pools.Items[i].Spec.NodeName
		pl.pools[node] = append(pl.pools[node], pools.Items[i])
	}
	return pl, nil
}
