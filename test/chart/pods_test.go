package chart

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// hostPaths maps the host's directories a pod gets to their propagation.
func hostPaths(pod corev1.PodSpec) map[string]corev1.MountPropagationMode {
	found := map[string]corev1.MountPropagationMode{}
	for _, v := range pod.Volumes {
		if v.HostPath == nil {
			continue
		}
		for _, c := range pod.Containers {
			for _, m := range c.VolumeMounts {
				if m.Name != v.Name {
					continue
				}
				mode := corev1.MountPropagationNone
				if m.MountPropagation != nil {
					mode = *m.MountPropagation
				}
				// Seen in the container where it is on the host: paths mean the
				// same everywhere.
				if m.MountPath == v.HostPath.Path {
					found[v.HostPath.Path] = mode
				}
			}
		}
	}
	return found
}

func countHostPaths(pod corev1.PodSpec) (n int) {
	for _, v := range pod.Volumes {
		if v.HostPath != nil {
			n++
		}
	}
	return n
}

func TestAgentHostPaths(t *testing.T) {
	both, in := corev1.MountPropagationBidirectional, corev1.MountPropagationHostToContainer
	fixed := map[string]corev1.MountPropagationMode{
		"/dev": in, "/sys": corev1.MountPropagationNone, "/run/quarry": both,
	}
	for _, c := range []struct {
		name   string
		values values
		pools  []string
	}{
		{"default", nil, []string{"/volumes"}},
		{"pools of nodes", values{
			"pools": []any{values{"name": "a", "path": "/a"}, values{"name": "b", "path": "/b"}},
			"nodes": values{"n1": values{"pools": []any{values{"name": "a", "path": "/c"}}},
				"n2": values{"pools": []any{values{"name": "a", "path": "/a"}}}},
		}, []string{"/a", "/b", "/c"}},
		{"below a directory of the host", values{
			"pools": []any{values{"name": "a", "path": "/mnt/disks/x"}, values{"name": "b", "path": "/mnt/disks2"},
				values{"name": "c", "path": "/srv"}},
			"hostPaths": []any{"/mnt/disks", "/srv"},
		}, []string{"/mnt/disks", "/mnt/disks2", "/srv"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			want := maps.Clone(fixed)
			for _, p := range c.pools {
				want[p] = both
			}
			pod := only[*appsv1.DaemonSet](t, render(t, c.values)).Spec.Template.Spec
			require.Equal(t, want, hostPaths(pod))
			require.Equal(t, len(want), countHostPaths(pod))
		})
	}
	t.Run("kubelet elsewhere", func(t *testing.T) {
		with := withCSI()
		pod := only[*appsv1.DaemonSet](t, render(t, with)).Spec.Template.Spec
		require.Equal(t, both, hostPaths(pod)["/var/lib/kubelet"])
		with["kubeletDir"] = "/data/kubelet"
		pod = only[*appsv1.DaemonSet](t, render(t, with)).Spec.Template.Spec
		require.Equal(t, both, hostPaths(pod)["/data/kubelet"])
		require.NotContains(t, hostPaths(pod), "/var/lib/kubelet")
	})
}

func TestAgentPod(t *testing.T) {
	ds := only[*appsv1.DaemonSet](t, render(t, withCSI()))
	pod := ds.Spec.Template.Spec
	require.Equal(t, "system-node-critical", pod.PriorityClassName)
	require.Equal(t, []corev1.Toleration{{Operator: corev1.TolerationOpExists}}, pod.Tolerations)
	require.True(t, pod.HostPID, "the mount tables of all processes are read before anything is deleted")
	require.False(t, pod.HostNetwork)
	require.False(t, pod.HostIPC)
	require.LessOrEqual(t, *pod.TerminationGracePeriodSeconds, int64(10))
	budget, err := intstr.GetScaledValueFromIntOrPercent(ds.Spec.UpdateStrategy.RollingUpdate.MaxUnavailable, 2, true)
	require.NoError(t, err)
	require.Equal(t, 2, budget, "a dead node stops the roll-out not even in a cluster of two")
	require.Len(t, pod.Containers, 1, "one container on every node: registration is the agent's own")
	require.Empty(t, pod.InitContainers)

	c := pod.Containers[0]
	require.Equal(t, "agent", c.Args[0])
	require.Empty(t, c.Command, "the image's entrypoint, no shell")
	require.True(t, *c.SecurityContext.Privileged)
	require.True(t, *c.SecurityContext.ReadOnlyRootFilesystem)
	require.NotNil(t, c.LivenessProbe.HTTPGet)
	require.NotNil(t, c.ReadinessProbe.HTTPGet)
	require.Contains(t, c.Args, "--csi-endpoint=unix:///var/lib/kubelet/plugins/csi.quarry.storage/csi.sock")
	require.Contains(t, c.Args, "--inline-volumes=false")
}

func TestControllerPod(t *testing.T) {
	objects := render(t, withCSI())
	d := only[*appsv1.Deployment](t, objects)
	require.Equal(t, int32(2), *d.Spec.Replicas)
	pod := d.Spec.Template.Spec
	require.Zero(t, countHostPaths(pod))
	require.False(t, pod.HostPID || pod.HostNetwork || pod.HostIPC)
	require.True(t, *pod.SecurityContext.RunAsNonRoot)
	require.Equal(t, corev1.SeccompProfileTypeRuntimeDefault, pod.SecurityContext.SeccompProfile.Type)
	require.Len(t, pod.Containers, 3)
	for _, c := range pod.Containers {
		require.Equal(t, []corev1.Capability{"ALL"}, c.SecurityContext.Capabilities.Drop, c.Name)
		require.False(t, *c.SecurityContext.AllowPrivilegeEscalation, c.Name)
		require.True(t, *c.SecurityContext.ReadOnlyRootFilesystem, c.Name)
		require.Nil(t, c.SecurityContext.Privileged, c.Name)
	}
	provisioner, resizer := pod.Containers[1], pod.Containers[2]
	require.Equal(t, "localhost/sig-storage/csi-provisioner:v6.3.0", provisioner.Image)
	require.Subset(t, provisioner.Args, []string{"--extra-create-metadata", "--strict-topology", "--leader-election",
		"--kube-api-qps=200"})
	for _, a := range provisioner.Args {
		require.False(t, strings.HasPrefix(a, "--enable-capacity"), "capacity has one publisher: the controller")
	}
	require.Equal(t, "localhost/sig-storage/csi-resizer:v2.3.0", resizer.Image)
	require.Contains(t, resizer.Args, "--leader-election")

	pdb := only[*policyv1.PodDisruptionBudget](t, objects)
	require.Equal(t, 1, pdb.Spec.MaxUnavailable.IntValue())
	require.Subset(t, d.Spec.Template.Labels, pdb.Spec.Selector.MatchLabels)
	require.Empty(t, of[*policyv1.PodDisruptionBudget](render(t, values{"controller": values{"replicas": 1}})),
		"one replica with a budget could not be drained")
}

func TestWithoutCSI(t *testing.T) {
	objects := render(t, nil)
	require.Len(t, only[*appsv1.Deployment](t, objects).Spec.Template.Spec.Containers, 1)
	for _, a := range only[*appsv1.DaemonSet](t, objects).Spec.Template.Spec.Containers[0].Args {
		require.False(t, strings.HasPrefix(a, "--csi-endpoint"), a)
	}
}

func TestPodsAreForLinux(t *testing.T) {
	chosen := values{"nodeSelector": values{"disk": "nvme"}}
	for name, v := range map[string]values{"default": nil, "chosen": {"agent": chosen, "controller": chosen}} {
		t.Run(name, func(t *testing.T) {
			objects := render(t, v)
			for _, pod := range []corev1.PodSpec{
				only[*appsv1.DaemonSet](t, objects).Spec.Template.Spec, only[*appsv1.Deployment](t,
					objects).Spec.Template.Spec,
			} {
				require.Equal(t, "linux", pod.NodeSelector[corev1.LabelOSStable])
				require.Equal(t, v != nil, pod.NodeSelector["disk"] == "nvme")
			}
		})
	}
}

func TestPriorityClassesAreAllowedByQuota(t *testing.T) {
	quota := only[*corev1.ResourceQuota](t, render(t, nil))
	require.Equal(t, []corev1.ScopedResourceSelectorRequirement{{
		ScopeName: corev1.ResourceQuotaScopePriorityClass, Operator: corev1.ScopeSelectorOpIn,
		Values: []string{"system-cluster-critical", "system-node-critical"},
	}}, quota.Spec.ScopeSelector.MatchExpressions)

	none := values{"priorityClassName": ""}
	require.Empty(t, of[*corev1.ResourceQuota](render(t, values{"agent": none, "controller": none})),
		"nothing asks for a class")
	require.Empty(t, of[*corev1.ResourceQuota](render(t, values{"priorityClassQuota": false})))
}

// TestSelectors: the pods the controller calls agents are the agents.
func TestSelectors(t *testing.T) {
	objects := render(t, nil)
	labels := only[*appsv1.DaemonSet](t, objects).Spec.Template.Labels
	args := only[*appsv1.Deployment](t, objects).Spec.Template.Spec.Containers[0].Args
	i := slices.IndexFunc(args, func(a string) bool { return strings.HasPrefix(a, "--agent-selector=") })
	require.GreaterOrEqual(t, i, 0)
	for pair := range strings.SplitSeq(strings.TrimPrefix(args[i], "--agent-selector="), ",") {
		key, value, _ := strings.Cut(pair, "=")
		require.Equal(t, value, labels[key], key)
	}
}
