package csi_test

import (
	"os"
	"path/filepath"
	"testing"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
)

// TestNotMadeAnewWhileItsDiskIsAway asks for a volume again after a restart while
// its pool is away: none is made in its place, it is not said to be unknown, and
// what cannot be there is made all the same.
func TestNotMadeAnewWhileItsDiskIsAway(t *testing.T) {
	requireRoot(t)
	fs := filesystem(t, "ext4", gib)
	one, two := filepath.Join(fs, "one"), filepath.Join(fs, "two")
	require.NoError(t, os.Mkdir(one, 0o755))
	require.NoError(t, os.Mkdir(two, 0o755))
	before := newDriver(t, nil, one)
	c := mountable(singleWriter)
	wish := func(name string, parameters map[string]string) *spec.CreateVolumeRequest {
		return &spec.CreateVolumeRequest{Name: name, CapacityRange: &spec.CapacityRange{RequiredBytes: 32 * mib},
			VolumeCapabilities: []*spec.VolumeCapability{c}, Parameters: parameters}
	}
	made, err := before.CreateVolume(t.Context(), wish("data", nil))
	require.NoError(t, err)
	id := made.GetVolume().GetVolumeId()

	require.NoError(t, os.Rename(one, one+"-away"))
	after := newDriver(t, nil, one, two)
	_, err = after.CreateVolume(t.Context(), wish("data", nil))
	requireCode(t, codes.Unavailable, err, one)
	require.NoDirExists(t, filepath.Join(two, id))
	_, err = after.CreateVolume(t.Context(), wish("data", map[string]string{"pool": "a"}))
	requireCode(t, codes.Unavailable, err, one)
	_, err = after.ControllerGetVolume(t.Context(), &spec.ControllerGetVolumeRequest{VolumeId: id})
	requireCode(t, codes.Unavailable, err, one)
	_, err = after.NodeStageVolume(t.Context(), &spec.NodeStageVolumeRequest{VolumeId: id, StagingTargetPath: after.dir, VolumeCapability: c})
	requireCode(t, codes.Unavailable, err, one)
	_, err = after.CreateVolume(t.Context(), wish("other", map[string]string{"pool": "b"}))
	require.NoError(t, err, "it never was on the pool that is away")

	require.NoError(t, os.Rename(one+"-away", one))
	after.store.Refresh(t.Context())
	again, err := after.CreateVolume(t.Context(), wish("data", nil))
	require.NoError(t, err)
	require.Equal(t, id, again.GetVolume().GetVolumeId())
	require.DirExists(t, filepath.Join(one, id))
	require.NoDirExists(t, filepath.Join(two, id))
}
