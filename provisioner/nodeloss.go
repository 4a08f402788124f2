package provisioner

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"
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
	"github.com/quarry-storage/quarry/provisioner/parameters"
)

// nodeLossHandler lets the claims of StatefulSets start over, empty, on another
// node when theirs is lost, for classes that ask for it (onNodeLoss) in
// installations that allow it. It does what an administrator would do by the
// runbook, in the same order, and touches no data: the old PersistentVolume
// gets the policy Retain and stays, and so does the volume on the lost disk,
// should that ever come back.
//
// It helps only claims that a StatefulSet's pod uses: a claim of any other kind
// would not be made again.
type nodeLossHandler struct {
	client client.Client
	live   client.Reader
	events events.EventRecorder
	// enabled is the administrator's consent (the chart's nodeLoss.enabled),
	// without which there is no right to delete claims.
	enabled bool
	now     func() time.Time
	metrics *Metrics

	mu sync.Mutex
	// gone is when a node was first seen missing or not ready, by this process:
	// only time that it saw pass counts. What the Node object says of its past
	// proves nothing, after a weekend on which control plane and workers were
	// switched off. After a restart the delay begins anew: later is safe,
	// earlier is not.
	gone map[string]time.Time
	// many is until when it is known that many nodes are lost at once.
	many time.Time
	// told are the claims that were told that nothing is done for them.
	told map[string]bool
}

// taintOutOfService says that a node is off for good, or until it is repaired;
// an administrator sets it (KEP-2268).
const taintOutOfService = corev1.TaintNodeOutOfService

// indexPVNode is the cache's index of our PersistentVolumes by the node that
// holds their data.
const indexPVNode = "quarryNode"

func indexPV(o client.Object) []string {
	if p, quiet := o.(*packed); quiet {
		if p.node == "" {
			return nil
		}
		return []string{p.node}
	}
	if pv, ok := o.(*corev1.PersistentVolume); ok {
		if of, ours := originOf(pv); ours {
			return []string{of.Node}
		}
	}
	return nil
}

// Reconcile looks at one node, also at one that does not exist.
func (n *nodeLossHandler) Reconcile(
	ctx context.Context,
	req reconcile.Request,
) (reconcile.Result, error) {
	var pvs corev1.PersistentVolumeList
	if err := n.client.List(ctx, &pvs, client.MatchingFields{indexNodeLoss: req.Name}); err != nil {
		return reconcile.Result{}, &apiError{"list PersistentVolumes", err}
	}

	var wanting []wantingPV
	for i := range pvs.Items {
		pv := &pvs.Items[i]
		of, ok := originOf(pv)
		p, err := parameters.FromJSON(of.Parameters)
		moving := pv.Annotations[v1alpha1.AnnotationReclaimPolicy] != ""
		if ok && err == nil && p.OnNodeLoss != parameters.NodeLossNever &&
			pv.Spec.ClaimRef != nil &&
			pv.Status.Phase == corev1.VolumeBound &&
			!moving {
			wanting = append(wanting, wantingPV{pv, p})
		}
	}

	if len(wanting) == 0 {
		n.forget(req.Name)
		return reconcile.Result{}, nil
	}

	state, err := n.look(ctx, req.Name)
	if err != nil || !state.lost {
		return reconcile.Result{}, err
	}

	if !state.outOfService { // which a person said
		many, err := n.manyLostLately(ctx)
		if err != nil {
			return reconcile.Result{}, err
		}
		if many {
			log.FromContext(ctx).Info(
				"Half of the nodes or more are lost at once: it is not them, and no claim "+
					"starts over", "node", req.Name)
			return reconcile.Result{RequeueAfter: manyLostRetry}, nil
		}
	}

	var next time.Duration
	for _, w := range wanting {
		wait, due := state.dueIn(w.params, n.now())
		if !due {
			continue
		}
		if wait <= 0 {
			if wait, err = n.startOver(ctx, w.pv, req.Name, state.why); err != nil {
				return reconcile.Result{}, err
			}
		}
		if wait > 0 && (next == 0 || wait < next) {
			next = wait
		}
	}

	return reconcile.Result{RequeueAfter: next}, nil
}

// manyLostRetry is how soon it is looked again whether most nodes are back, or
// a claim's pod is there.
const manyLostRetry = time.Minute

// manyLostLately is manyLost, whose answer yes counts for a while for all that
// are lost: they come at once, and later is safe.
func (n *nodeLossHandler) manyLostLately(ctx context.Context) (bool, error) {
	n.mu.Lock()
	known := n.now().Before(n.many)
	n.mu.Unlock()
	if known {
		return true, nil
	}

	many, err := n.manyLost(ctx)
	if many {
		n.mu.Lock()
		n.many = n.now().Add(manyLostRetry / 4)
		n.mu.Unlock()
	}

	return many, err
}

// manyLost reports whether half of the nodes with pools, and more than one, are
// missing or not ready: then the network or the control plane is in trouble,
// and every volume is where it was. The control plane stops evicting pods then
// as well. A node that does not exist counts while a claim is bound to a volume
// of its: Pools of nodes that were taken away in peace may stay for years.
func (n *nodeLossHandler) manyLost(ctx context.Context) (bool, error) {
	var pools v1alpha1.PoolList
	if err := n.client.List(ctx, &pools, client.UnsafeDisableDeepCopy); err != nil {
		return false, &apiError{"list pools", err}
	}

	ready := map[string]bool{}
	for i := range pools.Items {
		name := pools.Items[i].Spec.NodeName
		if _, known := ready[name]; known {
			continue
		}

		var node corev1.Node
		err := n.client.Get(ctx, client.ObjectKey{Name: name}, &node)
		if client.IgnoreNotFound(err) != nil {
			return false, &apiError{"read Node " + name, err}
		}

		if err != nil {
			holds, err := n.holdsBound(ctx, name)
			if err != nil {
				return false, err
			}
			if !holds {
				continue
			}
		}

		ready[name] = err == nil && isNodeReady(&node)
	}

	lost := 0
	for _, is := range ready {
		if !is {
			lost++
		}
	}

	return lost > 1 && 2*lost >= len(ready), nil
}

// holdsBound reports whether a claim is bound to a volume of the node.
func (n *nodeLossHandler) holdsBound(ctx context.Context, node string) (bool, error) {
	var pvs corev1.PersistentVolumeList
	if err := n.client.List(ctx, &pvs, client.MatchingFields{indexPVNode: node}); err != nil {
		return false, &apiError{"list PersistentVolumes", err}
	}
	return slices.ContainsFunc(
		pvs.Items,
		func(pv corev1.PersistentVolume) bool { return pv.Status.Phase == corev1.VolumeBound },
	), nil
}

type wantingPV struct {
	pv     *corev1.PersistentVolume
	params parameters.Set
}

// lossState is what is known of a node, read live.
type lossState struct {
	lost         bool
	since        time.Time
	outOfService bool
	why          string
}

func (n *nodeLossHandler) look(ctx context.Context, name string) (lossState, error) {
	var node corev1.Node
	err := n.live.Get(ctx, client.ObjectKey{Name: name}, &node)
	if apierrors.IsNotFound(err) {
		return lossState{
			lost:  true,
			since: n.seen(name),
			why:   fmt.Sprintf("Node %s does not exist any more", name),
		}, nil
	}
	if err != nil {
		return lossState{}, &apiError{"read Node " + name, err}
	}

	s := lossState{outOfService: isOutOfService(&node)}
	for _, c := range node.Status.Conditions {
		if c.Type == corev1.NodeReady && c.Status != corev1.ConditionTrue {
			s.lost, s.since = true, n.seen(name)
			s.why = fmt.Sprintf(
				"node %s is not ready since %s",
				name,
				c.LastTransitionTime.UTC().Format(time.RFC3339),
			)
			if s.outOfService {
				s.why = fmt.Sprintf("node %s is not ready and out of service", name)
			}
		}
	}

	if !s.lost {
		n.forget(name)
	}

	return s, nil
}

func isOutOfService(node *corev1.Node) bool {
	return slices.ContainsFunc(
		node.Spec.Taints,
		func(t corev1.Taint) bool { return t.Key == taintOutOfService },
	)
}

// seen is when a node was first seen to be lost.
func (n *nodeLossHandler) seen(node string) time.Time {
	n.mu.Lock()
	defer n.mu.Unlock()

	if n.gone == nil {
		n.gone = map[string]time.Time{}
	}
	if n.gone[node].IsZero() {
		n.gone[node] = n.now()
	}

	return n.gone[node]
}

func (n *nodeLossHandler) forget(node string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.gone, node)
}

// dueIn is how long a lost node's claims of a class still wait; due is false if
// they wait for something else than time.
func (s lossState) dueIn(p parameters.Set, now time.Time) (wait time.Duration, due bool) {
	if p.OnNodeLoss == parameters.NodeLossOutOfServiceTaint {
		return 0, s.outOfService
	}
	return p.NodeLossDelay - now.Sub(s.since), true
}

// lossRetry is how soon a claim is looked at again whose pod stands in the way.
const lossRetry = 5 * time.Second

// startOver gives up a claim's volume on a lost node. Every step can be
// repeated; a later one is only taken when the earlier ones are done. It
// returns how long to wait for another look, if that is needed.
func (n *nodeLossHandler) startOver(
	ctx context.Context,
	cached *corev1.PersistentVolume,
	node, why string,
) (time.Duration, error) {
	ref := cached.Spec.ClaimRef
	var claim corev1.PersistentVolumeClaim
	err := n.live.Get(ctx, client.ObjectKey{
		Namespace: ref.Namespace,
		Name:      ref.Name,
	}, &claim)
	if apierrors.IsNotFound(err) || err == nil && claim.UID != ref.UID {
		return 0, nil // deleted already
	}
	if err != nil {
		return 0, &apiError{"read claim " + ref.Namespace + "/" + ref.Name, err}
	}

	if !n.enabled {
		n.tellOnce(&claim,
			"the class asks for another volume elsewhere (onNodeLoss), but the installation does "+
				"not allow it; set nodeLoss.enabled in the chart's values")
		return 0, nil
	}

	pods, owned, err := n.pods(ctx, &claim)
	if err != nil {
		return 0, err
	}

	if !owned {
		// Its StatefulSet may make the pod later: one after the other, or when
		// it is scaled up again.
		n.tellOnce(&claim,
			"no StatefulSet's pod uses the claim by a template now, so nobody would make it "+
				"again; it stays as it is for the time being")
		return manyLostRetry, nil
	}

	// First the data: nothing that happens from here on may end in its
	// deletion.
	pv, err := n.keepData(ctx, cached, &claim)
	if pv == nil || err != nil {
		return 0, err
	}

	if claim.DeletionTimestamp == nil {
		if err := n.giveUpClaim(ctx, &claim, pv, node, why); err != nil {
			return 0, err
		}
	}

	if err := n.removePods(ctx, pods, node, why); err != nil {
		return 0, err
	}

	return lossRetry, nil
}

// keepData sets policy Retain on the PersistentVolume of a claim, and returns
// it; nil if it is not the claim's any more.
func (n *nodeLossHandler) keepData(
	ctx context.Context,
	cached *corev1.PersistentVolume,
	claim *corev1.PersistentVolumeClaim,
) (*corev1.PersistentVolume, error) {
	pv := &corev1.PersistentVolume{}
	if err := n.live.Get(ctx, client.ObjectKeyFromObject(cached), pv); err != nil {
		return nil, client.IgnoreNotFound(err)
	}
	if pv.UID != cached.UID || pv.Annotations[v1alpha1.AnnotationReclaimPolicy] != "" ||
		pv.Spec.ClaimRef == nil ||
		pv.Spec.ClaimRef.UID != claim.UID {
		return nil, nil
	}

	if pv.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimRetain {
		return pv, nil
	}

	base := pv.DeepCopy()
	pv.Spec.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimRetain
	patch := client.MergeFromWithOptions(base, client.MergeFromWithOptimisticLock{})
	if err := n.client.Patch(ctx, pv, patch); err != nil {
		return nil, &apiError{"set PersistentVolume " + pv.Name + " to Retain", err}
	}

	return pv, nil
}

// giveUpClaim deletes a claim, so that its StatefulSet makes it again, and says
// so on the claim and on its PersistentVolume.
func (n *nodeLossHandler) giveUpClaim(
	ctx context.Context,
	claim *corev1.PersistentVolumeClaim,
	pv *corev1.PersistentVolume,
	node, why string,
) error {
	n.events.Eventf(claim, nil, corev1.EventTypeWarning, v1alpha1.EventStartingOver, "NodeLoss",
		"%s, and the class says onNodeLoss: the claim is deleted so that its StatefulSet "+
			"makes it again, empty, on another node; PersistentVolume %s keeps the old data",
		why, pv.Name)
	n.events.Eventf(pv, nil, corev1.EventTypeWarning, v1alpha1.EventNodeLost, "NodeLoss",
		"%s; claim %s/%s starts over elsewhere, and the data stays: the policy is Retain now",
		why, claim.Namespace, claim.Name)

	err := n.client.Delete(ctx, claim, client.Preconditions{UID: &claim.UID})
	if client.IgnoreNotFound(err) != nil {
		return &apiError{"delete claim " + claim.Namespace + "/" + claim.Name, err}
	}

	n.metrics.startedOver.Inc()
	log.FromContext(ctx).Info("A claim starts over elsewhere",
		"claim", claim.Namespace+"/"+claim.Name,
		"node", node,
		"persistentVolume", pv.Name)
	return nil
}

// removePods removes those of a claim's pods that are on a lost node. The claim
// goes once no pod is there any more, and no kubelet there can confirm that.
func (n *nodeLossHandler) removePods(
	ctx context.Context,
	pods []corev1.Pod,
	node, why string,
) error {
	for i := range pods {
		pod := &pods[i]
		if pod.Spec.NodeName != node {
			continue
		}

		n.events.Eventf(pod, nil, corev1.EventTypeWarning, v1alpha1.EventStartingOver, "NodeLoss",
			"%s; the pod is removed so that its StatefulSet makes it again elsewhere", why)
		err := n.client.Delete(
			ctx,
			pod,
			client.GracePeriodSeconds(0),
			client.Preconditions{UID: &pod.UID},
		)
		if client.IgnoreNotFound(err) != nil && !apierrors.IsConflict(err) {
			return &apiError{"delete pod " + pod.Namespace + "/" + pod.Name, err}
		}
	}
	return nil
}

// pods are those that use the claim; owned reports whether a StatefulSet's is
// among them that makes the claim again.
func (n *nodeLossHandler) pods(
	ctx context.Context,
	claim *corev1.PersistentVolumeClaim,
) (using []corev1.Pod, owned bool, err error) {
	var list corev1.PodList
	if err := n.live.List(ctx, &list, client.InNamespace(claim.Namespace)); err != nil {
		return nil, false, &apiError{"list the pods of namespace " + claim.Namespace, err}
	}

	for _, pod := range list.Items {
		if slices.Contains(claimNames(&pod), claim.Name) {
			owner := metav1.GetControllerOf(&pod)
			owned = owned ||
				owner != nil && owner.Kind == "StatefulSet" && fromTemplate(&pod, claim.Name)
			using = append(using, pod)
		}
	}

	return using, owned, nil
}

// fromTemplate reports whether a claim is of one of the StatefulSet's
// templates, so that it is made again, and not one that its pods only name. A
// claim of a template is named after the volume and the pod.
func fromTemplate(pod *corev1.Pod, claim string) bool {
	return slices.ContainsFunc(pod.Spec.Volumes, func(v corev1.Volume) bool {
		return v.PersistentVolumeClaim != nil && v.PersistentVolumeClaim.ClaimName == claim &&
			claim == v.Name+"-"+pod.Name
	})
}

// tellOnce says on a claim, once in the life of this process, why nothing is
// done for it.
func (n *nodeLossHandler) tellOnce(claim *corev1.PersistentVolumeClaim, text string) {
	n.mu.Lock()
	defer n.mu.Unlock()

	key := string(claim.UID) + text
	if n.told[key] {
		return
	}
	if n.told == nil {
		n.told = map[string]bool{}
	}

	n.told[key] = true
	n.events.Eventf(
		claim,
		nil,
		corev1.EventTypeWarning,
		v1alpha1.EventNodeLost,
		"NodeLoss",
		"%s",
		text,
	)
}

// addNodeLoss drives it by nodes whose state changes, and by PersistentVolumes
// that come to be bound.
func addNodeLoss(mgr manager.Manager, n *nodeLossHandler) error {
	toNode := handler.EnqueueRequestsFromMapFunc(
		func(_ context.Context, o client.Object) []reconcile.Request {
			var out []reconcile.Request
			for _, node := range indexOfNodeLoss(o) {
				out = append(out, reconcile.Request{NamespacedName: client.ObjectKey{Name: node}})
			}
			return out
		},
	)
	err := builder.ControllerManagedBy(mgr).Named("node-loss").
		For(&corev1.Node{}, builder.WithPredicates(nodeTurned)).
		Watches(&corev1.PersistentVolume{}, toNode, builder.WithPredicates(pvTurned)).
		WithOptions(controller.Options{
			MaxConcurrentReconciles: 2,
			SkipNameValidation:      new(true),
		}).Complete(n)
	if err != nil {
		return fmt.Errorf("set up the loss of nodes: %w", err)
	}
	return nil
}

var (
	// nodeTurned lets changes through that make a node lost or not; heartbeats
	// do not.
	nodeTurned = predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
		before, wasNode := e.ObjectOld.(*corev1.Node)
		after, isNode := e.ObjectNew.(*corev1.Node)
		return wasNode && isNode &&
			(isNodeReady(before) != isNodeReady(after) || before.UID != after.UID ||
				isOutOfService(before) != isOutOfService(after))
	}}
	// pvTurned lets PersistentVolumes through that come to be bound.
	pvTurned = predicate.Funcs{
		UpdateFunc: func(e event.UpdateEvent) bool {
			if isPacked(e.ObjectOld) && isPacked(e.ObjectNew) {
				return false // bound before and after
			}
			before, wasPV := whole[*corev1.PersistentVolume](e.ObjectOld)
			after, isPV := whole[*corev1.PersistentVolume](e.ObjectNew)
			return wasPV && isPV && before.Status.Phase != after.Status.Phase
		},
		DeleteFunc: func(event.DeleteEvent) bool { return false },
	}
)
