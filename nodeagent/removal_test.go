package nodeagent

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// An attempt is given up because nobody was served from it. If there is
// something in it, that was wrong.
func TestWhatWasGivenUpIsDeletedOnlyIfNothingIsInIt(t *testing.T) {
	b := newBench(t)
	giveUp := func(name string) {
		v := b.object(name)
		v.Annotations = map[string]string{v1alpha1.AnnotationGivenUp: "nobody was served from it"}
		v.Spec.DesiredState = v1alpha1.DesiredDeleted
		require.NoError(t, b.client.Update(t.Context(), v))
	}
	block := func(s *v1alpha1.VolumeSpec) { s.VolumeMode = corev1.PersistentVolumeBlock }
	write := map[string]func(path string) error{
		"image": func(path string) error {
			return os.WriteFile(filepath.Join(path, "file"), []byte("precious"), 0o644)
		},
		"plain": func(path string) error { return os.Mkdir(filepath.Join(path, "directory"), 0o755) },
		"block": func(path string) error {
			device, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			if _, err := device.WriteAt([]byte("precious"), 1<<20); err != nil {
				return err
			}
			return device.Close()
		},
	}
	kinds := map[string]func(*v1alpha1.VolumeSpec){"image": func(*v1alpha1.VolumeSpec) {}, "plain": directory, "block": block}
	for kind, how := range kinds {
		t.Run(kind, func(t *testing.T) {
			b.want("empty-"+kind, 32<<20, how)
			require.Equal(t, v1alpha1.VolumeReady, b.now("empty-"+kind).Phase)
			giveUp("empty-" + kind)
			require.Equal(t, v1alpha1.VolumeDeleted, b.now("empty-"+kind).Phase)

			b.want("full-"+kind, 32<<20, how)
			s := b.now("full-" + kind)
			require.NoError(t, write[kind](s.Path))
			giveUp("full-" + kind)
			s = b.now("full-" + kind)
			require.NotEqual(t, v1alpha1.VolumeDeleted, s.Phase)
			require.Equal(t, v1alpha1.ReasonNotEmpty, meta.FindStatusCondition(s.Conditions,
				v1alpha1.ConditionInUse).Reason)
			_, err := b.store.Get("full-" + kind)
			require.NoError(t, err)

			b.change("full-"+kind, func(s *v1alpha1.VolumeSpec) { s.Published = true })
			require.Equal(t, v1alpha1.VolumeDeleted, b.now("full-"+kind).Phase)
		})
	}
}

// Where no status told of a volume nobody can have been served from it, and an
// attempt of which something is left, as a copy has from its source, is ended
// by itself.
func TestWhatWasNeverToldOfGoes(t *testing.T) {
	b := newBench(t)
	b.want("pvc-1", 32<<20, directory)
	s := b.now("pvc-1")
	require.Equal(t, v1alpha1.VolumeReady, s.Phase)
	require.NoError(t, os.WriteFile(filepath.Join(s.Path, "file"), []byte("of its source"), 0o644))
	v := b.object("pvc-1")
	v.Annotations = map[string]string{v1alpha1.AnnotationGivenUp: "nobody was served from it"}
	require.True(t, b.Agent.mayBeServed(v), "its status said Ready")

	b.Agent.untold.Store(v.Name, v.UID)
	require.False(t, b.Agent.mayBeServed(v))
	v.UID = "another record of the name"
	require.True(t, b.Agent.mayBeServed(v))
}

// A retention that somebody asked for is not ended by an attempt that is given
// up.
func TestWhatWasGivenUpStaysInTheTrash(t *testing.T) {
	b := newBench(t)
	b.want("pvc-1", 32<<20, directory)
	require.Equal(t, v1alpha1.VolumeReady, b.now("pvc-1").Phase)
	require.NoError(t, b.store.Delete(t.Context(), "pvc-1", record.Deletion{OnDelete: "trash",
		RetentionSeconds: 3600}))
	v := b.object("pvc-1")
	v.Annotations = map[string]string{v1alpha1.AnnotationGivenUp: "nobody was served from it"}
	v.Spec.DesiredState = v1alpha1.DesiredDeleted
	require.NoError(t, b.client.Update(t.Context(), v))
	require.NotEqual(t, v1alpha1.VolumeDeleted, b.now("pvc-1").Phase)
	require.Len(t, b.store.Trash(), 1)
	require.Positive(t, b.store.Trash()[0].Remaining)
}

// Nobody waits for the word that a newer spec was seen, where nothing about the
// volume is to be said.
func TestASeenGenerationIsNoNews(t *testing.T) {
	b := newBench(t)
	b.want("pvc-1", 32<<20, directory)
	require.Equal(t, v1alpha1.VolumeReady, b.now("pvc-1").Phase)
	before := b.version("pvc-1")
	v := b.object("pvc-1")
	v.Generation = 7
	require.NoError(t, b.client.Update(t.Context(), v))
	require.NotEqual(t, before, b.version("pvc-1"))
	before = b.version("pvc-1")
	b.now("pvc-1")
	require.Equal(t, before, b.version("pvc-1"), "a status was written")

	// A refused growth is an answer to one wish, and the next one waits for
	// another.
	b.change("pvc-1", func(s *v1alpha1.VolumeSpec) { s.Capacity.Set(1 << 50) })
	s := b.now("pvc-1")
	require.True(t, meta.IsStatusConditionFalse(s.Conditions, v1alpha1.ConditionResized), "%+v", s)
	v = b.object("pvc-1")
	v.Generation = 9
	require.NoError(t, b.client.Update(t.Context(), v))
	require.EqualValues(t, 9, b.now("pvc-1").ObservedGeneration)
}

func (b *bench) object(name string) *v1alpha1.Volume {
	b.t.Helper()
	v := &v1alpha1.Volume{}
	require.NoError(b.t, b.client.Get(b.t.Context(), client.ObjectKey{Name: name}, v))
	return v
}

func (b *bench) version(name string) string { return b.object(name).ResourceVersion }
