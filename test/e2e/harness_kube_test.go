package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

var volumesResource = schema.GroupVersionResource{Group: "quarry.storage", Version: "v1alpha1", Resource: "volumes"}

// patience is how long anything that is only waited for may take before a test
// fails. Nothing is measured by it.
const patience = 2 * time.Minute

// eventually waits for a condition; what it last returned is in the failure's
// message.
func eventually(t testing.TB, what string, condition func() (ok bool, state string)) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		ok, state := condition()
		if ok {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited %v for: %s\nlast seen: %s", patience, what, state)
		}
		select {
		case <-t.Context().Done():
			t.Fatalf("interrupted while waiting for: %s", what)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// newNamespace makes a namespace for the test. When the test ends it is
// deleted, everything in it is gone, and nothing of what the test's volumes
// were is left on any node.
func newNamespace(t testing.TB) string {
	t.Helper()
	ns, err := kube.CoreV1().Namespaces().Create(t.Context(),
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "e2e-"}}, metav1.CreateOptions{})
	require.NoError(t, err)
	t.Cleanup(func() {
		ctx := context.Background()
		if t.Failed() {
			report(t, ns.Name)
		}
		empty(t, ns.Name)
		require.NoError(t, kube.CoreV1().Namespaces().Delete(ctx, ns.Name, metav1.DeleteOptions{}))
		afterwards(t, "namespace "+ns.Name+" is gone", func() (bool, string) {
			_, err := kube.CoreV1().Namespaces().Get(ctx, ns.Name, metav1.GetOptions{})
			return apierrors.IsNotFound(err), fmt.Sprint(err)
		})
	})
	return ns.Name
}

// empty takes pods and claims out of a namespace. Kubernetes would do it as
// well, but where anything has a finalizer, as claims have, it looks again
// after eight seconds only.
func empty(t testing.TB, ns string) {
	t.Helper()
	ctx := context.Background()
	now, all := metav1.DeleteOptions{GracePeriodSeconds: new(int64(0))}, metav1.ListOptions{}
	require.NoError(t, kube.AppsV1().StatefulSets(ns).DeleteCollection(ctx, metav1.DeleteOptions{}, all))
	require.NoError(t, kube.AppsV1().Deployments(ns).DeleteCollection(ctx, metav1.DeleteOptions{}, all))
	require.NoError(t, kube.CoreV1().PersistentVolumeClaims(ns).DeleteCollection(ctx, metav1.DeleteOptions{}, all))
	afterwards(t, "pods and claims of "+ns+" are gone", func() (bool, string) {
		// Again: their controllers may be making more.
		require.NoError(t, kube.CoreV1().Pods(ns).DeleteCollection(ctx, now, all))
		pods, err := kube.CoreV1().Pods(ns).List(ctx, all)
		require.NoError(t, err)
		claims, err := kube.CoreV1().PersistentVolumeClaims(ns).List(ctx, all)
		require.NoError(t, err)
		return len(pods.Items)+len(claims.Items) == 0, fmt.Sprint(len(pods.Items), " pods, ",
			len(claims.Items), " claims")
	})
}

// afterwards is eventually for what a test leaves to be cleaned up: it goes on
// when the test has ended, and only says so.
func afterwards(t testing.TB, what string, condition func() (ok bool, state string)) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
		ok, state := condition()
		if ok {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("waited %v for: %s\nlast seen: %s", patience, what, state)
			return
		}
	}
}

// report prints what a person would look at first.
func report(t testing.TB, namespace string) {
	ctx := context.Background()
	for _, args := range [][]string{
		{"get", "pods,pvc,events", "-n", namespace, "-o", "wide"}, {"get", "pv", "-o", "wide"},
		{"get", "volumes.quarry.storage,pools.quarry.storage", "-o", "wide"},
		{"get", "pods", "-n", quarryNamespace, "-o", "wide"},
		{"logs", "-n", quarryNamespace, "-l", "app.kubernetes.io/component=controller", "--tail=30", "--prefix"},
		{"logs", "-n", quarryNamespace, "-l", "app.kubernetes.io/component=agent", "--tail=30", "--prefix"},
	} {
		out, err := cluster.Kubectl(ctx, args...)
		t.Logf("kubectl %s\n%s%v", strings.Join(args, " "), out, err)
	}
}

type claimOption func(*corev1.PersistentVolumeClaim)

func onNode(node string) claimOption {
	return func(c *corev1.PersistentVolumeClaim) {
		metav1.SetMetaDataAnnotation(&c.ObjectMeta, "volume.kubernetes.io/selected-node", node)
	}
}

func block(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeMode = new(corev1.PersistentVolumeBlock) }

func modes(m ...corev1.PersistentVolumeAccessMode) claimOption {
	return func(c *corev1.PersistentVolumeClaim) { c.Spec.AccessModes = m }
}

// claim makes a claim.
func claim(t testing.TB, ns, name, class, size string, options ...claimOption) *corev1.PersistentVolumeClaim {
	t.Helper()
	c, err := kube.CoreV1().PersistentVolumeClaims(ns).Create(t.Context(), newClaim(ns, name, class, size, options...),
		metav1.CreateOptions{})
	require.NoError(t, err)
	return c
}

// newClaim is the claim that claim makes.
func newClaim(ns, name, class, size string, options ...claimOption) *corev1.PersistentVolumeClaim {
	c := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: ns},
		Spec: corev1.PersistentVolumeClaimSpec{
			StorageClassName: &class, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{
				corev1.ResourceStorage: resource.MustParse(size)}},
		},
	}
	for _, o := range options {
		o(c)
	}
	return c
}

// bound waits until the claim is bound and returns its PersistentVolume.
func bound(t testing.TB, ns, name string) *corev1.PersistentVolume {
	t.Helper()
	var pv string
	eventually(t, "claim "+name+" is bound", func() (bool, string) {
		c, err := kube.CoreV1().PersistentVolumeClaims(ns).Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			return false, err.Error()
		}
		pv = c.Spec.VolumeName
		return c.Status.Phase == corev1.ClaimBound, string(c.Status.Phase)
	})
	v, err := kube.CoreV1().PersistentVolumes().Get(t.Context(), pv, metav1.GetOptions{})
	require.NoError(t, err)
	return v
}

// pod makes a pod of busybox that runs script with the claim at /data (or the
// device at /dev/data), and waits until it runs.
func pod(t testing.TB, ns, name, claimName, script string) *corev1.Pod {
	t.Helper()
	c, err := kube.CoreV1().PersistentVolumeClaims(ns).Get(t.Context(), claimName, metav1.GetOptions{})
	require.NoError(t, err)
	container := corev1.Container{
		Name: "main", Image: "busybox:stable", ImagePullPolicy: corev1.PullNever, Command: []string{"sh", "-c", script},
	}
	if c.Spec.VolumeMode != nil && *c.Spec.VolumeMode == corev1.PersistentVolumeBlock {
		container.VolumeDevices = []corev1.VolumeDevice{{Name: "data", DevicePath: "/dev/data"}}
	} else {
		container.VolumeMounts = []corev1.VolumeMount{{Name: "data", MountPath: "/data"}}
	}
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: ns},
		Spec: corev1.PodSpec{
			TerminationGracePeriodSeconds: new(int64(0)), Containers: []corev1.Container{container},
			Tolerations: []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
			Volumes: []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{
				PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claimName}}}},
		},
	}
	_, err = kube.CoreV1().Pods(ns).Create(t.Context(), p, metav1.CreateOptions{})
	require.NoError(t, err)
	return running(t, ns, name)
}

func running(t testing.TB, ns, name string) *corev1.Pod {
	t.Helper()
	var p *corev1.Pod
	eventually(t, "pod "+name+" runs", func() (bool, string) {
		var err error
		if p, err = kube.CoreV1().Pods(ns).Get(t.Context(), name, metav1.GetOptions{}); err != nil {
			return false, err.Error()
		}
		if p.Status.Phase == corev1.PodFailed {
			t.Fatalf("pod %s failed: %s", name, logs(ns, name))
		}
		ready := false
		for _, c := range p.Status.Conditions {
			ready = ready || c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
		}
		return ready && p.DeletionTimestamp == nil, string(p.Status.Phase)
	})
	return p
}

func logs(ns, pod string) string {
	out, _ := cluster.Kubectl(context.Background(), "logs", "-n", ns, pod)
	return string(out)
}

// inPod runs a shell line in the pod and returns its output.
func inPod(t testing.TB, ns, name, line string) string {
	t.Helper()
	out, err := cluster.Kubectl(t.Context(), "exec", "-n", ns, name, "--", "sh", "-c", line)
	require.NoError(t, err, "in pod %s: %s", name, line)
	return strings.TrimSpace(string(out))
}

// onHost runs a shell line on the node and returns its output.
func onHost(t testing.TB, node, line string) string {
	t.Helper()
	out, err := cluster.Exec(t.Context(), node, "/bin/sh", "-c", line)
	require.NoError(t, err, "on %s: %s", node, line)
	return string(bytes.TrimSpace(out))
}

func deletePod(t testing.TB, ns, name string) {
	t.Helper()
	require.NoError(t, kube.CoreV1().Pods(ns).Delete(t.Context(), name,
		metav1.DeleteOptions{GracePeriodSeconds: new(int64(0))}))
	eventually(t, "pod "+name+" is gone", func() (bool, string) {
		_, err := kube.CoreV1().Pods(ns).Get(t.Context(), name, metav1.GetOptions{})
		return apierrors.IsNotFound(err), fmt.Sprint(err)
	})
}

func deleteClaim(t testing.TB, ns, name string) {
	t.Helper()
	require.NoError(t, kube.CoreV1().PersistentVolumeClaims(ns).Delete(t.Context(), name, metav1.DeleteOptions{}))
}

// whereIs returns a PersistentVolume's volume and its node, whichever front
// door it came in by.
func whereIs(pv *corev1.PersistentVolume) (id, node string) {
	if c := pv.Spec.CSI; c != nil {
		return c.VolumeHandle, topologyNode(pv)
	}
	return pv.Annotations["quarry.storage/volume"], pv.Annotations["quarry.storage/node"]
}

// volumeOf returns the Volume object behind a PersistentVolume, and its node.
func volumeOf(t testing.TB, pv *corev1.PersistentVolume) (*unstructured.Unstructured, string) {
	t.Helper()
	id, _ := whereIs(pv)
	v, err := objects.Resource(volumesResource).Get(t.Context(), id, metav1.GetOptions{})
	require.NoError(t, err)
	node, _, _ := unstructured.NestedString(v.Object, "spec", "nodeName")
	return v, node
}

// gone waits until nothing is left of a PersistentVolume: not it, not its
// Volume, not its directory.
func gone(t testing.TB, pv *corev1.PersistentVolume) {
	t.Helper()
	id, node := whereIs(pv)
	eventually(t, "PersistentVolume "+pv.Name+" is gone", func() (bool, string) {
		now, err := kube.CoreV1().PersistentVolumes().Get(t.Context(), pv.Name, metav1.GetOptions{})
		if err != nil {
			return apierrors.IsNotFound(err), err.Error()
		}
		return false, string(now.Status.Phase)
	})
	eventually(t, "Volume "+id+" is gone", func() (bool, string) {
		v, err := objects.Resource(volumesResource).Get(t.Context(), id, metav1.GetOptions{})
		if err != nil {
			return apierrors.IsNotFound(err), err.Error()
		}
		return false, fmt.Sprint(v.Object["status"])
	})
	eventually(t, "nothing of "+id+" is on "+node, func() (bool, string) {
		left := traces(t, node, id)
		return left == "", left
	})
}

// waitEvent waits for an event about the object that holds all of the words.
func waitEvent(t testing.TB, ns, object, reason string, words ...string) {
	t.Helper()
	eventually(t, fmt.Sprintf("event %s on %s with %q", reason, object, words), func() (bool, string) {
		list, err := kube.CoreV1().Events(ns).List(t.Context(),
			metav1.ListOptions{FieldSelector: "involvedObject.name=" + object})
		if err != nil {
			return false, err.Error()
		}
		var seen []string
		for _, e := range list.Items {
			seen = append(seen, e.Reason+": "+e.Message)
			match := e.Reason == reason
			for _, w := range words {
				match = match && strings.Contains(e.Message, w)
			}
			if match {
				return true, ""
			}
		}
		return false, strings.Join(seen, "\n")
	})
}

// writeFile puts text into a file of the test's and returns its path.
func writeFile(t testing.TB, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(name, []byte(text), 0o600))
	return name
}

// contextForCleanup outlives the test's own.
func contextForCleanup() context.Context { return context.Background() }

// topologyNode is the node that the affinity of a CSI PersistentVolume names.
func topologyNode(pv *corev1.PersistentVolume) string {
	if pv.Spec.NodeAffinity == nil || pv.Spec.NodeAffinity.Required == nil {
		return ""
	}
	for _, term := range pv.Spec.NodeAffinity.Required.NodeSelectorTerms {
		for _, e := range term.MatchExpressions {
			if e.Key == "topology.quarry.storage/node" && len(e.Values) == 1 {
				return e.Values[0]
			}
		}
	}
	return ""
}
