package nodeagent

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/config"
	"github.com/quarry-storage/quarry/nodeagent/internal/testroot"
	"github.com/quarry-storage/quarry/nodeagent/record"
	"github.com/quarry-storage/quarry/nodeagent/store"
)

// TestFailuresHaveABound: what cannot be made here is refused in the end, but
// not data that is only here.
func TestFailuresHaveABound(t *testing.T) {
	disks := store.New(store.Options{Node: "node1", Log: slog.New(slog.DiscardHandler)})
	fresh := &v1alpha1.Volume{ObjectMeta: metav1.ObjectMeta{Name: "pvc-1"}}
	adopted := &v1alpha1.Volume{ObjectMeta: metav1.ObjectMeta{Name: "pvc-2"},
		Spec: v1alpha1.VolumeSpec{Adopt: &v1alpha1.Adoption{}}}

	a := &Agent{store: disks}
	for range 2 {
		for range createTries - 1 {
			require.False(t, a.isHopeless(t.Context(), fresh))
			require.False(t, a.isHopeless(t.Context(), adopted))
		}
		require.True(t, a.isHopeless(t.Context(), fresh))
		require.False(t, a.isHopeless(t.Context(), adopted))
		a.failures.forget("pvc-1") // it is refused, and another attempt begins anew
	}
}

// TestWhatIsOnADiskIsNotGivenUp has a volume, of which nobody knows that it was
// made, come back to its disk at the last of the tries to make it: it is not
// refused, for it is here.
func TestWhatIsOnADiskIsNotGivenUp(t *testing.T) {
	b := newBench(t)
	b.want("pvc-1", 32<<20, directory)
	path := b.now("pvc-1").Path
	require.NoError(t, os.WriteFile(filepath.Join(path, "mark"), []byte("mine"), 0o644))
	at, aside := filepath.Join(b.pool, "pvc-1"), filepath.Join(b.pool, "aside")
	require.NoError(t, os.Rename(at, aside))
	b.loseStatus("pvc-1")

	b.start("")
	c, err := config.Default(b.pool)
	require.NoError(t, err)
	c.Pools[0].Reserve, err = config.ParseReserve("0%")
	require.NoError(t, err)
	tries := 0
	b.store = store.New(store.Options{Node: "node1", Pools: c.Pools,
		DeviceDir: filepath.Join(t.TempDir(), "dev"), Log: slog.New(slog.DiscardHandler),
		Fault: func(step string) error {
			if step != "mkdir tmp" {
				return nil
			}
			if tries++; tries == createTries {
				require.NoError(t, os.Rename(aside, at))
			}
			return errors.New("no descriptors left")
		}})
	b.store.Refresh(t.Context())
	for range createTries {
		require.Error(t, b.reconcile(t.Context(), "pvc-1"))
		require.Equal(t, v1alpha1.VolumePending, b.get("pvc-1").Status.Phase)
	}
	require.Equal(t, createTries, tries)
	s := b.now("pvc-1")
	require.Equal(t, v1alpha1.VolumeReady, s.Phase)
	require.FileExists(t, filepath.Join(s.Path, "mark"))
}

// loseStatus leaves a Volume object as it is when the agent dies between the
// making of the volume and its word.
func (b *bench) loseStatus(name string) {
	b.t.Helper()
	v := b.get(name)
	v.Status = v1alpha1.VolumeStatus{}
	require.NoError(b.t, b.objects.Status().Update(b.t.Context(), v))
}

// TestAVolumeIsNotMadeTwice starts an agent while a disk is away on which the
// one before made a volume without a word. The volume is not made anew on
// another disk, for there would be two of it; others are.
func TestAVolumeIsNotMadeTwice(t *testing.T) {
	for _, comesBack := range []bool{true, false} {
		b := newBench(t)
		b.want("pvc-1", 32<<20, directory)
		b.want("pvc-2", 32<<20, directory)
		path := b.now("pvc-1").Path
		require.NoError(t, os.WriteFile(filepath.Join(path, "mark"), nil, 0o644))
		b.loseStatus("pvc-1")
		identity := filepath.Join(b.pool, record.MetaDir, record.PoolFile)
		require.NoError(t, os.Rename(identity, identity+"-away"))
		b.startWith(testroot.NewFilesystem(t, "ext4", gib))

		for _, id := range []string{"pvc-1", "pvc-2"} { // nobody knows that the second never was
			s := b.now(id)
			require.Equal(t, v1alpha1.VolumePending, s.Phase)
			require.Equal(t, v1alpha1.ReasonPoolOffline, reason(s))
		}
		require.Empty(t, b.store.List())
		b.want("pvc-3", 32<<20, directory)
		s := b.now("pvc-3")
		require.Equal(t, v1alpha1.VolumeReady, s.Phase, "it came after the start")
		require.Equal(t, "second", s.Pool)

		if !comesBack {
			// Its claim goes elsewhere. What may be on the disk is not said to
			// be gone before that was looked at.
			v := b.object("pvc-2")
			v.Annotations = map[string]string{v1alpha1.AnnotationGivenUp: "for another node"}
			v.Spec.DesiredState = v1alpha1.DesiredDeleted
			require.NoError(t, b.client.Update(t.Context(), v))
			require.Equal(t, v1alpha1.ReasonPoolOffline, reason(b.now("pvc-2")))
		}
		require.NoError(t, os.Rename(identity+"-away", identity))
		b.store.Refresh(t.Context())
		require.True(t, b.moved(b.get("pvc-1"), b.inTrash), "the disk wakes it")
		s = b.now("pvc-1")
		require.Equal(t, v1alpha1.VolumeReady, s.Phase)
		require.Equal(t, path, s.Path)
		require.FileExists(t, filepath.Join(path, "mark"))
		if s = b.now("pvc-2"); comesBack {
			require.Equal(t, v1alpha1.VolumeReady, s.Phase)
		} else {
			require.Equal(t, v1alpha1.VolumeDeleted, s.Phase)
		}
		for _, p := range b.store.Pools() {
			require.Empty(t, p.Broken)
		}
		for _, v := range b.store.List() {
			require.NoError(t, b.store.Delete(t.Context(), v.ID, record.Deletion{}))
		}
		require.NoError(t, b.store.Drain(t.Context())) // before its disk is unmounted
	}
}
