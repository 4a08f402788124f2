package store

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

// TestMadeAndNotUpIsNotRefused takes a pool away between the last step of a
// creation and the volume's first use: it is on the disk, so nobody may hear that
// it was refused and nothing of it is there.
func TestMadeAndNotUpIsNotRefused(t *testing.T) {
	n := newNode(t, onExt4.make(t, gib))
	s := n.start(func(o *Options) {
		o.Fault = func(step string) error {
			if step == "sync commit" {
				hide(t, n.pools[0].Path, "-away", "")
			}
			return nil
		}
	})
	_, err := n.create(plain("pvc-1"))
	var kept *KeptError
	require.ErrorAs(t, err, &kept)
	reason, refused := Reason(err)
	require.Equal(t, v1alpha1.ReasonPoolOffline, reason)
	require.False(t, refused)

	hide(t, n.pools[0].Path, "", "-away")
	s.Refresh(t.Context())
	_, err = s.Activate(t.Context(), "pvc-1")
	require.NoError(t, err)
}
