package backend

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/quarry-storage/quarry/nodeagent/mount"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// TestNobodyUsesItIsProven: what could not be looked into may use a volume, but
// for a filesystem in an image, which the kernel does not let go of then.
func TestNobodyUsesItIsProven(t *testing.T) {
	directory := &record.Volume{ID: "pvc-1", Backend: record.BackendDirectory}
	raw := &record.Volume{ID: "pvc-2", Backend: record.BackendLoop, VolumeMode: record.ModeBlock}
	image := &record.Volume{ID: "pvc-3", Backend: record.BackendLoop,
		VolumeMode: record.ModeFilesystem}
	process, namespace := &mount.Table{Unreadable: []int{4711}},
		&mount.Table{Hidden: []uint64{4026531840}}

	for _, rec := range []*record.Volume{directory, raw} {
		require.NoError(t, unproven(rec, &mount.Table{}))
		require.ErrorContains(t, unproven(rec, process), "pid 4711")
		require.ErrorContains(t, unproven(rec, namespace), "namespace 4026531840")
	}
	require.NoError(t, unproven(image, process))
	require.NoError(t, unproven(image, namespace))
}
