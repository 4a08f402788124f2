package provisioner

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/provisioner/parameters"
)

const gib = 1 << 30

func waitingClaim(uid types.UID, class string, size int64) *corev1.PersistentVolumeClaim {
	return &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{UID: uid},
		Spec: corev1.PersistentVolumeClaimSpec{
			StorageClassName: &class, Resources: corev1.VolumeResourceRequirements{
				Requests: corev1.ResourceList{corev1.ResourceStorage: *resource.NewQuantity(size, resource.BinarySI)}}}}
}

// A claim counts once the scheduler has not found it a node for a while, and no
// longer than until it has.
func TestNeed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told []int64
		n := newDemand(func(_ string, size int64) { told = append(told, size) })
		n.see(waitingClaim("1", "a", 10*gib))
		n.see(waitingClaim("2", "a", 3*gib))
		scheduled := waitingClaim("3", "a", gib)
		n.see(scheduled)
		scheduled.Annotations = map[string]string{annSelectedNode: "node1"}
		n.see(scheduled)
		require.False(t, n.decides("a", 0, 100*gib), "nobody waits yet")
		time.Sleep(needGrace)
		synctest.Wait()
		require.ElementsMatch(t, []int64{10 * gib, 3 * gib}, told)

		require.True(t, n.decides("a", 9*gib, 10*gib), "now the larger one fits")
		require.True(t, n.decides("a", 3*gib, 3*gib-1), "not even the smaller one fits")
		require.True(t, n.decides("a", 20*gib, 23*gib), "the smaller one fits once more")
		require.False(t, n.decides("a", 10*gib, 12*gib))
		require.False(t, n.decides("a", 2*gib, gib))
		require.False(t, n.decides("b", 0, 100*gib), "a class that nobody waits for")

		n.forget("2")
		require.False(t, n.decides("a", 3*gib, 3*gib-1))
		bound := waitingClaim("1", "a", 10*gib)
		bound.Spec.VolumeName = "pv"
		n.see(bound)
		require.Empty(t, n.claims)
		require.Empty(t, n.sizes)
	})
}

func TestUrgency(t *testing.T) {
	c := newCapacityPublisher(&capacityPublisher{})
	object := func(available, largest int64) *storagev1.CSIStorageCapacity {
		return &storagev1.CSIStorageCapacity{StorageClassName: "a", Capacity: resource.NewQuantity(available,
			resource.BinarySI),
			MaximumVolumeSize: resource.NewQuantity(largest, resource.BinarySI)}
	}
	const total = 100 * gib
	for _, test := range []struct {
		name           string
		published, now *storagev1.CSIStorageCapacity
		want           urgency
	}{
		{"less than a percent", object(50*gib, 50*gib), object(50*gib-gib/2, 50*gib-gib/2), never},
		{"a percent", object(50*gib, 50*gib), object(49*gib, 49*gib), soon},
		{"a percent of all, the largest is the same", object(50*gib, 20*gib), object(49*gib, 20*gib), soon},
		{"nothing is left, or its agent is down", object(gib/2, gib/2), object(0, 0), atOnce},
		{"something is there again", object(0, 0), object(gib/2, gib/2), atOnce},
	} {
		require.Equal(t, test.want, c.urgencyOf(test.published, test.now, total), test.name)
	}
}

func TestTotalOfTheClass(t *testing.T) {
	pool := func(name, filesystem string, size int64) v1alpha1.Pool {
		return v1alpha1.Pool{ObjectMeta: metav1.ObjectMeta{Name: "n." + name}, Spec: v1alpha1.PoolSpec{NodeName: "n",
			Pool: name},
			Status: v1alpha1.PoolStatus{FilesystemID: filesystem, Capacity: resource.NewQuantity(size,
				resource.BinarySI)}}
	}
	pools := []v1alpha1.Pool{pool("a", "1", 10), pool("b", "1", 10), pool("c", "2", 5)}
	require.EqualValues(t, 15, totalOf(pools, parameters.Set{}))
	require.EqualValues(t, 5, totalOf(pools, parameters.Set{Pool: "c"}))
}
