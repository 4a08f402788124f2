package provisioner

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/provisioner/internal/controlplane"
)

const (
	systemNamespace = "quarry-system"
	patience        = 60 * time.Second // how long a test waits for what has to come; nothing is measured by it
)

// cluster is a test's view of a real control plane: its own namespace and
// nodes, as the administrator.
type cluster struct {
	t  testing.TB
	cp *controlplane.ControlPlane
	client.WithWatch
	namespace string
}

var clusterCount int

// newCluster gives a test its own part of the control plane.
func newCluster(t testing.TB, cp *controlplane.ControlPlane) *cluster {
	scheme, err := NewScheme()
	require.NoError(t, err)
	c, err := client.NewWithWatch(cp.Config(controlplane.Admin), client.Options{Scheme: scheme})
	require.NoError(t, err)
	clusterCount++
	k := &cluster{t: t, cp: cp, WithWatch: c, namespace: fmt.Sprintf("test-%d", clusterCount)}
	k.make(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: k.namespace}})
	return k
}

func (k *cluster) make(o client.Object) {
	k.t.Helper()
	require.NoError(k.t, k.Create(k.t.Context(), o))
}

// name is a name of a cluster-scoped object of this test.
func (k *cluster) name(s string) string { return k.namespace + "-" + s }

// node makes a node that pods can be scheduled to, with a ready agent, and
// returns its name.
func (k *cluster) node(s string) string {
	k.t.Helper()
	name := k.name(s)
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{
		corev1.LabelHostname: "host-" + name, "test": k.namespace}}}
	k.make(node)
	node.Spec.Taints = nil // the API server starts nodes as not ready, and no kubelet says otherwise here
	require.NoError(k.t, k.Update(k.t.Context(), node))
	node.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
	node.Status.Allocatable = corev1.ResourceList{"cpu": resource.MustParse("8"), "memory": resource.MustParse("8Gi"),
		"pods": resource.MustParse("500")}
	node.Status.Capacity = node.Status.Allocatable
	require.NoError(k.t, k.Status().Update(k.t.Context(), node))
	k.make(&corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "agent-" + name, Namespace: systemNamespace,
			Labels: Options{}.withDefaults().AgentLabels},
		Spec: corev1.PodSpec{NodeName: name, Containers: []corev1.Container{{Name: "agent", Image: "agent"}}},
	})
	k.agentReady(name, true)
	k.t.Cleanup(func() {
		zero := int64(0)
		_ = k.Delete(context.Background(), node)
		_ = k.Delete(context.Background(), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "agent-" + name,
			Namespace: systemNamespace}},
			&client.DeleteOptions{GracePeriodSeconds: &zero})
	})
	return name
}

// agentReady sets the Ready condition of a node's agent pod, as its kubelet
// would.
func (k *cluster) agentReady(node string, ready bool) {
	k.t.Helper()
	var pod corev1.Pod
	require.NoError(k.t, k.Get(k.t.Context(), client.ObjectKey{Namespace: systemNamespace, Name: "agent-" +
		node}, &pod))
	status := corev1.ConditionFalse
	if ready {
		status = corev1.ConditionTrue
	}
	pod.Status.Phase = corev1.PodRunning
	pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: status}}
	require.NoError(k.t, k.Status().Update(k.t.Context(), &pod))
}

// class makes a StorageClass and returns its name.
func (k *cluster) class(s string, mode storagev1.VolumeBindingMode, parameters map[string]string) string {
	k.t.Helper()
	yes := true
	c := &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: k.name(s)}, Provisioner: v1alpha1.LocalProvisioner,
		VolumeBindingMode: &mode, Parameters: parameters, AllowVolumeExpansion: &yes, MountOptions: []string{"noatime"}}
	k.make(c)
	k.t.Cleanup(func() { _ = k.Delete(context.Background(), c) })
	return c.Name
}

// claim makes a claim; node, if not empty, is selected by hand.
func (k *cluster) claim(name, class, size, node string,
	change ...func(*corev1.PersistentVolumeClaim)) *corev1.PersistentVolumeClaim {
	k.t.Helper()
	c := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: k.namespace, Annotations: map[string]string{}},
		Spec: corev1.PersistentVolumeClaimSpec{
			StorageClassName: &class, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{
				corev1.ResourceStorage: resource.MustParse(size)}},
		},
	}
	if node != "" {
		c.Annotations[annSelectedNode] = node
	}
	for _, f := range change {
		f(c)
	}
	k.make(c)
	return c
}

// pod makes a pod that uses claims.
func (k *cluster) pod(name string, claims ...string) {
	k.t.Helper()
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: k.namespace},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "c"}},
			NodeSelector: map[string]string{"test": k.namespace}}}
	for _, c := range claims {
		p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: c, VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: c}}})
	}
	k.make(p)
}

// until waits for a condition and fails with the last reason it did not hold.
func (k *cluster) until(what string, condition func() (why string)) {
	k.t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		why := condition()
		if why == "" {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			k.t.Fatalf("%s: %s", what, why)
		}
	}
}

// bound waits until a claim is bound, and returns it with its PersistentVolume.
func (k *cluster) bound(name string) (*corev1.PersistentVolumeClaim, *corev1.PersistentVolume) {
	k.t.Helper()
	var claim corev1.PersistentVolumeClaim
	k.until("claim "+name+" bound", func() string {
		require.NoError(k.t, k.Get(k.t.Context(), client.ObjectKey{Namespace: k.namespace, Name: name}, &claim))
		if claim.Status.Phase == corev1.ClaimBound {
			return ""
		}
		return fmt.Sprintf("%s; events: %s", claim.Status.Phase, k.events(name))
	})
	var pv corev1.PersistentVolume
	require.NoError(k.t, k.Get(k.t.Context(), client.ObjectKey{Name: claim.Spec.VolumeName}, &pv))
	return &claim, &pv
}

// events are the warnings about an object of the test's namespace, or about one
// without a namespace.
func (k *cluster) events(name string) string {
	var list corev1.EventList
	require.NoError(k.t, k.List(k.t.Context(), &list))
	var all []string
	for _, e := range list.Items {
		if e.InvolvedObject.Name == name && (e.InvolvedObject.Namespace == k.namespace ||
			e.InvolvedObject.Namespace == "") && e.Type == corev1.EventTypeWarning {
			all = append(all, e.Reason+": "+e.Message)
		}
	}
	return strings.Join(all, "\n")
}

// warned waits for a warning that contains a text.
func (k *cluster) warned(name, text string) {
	k.t.Helper()
	k.until("event on "+name, func() string {
		if all := k.events(name); !strings.Contains(all, text) {
			return fmt.Sprintf("no %q in %q", text, all)
		}
		return ""
	})
}

// gone waits until an object does not exist.
func (k *cluster) gone(o client.Object) {
	k.t.Helper()
	k.until(fmt.Sprintf("%T %s gone", o, o.GetName()), func() string {
		err := k.Get(k.t.Context(), client.ObjectKeyFromObject(o), o)
		if apierrors.IsNotFound(err) || meta.IsNoMatchError(err) {
			return ""
		}
		require.NoError(k.t, err)
		return fmt.Sprintf("still there: %+v", o)
	})
}

// volumes are the records of a claim.
func (k *cluster) volumes(claim *corev1.PersistentVolumeClaim) []v1alpha1.Volume {
	k.t.Helper()
	var list v1alpha1.VolumeList
	require.NoError(k.t, k.List(k.t.Context(), &list, client.MatchingLabels{v1alpha1.LabelPVName: "pvc-" +
		string(claim.UID)}))
	return list.Items
}

// start runs a controller with the rights of the chart's roles, and returns
// what ends it like a kill. Tries that are not woken come after an hour, so
// that only waking can make a test pass that waits for something.
func (k *cluster) start(change ...func(*Options)) (kill func()) {
	k.t.Helper()
	o := Options{Namespace: systemNamespace, NoLeaderElection: true, Registry: prometheus.NewRegistry(),
		limiter: workqueue.NewTypedItemExponentialFailureRateLimiter[any](time.Hour, time.Hour)}
	for _, f := range change {
		f(&o)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, k.cp.Config(controlplane.Controller), o) }()
	var once sync.Once
	kill = func() {
		once.Do(func() {
			cancel()
			require.NoError(k.t, <-done)
		})
	}
	k.t.Cleanup(kill)
	return kill
}

func claimMeta(name string, k *cluster) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: k.namespace, Name: name}
}

func clusterMeta(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Name: name} }

func agentMeta(node string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: systemNamespace, Name: "agent-" + node}
}

// differs says how a value is not the one wanted.
func differs[T comparable](have, want T) string {
	if have == want {
		return ""
	}
	return fmt.Sprintf("have %v, want %v", have, want)
}
