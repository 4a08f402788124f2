package provisioner

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v10/controller"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/provisioner/parameters"
)

// localDoor is the classic front door: the external-provisioner library calls
// it for every claim and every PersistentVolume of local.quarry.storage. It
// keeps no state but the waiting room.
type localDoor struct {
	*frontDoor
	// deleteWait bounds how long a worker waits for an agent to delete; later
	// the Volume's change wakes it.
	deleteWait time.Duration

	waiting *waitingRoom
}

var (
	_ controller.Provisioner      = (*localDoor)(nil)
	_ controller.BlockProvisioner = (*localDoor)(nil)
	_ controller.DeletionGuard    = (*localDoor)(nil)
)

// SupportsBlock implements controller.BlockProvisioner.
func (l *localDoor) SupportsBlock(context.Context) bool { return true }

// Provision makes the volume of a claim and returns its PersistentVolume. It
// blocks until the node's agent has answered or ctx ends, never on an agent
// that is known to be down. The state that goes with an error is judge's.
func (l *localDoor) Provision(
	ctx context.Context,
	o controller.ProvisionOptions,
) (*corev1.PersistentVolume, controller.ProvisioningState, error) {
	start := time.Now()
	uid := string(o.PVC.UID)
	pv, node, err := l.provision(ctx, o)
	if err == nil {
		l.waiting.removeClaim(uid)
		l.metrics.provisioned(o.StorageClass.Name, time.Since(start))
		return pv, controller.ProvisioningFinished, nil
	}

	if ignored, is := errors.AsType[*controller.IgnoredError](err); is {
		l.waiting.removeClaim(uid)
		// Unwrapped: the library asserts the type.
		return nil, controller.ProvisioningFinished, ignored
	}

	// A volume that somebody was served from is waited for where it is, which is
	// not always where the claim is to go.
	if down, is := errors.AsType[*agentNotReadyError](err); is {
		node = down.Node
	} else if pending, is := errors.AsType[*pendingError](err); is && pending.Node != "" {
		node = pending.Node
	}

	verdict := judge(err)
	state := verdict.State
	refusedBy := ""
	refused, is := errors.AsType[*refusedError](err)
	if is {
		refusedBy = refused.Node
	}
	if state == controller.ProvisioningReschedule {
		state = l.reschedule(ctx, o, node, refused)
	}

	l.metrics.failed(o.StorageClass.Name, verdict.Reason)
	if state == controller.ProvisioningReschedule {
		l.waiting.removeClaim(uid) // the scheduler wakes it
	} else {
		size := o.PVC.Spec.Resources.Requests[corev1.ResourceStorage]
		l.waiting.addClaim(o.PVC, waiter{
			node:   node,
			class:  o.StorageClass.Name,
			size:   size.Value(),
			reason: verdict.Reason,
		}, refusedBy)
		l.wakeIfAgentChanged(uid, node, err)
		var now corev1.PersistentVolumeClaim
		err := l.client.Get(ctx, client.ObjectKeyFromObject(o.PVC), &now)
		if apierrors.IsNotFound(err) ||
			err == nil && (now.UID != o.PVC.UID || now.Spec.VolumeName != "") {
			// Deleted, or bound to another volume, before it came into the
			// room.
			l.waiting.removeClaim(uid)
		}
	}

	return nil, state, errors.New(explanation(err))
}

// wakeIfAgentChanged closes the gap between asking for the agent and entering
// the waiting room.
func (l *localDoor) wakeIfAgentChanged(uid, node string, err error) {
	_, wasDown := errors.AsType[*agentNotReadyError](err)
	_, wasUp := errors.AsType[*pendingError](err)
	ready, _ := l.agents.Ready(node)
	if wasDown && ready || wasUp && !ready {
		l.waiting.wakeClaims(byNode, one(uid), always)
	}
}

// provision does the work of Provision. It returns the node that it got to,
// also with an error.
func (l *localDoor) provision(
	ctx context.Context,
	o controller.ProvisionOptions,
) (pv *corev1.PersistentVolume, node string, err error) {
	if gone, err := l.claimGone(ctx, o.PVC); err != nil {
		return nil, "", err
	} else if gone {
		// No claim waits for it: no event and no retry, but the half-made
		// volume is given up.
		if err := l.volumes.AbandonAll(ctx, o.PVName); err != nil {
			return nil, "", err
		}
		return nil, "", &controller.IgnoredError{
			Reason: (&claimGoneError{o.PVC.Namespace, o.PVC.Name}).Error(),
		}
	}

	if err := checkClaim(o.PVC); err != nil {
		return nil, "", err
	}

	params, err := parameters.Parse(o.StorageClass.Parameters)
	if err != nil {
		return nil, "", err
	}
	if err := params.CheckMode(claimMode(o.PVC)); err != nil {
		return nil, "", err
	}

	wish := wishOf(o.PVC, o.StorageClass, params)
	if wish.NodeName, err = l.chooseNode(ctx, o, params, wish.Capacity.Value()); err != nil {
		return nil, wish.NodeName, err
	}
	if err := l.selectPools(ctx, o.PVC, o.StorageClass, &wish, params); err != nil {
		return nil, wish.NodeName, err
	}
	if params.PoolSpread == parameters.SpreadApart {
		if wish.SpreadGroup, err = l.pods().spreadGroup(ctx, o.PVC); err != nil {
			return nil, wish.NodeName, err
		}
	}
	if wish.Admission, err = l.pods().admissionGroup(ctx, o.PVC, l.claimsIn, l.isOurs); err != nil {
		return nil, wish.NodeName, err
	}

	v, err := l.volumes.Ensure(ctx, o.PVName, wish)
	if err != nil {
		return nil, wish.NodeName, l.orNodeGone(ctx, o.PVName, err)
	}

	// Not always the one asked for: it may be published.
	host, err := getNode(ctx, l.client, l.live, v.Spec.NodeName)
	if err != nil {
		return nil, v.Spec.NodeName, err
	}

	pv, err = localPV(o.PVName, v, host, l.poolLabels(ctx, v))
	if err == nil && v.Spec.Enforcement == v1alpha1.EnforcementNone {
		l.events.Eventf(
			o.PVC,
			nil,
			corev1.EventTypeWarning,
			v1alpha1.EventSizeNotEnforced,
			"Provision",
			"The class's enforcement is none: nothing keeps the volume from growing over %s",
			v.Spec.Capacity.String(),
		)
	}
	if err == nil && wish.Claim != nil && wish.Claim.LabelsLeftOut > 0 {
		l.events.Eventf(
			o.PVC,
			nil,
			corev1.EventTypeWarning,
			v1alpha1.EventLabelsLeftOut,
			"Provision",
			"%d of the claim's labels are not kept with its volume: a claim written again by "+
				"quarry recover would not have them",
			wish.Claim.LabelsLeftOut,
		)
	}

	return pv, v.Spec.NodeName, err
}

// orNodeGone looks at why an agent is not ready: if its node does not exist any
// more, the attempt on it is given up.
func (l *localDoor) orNodeGone(ctx context.Context, pvName string, err error) error {
	notReady, is := errors.AsType[*agentNotReadyError](err)
	if !is {
		return err
	}

	exists, readErr := nodeExists(ctx, l.live, notReady.Node)
	if readErr != nil || exists {
		return err
	}
	if err := l.volumes.AbandonAll(ctx, pvName); err != nil {
		return err
	}

	return &nodeGoneError{notReady.Node}
}

// claimGone reports whether the claim was deleted. The cache is enough to know
// that it is there; that it is gone is only concluded from a live read.
func (l *localDoor) claimGone(
	ctx context.Context,
	claim *corev1.PersistentVolumeClaim,
) (bool, error) {
	for _, reader := range []client.Reader{l.client, l.live} {
		var now corev1.PersistentVolumeClaim
		err := reader.Get(ctx, client.ObjectKeyFromObject(claim), &now)
		if err == nil && now.UID == claim.UID {
			return false, nil
		}
		if err != nil && !apierrors.IsNotFound(err) {
			return false, &apiError{"read claim " + claim.Namespace + "/" + claim.Name, err}
		}
	}
	return true, nil
}

// chooseNode is the node to make the volume on: the scheduler's (or, by hand,
// an administrator's), or for Immediate classes the one of the attempt that is
// under way, or the one with the most room.
func (l *localDoor) chooseNode(
	ctx context.Context,
	o controller.ProvisionOptions,
	p parameters.Set,
	size int64,
) (string, error) {
	if o.SelectedNode != nil {
		return o.SelectedNode.Name, l.checkSelected(ctx, o)
	}

	existing, err := l.volumes.Of(ctx, o.PVName)
	if err != nil {
		return "", err
	}

	for i := range existing {
		v := &existing[i]
		if v.Spec.DesiredState != v1alpha1.DesiredPresent || isRefused(v) && !isServed(v) {
			continue
		}
		_, err := getNode(ctx, l.client, l.live, v.Spec.NodeName)
		if _, is := errors.AsType[*nodeGoneError](err); is {
			continue // Ensure gives it up, or leaves it to a person
		}
		return v.Spec.NodeName, err
	}

	// There is no scheduler to have chosen: only nodes with such a pool will
	// do.
	if o.PVC.Spec.Selector != nil {
		wish := v1alpha1.VolumeSpec{Pool: p.Pool, PoolSelector: p.PoolSelector}
		narrow(&wish, o.PVC.Spec.Selector)
		p.Pool, p.PoolSelector = wish.Pool, wish.PoolSelector
	}

	return l.pickNode(ctx, o.StorageClass, p, size, l.waiting.refusals(string(o.PVC.UID)))
}

// checkSelected reports what is wrong with the node that a claim names: it does
// not exist, or the class does not allow it. The scheduler would not choose
// such a node, but any user who may make claims may annotate them.
func (l *localDoor) checkSelected(ctx context.Context, o controller.ProvisionOptions) error {
	node := o.SelectedNode
	if node.UID == "" { // the lister has not seen it
		var err error
		node, err = getNode(ctx, l.client, l.live, node.Name)
		if _, is := errors.AsType[*nodeGoneError](err); is {
			if err := l.volumes.AbandonAll(ctx, o.PVName); err != nil {
				return err
			}
		}
		if err != nil {
			return err
		}
	}

	if !inTopologies(node, o.StorageClass.AllowedTopologies) {
		return &claimError{
			annSelectedNode,
			fmt.Sprintf(
				"node %s is not in the allowedTopologies of StorageClass %s",
				node.Name,
				o.StorageClass.Name,
			),
		}
	}

	return nil
}

// reschedule decides whether the scheduler is asked to choose again. It is, if
// a pod waits for that; else the claim would lose its node for ever, and the
// error stays a final one that is retried. The new capacity is published first,
// or the scheduler might choose the same node again.
func (l *localDoor) reschedule(
	ctx context.Context,
	o controller.ProvisionOptions,
	node string,
	refused *refusedError,
) controller.ProvisioningState {
	if o.SelectedNode == nil || !waitsForConsumer(o.StorageClass) {
		return controller.ProvisioningFinished
	}

	logger := log.FromContext(ctx).WithValues("claim", o.PVC.Namespace+"/"+o.PVC.Name, "node", node)
	used, err := l.pods().schedulable(ctx, o.PVC)
	if err != nil {
		logger.Error(err, "Cannot tell whether a pod uses the claim; it keeps its node")
		return controller.ProvisioningFinished
	}

	if !used {
		return controller.ProvisioningFinished
	}

	if err := l.publishRefusal(ctx, node, refused); err != nil {
		logger.Error(err,
			"Cannot publish the node's capacity; the claim keeps its node until that works")
		return controller.ProvisioningFinished
	}

	return controller.ProvisioningReschedule
}
