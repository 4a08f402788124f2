package chart

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/runtime"
)

// example returns the objects of the files of one directory below examples/,
// decoded strictly.
func example(t *testing.T, dir string) []runtime.Object {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(repository, "examples", dir, "*.yaml"))
	require.NoError(t, err)
	require.NotEmpty(t, files)
	var objects []runtime.Object
	for _, file := range files {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		objects = append(objects, decode(t, file, string(text))...)
	}
	return objects
}

func TestExamplesAreComplete(t *testing.T) {
	root := filepath.Join(repository, "examples")
	require.NoError(t, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() || path == root {
			return err
		}
		dir, err := filepath.Rel(root, path)
		require.NoError(t, err)
		objects := example(t, dir)
		for _, s := range of[*appsv1.StatefulSet](objects) {
			for _, v := range s.Spec.VolumeClaimTemplates {
				requireClass(t, objects, dir, v.Spec.StorageClassName)
			}
		}
		for _, c := range of[*corev1.PersistentVolumeClaim](objects) {
			requireClass(t, objects, dir, c.Spec.StorageClassName)
		}
		// Every claim a pod names is there.
		claims := map[string]bool{}
		for _, c := range of[*corev1.PersistentVolumeClaim](objects) {
			claims[c.Name] = true
		}
		for _, p := range of[*corev1.Pod](objects) {
			for _, v := range p.Spec.Volumes {
				if v.PersistentVolumeClaim != nil {
					require.True(t, claims[v.PersistentVolumeClaim.ClaimName], "%s: claim %s", dir,
						v.PersistentVolumeClaim.ClaimName)
				}
			}
		}
		return nil
	}))
}

// requireClass: the class is one the chart makes, or one that comes with the
// example.
func requireClass(t *testing.T, objects []runtime.Object, dir string, name *string) {
	t.Helper()
	require.NotNil(t, name, "%s: an example names its class", dir)
	known := map[string]bool{}
	classes := append(of[*storagev1.StorageClass](render(t, withCSI())), of[*storagev1.StorageClass](objects)...)
	if strings.HasPrefix(dir, "easemesh") {
		classes = append(classes, of[*storagev1.StorageClass](example(t, "easemesh"))...)
	}
	for _, c := range classes {
		known[c.Name] = true
	}
	require.True(t, known[*name], "%s: class %s", dir, *name)
}

// TestEaseMesh holds the example to what emctl makes and looks for.
func TestEaseMesh(t *testing.T) {
	for _, c := range []struct{ dir, service, template, mount string }{
		{"easemesh", "easemesh-control-plane-hs", "control-plane-pvc", "/opt/easegress/control-plane-data"},
		{"easemesh/before-v1.3", "easemesh-controlplane-hs", "easegress-control-plane-pv", "/opt/eg-data/"},
	} {
		t.Run(c.dir, func(t *testing.T) {
			objects := example(t, c.dir)
			s := only[*appsv1.StatefulSet](t, objects)
			require.Equal(t, "easemesh-control-plane", s.Name)
			require.Equal(t, "easemesh", s.Namespace)
			require.Equal(t, c.service, s.Spec.ServiceName)
			require.Equal(t, int32(3), *s.Spec.Replicas)
			require.Empty(t, s.Spec.PodManagementPolicy, "OrderedReady, by default")
			require.Len(t, s.Spec.VolumeClaimTemplates, 1)
			template := s.Spec.VolumeClaimTemplates[0]
			require.Equal(t, c.template, template.Name)
			pod := s.Spec.Template.Spec
			require.Nil(t, pod.Affinity)
			require.Nil(t, pod.SecurityContext)
			require.Nil(t, pod.Containers[0].ReadinessProbe)
			require.Contains(t, pod.Containers[0].VolumeMounts, corev1.VolumeMount{Name: c.template,
				MountPath: c.mount})

			claims := map[string]*corev1.PersistentVolumeClaim{}
			nodes := map[string]bool{}
			for _, claim := range of[*corev1.PersistentVolumeClaim](objects) {
				claims[claim.Name] = claim
				nodes[claim.Annotations["volume.kubernetes.io/selected-node"]] = true
			}
			require.Len(t, claims, 3)
			require.Len(t, nodes, 3, "each on a node of its own")
			require.False(t, nodes[""])
			for i := range 3 {
				claim := claims[fmt.Sprintf("%s-easemesh-control-plane-%d", c.template, i)]
				require.NotNil(t, claim, "the StatefulSet takes claims by name")
				for _, spec := range []corev1.PersistentVolumeClaimSpec{claim.Spec, template.Spec} {
					require.Equal(t, "easemesh-storage", *spec.StorageClassName)
					require.Equal(t, []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, spec.AccessModes)
					require.True(t, spec.Resources.Requests[corev1.ResourceStorage].Equal(resource.MustParse("3Gi")))
					require.Nil(t, spec.VolumeMode)
				}
			}
			services := map[string]*corev1.Service{}
			for _, s := range of[*corev1.Service](objects) {
				services[s.Name] = s
			}
			require.Equal(t, corev1.ClusterIPNone, services[c.service].Spec.ClusterIP)
			require.Equal(t, corev1.ServiceTypeNodePort, services["easemesh-control-plane-public"].Spec.Type)
		})
	}
}

// TestLinks: what the documents and examples link to in the repository is
// there.
func TestLinks(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#\s]+)[^)]*\)`)
	for _, top := range []string{"docs", "examples", "CONTRIBUTING.md", "CHANGELOG.md"} {
		require.NoError(t, filepath.WalkDir(filepath.Join(repository, top), func(path string, d fs.DirEntry,
			err error) error {
			if err != nil || d.IsDir() || filepath.Ext(path) != ".md" {
				return err
			}
			text, err := os.ReadFile(path)
			require.NoError(t, err)
			for _, m := range link.FindAllStringSubmatch(string(text), -1) {
				if !strings.Contains(m[1], "://") {
					_, err := os.Stat(filepath.Join(filepath.Dir(path), m[1]))
					require.NoError(t, err, "in %s", path)
				}
			}
			return nil
		}))
	}
}
