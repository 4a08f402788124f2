package nodeagent

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/record"
	"github.com/quarry-storage/quarry/nodeagent/translate"
)

// get reads a Volume object.
func (b *bench) get(name string) *v1alpha1.Volume {
	b.t.Helper()
	v := &v1alpha1.Volume{}
	require.NoError(b.t, b.client.Get(b.t.Context(), client.ObjectKey{Name: name}, v))
	return v
}

// TestWhatCannotBeReadIsNotLost damages a record and takes a directory away and
// puts them back: the one is Unavailable, the other Lost, and both are Ready
// again without a restart.
func TestWhatCannotBeReadIsNotLost(t *testing.T) {
	b := newBench(t)
	b.want("pvc-1", 32<<20, directory)
	s := b.now("pvc-1")
	require.Equal(t, v1alpha1.VolumeReady, s.Phase)
	dir := filepath.Join(b.pool, "pvc-1")
	file := filepath.Join(dir, record.VolumeFile)
	require.NoError(t, os.WriteFile(filepath.Join(s.Path, "file"), nil, 0o600))
	good, err := os.ReadFile(file)
	require.NoError(t, err)

	require.NoError(t, os.WriteFile(file, []byte("{}"), 0o600))
	b.start("")
	require.Error(t, b.reconcile(t.Context(), "pvc-1"), "it is looked at again")
	require.Equal(t, v1alpha1.VolumeUnavailable, b.get("pvc-1").Status.Phase)
	require.Equal(t, v1alpha1.ReasonMismatch, reason(b.get("pvc-1").Status))
	b.change("pvc-1", func(s *v1alpha1.VolumeSpec) { s.DesiredState = v1alpha1.DesiredDeleted })
	require.Error(t, b.reconcile(t.Context(), "pvc-1"))
	require.NotEqual(t, v1alpha1.VolumeDeleted, b.get("pvc-1").Status.Phase)
	require.DirExists(t, dir)
	b.change("pvc-1", func(s *v1alpha1.VolumeSpec) { s.DesiredState = v1alpha1.DesiredPresent })
	require.NoError(t, os.WriteFile(file, good, 0o600))
	require.Equal(t, v1alpha1.VolumeReady, b.now("pvc-1").Phase)

	away := filepath.Join(b.pool, "Away") // no volume is called so
	require.NoError(t, os.Rename(dir, away))
	b.start("")
	require.Equal(t, v1alpha1.VolumeLost, b.now("pvc-1").Phase)
	require.NoError(t, os.Rename(away, dir))
	s = b.now("pvc-1")
	require.Equal(t, v1alpha1.VolumeReady, s.Phase)
	require.FileExists(t, filepath.Join(s.Path, "file"))
}

// TestTrashOfADiskThatIsAway wants a volume back from the trash of a pool that
// is offline: it is not lost.
func TestTrashOfADiskThatIsAway(t *testing.T) {
	b := newBench(t)
	b.want("pvc-1", 32<<20, directory)
	require.Equal(t, v1alpha1.VolumeReady, b.now("pvc-1").Phase)
	b.change("pvc-1", func(s *v1alpha1.VolumeSpec) {
		s.DesiredState = v1alpha1.DesiredTrashed
		s.Deletion = v1alpha1.DeletionPolicy{OnDelete: v1alpha1.OnDeleteTrash,
			TrashRetention: &metav1.Duration{Duration: 3600e9}}
	})
	require.Equal(t, v1alpha1.VolumeTrashed, b.now("pvc-1").Phase)

	identity := filepath.Join(b.pool, record.MetaDir, record.PoolFile)
	require.NoError(t, os.Rename(identity, identity+"-away"))
	b.store.Refresh(t.Context())
	b.change("pvc-1", func(s *v1alpha1.VolumeSpec) { s.DesiredState = v1alpha1.DesiredPresent })
	s := b.now("pvc-1")
	require.Equal(t, v1alpha1.VolumeUnavailable, s.Phase)
	require.Equal(t, v1alpha1.ReasonPoolOffline, reason(s))
	b.change("pvc-1", func(s *v1alpha1.VolumeSpec) { s.DesiredState = v1alpha1.DesiredDeleted })
	require.Equal(t, v1alpha1.VolumeUnavailable, b.now("pvc-1").Phase)

	b.change("pvc-1", func(s *v1alpha1.VolumeSpec) { s.DesiredState = v1alpha1.DesiredPresent })
	require.NoError(t, os.Rename(identity+"-away", identity))
	b.store.Refresh(t.Context())
	require.Equal(t, v1alpha1.VolumeReady, b.now("pvc-1").Phase)
}

// TestALateWordIsNotSaidOfAnotherObject writes the status of an object that was
// deleted and made again under its name.
func TestALateWordIsNotSaidOfAnotherObject(t *testing.T) {
	b := newBench(t)
	b.want("pvc-1", 32<<20, directory)
	former := b.get("pvc-1")
	require.NoError(t, b.client.Delete(t.Context(), b.get("pvc-1")))
	b.want("pvc-1", 32<<20, directory)
	b.change("pvc-1", func(s *v1alpha1.VolumeSpec) { s.Published = true }) // so that it has another version

	status := former.Status.DeepCopy()
	translate.SetReady(status, v1alpha1.VolumeRefused, v1alpha1.ReasonInsufficientCapacity,
		"said of the former one")
	err := b.writeStatus(t.Context(), former, status)
	require.True(t, apierrors.IsConflict(err), "%v", err)
	require.Empty(t, b.get("pvc-1").Status.Phase)
}
