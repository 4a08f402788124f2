package diagnose

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/version"
	"sigs.k8s.io/yaml"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

// template is one of the chart's templates as it is for a release "quarry" in
// quarry-system with all that it can have.
func template(t testing.TB, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("../../charts/quarry/templates", name))
	require.NoError(t, err)
	s := regexp.MustCompile(`(?m)^\s*\{\{-[^}]*\}\}\s*\n`).ReplaceAllString(string(text), "")
	for from, to := range map[string]string{
		`{{ include "quarry.agentAccount" . }}`:      "quarry-agent",
		`{{ include "quarry.controllerAccount" . }}`: "quarry-controller",
		`{{ include "quarry.fullname" . }}`:          "quarry",
		`{{ .Release.Namespace }}`:                   "quarry-system",
	} {
		s = strings.ReplaceAll(s, from, to)
	}
	require.NotContains(t, s, "{{")
	return s
}

// decoded are the documents of a file that are of a kind.
func decoded[T any](t testing.TB, text, kind string) []T {
	t.Helper()
	var out []T
	for document := range strings.SplitSeq(text, "\n---\n") {
		var is metav1.TypeMeta
		require.NoError(t, yaml.Unmarshal([]byte(document), &is))
		if is.Kind != kind {
			continue
		}
		var o T
		require.NoError(t, yaml.Unmarshal([]byte(document), &o))
		out = append(out, o)
	}
	require.NotEmpty(t, out, kind)
	return out
}

// definitions are the chart's CustomResourceDefinitions, accepted by an API
// server.
func definitions(t testing.TB) map[string]*unstructured.Unstructured {
	t.Helper()
	out := map[string]*unstructured.Unstructured{}
	files, err := filepath.Glob("../../charts/quarry/crds/*.yaml")
	require.NoError(t, err)
	for _, file := range files {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		o := &unstructured.Unstructured{}
		require.NoError(t, yaml.Unmarshal(text, &o.Object))
		require.NoError(t, unstructured.SetNestedSlice(o.Object, []any{
			map[string]any{"type": "Established", "status": "True"}}, "status", "conditions"))
		out[o.GetName()] = o
	}
	return out
}

// sound is an installation with which nothing is wrong.
func sound(t testing.TB) *Install {
	c := healthy()
	admission := template(t, "admission.yaml")
	driver := &storagev1.CSIDriver{Spec: storagev1.CSIDriverSpec{AttachRequired: new(false), StorageCapacity: new(true)}}
	i := &Install{
		At: now, Server: &version.Info{GitVersion: "v1.36.3"}, Program: "1.0", Unread: map[string]error{},
		Kinds: definitions(t), Agents: c.Agents, Controllers: c.Controllers, Pools: c.Pools,
		DaemonSets:  []appsv1.DaemonSet{{ObjectMeta: metav1.ObjectMeta{Namespace: "quarry-system"}}},
		Deployments: []appsv1.Deployment{{ObjectMeta: metav1.ObjectMeta{Namespace: "quarry-system"}}},
		Namespace:   &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "quarry-system"}},
		Drivers:     map[string]*storagev1.CSIDriver{v1alpha1.LocalProvisioner: driver, v1alpha1.CSIDriver: driver},
		Policies:    decoded[admissionv1.ValidatingAdmissionPolicy](t, admission, "ValidatingAdmissionPolicy"),
		Bindings:    decoded[admissionv1.ValidatingAdmissionPolicyBinding](t, admission, "ValidatingAdmissionPolicyBinding"),
	}
	i.DaemonSets[0].Spec.Template.Spec.ServiceAccountName = "quarry-agent"
	i.Deployments[0].Spec.Template.Spec.ServiceAccountName = "quarry-controller"
	for _, pods := range [][]corev1.Pod{i.Agents, i.Controllers} {
		for n := range pods {
			pods[n].Labels = map[string]string{"app.kubernetes.io/version": "1.0"}
		}
	}
	for _, name := range []string{"a", "b"} {
		node := c.Nodes[name]
		node.Status.NodeInfo = corev1.NodeSystemInfo{OperatingSystem: "linux", KernelVersion: "5.14.0-427.el9.x86_64",
			KubeletVersion: "v1.35.0"}
		i.Nodes = append(i.Nodes, *node)
		i.CSINodes = append(i.CSINodes, storagev1.CSINode{ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec: storagev1.CSINodeSpec{Drivers: []storagev1.CSINodeDriver{{Name: v1alpha1.CSIDriver}}}})
		i.Capacities = append(i.Capacities, storagev1.CSIStorageCapacity{StorageClassName: "quarry",
			ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{v1alpha1.AnnotationNode: name}}})
	}
	for _, name := range []string{"quarry", "other"} {
		i.Classes = append(i.Classes, *c.Classes[name])
	}
	csi := class("csi", v1alpha1.CSIDriver, storagev1.VolumeBindingWaitForFirstConsumer)
	csi.CreationTimestamp = metav1.NewTime(now) // nothing is published of it yet
	i.Classes = append(i.Classes, *csi)
	return i
}

// TestDoctor takes something away from a sound installation.
func TestDoctor(t *testing.T) {
	kind := func(i *Install) map[string]any { return i.Kinds["volumes.quarry.storage"].Object }
	for _, test := range []struct {
		name   string
		change func(i *Install)
		want   []string // result check
		says   string
	}{
		{"all is well", func(*Install) {}, nil, ""},
		{"an old API server", func(i *Install) { i.Server.GitVersion = "v1.31.9" }, []string{"error api-server"}, "1.31.9"},
		{"an old kernel", func(i *Install) { i.Nodes[0].Status.NodeInfo.KernelVersion = "5.4.0-150-generic" },
			[]string{"error nodes"}, "a (5.4.0-150-generic)"},
		{"an old kubelet", func(i *Install) { i.Nodes[1].Status.NodeInfo.KubeletVersion = "v1.30.1" },
			[]string{"error nodes"}, "b (v1.30.1)"},
		{"an old node without an agent", func(i *Install) {
			i.Nodes = append(i.Nodes, corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "w"}, Status: corev1.NodeStatus{
				NodeInfo: corev1.NodeSystemInfo{OperatingSystem: "windows", KernelVersion: "10.0"}}})
			i.DaemonSets[0].Spec.Template.Spec.NodeSelector = map[string]string{"kubernetes.io/os": "linux"}
			i.Nodes[0].Labels = map[string]string{"kubernetes.io/os": "linux"}
		}, nil, ""},
		{"no Linux", func(i *Install) {
			for n := range i.Nodes {
				i.Nodes[n].Status.NodeInfo.OperatingSystem = "windows"
			}
		}, []string{"error nodes"}, "Linux"},
		{"a node is not ready", func(i *Install) { i.Nodes[0].Status.Conditions = nil }, []string{"warning nodes"}, "a"},

		{"a kind is missing", func(i *Install) { delete(i.Kinds, "pools.quarry.storage") },
			[]string{"error kinds"}, "pools.quarry.storage does not exist"},
		{"a kind is not accepted", func(i *Install) { unstructured.RemoveNestedField(kind(i), "status") },
			[]string{"error kinds"}, "not established"},
		{"a kind is of another version", func(i *Install) {
			versions, _, _ := unstructured.NestedSlice(kind(i), "spec", "versions")
			versions[0].(map[string]any)["served"] = false
			_ = unstructured.SetNestedSlice(kind(i), versions, "spec", "versions")
		}, []string{"error kinds"}, "does not serve version v1alpha1"},
		{"a kind is older", func(i *Install) {
			changeSchema(i, func(spec map[string]any) { delete(spec, "published") })
		}, []string{"warning kinds"}, "lacks spec.published"},
		{"a kind is newer", func(i *Install) {
			changeSchema(i, func(spec map[string]any) { spec["colour"] = map[string]any{"type": "string"} })
		}, []string{"note kinds"}, "spec.colour"},

		{"agents are not let in", func(i *Install) {
			i.Namespace.Labels = map[string]string{"pod-security.kubernetes.io/enforce": "baseline"}
		}, []string{"error pod-security"}, "enforces baseline"},
		{"no controller", func(i *Install) { i.Controllers = nil }, []string{"error controller"}, ""},
		{"an agent crashes", func(i *Install) {
			i.Agents[0].Status.Conditions = nil
			i.Agents[0].Status.ContainerStatuses = []corev1.ContainerStatus{{RestartCount: 1, State: corev1.ContainerState{
				Waiting: &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff"}}}}
		}, []string{"error agents"}, "CrashLoopBackOff"},
		{"a node without an agent", func(i *Install) { i.Agents = i.Agents[1:] }, []string{"error agents"}, "no agent on node a"},
		{"a node with a taint", func(i *Install) {
			i.Agents = i.Agents[1:]
			i.Nodes[0].Spec.Taints = []corev1.Taint{{Key: "node.kubernetes.io/not-ready", Effect: corev1.TaintEffectNoExecute},
				{Key: "gpu", Effect: corev1.TaintEffectNoSchedule}}
		}, []string{"note agents"}, "taint gpu:NoSchedule"},
		{"a taint that is tolerated", func(i *Install) {
			i.Agents = i.Agents[1:]
			i.Nodes[0].Spec.Taints = []corev1.Taint{{Key: "gpu", Effect: corev1.TaintEffectNoSchedule}}
			i.DaemonSets[0].Spec.Template.Spec.Tolerations = []corev1.Toleration{{Operator: corev1.TolerationOpExists}}
		}, []string{"error agents"}, "no agent on node a"},
		{"no DaemonSet", func(i *Install) { i.DaemonSets = nil }, []string{"error agents"}, "no DaemonSet"},
		{"two versions", func(i *Install) { i.Agents[0].Labels["app.kubernetes.io/version"] = "0.9" },
			[]string{"warning versions"}, "0.9 in 1 pod, 1.0 in 3 pods"},
		{"another plugin", func(i *Install) { i.Program = "2.0" }, []string{"note versions"}, "this plugin is 2.0"},
		{"a plugin built by hand", func(i *Install) { i.Program = "dev" }, nil, ""},

		{"the agent lacks a right", func(i *Install) { i.AgentLacks = agentRights[:1] }, []string{"error agent-rights"},
			"quarry-system/quarry-agent may not get volumes.quarry.storage"},
		{"the controller lacks rights", func(i *Install) { i.ControllerLacks = controllerRights }, []string{"error controller-rights"},
			"more"},
		{"no policy", func(i *Install) { i.Policies = nil }, []string{"error admission-policy"}, "quarry-agent"},
		{"a policy for another account", func(i *Install) {
			i.DaemonSets[0].Spec.Template.Spec.ServiceAccountName = "quarry-agent-2"
		}, []string{"error admission-policy"}, "quarry-agent-2"},
		{"a policy that is not bound", func(i *Install) { i.Bindings = nil }, []string{"error admission-policy"}, "not bound"},
		{"a policy that only warns", func(i *Install) {
			i.Bindings[0].Spec.ValidationActions = []admissionv1.ValidationAction{admissionv1.Warn}
		}, []string{"error admission-policy"}, "not bound"},
		{"a policy that fails open", func(i *Install) { i.Policies[0].Spec.FailurePolicy = new(admissionv1.Ignore) },
			[]string{"error admission-policy"}, "lets pass"},
		{"a policy that does not compile", func(i *Install) {
			i.Policies[0].Status.TypeChecking = &admissionv1.TypeChecking{ExpressionWarnings: []admissionv1.ExpressionWarning{{Warning: "oh"}}}
		}, []string{"warning admission-policy"}, "oh"},

		{"no CSIDriver for local volumes", func(i *Install) { delete(i.Drivers, v1alpha1.LocalProvisioner) },
			[]string{"error drivers"}, "local.quarry.storage"},
		{"no CSIDriver, and a class asks for it", func(i *Install) { delete(i.Drivers, v1alpha1.CSIDriver) },
			[]string{"error drivers"}, "csi.enabled"},
		{"no CSIDriver, and no class asks for it", func(i *Install) {
			delete(i.Drivers, v1alpha1.CSIDriver)
			i.Classes = i.Classes[:2]
		}, nil, ""},
		{"a driver that attaches", func(i *Install) { i.Drivers[v1alpha1.CSIDriver] = &storagev1.CSIDriver{} },
			[]string{"error drivers"}, "attached"},
		{"capacity is ignored", func(i *Install) {
			i.Drivers[v1alpha1.LocalProvisioner] = &storagev1.CSIDriver{Spec: storagev1.CSIDriverSpec{AttachRequired: new(false)}}
		}, []string{"warning drivers"}, "ignore capacity"},
		{"a kubelet without the driver", func(i *Install) { i.CSINodes[0].Spec.Drivers = nil },
			[]string{"error registration"}, "kubelet of a"},

		{"a class that cannot be read", func(i *Install) { i.Classes[0].Parameters = map[string]string{"backend": "stone"} },
			[]string{"error classes"}, "StorageClass quarry: "},
		{"a class of somebody else is none of ours", func(i *Install) { i.Classes[1].Parameters = map[string]string{"x": "y"} }, nil, ""},
		{"a class without a pool", func(i *Install) { i.Classes[0].Parameters = map[string]string{"pool": "fast"} },
			[]string{"warning classes"}, "no pool"},
		{"a class with a pool by label", func(i *Install) {
			i.Classes[0].Parameters = map[string]string{"poolSelector": "disk=ssd"}
			i.Pools[0].Labels = map[string]string{"disk": "ssd"}
		}, nil, ""},
		{"a class that binds at once", func(i *Install) { i.Classes[0].VolumeBindingMode = nil }, []string{"note classes"}, "at once"},
		{"no class", func(i *Install) { i.Classes = i.Classes[1:2] }, []string{"warning classes"}, "no StorageClass"},
		{"a node of which the scheduler is not told", func(i *Install) { i.Capacities = i.Capacities[1:] },
			[]string{"error capacity"}, "node a for class quarry"},
		{"a node that is new", func(i *Install) {
			i.Capacities = i.Capacities[1:]
			i.Pools[0].CreationTimestamp = metav1.NewTime(now.Add(-time.Second))
		}, nil, ""},

		{"something may not be read", func(i *Install) { i.Unread[partPolicies] = errors.New("forbidden") },
			[]string{"unknown admission-policy"}, "forbidden"},
		{"nothing may be read", func(i *Install) {
			*i = Install{At: now, Unread: map[string]error{}}
			for _, part := range []string{partServer, partKinds, partPrograms, partPods, partNodes, partOwn} {
				i.Unread[part] = errors.New("forbidden")
			}
		}, []string{"unknown api-server", "unknown nodes", "unknown programs"}, ""},
		{"before the install", func(i *Install) { notInstalled(i) }, []string{"error installed"}, "helm install"},
		{"before the install, by somebody who may not", func(i *Install) {
			notInstalled(i)
			i.Own = installRights[:1]
			i.Namespace.Labels = map[string]string{"pod-security.kubernetes.io/enforce": "restricted"}
		}, []string{"error pod-security", "error install-rights", "error installed"}, "you may not create customresourcedefinitions"},
		{"after an uninstall", func(i *Install) {
			kinds := i.Kinds
			notInstalled(i)
			i.Kinds = kinds
		}, []string{"note kinds", "error installed"}, "there already"},
	} {
		t.Run(test.name, func(t *testing.T) {
			i := sound(t)
			test.change(i)
			r := i.Report()
			var got []string
			text := ""
			for _, c := range r.Checks {
				require.NotEmpty(t, c.Message)
				text += c.Message + "\n" + c.Remedy + "\n"
				if c.Result != ResultOK {
					got = append(got, string(c.Result)+" "+c.Name)
				}
			}
			require.Equal(t, test.want, got)
			require.Contains(t, text, test.says)
			has := func(results ...string) bool {
				return slices.ContainsFunc(got, func(g string) bool {
					result, _, _ := strings.Cut(g, " ")
					return slices.Contains(results, result)
				})
			}
			require.Equal(t, !has("warning", "error"), r.Healthy)
			require.Equal(t, !has("unknown"), r.Complete)
		})
	}
}

// notInstalled leaves the cluster, and takes Quarry away.
func notInstalled(i *Install) {
	*i = Install{At: i.At, Server: i.Server, Nodes: i.Nodes, Namespace: i.Namespace, Unread: map[string]error{}}
}

// changeSchema changes the properties of a Volume's spec.
func changeSchema(i *Install, change func(spec map[string]any)) {
	o := i.Kinds["volumes.quarry.storage"].Object
	versions, _, _ := unstructured.NestedSlice(o, "spec", "versions")
	path := []string{"schema", "openAPIV3Schema", "properties", "spec", "properties"}
	v := versions[0].(map[string]any)
	spec, _, _ := unstructured.NestedMap(v, path...)
	change(spec)
	_ = unstructured.SetNestedMap(v, spec, path...)
	_ = unstructured.SetNestedSlice(o, versions, "spec", "versions")
}

// TestKindsOfTheChart proves that the comparison of a definition with a type sees
// no difference where there is none, and that it looks at all of it.
func TestKindsOfTheChart(t *testing.T) {
	for name, definition := range definitions(t) {
		s := stateOf(definition, ourKinds[name])
		require.Equal(t, kindState{exists: true, established: true, served: true}, s, name)
	}
	fields := map[string]bool{}
	versions, _, _ := unstructured.NestedSlice(definitions(t)["volumes.quarry.storage"].Object, "spec", "versions")
	schema, _, _ := unstructured.NestedMap(versions[0].(map[string]any), "schema", "openAPIV3Schema")
	schemaFields("status", property(schema, "status"), fields)
	require.True(t, fields["status.conditions.lastTransitionTime"])
}

// TestRightsOfTheChart compares the rights that are asked about with those that
// the chart gives.
func TestRightsOfTheChart(t *testing.T) {
	for _, test := range []struct {
		file  string
		asked []Right
		// more are given, and Quarry works without them.
		more []string
	}{
		{"rbac-agent.yaml", agentRights, nil},
		{"rbac-controller.yaml", controllerRights, []string{
			"delete persistentvolumeclaims", "delete pods", // nodeLoss.enabled
			"get deployments.apps/quarry-controller in namespace quarry-system", // who owns what is published
		}},
	} {
		var given, asked []string
		add := func(namespace string, rules []rbacv1.PolicyRule) {
			for _, rule := range rules {
				names := rule.ResourceNames
				if len(names) == 0 {
					names = []string{""}
				}
				for _, name := range names {
					for _, group := range rule.APIGroups {
						for _, resource := range rule.Resources {
							for _, verb := range rule.Verbs {
								given = append(given, Right{verb, group, resource, namespace, name}.String())
							}
						}
					}
				}
			}
		}
		text := template(t, test.file)
		for _, role := range decoded[rbacv1.ClusterRole](t, text, "ClusterRole") {
			add("", role.Rules)
		}
		for _, role := range decoded[rbacv1.Role](t, text, "Role") {
			add(role.Namespace, role.Rules)
		}
		for _, right := range test.asked {
			if right.Namespace == OwnNamespace {
				right.Namespace = "quarry-system"
			}
			asked = append(asked, right.String())
		}
		require.ElementsMatch(t, given, append(asked, test.more...), test.file)
	}
}

// TestLeastVersions compares what is asked of a cluster with what the chart and
// the front page ask.
func TestLeastVersions(t *testing.T) {
	chart, err := os.ReadFile("../../charts/quarry/Chart.yaml")
	require.NoError(t, err)
	require.Contains(t, string(chart), `kubeVersion: ">=`+leastKubernetes+`-0"`)
	page, err := os.ReadFile("../../README.md")
	require.NoError(t, err)
	require.Contains(t, string(page), "Kubernetes "+strings.TrimSuffix(leastKubernetes, ".0")+" or later, Linux "+
		strings.TrimSuffix(leastKernel, ".0")+" or later")

	for text, want := range map[string]bool{
		"5.13.19-2-pve": true, "5.14.0-427.el9.x86_64": false, "6.1.0": false, "5.4": true, "v5.13.0+k3s1": true, "unknown": false, "": false,
	} {
		require.Equal(t, want, older(text, leastKernel), text)
	}
}
