package nodeagent

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/internal/testroot"
)

// node makes the Lease of another node of the cluster.
func (b *bench) node(name string) *coordinationv1.Lease {
	b.t.Helper()
	lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: corev1.NamespaceNodeLease, Name: name}}
	require.NoError(b.t, b.objects.Create(b.t.Context(), lease))
	return lease
}

// poolOf makes another node's Pool object, in a state as that node reports it.
func (b *bench) poolOf(node, uid, reason string) *v1alpha1.Pool {
	b.t.Helper()
	pool := &v1alpha1.Pool{ObjectMeta: metav1.ObjectMeta{Name: node + ".default"},
		Spec: v1alpha1.PoolSpec{NodeName: node, Pool: "default", UID: uid}}
	require.NoError(b.t, b.objects.Create(b.t.Context(), pool))
	b.says(pool, reason)
	return pool
}

func (b *bench) says(pool *v1alpha1.Pool, reason string) {
	b.t.Helper()
	truth := metav1.ConditionFalse
	if reason == v1alpha1.ReasonReady {
		truth = metav1.ConditionTrue
	}
	setPoolCondition(&pool.Status, v1alpha1.ConditionReady, truth, reason, "")
	require.NoError(b.t, b.objects.Status().Update(b.t.Context(), pool))
}

// TestDiskThatAnotherNodeHas is not touched while that node has it, as far as
// is known, and used once it has it no more.
func TestDiskThatAnotherNodeHas(t *testing.T) {
	for name, goes := range map[string]func(b *bench, lease *coordinationv1.Lease, pool *v1alpha1.Pool){
		"its Node is deleted": func(b *bench, lease *coordinationv1.Lease, _ *v1alpha1.Pool) {
			require.NoError(b.t, b.objects.Delete(b.t.Context(), lease))
		},
		"it says that it is missing": func(b *bench, _ *coordinationv1.Lease, pool *v1alpha1.Pool) {
			b.says(pool, disk.OfflineMissing)
		},
		"it says that it has another": func(b *bench, _ *coordinationv1.Lease, pool *v1alpha1.Pool) {
			require.NoError(b.t, b.objects.Delete(b.t.Context(), pool))
			b.poolOf("node7", "of-another-disk", v1alpha1.ReasonReady)
		},
	} {
		t.Run(name, func(t *testing.T) {
			testroot.RequireRoot(t)
			d := poolDisk{at: t.TempDir()} // a directory that two nodes see
			uid := d.fill(t, "node7", "cluster-1")
			before := tree(t, d.at)
			b := newBenchAt(t, t.TempDir())
			lease, pool := b.node("node7"), b.poolOf("node7", uid, v1alpha1.ReasonReady)
			b.pool = d.at
			ours := &v1alpha1.Pool{ObjectMeta: metav1.ObjectMeta{Name: "node1.default"}}
			require.NoError(t, b.objects.Delete(t.Context(), ours))
			b.start("machine-1")
			why, message := condition(b.poolNow(), v1alpha1.ConditionReady)
			require.Equal(t, disk.OfflineInUseElsewhere, why, message)
			require.Contains(t, message, "node7.default")
			for _, state := range []string{disk.OfflineReadOnly, disk.OfflineFailed} {
				b.says(pool, state) // it has the disk, whatever is wrong with it
				why, message = condition(b.poolNow(), v1alpha1.ConditionReady)
				require.Equal(t, disk.OfflineInUseElsewhere, why, message)
			}
			require.Equal(t, before, tree(t, d.at), "nothing was touched")

			goes(b, lease, pool)
			now := b.poolNow()
			why, message = condition(now, v1alpha1.ConditionReady)
			require.Equal(t, v1alpha1.ReasonReady, why, message)
			require.Equal(t, uid, now.Spec.UID)
			require.Len(t, b.store.List(), 1)
			b.start("machine-1")
			require.Len(t, b.store.List(), 1, "it is this node's now, and nobody has to be asked")
		})
	}
}

// TestPoolsWithOneIdentity are told, on the objects of both.
func TestPoolsWithOneIdentity(t *testing.T) {
	testroot.RequireRoot(t)
	b := newBenchAt(t, t.TempDir())
	uid := b.poolNow().Spec.UID
	other := b.poolOf("node7", uid, v1alpha1.ReasonReady)
	b.Agent.pools.lookForTwins(t.Context())
	_, message := condition(b.poolNow(), v1alpha1.ConditionSharedIdentity)
	require.Contains(t, message, "node7.default")
	require.NoError(t, b.objects.Delete(t.Context(), other))
	b.Agent.pools.lookForTwins(t.Context())
	why, _ := condition(b.poolNow(), v1alpha1.ConditionSharedIdentity)
	require.Empty(t, why)
}

// TestAskingAgainTakesEverLonger: with each time that nothing came of it, and
// not for what made somebody ask in between.
func TestAskingAgainTakesEverLonger(t *testing.T) {
	var e elsewhere
	now := time.Now()
	require.Equal(t, askFirst, e.again(now))
	now = now.Add(askFirst / 3)
	require.Equal(t, askFirst-askFirst/3, e.again(now), "the time that is left")
	for _, want := range []time.Duration{2 * askFirst, askLast, askLast} {
		now = e.asked.Add(e.wait)
		require.Equal(t, want, e.again(now))
	}
}

// TestOneTimerForADiskElsewhere reports a pool many times while another node
// has its disk: that leaves one timer, and none once it is this node's.
func TestOneTimerForADiskElsewhere(t *testing.T) {
	testroot.RequireRoot(t)
	d := poolDisk{at: t.TempDir()}
	uid := d.fill(t, "node7", "cluster-1")
	b := newBenchAt(t, t.TempDir())
	lease, _ := b.node("node7"), b.poolOf("node7", uid, v1alpha1.ReasonReady)
	b.pool = d.at
	require.NoError(t, b.objects.Delete(t.Context(),
		&v1alpha1.Pool{ObjectMeta: metav1.ObjectMeta{Name: "node1.default"}}))
	b.start("machine-1")
	var before *time.Timer
	for range 5 {
		b.poolNow()
		at := b.Agent.pools.elsewhere["default"]
		require.Equal(t, askFirst, at.wait, "nobody waited")
		if before != nil {
			require.False(t, before.Stop(), "it still runs")
		}
		before = at.timer
	}
	require.NoError(t, b.objects.Delete(t.Context(), lease))
	b.poolNow()
	b.poolNow()
	require.False(t, before.Stop(), "it still runs")
	require.Empty(t, b.Agent.pools.elsewhere)
}
