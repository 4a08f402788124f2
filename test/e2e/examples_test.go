package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const examples = "../../examples/"

// apply applies an example, as a user does, into a namespace; what it makes
// goes with the namespace.
func apply(t testing.TB, ns string, args ...string) {
	t.Helper()
	out, err := cluster.Kubectl(t.Context(), append([]string{"apply", "-n", ns}, args...)...)
	require.NoError(t, err, string(out))
}

func TestExamples(t *testing.T) {
	for example, pods := range map[string][]string{
		"quickstart":  {"quickstart"},
		"block":       nil,
		"statefulset": nil,
		"csi":         {"csi-web", "csi-block", "csi-ephemeral", "csi-rwop"},
	} {
		t.Run(example, func(t *testing.T) {
			t.Parallel()
			ns := newNamespace(t)
			apply(t, ns, "-f", examples+example)
			if pods == nil {
				eventually(t, "the example makes pods", func() (bool, string) {
					list, err := kube.CoreV1().Pods(ns).List(t.Context(), metav1.ListOptions{})
					if err != nil {
						return false, err.Error()
					}
					pods = nil
					for _, p := range list.Items {
						pods = append(pods, p.Name)
					}
					return len(pods) > 0, ""
				})
			}
			for _, p := range pods {
				running(t, ns, p)
			}
			claims, err := kube.CoreV1().PersistentVolumeClaims(ns).List(t.Context(), metav1.ListOptions{})
			require.NoError(t, err)
			require.NotEmpty(t, claims.Items)
			for _, c := range claims.Items {
				bound(t, ns, c.Name)
			}
		})
	}
}

// TestStatefulSetOverThreeNodes is three replicas that each keep their own
// volume, on three nodes.
func TestStatefulSetOverThreeNodes(t *testing.T) {
	ns := newNamespace(t)
	apply(t, ns, "-f", writeFile(t, `
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  replicas: 3
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 0
      affinity:
        podAntiAffinity:
          requiredDuringSchedulingIgnoredDuringExecution:
          - {topologyKey: kubernetes.io/hostname, labelSelector: {matchLabels: {app: db}}}
      containers:
      - name: main
        image: busybox:stable
        imagePullPolicy: Never
        command: [sh, -c, 'echo $HOSTNAME >> /data/who; exec sleep 1000000']
        volumeMounts: [{name: data, mountPath: /data}]
  volumeClaimTemplates:
  - metadata: {name: data}
    spec:
      storageClassName: quarry
      accessModes: [ReadWriteOnce]
      resources: {requests: {storage: 64Mi}}
`))
	nodes := map[string]bool{}
	var volumes []*corev1.PersistentVolume
	for i := range 3 {
		p := running(t, ns, fmt.Sprint("db-", i))
		nodes[p.Spec.NodeName] = true
		volumes = append(volumes, bound(t, ns, fmt.Sprint("data-db-", i)))
	}
	require.Len(t, nodes, 3)
	deletePodAndWaitForAnother(t, ns, "db-1")
	require.Equal(t, "db-1\ndb-1", inPod(t, ns, "db-1", "cat /data/who"), "its own volume again")
	_, err := cluster.Kubectl(t.Context(), "delete", "statefulset", "db", "-n", ns)
	require.NoError(t, err)
	for i, pv := range volumes {
		deleteClaim(t, ns, fmt.Sprint("data-db-", i))
		gone(t, pv)
	}
}

// TestTiersExample makes classes, which go with no namespace.
func TestTiersExample(t *testing.T) {
	t.Parallel()
	ns := newNamespace(t)
	t.Cleanup(func() {
		_, _ = cluster.Kubectl(contextForCleanup(), "delete", "--ignore-not-found", "-f", examples+"tiers/classes.yaml")
	})
	apply(t, ns, "-f", examples+"tiers")
	running(t, ns, "tiers")
	require.Equal(t, "ssd", poolOf(t, bound(t, ns, "database")))
	require.Equal(t, "hdd", poolOf(t, bound(t, ns, "archive")))
}

// replaceMember gives up the volume of member 1 and has it start over, as the
// example's README has it for a lost node.
func replaceMember(t testing.TB, mesh string, etcdctl func(member int, args string) string) {
	t.Helper()
	const name = "easemesh-control-plane-1"
	member := ""
	for line := range strings.SplitSeq(etcdctl(0, "member list"), "\n") {
		if fields := strings.Split(line, ", "); len(fields) > 3 && fields[2] == name {
			member = fields[0]
			// Refused until all members have been connected for some seconds.
			for _, change := range []string{"remove " + member, "add " + name + " --peer-urls=" + fields[3]} {
				eventually(t, "member "+change, func() (bool, string) {
					out, err := cluster.Kubectl(t.Context(), "exec", "-n", mesh, "easemesh-control-plane-0", "-c",
						"easemesh-control-plane", "--",
						"sh", "-c", "etcdctl --endpoints=http://127.0.0.1:2379 member "+change)
					return err == nil, string(out)
				})
			}
		}
	}
	require.NotEmpty(t, member)
	script, err := kube.CoreV1().ConfigMaps(mesh).Get(t.Context(), "easemesh-control-plane", metav1.GetOptions{})
	require.NoError(t, err)
	const isNew, existing = "initial-cluster-state: new", "initial-cluster-state: existing"
	require.Contains(t, script.Data["configure"], isNew)
	script.Data["configure"] = strings.Replace(script.Data["configure"], isNew, existing, 1)
	_, err = kube.CoreV1().ConfigMaps(mesh).Update(t.Context(), script, metav1.UpdateOptions{})
	require.NoError(t, err)

	claims, err := kube.CoreV1().PersistentVolumeClaims(mesh).List(t.Context(), metav1.ListOptions{})
	require.NoError(t, err)
	for _, c := range claims.Items {
		if strings.HasSuffix(c.Name, name) {
			require.NoError(t, kube.CoreV1().PersistentVolumeClaims(mesh).Delete(t.Context(), c.Name,
				metav1.DeleteOptions{}))
		}
	}
	deletePodAndWaitForAnother(t, mesh, name)
	eventually(t, "the new member has what the old one had", func() (bool, string) {
		out, err := cluster.Kubectl(t.Context(), "exec", "-n", mesh, name, "-c", "easemesh-control-plane", "--",
			"etcdctl", "--endpoints=http://127.0.0.1:2379", "get", "answer", "--print-value-only")
		return err == nil && strings.TrimSpace(string(out)) == "42", fmt.Sprint(string(out), err)
	})
	for _, c := range claims.Items {
		if strings.HasSuffix(c.Name, name) {
			now, err := kube.CoreV1().PersistentVolumeClaims(mesh).Get(t.Context(), c.Name, metav1.GetOptions{})
			require.NoError(t, err)
			require.NotEqual(t, c.UID, now.UID)
		}
	}
}

func deletePodAndWaitForAnother(t testing.TB, ns, name string) {
	t.Helper()
	before, err := kube.CoreV1().Pods(ns).Get(t.Context(), name, metav1.GetOptions{})
	require.NoError(t, err)
	require.NoError(t, kube.CoreV1().Pods(ns).Delete(t.Context(), name, metav1.DeleteOptions{}))
	eventually(t, "another pod "+name, func() (bool, string) {
		now, err := kube.CoreV1().Pods(ns).Get(t.Context(), name, metav1.GetOptions{})
		return err == nil && now.UID != before.UID, fmt.Sprint(err)
	})
	running(t, ns, name)
}

// TestEaseMesh is the control plane as emctl makes it, with claims made before
// it; wiped and installed again, it starts clean.
func TestEaseMesh(t *testing.T) {
	const mesh = "easemesh"
	etcdctl := func(member int, args string) string {
		return inPod(t, mesh, fmt.Sprint("easemesh-control-plane-", member),
			"etcdctl --endpoints=http://127.0.0.1:2379 "+args)
	}
	for round, variant := range []string{"easemesh", "easemesh", "easemesh/before-v1.3"} {
		t.Run(fmt.Sprint(round, " ", variant), func(t *testing.T) {
			out, err := cluster.Kubectl(t.Context(), "apply", "-f", examples+"easemesh/namespace.yaml",
				"-f", examples+"easemesh/storageclass.yaml")
			require.NoError(t, err, string(out))
			out, err = cluster.Kubectl(t.Context(), "apply", "-k", examples+variant)
			require.NoError(t, err, string(out))
			var volumes []*corev1.PersistentVolume
			for i := range 3 {
				running(t, mesh, fmt.Sprint("easemesh-control-plane-", i))
			}
			claims, err := kube.CoreV1().PersistentVolumeClaims(mesh).List(t.Context(), metav1.ListOptions{})
			require.NoError(t, err)
			require.Len(t, claims.Items, 3)
			eventually(t, "the members have a leader", func() (bool, string) {
				out, err := cluster.Kubectl(t.Context(), "exec", "-n", mesh, "easemesh-control-plane-0", "-c",
					"easemesh-control-plane", "--",
					"etcdctl", "--endpoints=http://127.0.0.1:2379", "endpoint", "health")
				return err == nil, string(out)
			})
			require.Empty(t, etcdctl(0, "get answer --print-value-only"), "a new installation starts clean")
			etcdctl(0, "put answer 42")
			deletePodAndWaitForAnother(t, mesh, "easemesh-control-plane-2")
			eventually(t, "member 2 has it", func() (bool, string) {
				out, err := cluster.Kubectl(t.Context(), "exec", "-n", mesh, "easemesh-control-plane-2", "-c",
					"easemesh-control-plane", "--",
					"etcdctl", "--endpoints=http://127.0.0.1:2379", "get", "answer", "--print-value-only")
				return err == nil && strings.TrimSpace(string(out)) == "42", fmt.Sprint(string(out), err)
			})
			if round == 0 {
				replaceMember(t, mesh, etcdctl)
			}
			// emctl reset, and what its manual says of claims: they are deleted
			// by hand.
			for _, c := range claims.Items {
				volumes = append(volumes, bound(t, mesh, c.Name))
			}
			_, err = cluster.Kubectl(t.Context(), "delete", "namespace", mesh)
			require.NoError(t, err)
			for _, pv := range volumes {
				gone(t, pv)
			}
		})
	}
	t.Cleanup(func() {
		_, _ = cluster.Kubectl(contextForCleanup(), "delete", "namespace", mesh, "--ignore-not-found")
		_, _ = cluster.Kubectl(contextForCleanup(), "delete", "storageclass", "easemesh-storage", "--ignore-not-found")
	})
	_, err := kube.CoreV1().Namespaces().Get(t.Context(), mesh, metav1.GetOptions{})
	require.True(t, apierrors.IsNotFound(err))
}
