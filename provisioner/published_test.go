package provisioner

import (
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

// life is what decides over the records of volumes that are not marked as
// published, and a clock.
type life struct {
	*testing.T
	client.Client
	volumes *volumeObjects
	sweep   *sweeper
	now     time.Time
}

func newLife(t *testing.T, objects ...client.Object) *life {
	scheme, err := NewScheme()
	require.NoError(t, err)
	l := &life{T: t, now: time.Now().Truncate(time.Second)}
	for _, o := range objects {
		o.SetCreationTimestamp(metav1.NewTime(l.now))
	}
	l.Client = fake.NewClientBuilder().WithScheme(scheme).WithIndex(&v1alpha1.Volume{}, indexPVName, indexOfPVName).
		WithStatusSubresource(&v1alpha1.Volume{}).WithObjects(objects...).Build()
	metrics, err := NewMetrics(prometheus.NewRegistry())
	require.NoError(t, err)
	l.volumes = &volumeObjects{client: l.Client, live: l.Client}
	l.sweep = &sweeper{volumes: l.volumes, grace: time.Minute, now: func() time.Time { return l.now }, metrics: metrics}
	return l
}

// recordOf is the record of a claim's volume, in a phase.
func recordOf(claim string, phase v1alpha1.VolumePhase) *v1alpha1.Volume {
	v := newVolumeObject("pvc-"+claim, "pvc-"+claim+"-1",
		&v1alpha1.VolumeSpec{NodeName: "here", DesiredState: v1alpha1.DesiredPresent,
			Claim: &v1alpha1.ClaimReference{Namespace: "ns", Name: claim}})
	v.UID, v.Status.Phase = "record of "+v.UID, phase
	return v
}

func (l *life) swept(v *v1alpha1.Volume) time.Duration {
	l.Helper()
	result, err := l.sweep.Reconcile(l.Context(), reconcile.Request{NamespacedName: client.ObjectKeyFromObject(v)})
	require.NoError(l, err)
	return result.RequeueAfter
}

func (l *life) read(v *v1alpha1.Volume) *v1alpha1.Volume {
	l.Helper()
	var now v1alpha1.Volume
	require.NoError(l, l.Get(l.Context(), client.ObjectKeyFromObject(v), &now))
	return &now
}

func (l *life) there(o client.Object) bool {
	l.Helper()
	err := l.Get(l.Context(), client.ObjectKeyFromObject(o), o)
	require.True(l, err == nil || apierrors.IsNotFound(err), "%v", err)
	return err == nil
}

// A volume is marked as published once its PersistentVolume has been there for
// five minutes, whatever became of its claim.
func TestMarkedAfterAWhile(t *testing.T) {
	for _, phase := range []v1alpha1.VolumePhase{v1alpha1.VolumeReady, v1alpha1.VolumeUnavailable,
		v1alpha1.VolumeLost} {
		v := recordOf("a", phase)
		l := newLife(t, v, pvForIndex("a", "here"))
		require.Equal(t, publishAfter, l.swept(v))
		l.now = l.now.Add(publishAfter - time.Second)
		require.Equal(t, time.Second, l.swept(v), "%s: it is looked at again", phase)
		require.False(t, l.read(v).Spec.Published, phase)
		l.now = l.now.Add(time.Second)
		require.Zero(t, l.swept(v))
		v = l.read(v)
		require.True(t, v.Spec.Published, phase)
		require.Equal(t, v1alpha1.DesiredPresent, v.Spec.DesiredState)
	}
}

// A PersistentVolume that goes without its volume was taken away to keep the
// data.
func TestMarkedWhenItsPersistentVolumeVanishes(t *testing.T) {
	for _, phase := range []v1alpha1.VolumePhase{v1alpha1.VolumeReady, v1alpha1.VolumeUnavailable,
		v1alpha1.VolumeLost} {
		v, pv := recordOf("a", phase), pvForIndex("a", "here")
		attempt, deleted := recordOf("a", v1alpha1.VolumePending), recordOf("a", phase)
		attempt.Name, deleted.Name, deleted.Spec.DesiredState = "pvc-a-2", "pvc-a-3", v1alpha1.DesiredDeleted
		l := newLife(t, v, attempt, deleted, pv)
		vanished := func() {
			_, err := l.sweep.vanished(t.Context(), reconcile.Request{NamespacedName: client.ObjectKeyFromObject(pv)})
			require.NoError(t, err)
		}
		vanished()
		require.False(t, l.read(v).Spec.Published, "it was made again")

		require.NoError(t, l.Delete(t.Context(), pv))
		vanished()
		require.True(t, l.read(v).Spec.Published, phase)
		require.False(t, l.read(attempt).Spec.Published)
		require.False(t, l.read(deleted).Spec.Published)

		l.now = l.now.Add(24 * time.Hour)
		l.swept(v)
		require.Equal(t, v1alpha1.DesiredPresent, l.read(v).Spec.DesiredState)
	}
}

// What was ready is given up by nobody but the sweep, and by that only without
// claim and PersistentVolume, and with a note for the agent that it has to be
// empty.
func TestWhatWasReadyIsNotGivenUp(t *testing.T) {
	ready := recordOf("a", v1alpha1.VolumeReady)
	l := newLife(t, ready)
	asked := l.read(ready)
	asked.Status.Phase = "" // as it was in the cache, before its agent's word
	asked.ResourceVersion = "1"
	var pending *pendingError
	require.ErrorAs(t, l.volumes.Abandon(t.Context(), asked), &pending)
	var exists *existsError
	require.ErrorAs(t, l.volumes.Abandon(t.Context(), l.read(ready)), &exists)
	require.NoError(t, l.volumes.AbandonAll(t.Context(), "pvc-a"))
	require.Equal(t, v1alpha1.DesiredPresent, l.read(ready).Spec.DesiredState)

	claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "a"}}
	require.NoError(t, l.Create(t.Context(), claim))
	l.now = l.now.Add(time.Hour)
	l.swept(ready)
	require.Equal(t, v1alpha1.DesiredPresent, l.read(ready).Spec.DesiredState, "its claim waits")
	require.NoError(t, l.Delete(t.Context(), claim))
	l.swept(ready)
	given := l.read(ready)
	require.Equal(t, v1alpha1.DesiredDeleted, given.Spec.DesiredState)
	require.NotEmpty(t, given.Annotations[v1alpha1.AnnotationGivenUp])
	require.False(t, given.Spec.Published)

	// And somebody who asks for that very deletion is not held up by the note.
	asked, err := l.volumes.desire(t.Context(), given, v1alpha1.DesiredTrashed)
	require.NoError(t, err)
	require.True(t, asked.Spec.Published)
	require.Equal(t, v1alpha1.DesiredDeleted, asked.Spec.DesiredState)
}

// A late call of the library, with a PersistentVolume from its cache, is no
// reason to delete a volume once more.
func TestALateDeleteMakesNoRecord(t *testing.T) {
	v, pv := recordOf("a", v1alpha1.VolumeReady), pvForIndex("a", "here")
	pv.UID, pv.Status.Phase, pv.Spec.PersistentVolumeReclaimPolicy = "pv", corev1.VolumeReleased,
		corev1.PersistentVolumeReclaimDelete
	l := newLife(t, v, pv)
	v.Spec.DesiredState, v.Spec.Published = v1alpha1.DesiredDeleted, true
	require.NoError(t, l.Update(t.Context(), v))
	v.Status.Phase = v1alpha1.VolumeDeleted
	require.NoError(t, l.Status().Update(t.Context(), v))
	door := &localDoor{
		frontDoor: &frontDoor{client: l, live: l, volumes: l.volumes},
		waiting:   newWaitingRoom(func(any) {}, func(int) {}),
	}
	require.NoError(t, door.Delete(t.Context(), pv))
	require.True(t, l.there(v), "the sweep removes it")
	l.swept(v)
	require.False(t, l.there(v))

	require.NoError(t, door.Delete(t.Context(), pv))
	require.False(t, l.there(v))
}
