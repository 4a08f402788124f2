package chart

import (
	"testing"

	"github.com/stretchr/testify/require"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/fake"
)

// cluster stands for the API server that Helm reads while it renders.
type cluster []runtime.Object

func (c cluster) GetClientFor(string, string) (dynamic.NamespaceableResourceInterface, bool, error) {
	nodes := schema.GroupVersionResource{Version: "v1", Resource: "nodes"}
	kinds := map[schema.GroupVersionResource]string{nodes: "NodeList"}
	return fake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), kinds, c...).Resource(nodes), false, nil
}

func nodeOf(name, system, kubelet string) runtime.Object {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "Node", "metadata": map[string]any{"name": name},
		"status": map[string]any{"nodeInfo": map[string]any{"osImage": system, "kubeletVersion": kubelet}},
	}}
}

// notes renders what helm install prints in a cluster of such nodes.
func notes(t *testing.T, v values, nodes ...runtime.Object) string {
	t.Helper()
	c := load(t)
	options := chartutil.ReleaseOptions{Name: "q", Namespace: namespace, IsInstall: true}
	rendered, err := chartutil.ToRenderValues(c, v, options, chartutil.DefaultCapabilities.Copy())
	require.NoError(t, err)
	files, err := engine.RenderWithClientProvider(c, rendered, cluster(nodes))
	require.NoError(t, err)
	return files["quarry/templates/NOTES.txt"]
}

// TestNotesKnowTheNodes: what would keep agents or volumes from starting on the
// systems that the nodes run is said at the install.
func TestNotesKnowTheNodes(t *testing.T) {
	const remarks = "About these nodes"
	at := func(path string) values {
		return values{"pools": []any{values{"name": "default", "path": path}}}
	}
	debian := nodeOf("a", "Debian GNU/Linux 13 (trixie)", "v1.36.3")
	for name, test := range map[string]struct {
		values values
		node   runtime.Object
		says   string // empty: nothing
	}{
		"Debian":            {nil, nodeOf("b", "Debian GNU/Linux 13 (trixie)", "v1.36.3"), ""},
		"Talos":             {nil, nodeOf("b", "Talos (v1.12.0)", "v1.36.3"), "below /var in place of /volumes"},
		"Talos, below /var": {at("/var/mnt/u-quarry"), nodeOf("b", "Talos (v1.12.0)", "v1.36.3"), "extraMounts"},
		"Fedora CoreOS": {nil, nodeOf("b", "Fedora CoreOS 43.20251110.3.1", "v1.36.3"),
			"* CoreOS: nothing can be made"},
		"CoreOS, below /var": {at("/var/quarry"), nodeOf("b", "Fedora CoreOS 43.20251110.3.1", "v1.36.3"), ""},
		"COS": {nil, nodeOf("b", "Container-Optimized OS from Google", "v1.36.3-gke.1"),
			"in place of /volumes"},
		"COS, a disk": {at("/mnt/disks/ssd0"), nodeOf("b", "Container-Optimized OS from Google",
			"v1.36.3-gke.1"), "requireMountpoint"},
		"Bottlerocket": {nil, nodeOf("b", "Bottlerocket OS 1.53.0 (aws-k8s-1.36)", "v1.36.3"),
			"in place of /volumes"},
		"Flatcar":         {nil, nodeOf("b", "Flatcar Container Linux by Kinvolk 4459.2.0 (Oklo)", "v1.36.3"), ""},
		"k0s without CSI": {nil, nodeOf("b", "Debian GNU/Linux 13 (trixie)", "v1.36.3+k0s"), ""},
		"k0s with CSI": {withCSI(), nodeOf("b", "Debian GNU/Linux 13 (trixie)", "v1.36.3+k0s"),
			"/var/lib/k0s/kubelet"},
		"k0s with CSI, set up": {values{"csi": withCSI()["csi"], "kubeletDir": "/var/lib/k0s/kubelet"}, nodeOf("b",
			"Debian", "v1.36.3+k0s"), ""},
	} {
		t.Run(name, func(t *testing.T) {
			text := notes(t, test.values, debian, test.node)
			require.Contains(t, text, "kubectl get pools.quarry.storage", "the notes are there")
			if test.says == "" {
				require.NotContains(t, text, remarks)
				return
			}
			require.Contains(t, text, remarks)
			require.Contains(t, text, test.says)
		})
	}
	// Without a cluster nothing is known.
	files, err := renderFiles(t, nil)
	require.NoError(t, err)
	require.NotContains(t, files["quarry/templates/NOTES.txt"], remarks)
}
