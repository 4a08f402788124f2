package csi_test

import (
	"maps"
	"os"
	"path/filepath"
	"testing"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"

	"github.com/quarry-storage/quarry/csi"
	"github.com/quarry-storage/quarry/nodeagent/publish"
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

// TestInlineIsNotMadeAnewWhileItsDiskIsAway has a pod run again after a reboot
// while the disk is away that has its inline volume: it is not given an empty one.
func TestInlineIsNotMadeAnewWhileItsDiskIsAway(t *testing.T) {
	requireRoot(t)
	fs := filesystem(t, "ext4", gib)
	one, two := filepath.Join(fs, "one"), filepath.Join(fs, "two")
	require.NoError(t, os.Mkdir(one, 0o755))
	require.NoError(t, os.Mkdir(two, 0o755))
	inline := func(s *csi.Server) {
		s.Node.Inline = &publish.Inline{Store: s.Node.Volumes.(*publish.Publisher).Store}
	}
	run := func(d *driver, id string, attributes map[string]string) error {
		context := map[string]string{"csi.storage.k8s.io/ephemeral": "true", "size": "32Mi"}
		maps.Copy(context, attributes)
		_, err := d.NodePublishVolume(t.Context(), &spec.NodePublishVolumeRequest{VolumeId: id, TargetPath: d.target(id),
			VolumeCapability: mountable(singleWriter), VolumeContext: context})
		return err
	}
	const mine, other = "csi-1a2b", "csi-3c4d"

	before := newDriver(t, inline, one)
	require.NoError(t, run(before, mine, nil))
	require.NoError(t, os.WriteFile(filepath.Join(before.target(mine), "file"), []byte("mine"), 0o644))
	command(t, "umount", before.target(mine)) // by the reboot
	require.NoError(t, os.Rename(one, one+"-away"))

	after := newDriver(t, inline, one, two)
	requireCode(t, codes.Unavailable, run(after, mine, nil), one)
	require.NoDirExists(t, filepath.Join(two, mine))
	requireCode(t, codes.Unavailable, after.unpublish(t, mine, after.target(mine)), one)
	require.NoError(t, run(after, other, map[string]string{"pool": "b"}), "it never was on the pool that is away")
	require.NoError(t, after.unpublish(t, other, after.target(other)))

	require.NoError(t, os.Rename(one+"-away", one))
	after.store.Refresh(t.Context())
	require.NoError(t, run(after, mine, nil))
	content, err := os.ReadFile(filepath.Join(after.target(mine), "file"))
	require.NoError(t, err)
	require.Equal(t, "mine", string(content))
	require.NoError(t, after.unpublish(t, mine, after.target(mine)))
	require.NoDirExists(t, filepath.Join(one, mine))
}
