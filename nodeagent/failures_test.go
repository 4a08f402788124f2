package nodeagent

import (
	"errors"
	"log/slog"
	"testing"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/store"
)

// TestFailuresHaveABound: what cannot be made here is refused in the end, but
// not data that is only here.
func TestFailuresHaveABound(t *testing.T) {
	disks := store.New(store.Options{Node: "node1", Log: slog.New(slog.DiscardHandler)})
	fresh := &v1alpha1.Volume{ObjectMeta: metav1.ObjectMeta{Name: "pvc-1"}}
	adopted := &v1alpha1.Volume{ObjectMeta: metav1.ObjectMeta{Name: "pvc-2"},
		Spec: v1alpha1.VolumeSpec{Adopt: &v1alpha1.Adoption{}}}
	noLoop := errors.New("open /dev/loop-control: no such file or directory")

	var f failures
	for range 2 {
		for range createTries - 1 {
			require.False(t, f.giveUp(fresh, noLoop, disks))
			require.False(t, f.giveUp(adopted, noLoop, disks))
		}
		require.True(t, f.giveUp(fresh, noLoop, disks))
		require.False(t, f.giveUp(adopted, noLoop, disks))
		f.forget("pvc-1") // it is refused, and another attempt begins anew
	}
}
