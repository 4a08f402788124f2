package diagnose

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/rest"
	statsv1alpha1 "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

const (
	// nodePatience is how long one node's kubelet is waited for; one that hangs
	// keeps nobody from seeing the others.
	nodePatience = 5 * time.Second
	nodesAtOnce  = 16
)

// ReadUsage asks the kubelets of some nodes how full the volumes of pods there
// are, by NAMESPACE/NAME of the claim, through the API server. unread says of
// which nodes it could not be read, and why. core is a client of the core API.
func ReadUsage(ctx context.Context, core rest.Interface, nodes []string) (
	usage map[string]*Usage, unread map[string]error) {
	usage, unread = map[string]*Usage{}, map[string]error{}
	var (
		mu    sync.Mutex
		group errgroup.Group
	)
	group.SetLimit(nodesAtOnce)

	for _, node := range nodes {
		group.Go(func() error {
			found, err := readNode(ctx, core, node)
			mu.Lock()
			defer mu.Unlock()

			if err != nil {
				unread[node] = err
			}

			maps.Copy(usage, found)
			return nil
		})
	}

	_ = group.Wait() // none of them returns an error
	return usage, unread
}

func readNode(ctx context.Context, core rest.Interface, node string) (map[string]*Usage, error) {
	ctx, cancel := context.WithTimeout(ctx, nodePatience)
	defer cancel()

	text, err := core.Get().Resource("nodes").Name(node).SubResource("proxy").
		Suffix("stats/summary").DoRaw(ctx)
	if err != nil {
		return nil, fmt.Errorf("ask kubelet of node %s: %w", node, err)
	}

	var summary statsv1alpha1.Summary
	if err := json.Unmarshal(text, &summary); err != nil {
		return nil, fmt.Errorf("read what kubelet of node %s says: %w", node, err)
	}

	return usageOf(&summary), nil
}

// usageOf is what a kubelet knows of claims. Of several pods with one claim the
// newest figure counts.
func usageOf(summary *statsv1alpha1.Summary) map[string]*Usage {
	out := map[string]*Usage{}
	number := func(n *uint64) int64 {
		if n == nil {
			return 0
		}
		return int64(*n)
	}
	for i := range summary.Pods {
		for _, v := range summary.Pods[i].VolumeStats {
			if v.PVCRef == nil || v.UsedBytes == nil {
				continue
			}

			key := v.PVCRef.Namespace + "/" + v.PVCRef.Name
			if have := out[key]; have != nil && !v.Time.After(have.At.Time) {
				continue
			}

			out[key] = &Usage{
				UsedBytes: number(v.UsedBytes), CapacityBytes: number(v.CapacityBytes),
				UsedInodes: number(v.InodesUsed), Inodes: number(v.Inodes), At: v.Time,
			}
		}
	}

	return out
}

// NodesOf are the nodes of some volumes that a pod may have, by name.
func NodesOf(all []Volume) []string {
	nodes := map[string]bool{}
	for i := range all {
		if all[i].Claim != "" {
			nodes[all[i].Node] = true
		}
	}
	return slices.Sorted(maps.Keys(nodes))
}
