package e2e

import (
	"fmt"
	"maps"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

var poolsResource = schema.GroupVersionResource{Group: "quarry.storage", Version: "v1alpha1", Resource: "pools"}

// A door is one of the two ways in. What holds for both is tested once, over
// this table.
type door struct{ name, provisioner string }

var (
	classic    = door{"classic", "local.quarry.storage"}
	csi        = door{"csi", "csi.quarry.storage"}
	frontDoors = []door{classic, csi}
)

type parameters map[string]string

// newClass makes a StorageClass for the test and returns its name. It goes when
// the test ends, before the test's namespace: what the volumes' deletion means
// is in their records by then.
func (d door) newClass(t testing.TB, p parameters, change ...func(*storagev1.StorageClass)) string {
	t.Helper()
	class := &storagev1.StorageClass{
		ObjectMeta:  metav1.ObjectMeta{GenerateName: "e2e-" + d.name + "-"},
		Provisioner: d.provisioner, Parameters: maps.Clone(p),
		VolumeBindingMode: new(storagev1.VolumeBindingWaitForFirstConsumer), AllowVolumeExpansion: new(true),
	}
	for _, c := range change {
		c(class)
	}
	class, err := kube.StorageV1().StorageClasses().Create(t.Context(), class, metav1.CreateOptions{})
	require.NoError(t, err)
	t.Cleanup(func() {
		err := kube.StorageV1().StorageClasses().Delete(contextForCleanup(), class.Name, metav1.DeleteOptions{})
		require.True(t, err == nil || apierrors.IsNotFound(err), "%v", err)
	})
	return class.Name
}

func retain(c *storagev1.StorageClass) {
	c.ReclaimPolicy = new(corev1.PersistentVolumeReclaimRetain)
}

// Pools that tests fill up, each of which one test has at a time.
var exclusivePools = map[string]*sync.Mutex{"small": {}, "spare": {}}

// fills gives the test the pool of that name, on all nodes, for itself, and
// empty. Call it before newNamespace.
func fills(t testing.TB, pool string) {
	t.Helper()
	exclusivePools[pool].Lock()
	t.Cleanup(exclusivePools[pool].Unlock)
	eventually(t, "the pools "+pool+" are empty", func() (bool, string) {
		pools, err := objects.Resource(poolsResource).List(t.Context(),
			metav1.ListOptions{LabelSelector: "quarry.storage/pool=" + pool})
		require.NoError(t, err)
		for _, p := range pools.Items {
			if promised := nested(p.Object, "status", "promised"); promised != "0" {
				return false, p.GetName() + " has promised " + promised
			}
		}
		return len(pools.Items) > 0, "there are none"
	})
}

// room is how many bytes the node's pool says can still be promised, once it
// says of every volume there is that it is promised: it is told of all at once,
// a little later.
func room(t testing.TB, node, pool string) (free int64) {
	t.Helper()
	eventually(t, "the pool "+node+"."+pool+" says what is promised", func() (bool, string) {
		want := int64(0)
		volumes, err := objects.Resource(volumesResource).List(t.Context(),
			metav1.ListOptions{FieldSelector: "spec.nodeName=" + node})
		require.NoError(t, err)
		for _, v := range volumes.Items {
			if nested(v.Object, "status", "pool") == pool && nested(v.Object, "status", "phase") != "Deleted" {
				q, err := resource.ParseQuantity(nested(v.Object, "spec", "capacity"))
				require.NoError(t, err)
				want += q.Value()
			}
		}
		p, err := objects.Resource(poolsResource).Get(t.Context(), node+"."+pool, metav1.GetOptions{})
		require.NoError(t, err)
		promised, err := resource.ParseQuantity(nested(p.Object, "status", "promised"))
		require.NoError(t, err)
		free = poolRoom(t, p)
		return promised.Value() == want, fmt.Sprintf("%s promised, to volumes of %d bytes", promised.String(), want)
	})
	return free
}

func poolRoom(t testing.TB, pool *unstructured.Unstructured) int64 {
	t.Helper()
	text, _, err := unstructured.NestedString(pool.Object, "status", "available")
	require.NoError(t, err)
	q, err := resource.ParseQuantity(text)
	require.NoError(t, err)
	return q.Value()
}

func mib(bytes int64) string { return fmt.Sprintf("%dMi", bytes>>20) }

// poolOf is the pool that a PersistentVolume's volume is in.
func poolOf(t testing.TB, pv *corev1.PersistentVolume) string {
	t.Helper()
	v, _ := volumeOf(t, pv)
	return nested(v.Object, "status", "pool")
}

// volumeDir is where a volume is on its node's disk.
func volumeDir(t testing.TB, pv *corev1.PersistentVolume) string {
	t.Helper()
	id, node := whereIs(pv)
	p, err := objects.Resource(poolsResource).Get(t.Context(), node+"."+poolOf(t, pv), metav1.GetOptions{})
	require.NoError(t, err)
	return nested(p.Object, "status", "path") + "/" + id
}

// pvPhase waits until the PersistentVolume has the phase.
func pvPhase(t testing.TB, name string, want corev1.PersistentVolumePhase) *corev1.PersistentVolume {
	t.Helper()
	var pv *corev1.PersistentVolume
	eventually(t, "PersistentVolume "+name+" is "+string(want), func() (bool, string) {
		var err error
		if pv, err = kube.CoreV1().PersistentVolumes().Get(t.Context(), name, metav1.GetOptions{}); err != nil {
			return false, err.Error()
		}
		return pv.Status.Phase == want, string(pv.Status.Phase)
	})
	return pv
}

func kubectl(t testing.TB, args ...string) string {
	t.Helper()
	out, err := cluster.Kubectl(t.Context(), args...)
	require.NoError(t, err, "kubectl %s", strings.Join(args, " "))
	return strings.TrimSpace(string(out))
}

// claimVolume is a pod's volume named like its claim.
func claimVolume(name string) corev1.Volume {
	return corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{
		PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: name}}}
}

// newPod makes a pod with the claims mounted at their names, and does not wait
// for it.
func newPod(t testing.TB, ns, name string, change func(*corev1.Pod), claims ...string) {
	t.Helper()
	_, err := kube.CoreV1().Pods(ns).Create(t.Context(), idlePod(ns, name, change, claims...), metav1.CreateOptions{})
	require.NoError(t, err)
}

// idlePod is the pod that newPod makes.
func idlePod(ns, name string, change func(*corev1.Pod), claims ...string) *corev1.Pod {
	container := corev1.Container{Name: "main", Image: "busybox:stable", ImagePullPolicy: corev1.PullNever,
		Command: []string{"sh", "-c", idle}}
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: ns},
		Spec:       corev1.PodSpec{TerminationGracePeriodSeconds: new(int64(0))},
	}
	for _, c := range claims {
		p.Spec.Volumes = append(p.Spec.Volumes, claimVolume(c))
		container.VolumeMounts = append(container.VolumeMounts, corev1.VolumeMount{Name: c, MountPath: "/" + c})
	}
	p.Spec.Containers = []corev1.Container{container}
	if change != nil {
		change(p)
	}
	return p
}

// prefers has the scheduler take the node if it can.
func prefers(node string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{
			PreferredDuringSchedulingIgnoredDuringExecution: []corev1.PreferredSchedulingTerm{{Weight: 100,
				Preference: corev1.NodeSelectorTerm{MatchExpressions: []corev1.NodeSelectorRequirement{
					{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{node}}}}}}}}
	}
}

// onlyOn has the pod run on no other node.
func onlyOn(node string, more ...func(*corev1.Pod)) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.NodeSelector = map[string]string{corev1.LabelHostname: node}
		for _, change := range more {
			change(p)
		}
	}
}

// rawAt gives the pod a claim as the device /dev/data.
func rawAt(claim string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.Volumes = append(p.Spec.Volumes, claimVolume(claim))
		p.Spec.Containers[0].VolumeDevices = []corev1.VolumeDevice{{Name: claim, DevicePath: "/dev/data"}}
	}
}
