package store

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// What is only to go if nothing is in it is looked into wherever it is found:
// it may be on a disk that came by another way than this process', on another
// pool, or in the trash.
func TestDeleteUntouchedFindsWhatDeleteFinds(t *testing.T) {
	path := onExt4.make(t, gib)
	one, two := filepath.Join(path, "one"), filepath.Join(path, "two")
	require.NoError(t, os.Mkdir(one, 0o755))
	require.NoError(t, os.Mkdir(two, 0o755))
	n := newNode(t, one, two)
	var holds *NotEmptyError

	other := New(n.options())
	other.Expect("pool1", disk.Expectation{MayCreate: true})
	other.Expect("pool2", disk.Expectation{MayCreate: true})
	other.Refresh(t.Context())
	in := func(id string) Request {
		return Request{ID: id, Pool: "pool1", Enforcement: record.EnforcementNone, SizeBytes: 16 * mib}
	}
	full, empty := n.mustCreate(in("pvc-full")), n.mustCreate(in("pvc-empty"))
	mark(t, full, "kept")
	require.ErrorAs(t, other.DeleteUntouched(t.Context(), full.ID, purge), &holds)
	require.Equal(t, "kept", marked(t, full))
	require.NoError(t, other.DeleteUntouched(t.Context(), empty.ID, purge))
	require.NoDirExists(t, filepath.Join(one, empty.ID))
	require.NoError(t, other.DeleteUntouched(t.Context(), empty.ID, purge), "once more")

	require.NoError(t, os.Rename(filepath.Join(one, full.ID), filepath.Join(two, full.ID)))
	require.ErrorAs(t, n.store.DeleteUntouched(t.Context(), full.ID, purge), &holds)
	require.FileExists(t, filepath.Join(two, full.ID, record.DataDir, "mark"))

	require.NoError(t, n.store.Delete(t.Context(), full.ID, keep(3600)))
	require.ErrorAs(t, n.store.DeleteUntouched(t.Context(), full.ID, purge), &holds)
	require.Len(t, n.store.Trash(), 1)
	require.NoError(t, n.store.Delete(t.Context(), full.ID, purge))
	require.NoError(t, n.store.DeleteUntouched(t.Context(), full.ID, purge), "it is on its way")

	n.start() // reads from the disk what the other store deleted
}

// What was written to a device is in no image yet while somebody has the device
// open.
func TestDeleteUntouchedSeesWhatIsNotInTheImageYet(t *testing.T) {
	n := newNode(t, onExt4.make(t, gib))
	v := n.mustCreate(block("pvc-1"))
	device, err := os.OpenFile(v.Path, os.O_RDWR, 0)
	require.NoError(t, err)
	defer func() { require.NoError(t, device.Close()) }()
	_, err = device.WriteAt([]byte("precious"), 1<<20)
	require.NoError(t, err)
	var holds *NotEmptyError
	require.ErrorAs(t, n.store.DeleteUntouched(t.Context(), v.ID, purge), &holds)
}
