package diagnose

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

// Selectors say which pods are Quarry's.
type Selectors struct {
	// Namespace is the one that Quarry is installed in; empty: any.
	Namespace          string
	Agent, Controllers labels.Selector
}

// Cluster is what the API server said at one time.
type Cluster struct {
	At time.Time

	Nodes   map[string]*corev1.Node
	Pools   []v1alpha1.Pool
	Volumes []v1alpha1.Volume
	PVs     []corev1.PersistentVolume
	Claims  []corev1.PersistentVolumeClaim
	Classes map[string]*storagev1.StorageClass
	// Agents and Controllers are Quarry's own pods.
	Agents, Controllers []corev1.Pod
	// Pods and Events are those of claims that wait. Events are about claims,
	// and about pods that no node was found for.
	Pods   []corev1.Pod
	Events []corev1.Event
}

// fewNamespaces is up to how many namespaces with claims that wait are asked
// each by itself for pods and events; beyond it one question costs less.
const fewNamespaces = 8

// Look reads a cluster. Everything is read live, what others refer to first, so
// that a reference to something that was made meanwhile is not taken for a
// broken one. It is an error if any of it cannot be read: half of a look would
// say that all is well. The error satisfies meta.IsNoMatchError where Quarry's
// kinds do not exist, and apierrors.IsForbidden where a right is missing.
func Look(ctx context.Context, reader client.Reader, s Selectors, now time.Time) (*Cluster, error) {
	var (
		nodes    corev1.NodeList
		pools    v1alpha1.PoolList
		volumes  v1alpha1.VolumeList
		pvs      corev1.PersistentVolumeList
		claims   corev1.PersistentVolumeClaimList
		classes  storagev1.StorageClassList
		agents   corev1.PodList
		managers corev1.PodList
	)
	for _, l := range []struct {
		what    string
		list    client.ObjectList
		options []client.ListOption
	}{
		{"Pools", &pools, nil},
		{"StorageClasses", &classes, nil},
		{"claims", &claims, nil},
		{"PersistentVolumes", &pvs, nil},
		{"Volumes", &volumes, nil},
		{"Nodes", &nodes, nil},
		{"the agents' pods", &agents, ours(s.Namespace, s.Agent)},
		{"the controller's pods", &managers, ours(s.Namespace, s.Controllers)},
	} {
		if err := reader.List(ctx, l.list, l.options...); err != nil {
			return nil, fmt.Errorf("list %s: %w", l.what, err)
		}
	}

	c := &Cluster{
		At:          now,
		Nodes:       map[string]*corev1.Node{},
		Pools:       pools.Items,
		Volumes:     volumes.Items,
		PVs:         pvs.Items,
		Claims:      claims.Items,
		Classes:     map[string]*storagev1.StorageClass{},
		Agents:      agents.Items,
		Controllers: managers.Items,
	}
	for i := range nodes.Items {
		c.Nodes[nodes.Items[i].Name] = &nodes.Items[i]
	}

	for i := range classes.Items {
		c.Classes[classes.Items[i].Name] = &classes.Items[i]
	}

	return c, c.lookAtWaiting(ctx, reader)
}

// LookAtPools is Look for the pools alone, and who looks after them.
func LookAtPools(ctx context.Context, reader client.Reader, s Selectors, now time.Time) (
	*Cluster, error) {
	var (
		nodes  corev1.NodeList
		pools  v1alpha1.PoolList
		agents corev1.PodList
	)
	if err := reader.List(ctx, &pools); err != nil {
		return nil, fmt.Errorf("list Pools: %w", err)
	}
	if err := reader.List(ctx, &nodes); err != nil {
		return nil, fmt.Errorf("list Nodes: %w", err)
	}
	if err := reader.List(ctx, &agents, ours(s.Namespace, s.Agent)...); err != nil {
		return nil, fmt.Errorf("list the agents' pods: %w", err)
	}

	c := &Cluster{
		At:     now,
		Nodes:  map[string]*corev1.Node{},
		Pools:  pools.Items,
		Agents: agents.Items,
	}
	for i := range nodes.Items {
		c.Nodes[nodes.Items[i].Name] = &nodes.Items[i]
	}

	return c, nil
}

// PoolsNow are the pools of the look, by name.
func (c *Cluster) PoolsNow() []Pool { return c.poolsOf(c.nodes()) }

func ours(namespace string, selector labels.Selector) []client.ListOption {
	return []client.ListOption{
		client.InNamespace(namespace),
		client.MatchingLabelsSelector{Selector: selector},
	}
}

// lookAtWaiting reads what says why claims wait, and nothing where none does.
func (c *Cluster) lookAtWaiting(ctx context.Context, reader client.Reader) error {
	in := map[string]bool{}
	for i := range c.Claims {
		if claim := &c.Claims[i]; c.waits(claim) {
			in[claim.Namespace] = true
		}
	}

	if len(in) > fewNamespaces {
		in = map[string]bool{"": true}
	}

	about := func(field, value string, more ...fields.Selector) client.ListOption {
		all := append(more, fields.OneTermEqualSelector(field, value))
		return client.MatchingFieldsSelector{Selector: fields.AndSelectors(all...)}
	}
	for namespace := range in {
		var (
			pods                  corev1.PodList
			ofClaims, ofSchedules corev1.EventList
		)
		for _, l := range []struct {
			what   string
			list   client.ObjectList
			option client.ListOption
		}{
			{"pods", &pods, nil},
			{"events of claims", &ofClaims, about("involvedObject.kind", KindClaim)},
			{"events of pods", &ofSchedules, about("involvedObject.kind", "Pod",
				fields.OneTermEqualSelector("reason", ReasonUnschedulable))},
		} {
			options := []client.ListOption{client.InNamespace(namespace)}
			if l.option != nil {
				options = append(options, l.option)
			}

			if err := reader.List(ctx, l.list, options...); err != nil {
				return fmt.Errorf("list %s: %w", l.what, err)
			}
		}

		c.Pods = append(c.Pods, pods.Items...)
		c.Events = append(c.Events, ofClaims.Items...)
		c.Events = append(c.Events, ofSchedules.Items...)
	}

	return nil
}

// since is how long ago a time was, at the time of the look.
func (c *Cluster) since(t time.Time) time.Duration { return c.At.Sub(t) }
