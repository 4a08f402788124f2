package csi_test

import (
	"testing"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"

	"github.com/quarry-storage/quarry/csi"
	"github.com/quarry-storage/quarry/nodeagent/publish"
	"github.com/quarry-storage/quarry/nodeagent/standalone"
)

// called makes a driver that of a machine of another name, with ids that say
// so.
func called(name string) func(*csi.Server) {
	return func(s *csi.Server) {
		disks := s.Node.Volumes.(*publish.Publisher).Store
		volumes := &standalone.Volumes{Store: disks, Node: name}
		s.Controller.Volumes, s.Controller.Catalogue, s.Node.Name = volumes, volumes, name
		s.IDs = &standalone.IDs{Store: disks, Node: name}
	}
}

// TestIDsSayWhoseTheyAre: a machine does not take another one's volume for one
// of its own, nor for one that is gone.
func TestIDsSayWhoseTheyAre(t *testing.T) {
	requireRoot(t)
	poolOfAlpha, poolOfBeta := filesystem(t, "xfs", 2*gib), filesystem(t, "xfs", 2*gib)
	alpha, beta := newDriver(t, called("alpha"), poolOfAlpha), newDriver(t, called("Beta.example"), poolOfBeta)
	c := mountable(singleWriter)
	p := map[string]string{"fsType": "ext4"}

	id := alpha.create(t, "data", 64*mib, c, p)
	require.Equal(t, "data@alpha", id)
	require.Equal(t, "data@Beta.example", beta.create(t, "data", 64*mib, c, p), "names are not shared")
	require.Equal(t, id, alpha.create(t, "data", 64*mib, c, p))
	hashed := alpha.create(t, "Data[0]", 64*mib, c, p)
	require.Regexp(t, `^name-[0-9a-f]{40}@alpha$`, hashed)

	// Everything takes the id that was given, and the volume's own.
	target := alpha.target("t")
	for _, id := range []string{id, "data"} {
		require.NoError(t, alpha.publish(t, id, target, c, false))
		got, err := alpha.ControllerGetVolume(t.Context(), &spec.ControllerGetVolumeRequest{VolumeId: id})
		require.NoError(t, err)
		require.Equal(t, "data@alpha", got.GetVolume().GetVolumeId())
		_, err = alpha.NodeGetVolumeStats(t.Context(), &spec.NodeGetVolumeStatsRequest{VolumeId: id,
			VolumePath: target})
		require.NoError(t, err)
		_, err = alpha.ControllerExpandVolume(t.Context(), &spec.ControllerExpandVolumeRequest{VolumeId: id,
			CapacityRange: &spec.CapacityRange{RequiredBytes: 64 * mib}})
		require.NoError(t, err)
	}
	list, err := alpha.ListVolumes(t.Context(), &spec.ListVolumesRequest{MaxEntries: 1})
	require.NoError(t, err)
	require.Equal(t, "data@alpha", list.GetEntries()[0].GetVolume().GetVolumeId())
	list, err = alpha.ListVolumes(t.Context(), &spec.ListVolumesRequest{StartingToken: list.GetNextToken()})
	require.NoError(t, err)
	require.Equal(t, hashed, list.GetEntries()[0].GetVolume().GetVolumeId())

	// Another one's is refused: where a volume of that name is here, and where
	// none is.
	for _, foreign := range []string{"data@alpha", hashed} {
		_, err = beta.DeleteVolume(t.Context(), &spec.DeleteVolumeRequest{VolumeId: foreign})
		requireCode(t, codes.FailedPrecondition, err, "alpha", "Beta.example")
		_, err = beta.ControllerExpandVolume(t.Context(), &spec.ControllerExpandVolumeRequest{VolumeId: foreign,
			CapacityRange: &spec.CapacityRange{RequiredBytes: 128 * mib}})
		requireCode(t, codes.NotFound, err, "alpha", "Beta.example")
		_, err = beta.NodeStageVolume(t.Context(), &spec.NodeStageVolumeRequest{VolumeId: foreign,
			StagingTargetPath: beta.dir, VolumeCapability: c})
		requireCode(t, codes.NotFound, err, "alpha", "Beta.example")
	}
	require.Len(t, beta.store.List(), 1, "nothing was deleted")
	require.Len(t, alpha.store.List(), 2)

	// What somebody left at a path can be taken away, but not where it is
	// another volume's.
	require.NoError(t, beta.unpublish(t, "gone@alpha", beta.target("t")))
	require.NoError(t, beta.publish(t, "data", beta.target("u"), c, false))
	requireCode(t, codes.NotFound, beta.unpublish(t, "data@alpha", beta.target("u")))
	require.Equal(t, 1, mountsAt(t, beta.target("u")))

	// One that is not there any more is deleted again without an error, as the
	// specification wants.
	_, err = alpha.DeleteVolume(t.Context(), &spec.DeleteVolumeRequest{VolumeId: hashed})
	require.NoError(t, err)
	_, err = alpha.DeleteVolume(t.Context(), &spec.DeleteVolumeRequest{VolumeId: hashed})
	require.NoError(t, err)
	require.Len(t, alpha.store.List(), 1)
}

// TestIDsFollowTheirDisk: a disk that another machine had keeps its volumes'
// ids.
func TestIDsFollowTheirDisk(t *testing.T) {
	requireRoot(t)
	pool := filesystem(t, "xfs", 2*gib)
	c := mountable(singleWriter)
	before := newDriver(t, called("alpha"), pool)
	id := before.create(t, "data", 64*mib, c, map[string]string{"fsType": "ext4"})

	after := newDriver(t, called("beta"), pool)
	require.Equal(t, id, after.create(t, "data", 64*mib, c, map[string]string{"fsType": "ext4"}))
	got, err := after.ControllerGetVolume(t.Context(), &spec.ControllerGetVolumeRequest{VolumeId: id})
	require.NoError(t, err)
	require.Equal(t, "beta", got.GetVolume().GetAccessibleTopology()[0].GetSegments()["topology.quarry.storage/node"],
		"that is where it is")
	_, err = after.DeleteVolume(t.Context(), &spec.DeleteVolumeRequest{VolumeId: "data@beta"})
	requireCode(t, codes.FailedPrecondition, err, "on node alpha")
	_, err = after.DeleteVolume(t.Context(), &spec.DeleteVolumeRequest{VolumeId: id})
	require.NoError(t, err)
	require.NoError(t, after.store.Drain(t.Context()))
	before.store.Refresh(t.Context())
}
