package diagnose

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/provisioner"
)

// Annotations that Kubernetes' own parts set on claims.
const (
	annProvisioner  = "volume.kubernetes.io/storage-provisioner"
	annSelectedNode = "volume.kubernetes.io/selected-node"
)

// Waiting is a claim that has no volume yet. Its fields are part of what the
// commands print as JSON.
type Waiting struct {
	Namespace string `json:"namespace"`
	Claim     string `json:"claim"`
	// StorageClass and SizeBytes are what it asks for.
	StorageClass string `json:"storageClass"`
	SizeBytes    int64  `json:"sizeBytes"`
	// Node is the one that the scheduler chose; empty: none yet.
	Node  string      `json:"node,omitempty"`
	Since metav1.Time `json:"since"`
	// Wrong is false where it waits as it should: for its first pod, or for a
	// volume that is being made.
	Wrong   bool   `json:"wrong"`
	Reason  string `json:"reason"`
	Message string `json:"message"`
	Remedy  string `json:"remedy,omitempty"`
	Runbook string `json:"runbook,omitempty"`
	// SaidAt is when that was said, if it was by an event or a condition.
	SaidAt *metav1.Time `json:"saidAt,omitempty"`
}

// isOurClass reports whether a class's claims are served by Quarry.
func isOurClass(class *storagev1.StorageClass) bool {
	return class != nil && isOurProvisioner(class.Provisioner)
}

func isOurProvisioner(name string) bool {
	return name == v1alpha1.LocalProvisioner || name == v1alpha1.CSIDriver
}

func className(claim *corev1.PersistentVolumeClaim) string {
	if claim.Spec.StorageClassName == nil {
		return ""
	}
	return *claim.Spec.StorageClassName
}

// isOurs reports whether a claim is for Quarry to serve: by its class, or by
// what Kubernetes wrote on it while the class was there.
func (c *Cluster) isOurs(claim *corev1.PersistentVolumeClaim) bool {
	return isOurClass(c.Classes[className(claim)]) ||
		isOurProvisioner(claim.Annotations[annProvisioner])
}

// waits reports whether a claim is ours and has no volume yet.
func (c *Cluster) waits(claim *corev1.PersistentVolumeClaim) bool {
	return claim.DeletionTimestamp == nil && claim.Status.Phase == corev1.ClaimPending &&
		claim.Spec.VolumeName == "" && c.isOurs(claim)
}

// waiting is why each claim waits that does, by namespace and name.
func (c *Cluster) waiting(nodes []Node) []Waiting {
	out, clues := []Waiting{}, c.clues(nodes)
	for i := range c.Claims {
		if claim := &c.Claims[i]; c.waits(claim) {
			out = append(out, c.whyItWaits(claim, clues))
		}
	}
	slices.SortFunc(out, func(a, b Waiting) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Claim, b.Claim))
	})
	return out
}

// clues finds what may say why a claim waits.
type clues struct {
	events   eventIndex
	attempts map[types.UID]*v1alpha1.Volume // the newest for each claim, by its UID
	pods     map[string][]*corev1.Pod       // that use a claim, by NAMESPACE/NAME
	watched  map[string]bool                // nodes that an agent looks after
}

func (c *Cluster) clues(nodes []Node) *clues {
	k := &clues{
		events:   indexEvents(c.Events),
		attempts: map[types.UID]*v1alpha1.Volume{},
		pods:     map[string][]*corev1.Pod{},
		watched:  watchedNodes(nodes),
	}
	for i := range c.Volumes {
		v := &c.Volumes[i]
		if v.Spec.Claim == nil {
			continue
		}
		before := k.attempts[v.Spec.Claim.UID]
		if before == nil || before.CreationTimestamp.Before(&v.CreationTimestamp) ||
			before.CreationTimestamp.Equal(&v.CreationTimestamp) && before.Name < v.Name {
			k.attempts[v.Spec.Claim.UID] = v
		}
	}
	for i := range c.Pods {
		pod := &c.Pods[i]
		for _, claim := range claimsOf(pod) {
			key := pod.Namespace + "/" + claim
			k.pods[key] = append(k.pods[key], pod)
		}
	}
	return k
}

// whyItWaits says why a claim waits, of all that is known the newest: what the
// controller said on the claim, what the node's agent said on the attempt, what
// the scheduler said on its pod. What is only that nobody has come so far
// becomes wrong after a while.
func (c *Cluster) whyItWaits(claim *corev1.PersistentVolumeClaim, k *clues) Waiting {
	size := claim.Spec.Resources.Requests[corev1.ResourceStorage]
	w := Waiting{
		Namespace: claim.Namespace, Claim: claim.Name, StorageClass: className(claim),
		SizeBytes: size.Value(), Node: claim.Annotations[annSelectedNode],
		Since: claim.CreationTimestamp, Runbook: chapter("a-claim-stays-pending"),
	}
	say := func(wrong bool, reason, message, remedy string, at time.Time) Waiting {
		w.Wrong, w.Reason, w.Message, w.Remedy = wrong, reason, message, remedy
		if !at.IsZero() {
			w.SaidAt = &metav1.Time{Time: at}
		}
		return w
	}

	class := c.Classes[w.StorageClass]
	if class == nil {
		return say(true, ReasonNoClass, fmt.Sprintf("there is no StorageClass %s (any more)",
			w.StorageClass), "make the class again; the claim goes on by itself", time.Time{})
	}

	attempt, told := k.attempts[claim.UID], k.events.newest(claim.UID, isWarning)
	if ready := troubleOfAttempt(attempt); ready != nil &&
		(told == nil || ready.LastTransitionTime.After(EventTime(told))) {
		return say(true, ready.Reason, fmt.Sprintf("node %s: %s", attempt.Spec.NodeName,
			ready.Message), provisioner.Hint(ready.Reason), ready.LastTransitionTime.Time)
	}
	if told != nil {
		reason, what, hint := provisioner.Explained(told.Message)
		return say(true, cmp.Or(reason, told.Reason), what, hint, EventTime(told))
	}

	late := c.since(claim.CreationTimestamp.Time) > busy
	if attempt != nil {
		message := fmt.Sprintf("node %s is making it", attempt.Spec.NodeName)
		if !k.watched[attempt.Spec.NodeName] {
			return say(true, v1alpha1.ReasonAgentNotReady, "waiting for the agent on node "+
				attempt.Spec.NodeName, provisioner.Hint(v1alpha1.ReasonAgentNotReady), time.Time{})
		}
		return say(late, ReasonInProgress, message, ifLate(late, "the agent's log on that node says "+
			"what it is at"), time.Time{})
	}

	pods := k.pods[claim.Namespace+"/"+claim.Name]
	for _, pod := range pods {
		if e := k.events.newest(pod.UID, isWarning); e != nil && pod.Spec.NodeName == "" {
			return say(late, ReasonUnschedulable, fmt.Sprintf("pod %s: %s", pod.Name, e.Message),
				"compare the pod's constraints with where there is room: kubectl quarry pools",
				EventTime(e))
		}
	}
	immediate := class.VolumeBindingMode == nil ||
		*class.VolumeBindingMode == storagev1.VolumeBindingImmediate
	if len(pods) == 0 && !immediate && w.Node == "" {
		return say(false, ReasonNoPod, "no pod uses it yet: that is how it should be", "", time.Time{})
	}
	return say(late, ifElse(late, ReasonNoAnswer, ReasonInProgress), ifElse(late,
		"nobody has said anything of it since it was made", "it was made a moment ago"),
		ifLate(late, "see whether the controller is ready, above, and kubectl describe pvc -n "+
			claim.Namespace+" "+claim.Name), time.Time{})
}

func ifLate(late bool, text string) string { return ifElse(late, text, "") }

func ifElse(condition bool, then, otherwise string) string {
	if condition {
		return then
	}
	return otherwise
}

// troubleOfAttempt is the condition that says why an attempt does not succeed;
// nil while it may.
func troubleOfAttempt(v *v1alpha1.Volume) *metav1.Condition {
	if v == nil {
		return nil
	}
	ready := meta.FindStatusCondition(v.Status.Conditions, v1alpha1.ConditionReady)
	if ready == nil || ready.Status == metav1.ConditionTrue {
		return nil
	}
	switch ready.Reason {
	case v1alpha1.ReasonCreating, v1alpha1.ReasonWaitingForGroup, v1alpha1.ReasonRemoved, "":
		return nil
	}
	return ready
}

// claimFindings says of claims what is wrong: of those that wait, and of those
// whose PersistentVolume is gone.
func (c *Cluster) claimFindings(waiting []Waiting) []Finding {
	var out []Finding
	for i := range waiting {
		if w := &waiting[i]; w.Wrong {
			out = append(out, Finding{
				Severity: Warning, Kind: KindClaim, Namespace: w.Namespace, Name: w.Claim,
				Node: w.Node, Reason: w.Reason, Message: w.Message, Remedy: w.Remedy,
				Runbook: w.Runbook, Since: &w.Since,
			})
		}
	}
	for i := range c.Claims {
		claim := &c.Claims[i]
		if claim.Status.Phase != corev1.ClaimLost || !c.isOurs(claim) {
			continue
		}
		out = append(out, Finding{
			Severity: Critical, Kind: KindClaim, Namespace: claim.Namespace, Name: claim.Name,
			Reason:  ReasonClaimLost,
			Message: "its PersistentVolume " + claim.Spec.VolumeName + " does not exist (any more)",
			Remedy: "kubectl quarry orphans list: if its volume is there, orphans restore brings the " +
				"PersistentVolume back",
			Runbook: chapter("a-volume-was-deleted-by-mistake"),
		})
	}
	return out
}
