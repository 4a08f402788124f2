package provisioner

import (
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/provisioner/parameters"
)

func testNode(name string, ready bool, taints ...corev1.Taint) corev1.Node {
	status := corev1.ConditionFalse
	if ready {
		status = corev1.ConditionTrue
	}
	return corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"zone": name}},
		Spec:   corev1.NodeSpec{Taints: taints},
		Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: status}}}}
}

func testPool(node, name, size, filesystem string, labels map[string]string) v1alpha1.Pool {
	q := resource.MustParse(size)
	return v1alpha1.Pool{ObjectMeta: metav1.ObjectMeta{Name: node + "." + name, Labels: labels},
		Spec: v1alpha1.PoolSpec{NodeName: node, Pool: name},
		Status: v1alpha1.PoolStatus{Available: &q, MaximumVolumeSize: &q, FilesystemID: filesystem,
			Conditions: []metav1.Condition{{Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue}}}}
}

func TestPick(t *testing.T) {
	noSchedule := corev1.Taint{Key: "control-plane", Effect: corev1.TaintEffectNoSchedule}
	pl := placement{
		nodes: []corev1.Node{testNode("small", true), testNode("large", true), testNode("down", false),
			testNode("tainted", true, noSchedule), testNode("silent", true)},
		pools: map[string][]v1alpha1.Pool{
			"small":   {testPool("small", "default", "5Gi", "", nil)},
			"large":   {testPool("large", "default", "9Gi", "", nil)},
			"down":    {testPool("down", "default", "99Gi", "", nil)},
			"tainted": {testPool("tainted", "default", "50Gi", "", nil)},
			"silent":  {testPool("silent", "default", "99Gi", "", nil)},
		},
		ready:   func(node string) (bool, string) { return node != "silent", "" },
		refused: map[string]int{},
	}
	pick := func(class storagev1.StorageClass, size string) (string, error) {
		q := resource.MustParse(size)
		return pl.pick(&class, parameters.Set{}, q.Value())
	}
	node, err := pick(storagev1.StorageClass{}, "1Gi")
	require.NoError(t, err)
	require.Equal(t, "large", node)
	node, _ = pick(storagev1.StorageClass{}, "10Gi")
	require.Equal(t, "tainted", node, "better than none")
	only := storagev1.StorageClass{AllowedTopologies: []corev1.TopologySelectorTerm{
		{MatchLabelExpressions: []corev1.TopologySelectorLabelRequirement{{Key: "zone",
			Values: []string{"small", "elsewhere"}}}}}}
	node, _ = pick(only, "1Gi")
	require.Equal(t, "small", node)
	pl.refused["large"] = 1
	node, _ = pick(storagev1.StorageClass{}, "1Gi")
	require.Equal(t, "small", node, "the other one refused this claim")
	_, err = pick(storagev1.StorageClass{}, "70Gi")
	require.EqualError(t, err, "no node can take the volume: of 5 nodes, 1 not ready, 1 without a ready Quarry agent, "+
		"3 without enough room in a pool that matches")
}

func TestRoomIn(t *testing.T) {
	offline := testPool("n", "gone", "100Gi", "d", nil)
	offline.Status.Conditions[0].Status = metav1.ConditionFalse
	quota := testPool("n", "quota", "3Gi", "c", map[string]string{"disk": "ssd"})
	quota.Status.Features.ProjectQuota = true
	pools := []v1alpha1.Pool{testPool("n", "a", "5Gi", "same", nil), testPool("n",
		"b", "4Gi", "same", map[string]string{"disk": "hdd"}), quota, offline}
	for _, test := range []struct {
		class              map[string]string
		available, largest string
	}{
		{nil, "8Gi", "5Gi"}, // two pools share a filesystem, and its room
		{map[string]string{"pool": "b"}, "4Gi", "4Gi"},
		{map[string]string{"poolSelector": "disk"}, "7Gi", "4Gi"},
		{map[string]string{"poolSelector": "disk=tape"}, "0", "0"},
		{map[string]string{"backend": "directory"}, "3Gi", "3Gi"}, // only one can enforce
		{map[string]string{"enforcement": "none"}, "8Gi", "5Gi"},
	} {
		p, err := parameters.Parse(test.class)
		require.NoError(t, err)
		available, largest := resource.MustParse(test.available), resource.MustParse(test.largest)
		require.Equal(t, room{available.Value(), largest.Value()}, roomIn(pools, p), test.class)
	}
}
