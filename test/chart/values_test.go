package chart

import (
	"bytes"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

func TestUnknownValuesAreRefused(t *testing.T) {
	pool := func(field string, value any) values {
		return values{"pools": []any{values{"name": "a", "path": "/a", field: value}}}
	}
	for name, v := range map[string]values{
		"top":                {"replicas": 3},
		"controller":         {"controller": values{"replica": 3}},
		"agent":              {"agent": values{"hostNetwork": true}},
		"pool":               pool("requireMountPoint", true),
		"pool name":          pool("name", "a.b"),
		"pool path relative": pool("path", "volumes"),
		"pool path dotdot":   pool("path", "/a/../etc"),
		"pool path slash":    pool("path", "/a/"),
		"pool root":          pool("path", "/"),
		"pool filesystem":    pool("defaultFilesystem", "ntfs"),
		"pool reserve":       pool("reserve", "lots"),
		"node":               {"nodes": values{"n": values{"pool": []any{}}}},
		"node name":          {"nodes": values{"N_1": values{"pools": []any{}}}},
		"class":              {"storageClass": values{"reclaim": "Delete"}},
		"class policy":       {"extraStorageClasses": []any{values{"name": "a", "reclaimPolicy": "Recycle"}}},
		"class provisioner":  {"extraStorageClasses": []any{values{"name": "a", "provisioner": "quarry.storage"}}},
		"class name":         {"extraStorageClasses": []any{values{"reclaimPolicy": "Delete"}}},
		"jobs":               {"heavyJobs": 0},
		"log level":          {"logLevel": "loud"},
		"image":              {"image": values{"registry": "example"}},
		"sidecar":            {"csi": values{"provisioner": values{"image": values{"digest": "x"}}}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := renderFiles(t, v)
			require.Error(t, err)
		})
	}
}

func TestCSINeedsToKnowWhereItsSidecarsAre(t *testing.T) {
	_, err := renderFiles(t, values{"csi": values{"enabled": true}})
	require.ErrorContains(t, err, "csi.sidecarRegistry")
}

func TestDefaultStorageClass(t *testing.T) {
	class := only[*storagev1.StorageClass](t, render(t, nil))
	require.Equal(t, "quarry", class.Name)
	require.Equal(t, "local.quarry.storage", class.Provisioner)
	require.Equal(t, storagev1.VolumeBindingWaitForFirstConsumer, *class.VolumeBindingMode)
	require.Equal(t, corev1.PersistentVolumeReclaimDelete, *class.ReclaimPolicy)
	require.True(t, *class.AllowVolumeExpansion)
	require.Equal(t, map[string]string{"backend": "auto"}, class.Parameters)
	require.NotContains(t, class.Annotations, "storageclass.kubernetes.io/is-default-class")
}

func TestStorageClasses(t *testing.T) {
	classes := of[*storagev1.StorageClass](render(t, values{
		"storageClass": values{"default": true},
		"csi":          values{"enabled": true, "sidecarRegistry": "localhost"},
		"extraStorageClasses": []any{values{
			"name": "kept", "reclaimPolicy": "Retain", "allowVolumeExpansion": false, "volumeBindingMode": "Immediate",
			"mountOptions": []any{"noatime"}, "parameters": values{"inodes": 1000, "enforcement": "none"},
		}},
	}))
	require.Len(t, classes, 3)
	byName := map[string]*storagev1.StorageClass{}
	for _, c := range classes {
		byName[c.Name] = c
	}
	require.Equal(t, "true", byName["quarry"].Annotations["storageclass.kubernetes.io/is-default-class"])
	require.Equal(t, "csi.quarry.storage", byName["quarry-csi"].Provisioner)
	kept := byName["kept"]
	require.Equal(t, "local.quarry.storage", kept.Provisioner)
	require.Equal(t, corev1.PersistentVolumeReclaimRetain, *kept.ReclaimPolicy)
	require.False(t, *kept.AllowVolumeExpansion)
	require.Equal(t, storagev1.VolumeBindingImmediate, *kept.VolumeBindingMode)
	require.Equal(t, []string{"noatime"}, kept.MountOptions)
	require.Equal(t, map[string]string{"inodes": "1000", "enforcement": "none"}, kept.Parameters,
		"numbers become the strings they look like")
	require.Empty(t, of[*storagev1.StorageClass](render(t, values{"storageClass": values{"create": false}})))
}

func TestCSIDrivers(t *testing.T) {
	drivers := of[*storagev1.CSIDriver](render(t, withCSI()))
	require.Len(t, drivers, 2)
	for _, d := range drivers {
		require.False(t, *d.Spec.AttachRequired, d.Name)
		require.True(t, *d.Spec.PodInfoOnMount, d.Name)
		require.ElementsMatch(t, []storagev1.VolumeLifecycleMode{storagev1.VolumeLifecyclePersistent,
			storagev1.VolumeLifecycleEphemeral}, d.Spec.VolumeLifecycleModes)
		require.Equal(t, storagev1.FileFSGroupPolicy, *d.Spec.FSGroupPolicy, d.Name)
		require.False(t, *d.Spec.SELinuxMount, d.Name)
		require.Nil(t, d.Spec.StorageCapacity, "the controller turns it on, and an upgrade must not turn it off again")
	}
	require.Equal(t, "local.quarry.storage", only[*storagev1.CSIDriver](t, render(t, nil)).Name)
}

// TestPodsKeepAwayFromNodesWithoutTheDriver: where the API server knows how,
// and never by a driver that no node has.
func TestPodsKeepAwayFromNodesWithoutTheDriver(t *testing.T) {
	for version, want := range map[string]bool{"v1.32.0": false, "v1.36.3": false, "v1.37.0": true,
		"v1.37.2-gke.100": true, "v1.40.1": true} {
		files, err := renderFilesFor(t, version, withCSI())
		require.NoError(t, err)
		for _, o := range decode(t, "csidrivers.yaml", files["quarry/templates/csidrivers.yaml"]) {
			driver := o.(*storagev1.CSIDriver)
			prevents := driver.Spec.PreventPodSchedulingIfMissing != nil && *driver.Spec.PreventPodSchedulingIfMissing
			require.Equal(t, want && driver.Name == "csi.quarry.storage", prevents, "%s on %s", driver.Name, version)
		}
	}
}

// TestCapacity: the values reach the controller's command.
func TestCapacity(t *testing.T) {
	args := func(v values) []string {
		return only[*appsv1.Deployment](t, render(t, v)).Spec.Template.Spec.Containers[0].Args
	}
	require.NotContains(t, args(nil), "--ignore-capacity")
	require.Contains(t, args(values{"capacity": values{"check": false}}), "--ignore-capacity")
	require.Contains(t, args(values{"capacity": values{"templateNodeSize": "100Gi"}}), "--template-node-size=100Gi")
	_, err := renderFiles(t, values{"capacity": values{"templateNodeSize": "a lot"}})
	require.Error(t, err)
}

// TestAgentConfig: what the values say about pools reaches the agent's file as
// it is, and a change restarts the agents.
func TestAgentConfig(t *testing.T) {
	config := func(v values) (text string) {
		return only[*corev1.ConfigMap](t, render(t, v)).Data["agent.yaml"]
	}
	v := values{
		"pools": []any{values{"name": "a", "path": "/a", "reserve": "20Gi", "overcommit": "1.0",
			"labels": values{"disk": "nvme"}}},
		"nodes":        values{"n1": values{"pools": []any{}}},
		"byClaimIndex": false, "heavyJobs": 3,
	}
	var got map[string]any
	require.NoError(t, yaml.Unmarshal([]byte(config(v)), &got))
	require.Equal(t, map[string]any{
		"pools": []any{map[string]any{"name": "a", "path": "/a", "reserve": "20Gi", "overcommit": "1.0",
			"labels": map[string]any{"disk": "nvme"}}},
		"nodes":        map[string]any{"n1": map[string]any{"pools": []any{}}},
		"byClaimIndex": false, "heavyJobs": float64(3),
	}, got)
}

func TestEveryObjectHasItsPlace(t *testing.T) {
	for _, o := range render(t, withCSI()) {
		m, err := meta.Accessor(o)
		require.NoError(t, err)
		require.Equal(t, "q", m.GetLabels()["app.kubernetes.io/instance"], m.GetName())
		switch o.GetObjectKind().GroupVersionKind().Kind {
		case "ConfigMap", "ServiceAccount", "Deployment", "DaemonSet", "Role", "RoleBinding", "PodDisruptionBudget",
			"Service", "ResourceQuota":
			if m.GetNamespace() == "kube-node-lease" {
				require.Equal(t, "q-quarry-agent", m.GetName(), "it asks there whether a node exists")
				continue
			}
			require.Equal(t, namespace, m.GetNamespace(), m.GetName())
		default:
			require.Equal(t, metav1.NamespaceNone, m.GetNamespace(), m.GetName())
		}
	}
}

func TestRenderingIsDeterministic(t *testing.T) {
	v := withCSI()
	v["nodes"] = values{"n1": values{"pools": []any{values{"name": "a", "path": "/x"}}},
		"n2": values{"pools": []any{values{"name": "a", "path": "/y"}}}}
	first, err := renderFiles(t, v)
	require.NoError(t, err)
	for range 5 {
		again, err := renderFiles(t, v)
		require.NoError(t, err)
		require.Equal(t, first, again)
	}
}

// TestCRDsStay: Helm installs what is in crds/ and never deletes it; in
// templates/ an uninstall would take every record along.
func TestCRDsStay(t *testing.T) {
	c := load(t)
	require.Len(t, c.CRDObjects(), 3)
	for _, f := range c.Templates {
		require.False(t, bytes.Contains(f.Data, []byte("kind: CustomResourceDefinition")), f.Name)
	}
}

// TestVersions: `make image` tags what the chart asks for.
func TestVersions(t *testing.T) {
	c := load(t)
	require.Equal(t, c.Metadata.Version, c.Metadata.AppVersion)
	version := regexp.MustCompile(`(?m)^VERSION \?= (\S+)$`).FindStringSubmatch(readFile(t, "Makefile"))
	require.NotNil(t, version)
	require.Equal(t, c.Metadata.AppVersion, version[1])
}

// TestAlerts compares the alerts with the metrics there are, and with the page
// that explains them.
func TestAlerts(t *testing.T) {
	files, err := renderFiles(t,
		values{"metrics": values{"prometheusRule": values{"enabled": true, "labels": values{"release": "prometheus"}}}})
	require.NoError(t, err)
	var rule struct {
		Metadata metav1.ObjectMeta
		Spec     struct {
			Groups []struct {
				Rules []struct {
					Alert, Expr string
					Annotations map[string]string
				}
			}
		}
	}
	require.NoError(t, yaml.Unmarshal([]byte(files["quarry/templates/prometheusrule.yaml"]), &rule))
	require.Equal(t, "prometheus", rule.Metadata.Labels["release"])
	require.Len(t, rule.Spec.Groups, 1)
	require.Len(t, rule.Spec.Groups[0].Rules, 6)
	metrics, err := os.ReadFile("../../docs/reference/metrics.md")
	require.NoError(t, err)
	guide, err := os.ReadFile("../../docs/guides/monitoring.md")
	require.NoError(t, err)
	for _, r := range rule.Spec.Groups[0].Rules {
		names := regexp.MustCompile(`quarry_\w+`).FindAllString(r.Expr, -1)
		require.NotEmpty(t, names, r.Expr)
		for _, name := range names {
			require.Contains(t, string(metrics), "| `"+name+"` |")
		}
		require.Contains(t, string(guide), "| "+r.Alert+" | `"+strings.ReplaceAll(r.Expr, `{namespace="`+namespace+
			`"}`, "")+"`")
		require.NotEmpty(t, r.Annotations["summary"])
	}
	files, err = renderFiles(t, nil)
	require.NoError(t, err)
	require.Empty(t, strings.TrimSpace(files["quarry/templates/prometheusrule.yaml"]))
}
