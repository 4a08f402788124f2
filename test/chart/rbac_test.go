package chart

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// grants lists what an account may do, one line for each group, resource and
// verb, sorted: of cluster roles as they are, of roles with the namespace in
// front. The lists in these tests are meant to be read by whoever reviews a
// change.
func grants(t *testing.T, objects []runtime.Object, account string) []string {
	t.Helper()
	var lines []string
	add := func(prefix string, rules []rbacv1.PolicyRule) {
		for _, r := range rules {
			require.Empty(t, r.NonResourceURLs)
			for _, group := range r.APIGroups {
				for _, resource := range r.Resources {
					name := strings.TrimSuffix(resource+"."+group, ".")
					if len(r.ResourceNames) > 0 {
						name += fmt.Sprint(r.ResourceNames)
					}
					for _, verb := range r.Verbs {
						lines = append(lines, prefix+name+" "+verb)
					}
				}
			}
		}
	}
	for _, b := range of[*rbacv1.ClusterRoleBinding](objects) {
		for _, s := range b.Subjects {
			require.Equal(t, rbacv1.ServiceAccountKind, s.Kind)
			require.Equal(t, namespace, s.Namespace)
			if s.Name == account {
				add("", clusterRole(t, objects, b.RoleRef.Name).Rules)
			}
		}
	}
	for _, b := range of[*rbacv1.RoleBinding](objects) {
		for _, s := range b.Subjects {
			if s.Name != account {
				continue
			}
			require.Equal(t, "Role", b.RoleRef.Kind)
			for _, r := range of[*rbacv1.Role](objects) {
				if r.Name == b.RoleRef.Name && r.Namespace == b.Namespace {
					add(b.Namespace+": ", r.Rules)
				}
			}
		}
	}
	slices.Sort(lines)
	return slices.Compact(lines)
}

func clusterRole(t *testing.T, objects []runtime.Object, name string) *rbacv1.ClusterRole {
	t.Helper()
	for _, r := range of[*rbacv1.ClusterRole](objects) {
		if r.Name == name {
			require.Nil(t, r.AggregationRule)
			return r
		}
	}
	require.Fail(t, "no ClusterRole "+name)
	return nil
}

// TestAgentGrants: the agent's token lies on every node, so this list is what a
// stolen node can do, all of it.
func TestAgentGrants(t *testing.T) {
	want := []string{
		"kube-node-lease: leases.coordination.k8s.io get",
		"namespaces[kube-system] get",
		"pools.quarry.storage create",
		"pools.quarry.storage get",
		"pools.quarry.storage list",
		"pools.quarry.storage patch",
		"pools.quarry.storage update",
		"pools.quarry.storage watch",
		"pools/status.quarry.storage patch",
		"pools/status.quarry.storage update",
		"snapshots.quarry.storage get",
		"snapshots.quarry.storage list",
		"snapshots.quarry.storage watch",
		"snapshots/status.quarry.storage patch",
		"snapshots/status.quarry.storage update",
		"volumes.quarry.storage get",
		"volumes.quarry.storage list",
		"volumes.quarry.storage watch",
		"volumes/status.quarry.storage patch",
		"volumes/status.quarry.storage update",
	}
	for name, v := range map[string]values{"default": nil, "csi": withCSI()} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, want, grants(t, render(t, v), "q-quarry-agent"))
		})
	}
}

// TestControllerGrants holds what no account of the chart may ever do.
func TestControllerGrants(t *testing.T) {
	all := grants(t, render(t, withCSI()), "q-quarry-controller")
	require.NotEmpty(t, all)
	for _, line := range all {
		scoped, inNamespace := strings.CutPrefix(line, namespace+": ")
		resource, verb, ok := strings.Cut(scoped, " ")
		require.True(t, ok)
		require.NotContains(t, resource, "secrets", line)
		require.NotContains(t, resource, "rbac.authorization.k8s.io", line)
		require.NotContains(t, resource, "serviceaccounts", line)
		require.NotContains(t, resource, "webhookconfigurations", line)
		require.NotContains(t, resource, "/exec", line)
		require.NotContains(t, []string{"escalate", "bind", "impersonate", "deletecollection"}, verb, line)
		write := !slices.Contains([]string{"get", "list", "watch"}, verb)
		switch resource {
		case "volumes/status.quarry.storage", "snapshots/status.quarry.storage", "pools/status.quarry.storage":
			require.Fail(t, "status is the agents' word", line)
		case "pools.quarry.storage":
			require.True(t, !write || verb == "delete", "%s: of a pool only the object of a node that is no "+
				"more is deleted", line)
		case "pods", "nodes", "storageclasses.storage.k8s.io", "csinodes.storage.k8s.io":
			require.False(t, write, line)
		case "persistentvolumeclaims":
			require.NotEqual(t, "delete", verb, "nothing deletes a claim by itself")
		case "leases.coordination.k8s.io", "csistoragecapacities.storage.k8s.io":
			require.True(t, inNamespace, "%s: only in its own namespace", line)
		}
	}
	require.NotContains(t, all, "pods watch", "no process caches all pods")
}

// TestNodeLossGrants: starting over elsewhere takes the right to delete claims
// and pods, which an administrator gives (nodeLoss.enabled), and nothing else.
func TestNodeLossGrants(t *testing.T) {
	for name, base := range map[string]values{"default": {}, "csi": withCSI()} {
		t.Run(name, func(t *testing.T) {
			allowed := maps.Clone(base)
			allowed["nodeLoss"] = values{"enabled": true}
			for _, account := range []string{"q-quarry-controller", "q-quarry-agent"} {
				without, with := grants(t, render(t, base), account), grants(t, render(t, allowed), account)
				more := slices.DeleteFunc(slices.Clone(with), func(line string) bool {
					return slices.Contains(without, line)
				})
				want := []string{"persistentvolumeclaims delete", "pods delete"}
				if account != "q-quarry-controller" {
					want = []string{}
				}
				require.Equal(t, want, more, account)
				require.Len(t, with, len(without)+len(more), "and none is taken away")
			}
		})
	}
}

func TestNoWildcards(t *testing.T) {
	objects := render(t, withCSI())
	check := func(name string, rules []rbacv1.PolicyRule) {
		for _, r := range rules {
			for _, list := range [][]string{r.APIGroups, r.Resources, r.Verbs, r.ResourceNames} {
				for _, s := range list {
					require.NotContains(t, s, "*", name)
				}
			}
		}
	}
	roles := of[*rbacv1.ClusterRole](objects)
	require.Len(t, roles, 4, "agent, controller and two sidecars")
	for _, r := range roles {
		check(r.Name, r.Rules)
	}
	for _, r := range of[*rbacv1.Role](objects) {
		check(r.Name, r.Rules)
	}
}
