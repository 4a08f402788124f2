package provisioner

import (
	"context"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

// A pod with spec.nodeName goes past the scheduler, but only the scheduler
// chooses the node of a claim. The claim waits for its first consumer for ever,
// and so does the pod. Nothing in Kubernetes says so, so this emits an event.

const (
	// bypassAfter is how long a claim waits before its namespace is searched
	// for such a pod: others have a node by then.
	bypassAfter = 20 * time.Second
	// bypassEvery bounds how often a namespace is searched, for whatever
	// claims.
	bypassEvery = 5 * time.Minute
)

// bypasses remembers the pods that name their node themselves, by namespace,
// and which claims were told.
type bypasses struct {
	mu    sync.Mutex
	in    map[string]bypassed // by namespace
	tells map[types.UID]time.Time
}

// bypassed is what a look at a namespace's pods found.
type bypassed struct {
	at   time.Time
	pods map[string]bypassing // by claim
}

type bypassing struct{ pod, node string }

// bypassed warns if a pod that uses the claim names its node itself.
func (a *unschedulableReporter) bypassed(
	ctx context.Context,
	claim *corev1.PersistentVolumeClaim,
) error {
	since := claim.CreationTimestamp.Add(bypassAfter)
	if a.now().Before(since) {
		return nil
	}

	found, err := a.bypasses.look(ctx, a.door.live, claim.Namespace, since, a.now())
	if err != nil {
		return err
	}
	if by, bypasses := found.pods[claim.Name]; bypasses && a.bypasses.tell(claim.UID, a.now()) {
		a.door.events.Eventf(
			claim,
			nil,
			corev1.EventTypeWarning,
			v1alpha1.EventPodBypassesScheduler,
			"Schedule",
			"pod %s names node %s itself (spec.nodeName), so no scheduler chooses the claim's "+
				"node, and both wait for ever; "+
				"give the pod a nodeSelector or a node affinity instead",
			by.pod,
			by.node,
		)
	}

	return nil
}

// look searches a namespace, unless that was done since, or a little while ago.
func (b *bypasses) look(
	ctx context.Context,
	live client.Reader,
	namespace string,
	since, now time.Time,
) (bypassed, error) {
	b.mu.Lock()
	defer b.mu.Unlock()

	last, looked := b.in[namespace]
	if looked && (last.at.After(since) || now.Sub(last.at) < bypassEvery) &&
		now.Sub(last.at) < 2*bypassEvery {
		return last, nil
	}

	var pods corev1.PodList
	opts := &client.ListOptions{
		Namespace: namespace,
		Raw:       &metav1.ListOptions{ResourceVersion: "0"},
	}
	if err := live.List(ctx, &pods, opts); err != nil {
		return bypassed{}, &apiError{"list the pods of namespace " + namespace, err}
	}

	found := bypassed{at: now, pods: map[string]bypassing{}}
	for i := range pods.Items {
		pod := &pods.Items[i]
		if pod.Spec.NodeName == "" || pod.Status.Phase != corev1.PodPending ||
			pod.DeletionTimestamp != nil {
			continue
		}
		for _, name := range claimNames(pod) {
			found.pods[name] = bypassing{pod.Name, pod.Spec.NodeName}
		}
	}

	for other, at := range b.in {
		if now.Sub(at.at) > 2*bypassEvery {
			delete(b.in, other)
		}
	}

	if b.in == nil {
		b.in = map[string]bypassed{}
	}

	b.in[namespace] = found
	return found, nil
}

// tell reports whether the event is to be emitted on a claim (again).
func (b *bypasses) tell(claim types.UID, now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()

	for uid, at := range b.tells {
		if now.Sub(at) >= reportAgain {
			delete(b.tells, uid)
		}
	}

	if _, told := b.tells[claim]; told {
		return false
	}
	if b.tells == nil {
		b.tells = map[types.UID]time.Time{}
	}

	b.tells[claim] = now
	return true
}
