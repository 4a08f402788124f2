package diagnose

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	statsv1alpha1 "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

func TestUsageOf(t *testing.T) {
	stats := func(claim string, used uint64, ago time.Duration) statsv1alpha1.VolumeStats {
		s := statsv1alpha1.VolumeStats{Name: "v", FsStats: statsv1alpha1.FsStats{
			Time: metav1.NewTime(now.Add(-ago)), UsedBytes: &used, CapacityBytes: new(uint64(100)),
			InodesUsed: new(uint64(3)), Inodes: new(uint64(10))}}
		if claim != "" {
			s.PVCRef = &statsv1alpha1.PVCReference{Namespace: "shop", Name: claim}
		}
		return s
	}
	nothing := stats("nothing", 0, 0)
	nothing.UsedBytes = nil

	got := usageOf(&statsv1alpha1.Summary{Pods: []statsv1alpha1.PodStats{
		{VolumeStats: []statsv1alpha1.VolumeStats{stats("a", 40, time.Minute), stats("", 7, 0), nothing}},
		{VolumeStats: []statsv1alpha1.VolumeStats{stats("a", 50, time.Second), stats("b", 1, 0)}},
		{VolumeStats: []statsv1alpha1.VolumeStats{stats("a", 30, time.Hour)}},
	}})
	require.Len(t, got, 2)
	require.Equal(t, &Usage{UsedBytes: 50, CapacityBytes: 100, UsedInodes: 3, Inodes: 10,
		At: metav1.NewTime(now.Add(-time.Second))}, got["shop/a"])
	require.EqualValues(t, 1, got["shop/b"].UsedBytes)
}

func TestNodesOf(t *testing.T) {
	require.Equal(t, []string{"a", "b"}, NodesOf([]Volume{
		{Node: "b", Claim: "x"}, {Node: "a", Claim: "y"}, {Node: "b", Claim: "z"}, {Node: "c"}}))
}

func TestSortVolumes(t *testing.T) {
	at := func(minutes int) metav1.Time { return metav1.NewTime(now.Add(time.Duration(minutes) * time.Minute)) }
	all := []Volume{
		{Name: "1", Node: "b", Claim: "z", SizeBytes: 5, Created: at(3), Healthy: true, State: "Ready", Usage: &Usage{UsedBytes: 1, CapacityBytes: 2}},
		{Name: "2", Node: "a", Claim: "y", SizeBytes: 9, Created: at(1), Healthy: false, State: "Lost"},
		{Name: "3", Node: "a", Claim: "x", SizeBytes: 9, Created: at(2), Healthy: true, State: "Creating", Usage: &Usage{UsedBytes: 8, CapacityBytes: 10}},
	}
	for by, want := range map[string]string{
		"name": "123", "node": "231", "claim": "321", "size": "231", "used": "312", "age": "231", "state": "231",
	} {
		SortVolumes(all, by)
		got := ""
		for _, v := range all {
			got += v.Name
		}
		require.Equal(t, want, got, by)
		require.Contains(t, VolumeSortKeys, by)
	}
	require.Len(t, VolumeSortKeys, 7)

	pools := []Pool{
		{Name: "a.2", Ready: true, State: "Ready", AvailableBytes: 1, CapacityBytes: 10, Volumes: 1},
		{Name: "a.1", Ready: true, State: "Ready", AvailableBytes: 5, CapacityBytes: 10, Volumes: 3},
		{Name: "b.1", State: "Missing", AvailableBytes: 0, CapacityBytes: 20, Volumes: 2},
	}
	for by, want := range map[string]string{
		"name": "a.1 a.2 b.1 ", "available": "b.1 a.2 a.1 ", "capacity": "b.1 a.1 a.2 ", "volumes": "a.1 b.1 a.2 ", "state": "b.1 a.1 a.2 ",
	} {
		SortPools(pools, by)
		got := ""
		for _, p := range pools {
			got += p.Name + " "
		}
		require.Equal(t, want, got, by)
		require.Contains(t, PoolSortKeys, by)
	}
	require.Len(t, PoolSortKeys, 5)
}
