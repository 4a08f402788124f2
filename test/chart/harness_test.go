// Package chart tests the Helm chart by rendering it as Helm does and reading
// what comes out. It needs no cluster and no root; what only a cluster can show
// is in the end-to-end tests.
package chart

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"helm.sh/helm/v3/pkg/chart"
	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/yaml"
)

const (
	repository = "../.."
	namespace  = "storage"
)

type values = map[string]any

// withCSI are the values that turn everything on.
func withCSI() values {
	return values{"csi": values{"enabled": true, "sidecarRegistry": "localhost"}}
}

func load(t *testing.T) *chart.Chart {
	t.Helper()
	c, err := loader.Load(filepath.Join(repository, "charts/quarry"))
	require.NoError(t, err)
	return c
}

// renderFiles renders the chart as release "q" of the namespace and returns the
// files by name.
func renderFiles(t *testing.T, v values) (map[string]string, error) {
	t.Helper()
	return renderFilesFor(t, "v1.36.3", v)
}

// renderFilesFor does so for a cluster of that version.
func renderFilesFor(t *testing.T, kubernetes string, v values) (map[string]string, error) {
	t.Helper()
	c := load(t)
	capabilities := chartutil.DefaultCapabilities.Copy()
	version, err := chartutil.ParseKubeVersion(kubernetes)
	require.NoError(t, err)
	capabilities.KubeVersion = *version
	options := chartutil.ReleaseOptions{Name: "q", Namespace: namespace, IsInstall: true}
	rendered, err := chartutil.ToRenderValues(c, v, options, capabilities)
	if err != nil {
		return nil, err
	}
	return engine.Render(c, rendered)
}

// render returns the rendered objects, decoded strictly: a field the API does
// not have fails the test. Objects of kinds that are not Kubernetes' own (the
// ServiceMonitor) are left out.
func render(t *testing.T, v values) []runtime.Object {
	t.Helper()
	files, err := renderFiles(t, v)
	require.NoError(t, err)
	var objects []runtime.Object
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if strings.HasSuffix(name, ".yaml") {
			objects = append(objects, decode(t, name, files[name])...)
		}
	}
	return objects
}

// decode decodes all documents of a file, strictly.
func decode(t *testing.T, name, text string) []runtime.Object {
	t.Helper()
	decoder := serializer.NewCodecFactory(scheme.Scheme, serializer.EnableStrict).UniversalDeserializer()
	var objects []runtime.Object
	for doc := range strings.SplitSeq("\n"+text, "\n---") {
		var content map[string]any
		require.NoError(t, yaml.UnmarshalStrict([]byte(doc), &content), name)
		if len(content) == 0 {
			continue
		}
		o, _, err := decoder.Decode([]byte(doc), nil, nil)
		if runtime.IsNotRegisteredError(err) {
			continue
		}
		require.NoError(t, err, "%s: %s", name, doc)
		objects = append(objects, o)
	}
	return objects
}

// of returns the objects of one kind.
func of[T runtime.Object](objects []runtime.Object) (found []T) {
	for _, o := range objects {
		if typed, ok := o.(T); ok {
			found = append(found, typed)
		}
	}
	return found
}

// only returns the one object of its kind.
func only[T runtime.Object](t *testing.T, objects []runtime.Object) T {
	t.Helper()
	found := of[T](objects)
	require.Len(t, found, 1)
	return found[0]
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(repository, path))
	require.NoError(t, err)
	return string(b)
}
