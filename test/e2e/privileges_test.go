package e2e

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"k8s.io/apimachinery/pkg/runtime/schema"
)

// TestWhatAStolenNodeCanDo tries what somebody could who has taken a node, with
// the token of the node's agent.
func TestWhatAStolenNodeCanDo(t *testing.T) {
	ns := newNamespace(t)
	claim(t, ns, "mine", "quarry", "64Mi", onNode("node1"))
	claim(t, ns, "theirs", "quarry", "64Mi", onNode("node2"))
	mine, _ := volumeOf(t, bound(t, ns, "mine"))
	theirs, _ := volumeOf(t, bound(t, ns, "theirs"))

	token, err := cluster.Kubectl(t.Context(), "create", "token", "quarry-agent", "-n", quarryNamespace,
		"--bound-object-kind", "Pod", "--bound-object-name", agentOn(t, "node1"))
	require.NoError(t, err)
	config, err := clientcmd.BuildConfigFromFlags("", cluster.Kubeconfig())
	require.NoError(t, err)
	config = &rest.Config{Host: config.Host, BearerToken: strings.TrimSpace(string(token)),
		TLSClientConfig: rest.TLSClientConfig{CAData: config.CAData, CAFile: config.CAFile}}
	thief, err := dynamic.NewForConfig(config)
	require.NoError(t, err)
	typed, err := kubernetes.NewForConfig(config)
	require.NoError(t, err)
	ctx := t.Context()
	pools := schema.GroupVersionResource{Group: "quarry.storage", Version: "v1alpha1", Resource: "pools"}
	patch := func(r schema.GroupVersionResource, name, body string, sub ...string) error {
		_, err := thief.Resource(r).Patch(ctx, name, types.MergePatchType, []byte(body), metav1.PatchOptions{}, sub...)
		return err
	}
	pool := func(name, node, poolName string) *unstructured.Unstructured {
		return &unstructured.Unstructured{Object: map[string]any{"apiVersion": "quarry.storage/v1alpha1",
			"kind":     "Pool",
			"metadata": map[string]any{"name": name}, "spec": map[string]any{"nodeName": node, "pool": poolName}}}
	}

	// Its own, it may.
	require.NoError(t, patch(volumesResource, mine.GetName(), `{"status":{"observedGeneration":1}}`, "status"))
	require.NoError(t, patch(pools, "node1.default", `{"status":{"path":"/volumes"}}`, "status"))

	for what, err := range map[string]error{
		"another node's volume": patch(volumesResource, theirs.GetName(),
			`{"status":{"phase":"Deleted"}}`, "status"),
		"another node's pool": patch(pools, "node2.default",
			`{"status":{"available":"1Ti"}}`, "status"),
		"another node's pool's labels": patch(pools, "node2.default",
			`{"metadata":{"labels":{"kind":"fast"}}}`),
		"its own volume's wish": patch(volumesResource, mine.GetName(),
			`{"spec":{"desiredState":"Deleted"}}`),
		"its own volume's labels": patch(volumesResource, mine.GetName(),
			`{"metadata":{"labels":{"quarry.storage/pv-name":"x"}}}`),
		"its own volume's finalizers": patch(volumesResource, mine.GetName(),
			`{"metadata":{"finalizers":["a.b/c"]}}`),
		"an own pool moved to another node": patch(pools, "node1.default", `{"spec":{"nodeName":"node2"}}`),
		"a pool for another node": second(thief.Resource(pools).Create(ctx, pool("node2.stolen",
			"node2", "stolen"), metav1.CreateOptions{})),
		"a pool whose name says another's node": second(thief.Resource(pools).Create(ctx, pool("node2.stolen",
			"node1", "stolen"), metav1.CreateOptions{})),
		"deleting a volume": thief.Resource(volumesResource).Delete(ctx, theirs.GetName(),
			metav1.DeleteOptions{}),
		"deleting its own volume": thief.Resource(volumesResource).Delete(ctx, mine.GetName(), metav1.DeleteOptions{}),
		"secrets":                 second(typed.CoreV1().Secrets("").List(ctx, metav1.ListOptions{})),
		"pods":                    second(typed.CoreV1().Pods("").List(ctx, metav1.ListOptions{})),
		"PersistentVolumes":       second(typed.CoreV1().PersistentVolumes().List(ctx, metav1.ListOptions{})),
		"claims":                  second(typed.CoreV1().PersistentVolumeClaims("").List(ctx, metav1.ListOptions{})),
		"nodes":                   second(typed.CoreV1().Nodes().List(ctx, metav1.ListOptions{})),
	} {
		require.Error(t, err, what)
		require.True(t, strings.Contains(err.Error(), "forbidden") || strings.Contains(err.Error(), "denied") ||
			strings.Contains(err.Error(), "immutable"), "%s: %v", what, err)
	}
}

func second[T any](_ T, err error) error { return err }
