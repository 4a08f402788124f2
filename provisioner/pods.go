package provisioner

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

// annSelectedNode is set on a claim by the scheduler, or by hand.
const annSelectedNode = "volume.kubernetes.io/selected-node"

// podReader finds the pods of a claim by a live, namespaced read when needed:
// no process caches all pods.
type podReader struct{ live client.Reader }

// schedulable reports whether the scheduler is (still) to find a node for a pod
// that uses the claim. Without one, giving up the selected node would leave the
// claim without a node for ever.
func (r podReader) schedulable(
	ctx context.Context,
	claim *corev1.PersistentVolumeClaim,
) (bool, error) {
	pods, err := r.using(ctx, claim, "")
	return len(pods) > 0, err
}

// using lists the unscheduled pods that use the claim. resourceVersion "" reads
// the newest state, "0" what the API server has at hand.
func (r podReader) using(
	ctx context.Context,
	claim *corev1.PersistentVolumeClaim,
	resourceVersion string,
) ([]corev1.Pod, error) {
	var list corev1.PodList
	// The API server leaves out what has a node: in a namespace of thousands of
	// pods that is nearly all.
	opts := &client.ListOptions{
		Namespace:     claim.Namespace,
		FieldSelector: fields.OneTermEqualSelector("spec.nodeName", ""),
		Raw:           &metav1.ListOptions{ResourceVersion: resourceVersion},
	}
	if err := r.live.List(ctx, &list, opts); err != nil {
		return nil, &apiError{fmt.Sprintf("list the pods of namespace %s", claim.Namespace), err}
	}
	return slices.DeleteFunc(list.Items, func(pod corev1.Pod) bool {
		gone := pod.DeletionTimestamp != nil || pod.Status.Phase == corev1.PodSucceeded ||
			pod.Status.Phase == corev1.PodFailed
		return gone || pod.Spec.NodeName != "" || !slices.Contains(claimNames(&pod), claim.Name)
	}), nil
}

// claimNames are the names of all claims of a pod, those of its ephemeral
// volumes included (named <pod>-<volume>).
func claimNames(pod *corev1.Pod) []string {
	var names []string
	for _, v := range pod.Spec.Volumes {
		switch {
		case v.PersistentVolumeClaim != nil:
			names = append(names, v.PersistentVolumeClaim.ClaimName)
		case v.Ephemeral != nil:
			names = append(names, pod.Name+"-"+v.Name)
		}
	}
	return names
}

// claimsOf lists a namespace's claims from a cache, those that are not bound at
// least.
type claimsOf func(ctx context.Context, namespace string) ([]corev1.PersistentVolumeClaim, error)

// admissionGroup is the claims that are to be admitted together with this one:
// those of its pod that ours is to provision, that are unbound, and that the
// scheduler gave this very node. Nil where it stands alone.
//
// The scheduler writes the selected node into one claim after the other, so for
// some seconds one without a node belongs to the group as well. Agents wait no
// longer for what does not come (nodeagent/groups.go): its pod cannot be
// scheduled, while another one that uses this claim was, or the scheduler never
// got to it.
func (r podReader) admissionGroup(
	ctx context.Context,
	claim *corev1.PersistentVolumeClaim,
	claims claimsOf,
	ours func(*corev1.PersistentVolumeClaim) bool,
) (*v1alpha1.AdmissionGroup, error) {
	node := claim.Annotations[annSelectedNode]
	if node == "" {
		return nil, nil
	}

	all, err := claims(ctx, claim.Namespace)
	if err != nil {
		return nil, err
	}

	candidates := map[string]*corev1.PersistentVolumeClaim{}
	for i := range all {
		c := &all[i]
		chosen := c.Annotations[annSelectedNode]
		if c.UID != claim.UID && c.Spec.VolumeName == "" && c.DeletionTimestamp == nil &&
			(chosen == "" || chosen == node) &&
			ours(c) {
			candidates[c.Name] = c
		}
	}

	if len(candidates) == 0 {
		return nil, nil // the common case, and it costs no call
	}

	pods, err := r.using(ctx, claim, "0")
	if err == nil && len(pods) == 0 {
		// What the API server has at hand may be of before the pod was made.
		pods, err = r.using(ctx, claim, "")
	}
	if err != nil || len(pods) == 0 {
		return nil, err
	}

	pod := groupingPod(pods, candidates)
	group := &v1alpha1.AdmissionGroup{Name: string(pod.UID), Claims: []types.UID{claim.UID}}
	for _, name := range claimNames(pod) {
		if c := candidates[name]; c != nil && !slices.Contains(group.Claims, c.UID) {
			group.Claims = append(group.Claims, c.UID)
		}
	}

	if len(group.Claims) < 2 {
		return nil, nil
	}

	slices.Sort(group.Claims)
	return group, nil
}

// groupingPod is the pod, of those that use a claim, whose claims are admitted
// together: one all of whose candidates have the node already, which is what
// the scheduler has decided for, before one that waits for the scheduler; and
// of those the oldest, so that every claim of it comes to the same answer.
func groupingPod(
	pods []corev1.Pod,
	candidates map[string]*corev1.PersistentVolumeClaim,
) *corev1.Pod {
	incomplete := func(pod *corev1.Pod) int {
		for _, name := range claimNames(pod) {
			if c := candidates[name]; c != nil && c.Annotations[annSelectedNode] == "" {
				return 1
			}
		}
		return 0
	}
	pod := slices.MinFunc(pods, func(a, b corev1.Pod) int {
		return cmp.Or(
			cmp.Compare(incomplete(&a), incomplete(&b)),
			a.CreationTimestamp.Compare(b.CreationTimestamp.Time),
			cmp.Compare(a.UID, b.UID),
		)
	})
	return &pod
}

// spreadGroup names the volumes that a claim's is to be kept apart from: those
// of the workload whose pod uses it. Without a pod, or with one of no
// controller's, they are those of claims that differ in their last number, as a
// StatefulSet's do.
func (r podReader) spreadGroup(
	ctx context.Context,
	claim *corev1.PersistentVolumeClaim,
) (string, error) {
	pods, err := r.using(ctx, claim, "0")
	if err != nil {
		return "", err
	}

	for i := range pods {
		if owner := metav1.GetControllerOf(&pods[i]); owner != nil {
			return fmt.Sprintf("%s/%s/%s", claim.Namespace, owner.Kind, owner.Name), nil
		}
	}

	name := strings.TrimRight(claim.Name, "0123456789")
	return fmt.Sprintf("%s/claims/%s", claim.Namespace, strings.TrimSuffix(name, "-")), nil
}
