package provisioner

import (
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"
)

// What the library writes must not hide what the watch brought (see
// libraryView).
func TestLibraryStore(t *testing.T) {
	byUID := cache.Indexers{"uid": func(obj any) ([]string, error) {
		return []string{string(obj.(metav1.Object).GetUID())}, nil
	}}
	shared := cache.NewIndexer(cache.MetaNamespaceKeyFunc, byUID)
	view := &libraryStore{Indexer: shared, own: map[string]*corev1.PersistentVolumeClaim{}}

	bound := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv", UID: "1", ResourceVersion: "2"},
		Status: corev1.PersistentVolumeStatus{Phase: corev1.VolumeBound}}
	require.NoError(t, shared.Add(bound))
	require.NoError(t, view.Add(&corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv"}}))
	for _, store := range []cache.Indexer{shared, view} {
		have, exists, err := store.GetByKey("pv")
		require.NoError(t, err)
		require.True(t, exists)
		require.Same(t, bound, have)
	}

	claim := func(resourceVersion, node string) *corev1.PersistentVolumeClaim {
		return &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "c", UID: "3",
			ResourceVersion: resourceVersion, Annotations: map[string]string{annSelectedNode: node}}}
	}
	read := func(store cache.Indexer) string {
		found, err := store.ByIndex("uid", "3")
		require.NoError(t, err)
		require.Len(t, found, 1)
		return found[0].(*corev1.PersistentVolumeClaim).Annotations[annSelectedNode]
	}
	require.NoError(t, shared.Add(claim("4", "full")))
	require.NoError(t, view.Update(claim("4", ""))) // handed back to the scheduler
	require.Empty(t, read(view), "the library must not act on the old claim")
	require.Equal(t, "full", read(shared))

	require.NoError(t, shared.Update(claim("6", "roomy"))) // the scheduler chose again
	require.Equal(t, "roomy", read(view))
	require.Empty(t, view.own)

	// The other way round: the watch was faster than the library.
	require.NoError(t, view.Update(claim("4", "")))
	require.Equal(t, "roomy", read(view))

	require.NoError(t, view.Update(claim("6", "")))
	view.forget("3")
	require.Empty(t, view.own)
}
