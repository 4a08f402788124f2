package nodeagent

import (
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/config"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/internal/testroot"
	"github.com/quarry-storage/quarry/nodeagent/record"
	"github.com/quarry-storage/quarry/nodeagent/store"
	"github.com/quarry-storage/quarry/nodeagent/translate"
)

// poolDisk is a pool's disk that can be pulled out and put back.
type poolDisk struct{ device, at string }

func newDisk(t *testing.T) poolDisk {
	t.Helper()
	testroot.RequireRoot(t)
	d := poolDisk{testroot.NewLoop(t, testroot.NewImage(t, gib).Name()), t.TempDir()}
	testroot.Mkfs(t, "ext4", d.device)
	testroot.UnmountOnCleanup(t, d.at)
	d.in(t)
	return d
}

func (d poolDisk) in(t *testing.T)  { t.Helper(); testroot.Run(t, "mount", d.device, d.at) }
func (d poolDisk) out(t *testing.T) { t.Helper(); testroot.Run(t, "umount", d.at) }

// fill makes a pool of the disk as another node or cluster would, with a volume
// in it and one in its trash. It returns the pool's identity.
func (d poolDisk) fill(t *testing.T, node, cluster string) string {
	t.Helper()
	c, err := config.Default(d.at)
	require.NoError(t, err)
	c.Pools[0].Reserve, err = config.ParseReserve("0%") // however full the machine's disk is
	require.NoError(t, err)
	s := store.New(store.Options{Node: node, Pools: c.Pools, DeviceDir: t.TempDir(),
		Log: slog.New(slog.DiscardHandler)})
	s.Expect("default", disk.Expectation{MayCreate: true, ClusterID: cluster})
	s.Refresh(t.Context())
	for _, id := range []string{"pvc-1", "pvc-2"} {
		adm, err := s.Admit(t.Context(), store.Request{ID: id, SizeBytes: 1 << 20,
			Backend: record.BackendDirectory, Enforcement: record.EnforcementNone, Origin: record.Origin{Node: node}})
		require.NoError(t, err)
		v, err := s.Create(t.Context(), adm[0])
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(v.Path, "file"), []byte("precious"), 0o644))
	}
	require.NoError(t, s.Delete(t.Context(), "pvc-2", record.Deletion{OnDelete: "trash",
		RetentionSeconds: 3600}))
	return s.Pools()[0].UID
}

// condition returns reason and message of a pool's condition.
func condition(p *v1alpha1.Pool, kind string) (reason, message string) {
	if c := meta.FindStatusCondition(p.Status.Conditions, kind); c != nil {
		return c.Reason, c.Message
	}
	return "", ""
}

func tree(t *testing.T, path string) string {
	t.Helper()
	return testroot.Run(t, "find", path, "-printf", "%p %s %T@ %C@\n")
}

// TestDiskOfAnotherCluster is recognised, not touched unasked, and taken over
// when its cluster is named.
func TestDiskOfAnotherCluster(t *testing.T) {
	d := newDisk(t)
	uid := d.fill(t, "node7", "cluster-0")
	before := tree(t, d.at)
	b := newBenchAt(t, d.at)
	pool := b.poolNow()
	why, message := condition(pool, v1alpha1.ConditionReady)
	require.Equal(t, disk.OfflineForeign, why)
	for _, part := range []string{uid, "cluster-0", "1 volumes", "1 in the trash", "quarry recover"} {
		require.Contains(t, message, part)
	}
	require.Empty(t, pool.Spec.UID, "it is not this cluster's pool")
	b.want("pvc-1", 1<<20, directory, published)
	require.Equal(t, v1alpha1.VolumeUnavailable, b.now("pvc-1").Phase)

	// Of another cluster than the one that is named.
	pool.Spec.TakeOver = "cluster-9"
	require.NoError(t, b.client.Update(t.Context(), pool))
	why, _ = condition(b.poolNow(), v1alpha1.ConditionReady)
	require.Equal(t, disk.OfflineForeign, why)
	require.Equal(t, before, tree(t, d.at))

	// Its mount point is empty for a while, also over a restart of the agent.
	d.out(t)
	for range 2 {
		b.store.Refresh(t.Context())
		why, message = condition(b.poolNow(), v1alpha1.ConditionReady)
		require.Equal(t, disk.OfflineForeign, why)
		require.Contains(t, message, "is gone")
		entries, err := os.ReadDir(d.at)
		require.NoError(t, err)
		require.Empty(t, entries, "no pool was made underneath")
		b.start("")
	}
	d.in(t)
	b.store.Refresh(t.Context())

	pool = b.poolNow()
	pool.Spec.TakeOver = "cluster-0"
	require.NoError(t, b.client.Update(t.Context(), pool))
	pool = b.poolNow()
	why, message = condition(pool, v1alpha1.ConditionReady)
	require.Equal(t, v1alpha1.ReasonReady, why, message)
	require.Equal(t, uid, pool.Spec.UID)
	in, err := disk.Inspect(d.at)
	require.NoError(t, err)
	require.Equal(t, "cluster-1", in.Identity.ClusterID)
	require.Len(t, b.store.Trash(), 1)
	// Its volumes are found without anybody touching their objects.
	b.requeueMoved(t.Context())
	require.Equal(t, 1, b.queue.Len())
	s := b.now("pvc-1")
	require.Equal(t, v1alpha1.VolumeReady, s.Phase)
	require.FileExists(t, filepath.Join(s.Path, "file"))
}

// TestStartWithoutTheAPIServer brings up what is on the disks. Nothing is freed
// before it is known whose they are.
func TestStartWithoutTheAPIServer(t *testing.T) {
	d := newDisk(t)
	uid := d.fill(t, "node1", "cluster-1")
	c, err := config.Default(d.at)
	require.NoError(t, err)
	disks := store.New(store.Options{Node: "node1", Pools: c.Pools, DeviceDir: t.TempDir(),
		Log: slog.New(slog.DiscardHandler)})
	nobody, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, nobody.Close())
	a, err := New(Options{Node: "node1", Store: disks,
		Config: &rest.Config{Host: "http://" + nobody.Addr().String()}, Log: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	<-a.Up()
	require.Equal(t, uid, disks.Pools()[0].UID)
	v, err := disks.Get("pvc-1")
	require.NoError(t, err)
	require.NoError(t, v.Unavailable)
	require.False(t, a.Ready())
	cancel()
	require.ErrorIs(t, <-ended, context.Canceled)
	require.Len(t, disks.Trash(), 1)
}

// TestForeignDiskGivenUp: without the disk, and with nobody who remembers it, a
// new pool is made.
func TestForeignDiskGivenUp(t *testing.T) {
	d := newDisk(t)
	d.fill(t, "node1", "cluster-0")
	b := newBenchAt(t, d.at)
	d.out(t)
	b.store.Refresh(t.Context())
	pool := b.poolNow()
	require.Empty(t, b.store.Pools()[0].UID)
	require.NoError(t, b.client.Delete(t.Context(), pool))
	pool = b.poolNow()
	why, message := condition(pool, v1alpha1.ConditionReady)
	require.Equal(t, v1alpha1.ReasonReady, why, message)
	require.NotEmpty(t, pool.Spec.UID)
	require.Equal(t, b.store.Pools()[0].UID, pool.Spec.UID)
}

// TestDiskOfAnotherNode comes online, and its volumes are this node's as soon
// as their objects say so.
func TestDiskOfAnotherNode(t *testing.T) {
	d := newDisk(t)
	uid := d.fill(t, "node7", "cluster-1")
	b := newBenchAt(t, d.at)
	pool := b.poolNow()
	why, message := condition(pool, v1alpha1.ConditionReady)
	require.Equal(t, v1alpha1.ReasonReady, why, message)
	require.Equal(t, uid, pool.Spec.UID)
	require.EqualValues(t, 1, pool.Status.Orphaned)
	_, message = condition(pool, v1alpha1.ConditionOrphans)
	require.Contains(t, message, "pvc-1; the disk was made on node node7; `quarry recover` moves them here")

	b.want("pvc-1", 1<<20, directory, published)
	s := b.now("pvc-1")
	require.Equal(t, v1alpha1.VolumeReady, s.Phase)
	require.FileExists(t, filepath.Join(s.Path, "file"))
	in, err := disk.Inspect(d.at)
	require.NoError(t, err)
	require.Equal(t, "node1", in.Volumes[0].Origin.Node)
	pool = b.poolNow()
	require.Zero(t, pool.Status.Orphaned)
	why, _ = condition(pool, v1alpha1.ConditionOrphans)
	require.Empty(t, why)
	// One that is an orphan later was this node's own.
	require.NoError(t, b.client.Delete(t.Context(),
		&v1alpha1.Volume{ObjectMeta: metav1.ObjectMeta{Name: "pvc-1"}}))
	require.NoError(t, b.reconcile(t.Context(), "pvc-1")) // as the queue has it, when the watch says so
	_, message = condition(b.poolNow(), v1alpha1.ConditionOrphans)
	require.Contains(t, message, "pvc-1")
	require.NotContains(t, message, "node7")
}

// TestRebuiltNode has another machine under its name: without the disk its
// volumes are lost, and nothing empty is served.
func TestRebuiltNode(t *testing.T) {
	first, second := strings.Repeat("1", 32), strings.Repeat("2", 32)
	d := newDisk(t)
	b := newBenchAt(t, d.at)
	b.start(first)
	b.want("pvc-1", 1<<20, directory)
	path := b.now("pvc-1").Path
	b.change("pvc-1", published)
	require.NoError(t, os.WriteFile(filepath.Join(path, "file"), []byte("precious"), 0o644))
	require.Equal(t, first, b.poolNow().Status.MachineID)

	d.out(t)
	b.start(first)
	why, _ := condition(b.poolNow(), v1alpha1.ConditionReady)
	require.Equal(t, disk.OfflineMissing, why, "the same machine: the disk may come back")
	require.Equal(t, v1alpha1.VolumeUnavailable, b.now("pvc-1").Phase)

	b.start(second)
	pool := b.poolNow()
	why, message := condition(pool, v1alpha1.ConditionReady)
	require.Equal(t, disk.OfflineRebuilt, why)
	for _, part := range []string{"rebuilt", pool.Spec.UID, "mount the disk", "delete the Pool object node1.default"} {
		require.Contains(t, message, part)
	}
	require.Equal(t, first, pool.Status.MachineID, "until the disk is here")
	s := b.now("pvc-1")
	require.Equal(t, v1alpha1.VolumeLost, s.Phase)
	require.Equal(t, v1alpha1.ReasonLost, reason(s))
	entries, err := os.ReadDir(d.at)
	require.NoError(t, err)
	require.Empty(t, entries)

	// The disk was only not mounted yet.
	d.in(t)
	b.store.Refresh(t.Context())
	require.Equal(t, second, b.poolNow().Status.MachineID)
	b.requeueMoved(t.Context())
	require.Equal(t, 1, b.queue.Len())
	require.Equal(t, v1alpha1.VolumeReady, b.now("pvc-1").Phase)
	require.FileExists(t, filepath.Join(path, "file"))

	// It is gone for good, and a person says so.
	d.out(t)
	b.start(first)
	pool = b.poolNow()
	why, _ = condition(pool, v1alpha1.ConditionReady)
	require.Equal(t, disk.OfflineRebuilt, why)
	require.NoError(t, b.client.Delete(t.Context(), pool))
	anew := b.poolNow()
	why, message = condition(anew, v1alpha1.ConditionReady)
	require.Equal(t, v1alpha1.ReasonReady, why, message)
	require.NotEqual(t, pool.Spec.UID, anew.Spec.UID)
	require.Equal(t, anew.Spec.UID, b.poolNow().Spec.UID)
	s = b.now("pvc-1")
	require.Equal(t, v1alpha1.VolumeLost, s.Phase)
	require.Equal(t, v1alpha1.ReasonLost, reason(s))
	require.Empty(t, b.store.List())
}

// TestPoolGivenUp: the Pool object of a missing disk is deleted under the same
// agent.
func TestPoolGivenUp(t *testing.T) {
	d := newDisk(t)
	b := newBenchAt(t, d.at)
	b.want("pvc-1", 1<<20, directory)
	require.Equal(t, v1alpha1.VolumeReady, b.now("pvc-1").Phase)
	d.out(t)
	b.store.Refresh(t.Context())
	pool := b.poolNow()
	why, _ := condition(pool, v1alpha1.ConditionReady)
	require.Equal(t, disk.OfflineMissing, why)
	require.NoError(t, b.client.Delete(t.Context(), pool))
	anew := b.poolNow()
	why, message := condition(anew, v1alpha1.ConditionReady)
	require.Equal(t, v1alpha1.ReasonReady, why, message)
	require.NotEqual(t, pool.Spec.UID, anew.Spec.UID)
	require.Equal(t, v1alpha1.VolumeLost, b.now("pvc-1").Phase)
}

// TestTheDiskFollowsTheRecord when what the record says changes after the
// volume was made.
func TestTheDiskFollowsTheRecord(t *testing.T) {
	b := newBench(t)
	b.want("pvc-1", 1<<20, directory, func(s *v1alpha1.VolumeSpec) {
		s.Parameters = map[string]string{"backend": "directory"}
		s.SpreadGroup = "default/db"
		s.Claim = &v1alpha1.ClaimReference{Namespace: "default", Name: "data", UID: "a"}
	})
	require.Equal(t, v1alpha1.VolumeReady, b.now("pvc-1").Phase)
	onDisk := func() record.Origin {
		in, err := disk.Inspect(b.pool)
		require.NoError(t, err)
		return in.Volumes[0].Origin
	}
	require.Equal(t, "a", onDisk().ClaimUID)
	require.Equal(t, "default/db", onDisk().SpreadGroup)
	b.change("pvc-1", func(s *v1alpha1.VolumeSpec) {
		s.Claim = &v1alpha1.ClaimReference{Namespace: "default", Name: "data", UID: "b",
			Labels: map[string]string{"app": "db"}}
		s.ReclaimPolicy = "Retain"
		s.Deletion = v1alpha1.DeletionPolicy{OnDelete: v1alpha1.OnDeleteTrash,
			TrashRetention: &metav1.Duration{Duration: 3e9}}
		s.Attributes = map[string]string{"readIOPS": "100"}
		s.Parameters = map[string]string{"onDelete": "trash"}
	})
	require.Equal(t, v1alpha1.VolumeReady, b.now("pvc-1").Phase)
	o := onDisk()
	require.Equal(t, "b", o.ClaimUID)
	require.Equal(t, map[string]string{"app": "db"}, o.ClaimLabels)
	require.Equal(t, "Retain", o.ReclaimPolicy)
	require.Equal(t, record.Deletion{OnDelete: "trash", RetentionSeconds: 3}, o.Deletion)
	require.Equal(t, map[string]string{"readIOPS": "100"}, o.Attributes)
	there, err := b.store.Get("pvc-1")
	require.NoError(t, err)
	again := translate.VolumeOnDisk(&there, "ext4").Spec
	require.Equal(t, map[string]string{"onDelete": "trash"}, again.Parameters)
	require.Equal(t, "default/db", again.SpreadGroup)
}

// TestRefusedGrowthIsTriedAgain when there is room, and not before.
func TestRefusedGrowthIsTriedAgain(t *testing.T) {
	b := newBench(t)
	b.want("pvc-1", 100<<20, directory)
	b.want("pvc-2", 500<<20, func(s *v1alpha1.VolumeSpec) {
		s.VolumeMode, s.Allocation = corev1.PersistentVolumeBlock, v1alpha1.AllocationThin
	})
	for _, id := range []string{"pvc-1", "pvc-2"} {
		require.Equal(t, v1alpha1.VolumeReady, b.now(id).Phase)
	}
	b.change("pvc-1", func(s *v1alpha1.VolumeSpec) { s.Capacity = resource.MustParse("800Mi") })
	s := b.now("pvc-1")
	require.Equal(t, v1alpha1.ReasonResizeInfeasible, meta.FindStatusCondition(s.Conditions,
		v1alpha1.ConditionResized).Reason)
	require.Equal(t, v1alpha1.VolumeReady, s.Phase)
	b.requeueMoved(t.Context())
	require.Zero(t, b.queue.Len(), "there is no room yet")

	require.NoError(t, b.store.Delete(t.Context(), "pvc-2", record.Deletion{}))
	require.NoError(t, b.client.Delete(t.Context(),
		&v1alpha1.Volume{ObjectMeta: metav1.ObjectMeta{Name: "pvc-2"}}))
	require.NoError(t, b.store.Drain(t.Context()))
	b.requeueMoved(t.Context())
	require.Equal(t, 1, b.queue.Len())
	s = b.now("pvc-1")
	require.True(t, meta.IsStatusConditionTrue(s.Conditions, v1alpha1.ConditionResized))
	require.EqualValues(t, 800<<20, s.Capacity.Value())

	// Lowering the request recovers as well.
	b.change("pvc-1", func(s *v1alpha1.VolumeSpec) { s.Capacity = resource.MustParse("1Ti") })
	require.True(t, meta.IsStatusConditionFalse(b.now("pvc-1").Conditions,
		v1alpha1.ConditionResized))
	b.change("pvc-1", func(s *v1alpha1.VolumeSpec) { s.Capacity = resource.MustParse("800Mi") })
	require.True(t, meta.IsStatusConditionTrue(b.now("pvc-1").Conditions,
		v1alpha1.ConditionResized))
}

// TestMachineID takes what machine-id(5) allows.
func TestMachineID(t *testing.T) {
	id := "0123456789abcdef0123456789abcdef"
	require.Equal(t, id, machineID(id+"\n"))
	for _, text := range []string{"", "uninitialized\n", id[1:], id + "0", strings.Repeat("x", 32)} {
		require.Empty(t, machineID(text))
	}
}
