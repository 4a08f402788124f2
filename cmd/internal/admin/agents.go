package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/kubernetes/scheme"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/streaming/pkg/httpstream"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

const (
	// container is the agent's in its pod, and program where the image has it.
	container = "agent"
	program   = "/quarry"
	// execPatience bounds one command in one pod.
	execPatience = time.Minute
	// execAtOnce is how many pods are asked at a time.
	execAtOnce = 16
)

// agents runs commands in the agents' pods, as `kubectl exec` does.
type agents struct {
	namespace, selector string
}

func (a *agents) flags(f *pflag.FlagSet) {
	f.StringVar(&a.namespace, "quarry-namespace", "",
		"the namespace Quarry is installed in (default: wherever its agents are)")
	f.StringVar(&a.selector, "agent-selector",
		"app.kubernetes.io/name=quarry,app.kubernetes.io/component=agent",
		"labels of the agents' pods")
}

// pods are the agents' pods by node; the running ones where there are several.
func (a *agents) pods(ctx context.Context, reader client.Reader) (map[string]*corev1.Pod, error) {
	selector, err := labels.Parse(a.selector)
	if err != nil {
		return nil, fmt.Errorf("--agent-selector: %w", err)
	}

	var list corev1.PodList
	if err := reader.List(ctx, &list, client.InNamespace(a.namespace),
		client.MatchingLabelsSelector{Selector: selector}); err != nil {
		return nil, fmt.Errorf("find the agents: %w", err)
	}

	byNode := map[string]*corev1.Pod{}
	for i := range list.Items {
		pod := &list.Items[i]
		if node := pod.Spec.NodeName; node != "" && (byNode[node] == nil || isReady(pod)) {
			byNode[node] = pod
		}
	}

	if len(byNode) == 0 {
		return nil, fmt.Errorf("no pod has the labels %s: install Quarry first, or say "+
			"--quarry-namespace and --agent-selector", a.selector)
	}

	return byNode, nil
}

func isReady(pod *corev1.Pod) bool {
	return pod.DeletionTimestamp == nil && slices.ContainsFunc(pod.Status.Conditions,
		func(c corev1.PodCondition) bool {
			return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
		})
}

// run runs the program in a pod and returns what it printed. The error has what
// it printed to standard error.
func run(ctx context.Context, config *rest.Config, pod *corev1.Pod, args ...string) ([]byte,
	error) {
	if pod.Status.Phase != corev1.PodRunning {
		return nil, fmt.Errorf("agent %s/%s is %s", pod.Namespace, pod.Name, pod.Status.Phase)
	}

	ctx, cancel := context.WithTimeout(ctx, execPatience)
	defer cancel()

	core, err := corev1client.NewForConfig(config)
	if err != nil {
		return nil, err
	}

	url := core.RESTClient().Post().
		Resource("pods").Namespace(pod.Namespace).Name(pod.Name).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{Container: container,
			Command: append([]string{program}, args...), Stdout: true, Stderr: true},
			scheme.ParameterCodec).URL()

	// Websockets first, SPDY where the API server or a proxy before it does not
	// know them, as kubectl does.
	websocket, err := remotecommand.NewWebSocketExecutor(config, "GET", url.String())
	if err != nil {
		return nil, err
	}

	spdy, err := remotecommand.NewSPDYExecutor(config, "POST", url)
	if err != nil {
		return nil, err
	}

	executor, err := remotecommand.NewFallbackExecutor(websocket, spdy, func(err error) bool {
		return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
	})
	if err != nil {
		return nil, err
	}

	var out, complaint bytes.Buffer
	if err := executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: &out,
		Stderr: &complaint}); err != nil {
		if text := strings.TrimSpace(complaint.String()); text != "" {
			err = fmt.Errorf("%w: %s", err, text)
		}
		return out.Bytes(), fmt.Errorf("%s %s in pod %s/%s: %w", program, strings.Join(args, " "),
			pod.Namespace, pod.Name, err)
	}

	return out.Bytes(), nil
}

// disks reads the disks of all nodes that have an agent, and says of which it
// could not, and why. A node that has pools and no agent is one of those.
func (a *agents) disks(ctx context.Context, config *rest.Config,
	reader client.Reader) (found []nodeListing, unread map[string]string, err error) {
	pods, err := a.pods(ctx, reader)
	if err != nil {
		return nil, nil, err
	}

	unread = map[string]string{}
	var pools v1alpha1.PoolList
	if err := reader.List(ctx, &pools); err != nil {
		return nil, nil, fmt.Errorf("list pools: %w", err)
	}

	for _, pool := range pools.Items {
		if node := pool.Spec.NodeName; pods[node] == nil {
			unread[node] = "it has a Pool, and no agent runs there"
		}
	}

	var mu sync.Mutex
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(execAtOnce)

	for node, pod := range pods {
		group.Go(func() error {
			out, err := run(ctx, config, pod, "ls", "-o", "json")
			l := nodeListing{node: node}
			if err == nil {
				err = json.Unmarshal(out, &l.pools)
			}

			mu.Lock()
			defer mu.Unlock()

			if err != nil {
				unread[node] = err.Error()
				return nil
			}

			found = append(found, l)
			return nil
		})
	}

	if err := group.Wait(); err != nil {
		return nil, nil, err
	}

	slices.SortFunc(found, func(a, b nodeListing) int { return strings.Compare(a.node, b.node) })
	return found, unread, nil
}
