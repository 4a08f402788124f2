package store

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// TestMadeAndNotUpIsNotRefused takes a pool away between the last step of a
// creation and the volume's first use: it is on the disk, so nobody may hear
// that it was refused and nothing of it is there.
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

// TestWhatCannotBeTakenBackIsNotRefused has a disk that fails at the end of a
// creation, and again when that is to be taken back: the volume may be there,
// so nobody is told that it is to be made elsewhere.
func TestWhatCannotBeTakenBackIsNotRefused(t *testing.T) {
	n := newNode(t, onExt4.make(t, gib))
	tmp := filepath.Join(n.pools[0].Path, record.MetaDir, record.TmpDir)
	s := n.start(func(o *Options) {
		o.Fault = func(step string) error {
			if step != "sync commit" {
				return nil
			}
			require.NoError(t, os.Mkdir(filepath.Join(tmp, "pvc-1"), 0o700)) // nothing can be renamed there
			return unix.EIO
		}
	})
	_, err := n.create(block("pvc-1"))
	require.ErrorIs(t, err, unix.EIO)
	var kept *KeptError
	require.ErrorAs(t, err, &kept)
	_, refused := Reason(err)
	require.False(t, refused, "%v", err)
	require.DirExists(t, filepath.Join(n.pools[0].Path, "pvc-1"))
	require.EqualValues(t, 64*mib, s.Pools()[0].Promised, "it has what it was promised, once")

	require.NoError(t, os.Remove(filepath.Join(tmp, "pvc-1")))
	v, err := n.create(block("pvc-1"))
	require.NoError(t, err, "it is finished by the next call")
	require.NoError(t, v.Unavailable)
}
