package provisioner

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

// conditionReporter emits events for what agents write into conditions: agents
// have no right to emit events, and people read events, not conditions. An
// event goes to where its reader looks: to the claim of a volume, to the Pool.
// It is emitted when a condition turns, by the leader only; a new leader
// reports what is wrong when it begins, since a condition may have turned while
// there was no leader.
type conditionReporter struct {
	client client.Client
	events events.EventRecorder
	// leading is closed once this replica is the leader.
	leading <-chan struct{}
}

func (n *conditionReporter) isLeading() bool {
	select {
	case <-n.leading:
		return true
	default:
		return false
	}
}

// volumes is the handler for the informer of Volumes.
func (n *conditionReporter) volumes(ctx context.Context) cache.ResourceEventHandler {
	return cache.ResourceEventHandlerFuncs{UpdateFunc: func(before, after any) {
		if !n.isLeading() {
			return
		}

		was, _ := whole[*v1alpha1.Volume](before)
		is, ok := whole[*v1alpha1.Volume](after)
		if ok && was != nil && WasReady(is) {
			n.volume(ctx, was, is)
		}
	}}
}

func (n *conditionReporter) volume(ctx context.Context, was, is *v1alpha1.Volume) {
	if c, turned := turnedTo(was.Status.Conditions, is.Status.Conditions,
		v1alpha1.ConditionEnforced, metav1.ConditionFalse); turned {
		n.claimEvent(ctx, is, v1alpha1.EventSizeNotEnforced, c.Message)
	}
	if was.Status.Path != is.Status.Path && is.Spec.Provisioner == v1alpha1.LocalProvisioner {
		n.path(ctx, is)
	}

	bad := map[v1alpha1.VolumePhase]string{
		v1alpha1.VolumeLost:        v1alpha1.EventVolumeLost,
		v1alpha1.VolumeUnavailable: v1alpha1.EventVolumeUnavailable,
	}
	if reason := bad[is.Status.Phase]; reason != "" && was.Status.Phase != is.Status.Phase &&
		is.Spec.DesiredState == v1alpha1.DesiredPresent {
		_, message := readyCondition(is.Status.Conditions)
		n.claimEvent(ctx, is, reason, fmt.Sprintf(
			"volume %s on node %s: %s", is.Name, is.Spec.NodeName, message))
	}
}

// path warns if a volume is not where its PersistentVolume says. That of a new
// volume is not there yet.
func (n *conditionReporter) path(ctx context.Context, v *v1alpha1.Volume) {
	var pv corev1.PersistentVolume
	if err := n.client.Get(ctx, client.ObjectKey{Name: v.Labels[v1alpha1.LabelPVName]},
		&pv); err != nil {
		return
	}
	if o, ours := originOf(&pv); !ours || o.Volume != v.Name {
		return
	}
	if why := StalePath(v, &pv); why != "" {
		n.claimEvent(ctx, v, v1alpha1.EventPathChanged, why)
	}
}

// claimEvent emits a warning on the volume's claim, if that still is the claim
// the volume was made for.
func (n *conditionReporter) claimEvent(
	ctx context.Context,
	v *v1alpha1.Volume,
	reason, message string,
) {
	ref := v.Spec.Claim
	if ref == nil {
		return
	}

	var claim corev1.PersistentVolumeClaim
	if err := n.client.Get(ctx, client.ObjectKey{
		Namespace: ref.Namespace,
		Name:      ref.Name,
	}, &claim); err != nil || ref.UID != "" && claim.UID != ref.UID {
		return
	}

	n.events.Eventf(&claim, nil, corev1.EventTypeWarning, reason, "Watch", "%s", message)
}

// pools is the handler for the informer of Pools.
func (n *conditionReporter) pools() cache.ResourceEventHandler {
	return cache.ResourceEventHandlerFuncs{UpdateFunc: func(before, after any) {
		if was, is := before.(*v1alpha1.Pool), after.(*v1alpha1.Pool); n.isLeading() {
			n.pool(was, is)
		}
	}}
}

func (n *conditionReporter) pool(was, is *v1alpha1.Pool) {
	if c, turned := turnedTo(was.Status.Conditions, is.Status.Conditions, v1alpha1.ConditionReady,
		metav1.ConditionFalse); turned {
		n.events.Eventf(
			is,
			nil,
			corev1.EventTypeWarning,
			v1alpha1.EventPoolOffline,
			"Watch",
			"%s: %s",
			c.Reason,
			c.Message,
		)
	}
	if _, turned := turnedTo(was.Status.Conditions, is.Status.Conditions, v1alpha1.ConditionReady,
		metav1.ConditionTrue); turned && len(was.Status.Conditions) > 0 {
		n.events.Eventf(is, nil, corev1.EventTypeNormal, v1alpha1.EventPoolOnline, "Watch",
			"the pool's disk is there")
	}
	if c, turned := turnedTo(was.Status.Conditions, is.Status.Conditions, v1alpha1.ConditionOrphans,
		metav1.ConditionTrue); turned {
		n.events.Eventf(
			is,
			nil,
			corev1.EventTypeWarning,
			v1alpha1.EventOrphans,
			"Watch",
			"%s",
			c.Message,
		)
	}
}

// catchUp reports what is wrong at this moment, as if it had just turned. The
// volumeRestorer finds paths that changed, since it looks at every
// PersistentVolume when it begins.
func (n *conditionReporter) catchUp(ctx context.Context) error {
	var pools v1alpha1.PoolList
	var volumes v1alpha1.VolumeList
	err := errors.Join(
		n.client.List(ctx, &pools),
		n.client.List(ctx, &volumes, client.MatchingFields{indexTrouble: inAnyTrouble}),
	)
	if err != nil {
		log.FromContext(ctx).Error(err,
			"Cannot look at what is wrong; it is told when it turns again")
		return nil
	}

	for i := range pools.Items {
		n.pool(&v1alpha1.Pool{}, &pools.Items[i])
	}

	for i := range volumes.Items {
		if v := &volumes.Items[i]; WasReady(v) {
			n.volume(ctx, &v1alpha1.Volume{}, v)
		}
	}

	return nil
}

// turnedTo returns the condition of a kind if it has come to be of that status,
// or gives another reason for it now.
func turnedTo(
	was, is []metav1.Condition,
	kind string,
	status metav1.ConditionStatus,
) (metav1.Condition, bool) {
	find := func(conditions []metav1.Condition) metav1.Condition {
		for _, c := range conditions {
			if c.Type == kind {
				return c
			}
		}
		return metav1.Condition{}
	}
	before, now := find(was), find(is)
	return now, now.Status == status && (before.Status != status || before.Reason != now.Reason)
}
