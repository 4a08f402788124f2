package diagnose

import (
	"cmp"
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

// nearlyFull is the part of a pool's capacity below which its room is said to
// end: the alert QuarryPoolNearlyFull has the same.
const nearlyFull = 0.1

// Pool is a pool as its Pool object tells of it. Its fields are part of what the
// commands print as JSON.
type Pool struct {
	// Name is the Pool object's, <node>.<pool>.
	Name  string `json:"name"`
	Node  string `json:"node"`
	Pool  string `json:"pool"`
	Path  string `json:"path,omitempty"`
	UID   string `json:"uid,omitempty"`
	Ready bool   `json:"ready"`
	// State is Ready, or the reason why it is not; Stale if its node's agent
	// does not look after it, so that the rest is as of before.
	State   string `json:"state"`
	Message string `json:"message,omitempty"`
	Stale   bool   `json:"stale,omitempty"`

	Filesystem string                `json:"filesystem,omitempty"`
	Features   v1alpha1.PoolFeatures `json:"features"`
	Labels     map[string]string     `json:"labels,omitempty"`

	CapacityBytes      int64 `json:"capacityBytes"`
	PromisedBytes      int64 `json:"promisedBytes"`
	AvailableBytes     int64 `json:"availableBytes"`
	LargestVolumeBytes int64 `json:"largestVolumeBytes"`
	// Volumes are those on its disk, and Orphaned those of them that no Volume
	// object speaks of.
	Volumes  int         `json:"volumes"`
	Orphaned int         `json:"orphaned"`
	Created  metav1.Time `json:"created"`
}

// PoolOf tells of one Pool object. stale says that its agent does not look after
// it now.
func PoolOf(p *v1alpha1.Pool, stale bool) Pool {
	out := Pool{
		Name: p.Name, Node: p.Spec.NodeName, Pool: p.Spec.Pool, Path: p.Status.Path, UID: p.Spec.UID,
		Ready: readyPool(p), State: "Unknown", Stale: stale,
		Filesystem: p.Status.Filesystem, Features: p.Status.Features, Labels: p.Labels,
		CapacityBytes:      bytesOf(p.Status.Capacity),
		PromisedBytes:      bytesOf(p.Status.Promised),
		AvailableBytes:     bytesOf(p.Status.Available),
		LargestVolumeBytes: bytesOf(p.Status.MaximumVolumeSize),
		Volumes:            int(p.Status.Volumes),
		Orphaned:           int(p.Status.Orphaned),
		Created:            p.CreationTimestamp,
	}
	if ready := meta.FindStatusCondition(p.Status.Conditions, v1alpha1.ConditionReady); ready != nil {
		out.State, out.Message = cmp.Or(ready.Reason, "Unknown"), ready.Message
	}
	return out
}

// poolsOf are the pools by node and name. Those whose node has no ready agent
// are stale.
func (c *Cluster) poolsOf(nodes []Node) []Pool {
	out, watched := make([]Pool, 0, len(c.Pools)), watchedNodes(nodes)
	for i := range c.Pools {
		p := &c.Pools[i]
		out = append(out, PoolOf(p, !watched[p.Spec.NodeName]))
	}
	slices.SortFunc(out, func(a, b Pool) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// watchedNodes are those on which an agent looks after what is there.
func watchedNodes(nodes []Node) map[string]bool {
	out := map[string]bool{}
	for i := range nodes {
		out[nodes[i].Name] = nodes[i].Ready && nodes[i].Agent == AgentReady
	}
	return out
}

func readyPool(p *v1alpha1.Pool) bool {
	return meta.IsStatusConditionTrue(p.Status.Conditions, v1alpha1.ConditionReady)
}

// poolFindings says what is wrong with pools. What is known only of before, of
// a node that nobody looks after, is not: the node is what is wrong there.
func (c *Cluster) poolFindings(nodes []Node) []Finding {
	var out []Finding
	watched := watchedNodes(nodes)
	for i := range c.Pools {
		p := &c.Pools[i]
		if watched[p.Spec.NodeName] {
			out = append(out, poolFindings(p)...)
		}
	}
	return out
}

func poolFindings(p *v1alpha1.Pool) []Finding {
	var out []Finding
	add := func(severity Severity, reason, message string, r remedy, since *metav1.Time) {
		out = append(out, Finding{
			Severity: severity, Kind: KindPool, Name: p.Name, Node: p.Spec.NodeName,
			Reason: reason, Message: message, Remedy: r.do, Runbook: r.runbook, Since: since,
		})
	}

	ready := meta.FindStatusCondition(p.Status.Conditions, v1alpha1.ConditionReady)
	switch {
	case ready == nil:
		add(Warning, ReasonNotWatched, "its agent has not said anything of it yet",
			remedy{"the agent's log says what it waits for", chapter("a-pool-is-offline")}, nil)
	case ready.Status != metav1.ConditionTrue:
		severity := Critical
		if ready.Reason == "NotConfigured" && p.Status.Volumes == 0 || ready.Reason == "Loading" {
			severity = Warning
		}
		add(severity, ready.Reason, ready.Message, known(ofPools, ready.Reason,
			remedy{"kubectl describe pools.quarry.storage " + p.Name,
				chapter("a-pool-is-offline")}), &ready.LastTransitionTime)
	default:
		if text := nearlyFullText(p); text != "" {
			add(Warning, ReasonNearlyFull, text, remedy{"delete volumes, purge trash (kubectl quarry " +
				"trash list), or add a disk as another pool", chapter("a-disk-is-full")}, nil)
		}
	}

	if c := meta.FindStatusCondition(p.Status.Conditions,
		v1alpha1.ConditionSharedIdentity); c != nil && c.Status == metav1.ConditionTrue {
		add(Critical, v1alpha1.ConditionSharedIdentity, c.Message, remedy{"two nodes must never use " +
			"one disk: take it from one of them, or delete the Pool object that was left behind",
			chapter("a-pool-is-offline")}, &c.LastTransitionTime)
	}
	if c := meta.FindStatusCondition(p.Status.Conditions,
		v1alpha1.ConditionOrphans); c != nil && c.Status == metav1.ConditionTrue {
		add(Warning, v1alpha1.ConditionOrphans, c.Message, remedy{"kubectl quarry recover shows what " +
			"they are; nothing happens to them by itself",
			"docs/guides/kubectl-quarry.md#recovery"}, &c.LastTransitionTime)
	}
	return out
}

// nearlyFullText says how little room a pool has; empty if that is enough.
func nearlyFullText(p *v1alpha1.Pool) string {
	capacity, available := bytesOf(p.Status.Capacity), bytesOf(p.Status.Available)
	switch {
	case capacity <= 0:
		return "there is no room at all: its filesystem is smaller than what is to stay free (reserve)"
	case float64(available) >= nearlyFull*float64(capacity):
		return ""
	}
	return fmt.Sprintf("%s of %s can still be promised", Size(available), Size(capacity))
}

// bytesOf is a quantity in bytes; 0 where nothing is said.
func bytesOf(q *resource.Quantity) int64 {
	if q == nil {
		return 0
	}
	return q.Value()
}

// Size is a number of bytes as people read it: 1536Mi is 1.5Gi.
func Size(n int64) string {
	units := []string{"B", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"}
	value, unit := float64(n), 0
	for value >= 1024 && unit < len(units)-1 {
		value, unit = value/1024, unit+1
	}
	if value >= 100 || value == float64(int64(value)) {
		return fmt.Sprintf("%.0f%s", value, units[unit])
	}
	return fmt.Sprintf("%.1f%s", value, units[unit])
}

// count is a number of things in words: "1 volume", "2 volumes".
func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// PoolSortKeys are what SortPools takes.
var PoolSortKeys = []string{"name", "available", "capacity", "volumes", "state"}

// SortPools orders pools by one of PoolSortKeys: those with the least room or
// what is wrong first, capacity and volumes with the most first. Names decide
// between equals.
func SortPools(all []Pool, by string) {
	compare := map[string]func(a, b *Pool) int{
		"name":      func(a, b *Pool) int { return 0 },
		"available": func(a, b *Pool) int { return cmp.Compare(a.AvailableBytes, b.AvailableBytes) },
		"capacity":  func(a, b *Pool) int { return cmp.Compare(b.CapacityBytes, a.CapacityBytes) },
		"volumes":   func(a, b *Pool) int { return cmp.Compare(b.Volumes, a.Volumes) },
		"state": func(a, b *Pool) int {
			well := func(p *Pool) int {
				if p.Ready && !p.Stale {
					return 1
				}
				return 0
			}
			return cmp.Or(cmp.Compare(well(a), well(b)), cmp.Compare(a.State, b.State))
		},
	}[by]
	slices.SortFunc(all, func(a, b Pool) int {
		return cmp.Or(compare(&a, &b), cmp.Compare(a.Name, b.Name))
	})
}
