package nodeagent

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/config"
	"github.com/quarry-storage/quarry/nodeagent/internal/testroot"
	"github.com/quarry-storage/quarry/nodeagent/mount"
	"github.com/quarry-storage/quarry/nodeagent/record"
	"github.com/quarry-storage/quarry/nodeagent/store"
)

const gib = 1 << 30

// bench is an agent with a real store on a real filesystem. Only the API server
// is none: its objects are in memory.
type bench struct {
	*Agent
	t    *testing.T
	pool string
	// objects is what stays when the agent starts again.
	objects client.WithWatch
}

func newBench(t *testing.T) *bench {
	t.Helper()
	testroot.RequireRoot(t)
	return newBenchAt(t, testroot.NewFilesystem(t, "ext4", gib))
}

// newBenchAt makes a bench with a pool at path, whatever is there.
func newBenchAt(t *testing.T, path string) *bench {
	t.Helper()
	scheme, err := NewScheme()
	require.NoError(t, err)
	b := &bench{t: t, pool: path, objects: fake.NewClientBuilder().WithScheme(scheme).WithStatusSubresource(
		&v1alpha1.Volume{}, &v1alpha1.Pool{}).
		WithIndex(&v1alpha1.Volume{}, indexClaim, indexOfClaim).
		WithIndex(&v1alpha1.Volume{}, "spec.nodeName", func(o client.Object) []string {
			return []string{o.(*v1alpha1.Volume).Spec.NodeName}
		}).
		WithObjects(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: metav1.NamespaceSystem,
			UID: "cluster-1"}}).Build()}
	b.start("")
	t.Cleanup(func() {
		for _, v := range b.store.List() {
			require.NoError(t, b.store.Delete(context.Background(), v.ID, record.Deletion{}))
		}
		require.NoError(t, b.store.Drain(context.Background()))
	})
	return b
}

// start is the start of an agent's process, on a machine of that identity. The
// one before is gone.
func (b *bench) start(machine string) {
	b.t.Helper()
	c, err := config.Default(b.pool)
	require.NoError(b.t, err)
	c.Pools[0].Reserve, err = config.ParseReserve("0%")
	require.NoError(b.t, err)
	disks := store.New(store.Options{Node: "node1", Pools: c.Pools,
		DeviceDir: filepath.Join(b.t.TempDir(), "dev"), Log: slog.New(slog.DiscardHandler)})
	b.Agent = &Agent{opts: Options{Node: "node1", MachineID: machine},
		log: slog.New(slog.DiscardHandler), store: disks, client: b.objects, live: b.objects,
		queue: workqueue.NewTypedRateLimitingQueue(workqueue.DefaultTypedControllerRateLimiter[string]())}
	b.lanes.wake = func(volume string) { b.queue.Add(volume) }
	b.groups.admitted = map[string]*store.Admission{}
	b.Agent.pools = newPoolReporter(b.Agent)
	b.meter, err = newMeter(nil, disks)
	require.NoError(b.t, err)
	b.Agent.pools.askEarly(b.t.Context())
	disks.Refresh(b.t.Context())
	require.NoError(b.t, b.noteEarly(b.t.Context()))
	require.NoError(b.t, b.Agent.pools.identify(b.t.Context()))
	b.ready.Store(true)
}

// want makes a Volume object.
func (b *bench) want(name string, size int64, change ...func(*v1alpha1.VolumeSpec)) {
	b.t.Helper()
	v := &v1alpha1.Volume{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.VolumeSpec{
		NodeName: "node1", DesiredState: v1alpha1.DesiredPresent,
		Backend: v1alpha1.BackendLoop, Enforcement: v1alpha1.EnforcementQuota,
		VolumeMode: corev1.PersistentVolumeFilesystem, Allocation: v1alpha1.AllocationThick,
		Capacity: *resource.NewQuantity(size, resource.BinarySI)}}
	for _, f := range change {
		f(&v.Spec)
	}
	require.NoError(b.t, b.client.Create(b.t.Context(), v))
}

func (b *bench) change(name string, change func(*v1alpha1.VolumeSpec)) {
	b.t.Helper()
	v := &v1alpha1.Volume{}
	require.NoError(b.t, b.client.Get(b.t.Context(), client.ObjectKey{Name: name}, v))
	change(&v.Spec)
	require.NoError(b.t, b.client.Update(b.t.Context(), v))
}

// now reconciles and returns the status.
func (b *bench) now(name string) v1alpha1.VolumeStatus {
	b.t.Helper()
	require.NoError(b.t, b.reconcile(b.t.Context(), name))
	v := &v1alpha1.Volume{}
	require.NoError(b.t, b.client.Get(b.t.Context(), client.ObjectKey{Name: name}, v))
	return v.Status
}

// poolNow reports the pools and returns the Pool object.
func (b *bench) poolNow() *v1alpha1.Pool {
	b.t.Helper()
	b.Agent.pools.flush(b.t.Context())
	pool := &v1alpha1.Pool{}
	require.NoError(b.t, b.client.Get(b.t.Context(), client.ObjectKey{Name: "node1.default"}, pool))
	return pool
}

// directory makes a Volume a plain directory, of which nothing has to be
// mounted.
func directory(s *v1alpha1.VolumeSpec) {
	s.Backend, s.Enforcement = v1alpha1.BackendDirectory, v1alpha1.EnforcementNone
}

func reason(s v1alpha1.VolumeStatus) string {
	if c := meta.FindStatusCondition(s.Conditions, v1alpha1.ConditionReady); c != nil {
		return c.Reason
	}
	return ""
}

func TestOnlyTheDesiredStateRemovesData(t *testing.T) {
	b := newBench(t)
	b.want("pvc-1", 32<<20)
	s := b.now("pvc-1")
	require.Equal(t, v1alpha1.VolumeReady, s.Phase)
	file := filepath.Join(s.Path, "file")
	require.NoError(t, os.WriteFile(file, []byte("precious"), 0o644))

	// The record is gone: it stays, and is an orphan.
	v := &v1alpha1.Volume{ObjectMeta: metav1.ObjectMeta{Name: "pvc-1"}}
	require.NoError(t, b.client.Delete(t.Context(), v))
	require.NoError(t, b.reconcile(t.Context(), "pvc-1"))
	require.FileExists(t, file)
	b.Agent.pools.flush(t.Context())
	pool := &v1alpha1.Pool{}
	require.NoError(t, b.client.Get(t.Context(), client.ObjectKey{Name: "node1.default"}, pool))
	require.EqualValues(t, 1, pool.Status.Orphaned)
	require.NotEmpty(t, pool.Spec.UID)

	// Written again, as the controller does: it is found, not made.
	b.want("pvc-1", 32<<20, func(s *v1alpha1.VolumeSpec) { s.Published = true })
	require.Equal(t, v1alpha1.VolumeReady, b.now("pvc-1").Phase)
	require.FileExists(t, file)

	// Trashed and wanted back.
	b.change("pvc-1", func(s *v1alpha1.VolumeSpec) {
		s.DesiredState = v1alpha1.DesiredTrashed
		s.Deletion.TrashRetention = &metav1.Duration{Duration: time.Hour}
	})
	s = b.now("pvc-1")
	require.Equal(t, v1alpha1.VolumeTrashed, s.Phase)
	require.NotNil(t, s.ExpiresAt)
	require.NoFileExists(t, file)
	b.change("pvc-1", func(s *v1alpha1.VolumeSpec) { s.DesiredState = v1alpha1.DesiredPresent })
	require.Equal(t, v1alpha1.VolumeReady, b.now("pvc-1").Phase)
	require.FileExists(t, file)

	b.change("pvc-1", func(s *v1alpha1.VolumeSpec) { s.DesiredState = v1alpha1.DesiredDeleted })
	require.Equal(t, v1alpha1.VolumeDeleted, b.now("pvc-1").Phase)
	require.NoFileExists(t, file)
	require.Equal(t, v1alpha1.VolumeDeleted, b.now("pvc-1").Phase, "again")
}

func TestAPublishedVolumeIsNeverMadeAnew(t *testing.T) {
	b := newBench(t)
	b.want("pvc-1", 32<<20, func(s *v1alpha1.VolumeSpec) { s.Published = true })
	s := b.now("pvc-1")
	require.Equal(t, v1alpha1.VolumeLost, s.Phase)
	require.Empty(t, b.store.List())

	// Of a pool that is not there nothing can be said, also not that the volume
	// is gone.
	b.want("pvc-2", 32<<20, func(s *v1alpha1.VolumeSpec) { s.Published, s.Pool = true, "elsewhere" })
	require.Equal(t, v1alpha1.VolumeUnavailable, b.now("pvc-2").Phase)
	b.change("pvc-2", func(s *v1alpha1.VolumeSpec) { s.DesiredState = v1alpha1.DesiredDeleted })
	require.Equal(t, v1alpha1.VolumeUnavailable, b.now("pvc-2").Phase)
}

func TestRefusalIsFinalAndHoldsNothing(t *testing.T) {
	b := newBench(t)
	for name, change := range map[string]func(*v1alpha1.VolumeSpec){
		v1alpha1.ReasonInsufficientCapacity: func(s *v1alpha1.VolumeSpec) { s.Capacity = resource.MustParse("1Ti") },
		v1alpha1.ReasonPoolNotFound:         func(s *v1alpha1.VolumeSpec) { s.Pool = "nvme" },
		v1alpha1.ReasonUnsupported:          func(s *v1alpha1.VolumeSpec) { s.Backend = v1alpha1.BackendDirectory },
		v1alpha1.ReasonTooSmall:             func(s *v1alpha1.VolumeSpec) { s.FSType = "xfs" },
		v1alpha1.ReasonInvalidOptions:       func(s *v1alpha1.VolumeSpec) { s.MkfsOptions = []string{"-F"} },
	} {
		id := "pvc-" + strings.ToLower(name)
		b.want(id, 32<<20, change)
		s := b.now(id)
		require.Equal(t, v1alpha1.VolumeRefused, s.Phase, name)
		require.Equal(t, name, reason(s))
		require.Equal(t, name, reason(b.now(id)), "again")
		b.change(id, func(s *v1alpha1.VolumeSpec) { s.DesiredState = v1alpha1.DesiredDeleted })
		require.Equal(t, v1alpha1.VolumeDeleted, b.now(id).Phase, name)
	}
	require.Zero(t, b.store.Pools()[0].Promised)
}

func TestGroupIsAdmittedWholeOrNotAtAll(t *testing.T) {
	b := newBench(t)
	member := func(uid types.UID) func(*v1alpha1.VolumeSpec) {
		return func(s *v1alpha1.VolumeSpec) {
			s.Claim = &v1alpha1.ClaimReference{Namespace: "default", Name: string(uid), UID: uid}
			s.Admission = &v1alpha1.AdmissionGroup{Name: "pod-1", Claims: []types.UID{"a", "b"}}
		}
	}
	b.want("pvc-a", 500<<20, member("a"))
	require.Equal(t, v1alpha1.ReasonWaitingForGroup, reason(b.now("pvc-a")))
	require.Zero(t, b.store.Pools()[0].Promised)

	// Either fits, both do not.
	b.want("pvc-b", 600<<20, member("b"))
	v := &v1alpha1.Volume{}
	require.NoError(t, b.client.Get(t.Context(), client.ObjectKey{Name: "pvc-b"}, v))
	require.Equal(t, []string{"pvc-a"}, b.groups.waitingFor(v))
	require.Equal(t, v1alpha1.ReasonInsufficientCapacity, reason(b.now("pvc-b")))
	require.Equal(t, v1alpha1.ReasonGroupRefused, reason(b.now("pvc-a")))
	require.Empty(t, b.store.List())
	require.Zero(t, b.store.Pools()[0].Promised)

	b.want("pvc-a-2", 100<<20, member("a"))
	b.want("pvc-b-2", 100<<20, member("b"))
	require.Equal(t, v1alpha1.VolumeReady, b.now("pvc-a-2").Phase)
	require.EqualValues(t, 200<<20, b.store.Pools()[0].Promised,
		"the other one's space is promised too")
	require.Equal(t, v1alpha1.VolumeReady, b.now("pvc-b-2").Phase)
}

// What has not come after a while may never come: its pod cannot be scheduled.
func TestAVolumeOfAGroupIsMadeAloneAfterAWhile(t *testing.T) {
	b := newBench(t)
	member := func(uid types.UID) func(*v1alpha1.VolumeSpec) {
		return func(s *v1alpha1.VolumeSpec) {
			s.Claim = &v1alpha1.ClaimReference{Namespace: "default", Name: string(uid), UID: uid}
			s.Admission = &v1alpha1.AdmissionGroup{Name: "pod-1", Claims: []types.UID{"a", "b"}}
		}
	}
	b.want("pvc-a", 100<<20, member("a"))
	require.Equal(t, v1alpha1.ReasonWaitingForGroup, reason(b.now("pvc-a")))
	b.groups.waiting["pvc-a"] = waiting{"pod-1", time.Now().Add(-groupPatience)}
	require.Equal(t, v1alpha1.VolumeReady, b.now("pvc-a").Phase)
	require.EqualValues(t, 100<<20, b.store.Pools()[0].Promised)

	b.want("pvc-b", 100<<20, member("b"))
	require.Equal(t, v1alpha1.VolumeReady, b.now("pvc-b").Phase, "it comes after all")
	require.EqualValues(t, 200<<20, b.store.Pools()[0].Promised)
	require.Empty(t, b.groups.admitted)
}

func TestInUseWaits(t *testing.T) {
	b := newBench(t)
	b.want("pvc-1", 32<<20)
	path := b.now("pvc-1").Path
	target := t.TempDir()
	testroot.Mount(t, path, target, "--bind")
	b.change("pvc-1", func(s *v1alpha1.VolumeSpec) { s.DesiredState = v1alpha1.DesiredDeleted })
	s := b.now("pvc-1")
	require.True(t, meta.IsStatusConditionTrue(s.Conditions, v1alpha1.ConditionInUse))
	require.NotEqual(t, v1alpha1.VolumeDeleted, s.Phase)
	require.DirExists(t, path)
	testroot.Run(t, "umount", target)
	s = b.now("pvc-1")
	require.Equal(t, v1alpha1.VolumeDeleted, s.Phase)
	require.Nil(t, meta.FindStatusCondition(s.Conditions, v1alpha1.ConditionInUse))
}

func TestWatchMountsTells(t *testing.T) {
	testroot.RequireRoot(t)
	ctx, cancel := context.WithCancel(t.Context())
	changed, err := mount.Watch(ctx)
	require.NoError(t, err)
	testroot.Mount(t, "tmpfs", t.TempDir(), "-t", "tmpfs")
	select {
	case _, open := <-changed:
		require.True(t, open)
	case <-time.After(time.Minute):
		t.Fatal("nobody told of the mount")
	}
	// Also where they are never quiet.
	busy, stop := context.WithCancel(ctx)
	target, done := t.TempDir(), make(chan struct{})
	go func() {
		defer close(done)
		for busy.Err() == nil {
			if err := unix.Mount("tmpfs", target, "tmpfs", 0, ""); err == nil {
				_ = unix.Unmount(target, unix.MNT_DETACH)
			}
		}
	}()
	select {
	case <-changed:
	case <-time.After(time.Minute):
		t.Error("nobody told of mounts that come and go")
	}
	stop()
	<-done
	cancel()
	for range changed { // until it is closed
	}
}

// adopting makes a wish one for what is at a path of the bench's pool.
func (b *bench) adopting(name string, kind v1alpha1.AdoptionType,
	change ...func(*v1alpha1.VolumeSpec)) func(*v1alpha1.VolumeSpec) {
	return func(s *v1alpha1.VolumeSpec) {
		s.Backend, s.Enforcement = v1alpha1.BackendAuto, v1alpha1.EnforcementNone
		s.Adopt = &v1alpha1.Adoption{Path: filepath.Join(b.pool, name), Type: kind}
		for _, f := range change {
			f(s)
		}
	}
}

func published(s *v1alpha1.VolumeSpec) { s.Published = true }

func TestAdoption(t *testing.T) {
	b := newBench(t)
	old := filepath.Join(b.pool, "easemesh-storage")
	require.NoError(t, os.Mkdir(old, 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(old, "file"), []byte("precious"), 0o644))

	// Its PersistentVolume was there before the volume.
	b.want("adopted-1", 32<<20, b.adopting("easemesh-storage", v1alpha1.AdoptDirectory, published))
	s := b.now("adopted-1")
	require.Equal(t, v1alpha1.VolumeReady, s.Phase, "%v", s.Conditions)
	require.Equal(t, filepath.Join(b.pool, "adopted-1", "data"), s.Path)
	require.FileExists(t, filepath.Join(s.Path, "file"))
	require.FileExists(t, filepath.Join(old, "file"), "by its old path too")
	require.Equal(t, s, b.now("adopted-1"), "again")

	// An image that is smaller than what is asked for grows by the usual way.
	image := filepath.Join(b.pool, "disk.raw")
	require.NoError(t, os.WriteFile(image, make([]byte, 8<<20), 0o600))
	b.want("adopted-2", 16<<20, b.adopting("disk.raw", v1alpha1.AdoptFile,
		func(s *v1alpha1.VolumeSpec) { s.VolumeMode = corev1.PersistentVolumeBlock }))
	s = b.now("adopted-2")
	require.Equal(t, v1alpha1.VolumeReady, s.Phase, "%v", s.Conditions)
	require.EqualValues(t, 16<<20, s.Capacity.Value())
	st, err := os.Stat(image)
	require.NoError(t, err)
	require.EqualValues(t, 16<<20, st.Size())

	b.want("adopted-3", 32<<20, b.adopting("new", v1alpha1.AdoptDirectoryOrCreate))
	require.Equal(t, v1alpha1.VolumeReady, b.now("adopted-3").Phase)
	st, err = os.Stat(filepath.Join(b.pool, "new"))
	require.NoError(t, err)
	require.True(t, st.IsDir())

	// What is refused was not touched.
	require.NoError(t, os.Mkdir(filepath.Join(b.pool, "other"), 0o700))
	b.want("adopted-4", 32<<20, b.adopting("other", v1alpha1.AdoptFile))
	s = b.now("adopted-4")
	require.Equal(t, v1alpha1.VolumeRefused, s.Phase)
	require.Equal(t, v1alpha1.ReasonNotAdoptable, reason(s))
	require.DirExists(t, filepath.Join(b.pool, "other"))
}

// TestAPublishedVolumeIsNeverAdoptedEmpty: who publishes a volume may have had
// data in it.
func TestAPublishedVolumeIsNeverAdoptedEmpty(t *testing.T) {
	b := newBench(t)
	b.want("adopted-1", 32<<20, b.adopting("gone", v1alpha1.AdoptDirectoryOrCreate, published))
	s := b.now("adopted-1")
	require.Equal(t, v1alpha1.ReasonNotAdoptable, reason(s))
	require.Empty(t, b.store.List())

	// Once it was Ready, what is at its old path is not it.
	b.want("adopted-2", 32<<20, b.adopting("old", v1alpha1.AdoptDirectoryOrCreate))
	require.Equal(t, v1alpha1.VolumeReady, b.now("adopted-2").Phase)
	b.change("adopted-2", published)
	require.NoError(t, b.store.Delete(t.Context(), "adopted-2", record.Deletion{}))
	require.NoError(t, os.Mkdir(filepath.Join(b.pool, "old"), 0o700))
	require.Equal(t, v1alpha1.VolumeLost, b.now("adopted-2").Phase)
	require.Empty(t, b.store.List())
}
