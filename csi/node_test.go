package csi_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	"github.com/quarry-storage/quarry/csi"
	"github.com/quarry-storage/quarry/nodeagent/publish"
	"github.com/quarry-storage/quarry/nodeagent/store"
)

// pools are one pool for each way to carve, with what makes a volume on it.
var pools = []struct {
	name, filesystem string
	parameters       map[string]string
	limited          bool
}{
	{"directory on btrfs", "btrfs", map[string]string{"backend": "directory"}, true},
	{"directory without a limit", "ext4", map[string]string{"enforcement": "none"}, false},
	{"loop on xfs", "xfs", map[string]string{"backend": "loop", "fsType": "ext4"}, true},
}

func TestPublishFilesystem(t *testing.T) {
	requireRoot(t)
	for _, p := range pools {
		t.Run(p.name, func(t *testing.T) {
			d := newDriver(t, nil, filesystem(t, p.filesystem, 2*gib))
			c := mountable(multiWriter)
			id := d.create(t, "pvc-1", 128*mib, c, p.parameters)
			target := d.target("t")
			require.NoError(t, d.publish(t, id, target, c, false))
			require.NoError(t, os.WriteFile(filepath.Join(target, "hello"), []byte("world"), 0o644))

			// Whatever the pool's filesystem is mounted with, a volume is no way to the node's devices.
			require.NoError(t, unix.Mknod(filepath.Join(target, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
			_, err := os.Open(filepath.Join(target, "null"))
			require.ErrorIs(t, err, unix.EACCES)

			// The same again is the same mount, not another one over it.
			require.NoError(t, d.publish(t, id, target, c, false))
			require.Equal(t, 1, mountsAt(t, target))
			requireCode(t, codes.AlreadyExists, d.publish(t, id, target, c, true))
			requireCode(t, codes.AlreadyExists, d.publish(t, id, target, mountable(multiWriter, "noexec"), false))

			// A second place, read-only.
			second := d.target("second")
			require.NoError(t, d.publish(t, id, second, c, true))
			content, err := os.ReadFile(filepath.Join(second, "hello"))
			require.NoError(t, err)
			require.Equal(t, "world", string(content))
			require.ErrorContains(t, os.WriteFile(filepath.Join(second, "x"), nil, 0o644), "read-only")
			require.NoError(t, d.publish(t, id, second, c, true))

			stats, err := d.NodeGetVolumeStats(t.Context(), &spec.NodeGetVolumeStatsRequest{VolumeId: id, VolumePath: target})
			require.NoError(t, err)
			bytes := stats.GetUsage()[0]
			require.Equal(t, spec.VolumeUsage_BYTES, bytes.GetUnit())
			if p.limited {
				require.InDelta(t, 128*mib, bytes.GetTotal(), 32*mib)
			}
			require.Positive(t, bytes.GetAvailable())
			require.LessOrEqual(t, bytes.GetAvailable()+bytes.GetUsed(), bytes.GetTotal())
			if p.filesystem != "btrfs" {
				inodes := stats.GetUsage()[1]
				require.Equal(t, spec.VolumeUsage_INODES, inodes.GetUnit())
				require.Positive(t, inodes.GetUsed())
			}
			_, err = d.NodeGetVolumeStats(t.Context(), &spec.NodeGetVolumeStatsRequest{VolumeId: id, VolumePath: d.dir})
			requireCode(t, codes.NotFound, err)

			_, err = d.DeleteVolume(t.Context(), &spec.DeleteVolumeRequest{VolumeId: id})
			requireCode(t, codes.FailedPrecondition, err, "in use")

			require.NoError(t, d.unpublish(t, id, target))
			require.NoDirExists(t, target)
			require.NoError(t, d.unpublish(t, id, target))
			require.NoError(t, d.unpublish(t, id, second))
			_, err = d.DeleteVolume(t.Context(), &spec.DeleteVolumeRequest{VolumeId: id})
			require.NoError(t, err)
			_, err = d.DeleteVolume(t.Context(), &spec.DeleteVolumeRequest{VolumeId: id})
			require.NoError(t, err)
		})
	}
}

func TestPublishRefusesOddTargets(t *testing.T) {
	requireRoot(t)
	d := newDriver(t, nil, filesystem(t, "xfs", 2*gib))
	c := mountable(multiWriter)
	id := d.create(t, "pvc-1", 64*mib, c, map[string]string{"backend": "loop", "fsType": "ext4"})
	elsewhere := d.target("elsewhere")
	require.NoError(t, os.Mkdir(elsewhere, 0o755))
	link, file, full, dangling := d.target("link"), d.target("file"), d.target("full"), d.target("dangling")
	require.NoError(t, os.Symlink(elsewhere, link))
	require.NoError(t, os.Symlink("/nowhere", dangling))
	require.NoError(t, os.WriteFile(file, []byte("content"), 0o644))
	require.NoError(t, os.Mkdir(full, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(full, "kept"), nil, 0o644))
	for _, target := range []string{link, file, full, dangling, d.target("no/parent")} {
		requireCode(t, codes.InvalidArgument, d.publish(t, id, target, c, false))
		require.Zero(t, mountsAt(t, target))
	}
	require.Zero(t, mountsAt(t, elsewhere))

	// Something else's mount stays, at publish and at unpublish.
	foreign := d.target("foreign")
	require.NoError(t, os.Mkdir(foreign, 0o755))
	command(t, "mount", "-t", "tmpfs", "foreign", foreign)
	t.Cleanup(func() { command(t, "umount", foreign) })
	requireCode(t, codes.FailedPrecondition, d.publish(t, id, foreign, c, false), "something else")
	requireCode(t, codes.FailedPrecondition, d.unpublish(t, id, foreign), "something else")
	requireCode(t, codes.FailedPrecondition, d.unpublish(t, "pvc-of-nobody", foreign), "something else")
	require.Equal(t, 1, mountsAt(t, foreign))

	// Another volume's mount as well.
	other := d.create(t, "pvc-2", 64*mib, c, map[string]string{"backend": "loop", "fsType": "ext4"})
	target := d.target("t")
	require.NoError(t, d.publish(t, other, target, c, false))
	requireCode(t, codes.FailedPrecondition, d.publish(t, id, target, c, false))
	requireCode(t, codes.FailedPrecondition, d.unpublish(t, id, target))
	require.Equal(t, 1, mountsAt(t, target))

	// An id that no volume has touches nothing.
	empty := d.target("empty")
	require.NoError(t, os.Mkdir(empty, 0o755))
	require.NoError(t, d.unpublish(t, "pvc-of-nobody", empty))
	require.DirExists(t, empty)
}

// What is in a volume's place and is not it is never bound: after a reboot, say, the directory below the mount.
func TestPublishProvesTheVolume(t *testing.T) {
	requireRoot(t)
	d := newDriver(t, nil, filesystem(t, "xfs", 2*gib))
	c := mountable(multiWriter)
	id := d.create(t, "pvc-1", 64*mib, c, map[string]string{"backend": "loop", "fsType": "ext4"})
	v, err := d.store.Get(id)
	require.NoError(t, err)
	command(t, "umount", filepath.Dir(v.Path))
	require.NoError(t, os.Mkdir(v.Path, 0o755)) // looks like the volume, on the disk below
	requireCode(t, codes.FailedPrecondition, d.publish(t, id, d.target("t"), c, false), "not mounted")
	require.NoDirExists(t, d.target("t"))
	require.NoError(t, os.Remove(v.Path))

	command(t, "mount", "-t", "tmpfs", "impostor", filepath.Dir(v.Path))
	require.NoError(t, os.Mkdir(v.Path, 0o755))
	requireCode(t, codes.FailedPrecondition, d.publish(t, id, d.target("t"), c, false))
	command(t, "umount", filepath.Dir(v.Path))

	_, err = d.NodeStageVolume(t.Context(), &spec.NodeStageVolumeRequest{VolumeId: id, StagingTargetPath: d.dir, VolumeCapability: c})
	require.NoError(t, err)
	require.NoError(t, d.publish(t, id, d.target("t"), c, false))
	_, err = d.NodePublishVolume(t.Context(), &spec.NodePublishVolumeRequest{VolumeId: id, TargetPath: d.target("u"), VolumeCapability: c})
	requireCode(t, codes.FailedPrecondition, err, "staged")
}

// TestUnpublishAfterTheDiskWasExchanged replaces a pool's disk by a copy while a pod has a volume of it: what the pod has is not
// what would be published now, and has to go all the same.
func TestUnpublishAfterTheDiskWasExchanged(t *testing.T) {
	requireRoot(t)
	pool, copied := filesystem(t, "ext4", 64<<20), filesystem(t, "ext4", 64<<20)
	d := newDriver(t, nil, pool)
	mode := mountable(spec.VolumeCapability_AccessMode_SINGLE_NODE_WRITER)
	id := d.create(t, "pvc-1", 8<<20, mode, map[string]string{"backend": "directory", "enforcement": "none"})
	target := d.target("pod")
	require.NoError(t, d.publish(t, id, target, mode, false))
	command(t, "cp", "-a", pool+"/.", copied)
	command(t, "mount", "--bind", copied, pool)
	d.store.Refresh(t.Context())
	t.Cleanup(func() {
		command(t, "umount", pool)
		d.store.Refresh(context.Background())
	})
	require.NoError(t, d.publish(t, id, d.target("other"), mode, false), "the copy is served")
	require.NoError(t, d.unpublish(t, id, d.target("other")))
	require.Equal(t, 1, mountsAt(t, target))
	require.NoError(t, d.unpublish(t, id, target))
	require.Zero(t, mountsAt(t, target))
	require.NoDirExists(t, target)
}

func TestPublishBlock(t *testing.T) {
	requireRoot(t)
	d := newDriver(t, nil, filesystem(t, "xfs", 2*gib))
	c := block(multiWriter)
	id := d.create(t, "pvc-1", 64*mib, c, nil)
	writable, readOnly := d.target("rw"), d.target("ro")
	require.NoError(t, d.publish(t, id, readOnly, c, true))
	dev, err := d.store.Device(t.Context(), id)
	require.NoError(t, err)
	over := strings.TrimSpace(command(t, "losetup", "--noheadings", "--output", "NAME", "--associated", dev.Path))
	command(t, "losetup", "--detach", over)
	require.Equal(t, 1, stackedOver(t, dev.Path), "what is published keeps its number, whoever detaches it")
	require.NoError(t, d.publish(t, id, writable, c, false))
	require.NoError(t, writeTo(writable))
	require.Error(t, writeTo(readOnly), "a device that was published read-only was written")
	content, err := os.ReadFile(readOnly)
	require.NoError(t, err)
	require.Len(t, content, 64*mib)
	require.Equal(t, byte('x'), content[0])

	require.NoError(t, d.publish(t, id, readOnly, c, true))
	require.Equal(t, 1, mountsAt(t, readOnly))
	requireCode(t, codes.AlreadyExists, d.publish(t, id, readOnly, c, false))
	requireCode(t, codes.AlreadyExists, d.publish(t, id, writable, c, true))
	for _, path := range []string{writable, readOnly} {
		stats, err := d.NodeGetVolumeStats(t.Context(), &spec.NodeGetVolumeStatsRequest{VolumeId: id, VolumePath: path})
		require.NoError(t, err)
		require.EqualValues(t, 64*mib, stats.GetUsage()[0].GetTotal())
		require.Zero(t, stats.GetUsage()[0].GetUsed(), "alerts spare what reports no use")
		require.Zero(t, stats.GetUsage()[0].GetAvailable())
	}
	requireCode(t, codes.InvalidArgument, d.publish(t, id, d.target("fs"), mountable(multiWriter, "data=journal"), false))

	require.Equal(t, 1, stackedOver(t, dev.Path))
	require.NoError(t, d.unpublish(t, id, readOnly))
	require.NoFileExists(t, readOnly)
	require.Zero(t, stackedOver(t, dev.Path), "the read-only device was left behind")
	require.NoError(t, d.unpublish(t, id, writable))
	require.NoError(t, d.unpublish(t, id, writable))

	// What a crash between making the device and binding it leaves goes at the next start.
	require.NoError(t, d.publish(t, id, readOnly, c, true))
	command(t, "umount", readOnly)
	require.Equal(t, 1, stackedOver(t, dev.Path))
	require.NoError(t, (&publish.Publisher{Store: d.store}).Sweep(t.Context()))
	require.Zero(t, stackedOver(t, dev.Path))
}

func stackedOver(t testing.TB, device string) int {
	return len(strings.Fields(command(t, "losetup", "--noheadings", "--output", "NAME", "--associated", device)))
}

func TestAccessModes(t *testing.T) {
	requireRoot(t)
	d := newDriver(t, nil, filesystem(t, "xfs", 2*gib))
	for _, mode := range []spec.VolumeCapability_AccessMode_Mode{singleWriter, spec.VolumeCapability_AccessMode_SINGLE_NODE_WRITER} {
		c := mountable(mode)
		id := d.create(t, "pvc-"+strings.ToLower(strings.ReplaceAll(mode.String(), "_", "-")), 64*mib, c, map[string]string{"fsType": "ext4"})
		first, second := d.target(id+"-1"), d.target(id+"-2")
		require.NoError(t, d.publish(t, id, first, c, false))
		require.NoError(t, d.publish(t, id, first, c, false))
		requireCode(t, codes.FailedPrecondition, d.publish(t, id, second, c, false), first)
		require.NoDirExists(t, second)
		require.NoError(t, d.unpublish(t, id, first))
		require.NoError(t, d.publish(t, id, second, c, false))
	}
	c := mountable(readerOnly)
	id := d.create(t, "pvc-reader", 64*mib, c, map[string]string{"fsType": "ext4"})
	require.NoError(t, d.publish(t, id, d.target("reader"), c, false))
	require.Error(t, os.WriteFile(d.target("reader/x"), nil, 0o644))

	for _, mode := range []spec.VolumeCapability_AccessMode_Mode{
		spec.VolumeCapability_AccessMode_UNKNOWN, spec.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER,
		spec.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY, spec.VolumeCapability_AccessMode_MULTI_NODE_SINGLE_WRITER, 99,
	} {
		_, err := d.CreateVolume(t.Context(), &spec.CreateVolumeRequest{Name: "x", VolumeCapabilities: []*spec.VolumeCapability{mountable(mode)}})
		requireCode(t, codes.InvalidArgument, err, "access_mode")
		requireCode(t, codes.InvalidArgument, d.publish(t, id, d.target("m"), mountable(mode), false))
	}
}

func TestInlineVolumes(t *testing.T) {
	requireRoot(t)
	const id = "csi-3b1f0c4e5d6a7b8c9d0e1f2a3b4c5d6e7f8091a2b3c4d5e6f708192a3b4c5d6e"
	request := func(d *driver, id string, attributes map[string]string) error {
		attributes["csi.storage.k8s.io/ephemeral"] = "true"
		attributes["csi.storage.k8s.io/pod.name"], attributes["csi.storage.k8s.io/pod.namespace"] = "p", "ns"
		_, err := d.NodePublishVolume(t.Context(), &spec.NodePublishVolumeRequest{VolumeId: id, TargetPath: d.target("t"),
			VolumeCapability: mountable(spec.VolumeCapability_AccessMode_SINGLE_NODE_WRITER), VolumeContext: attributes})
		return err
	}
	pool := filesystem(t, "xfs", 2*gib)
	off := newDriver(t, nil, filesystem(t, "xfs", 2*gib))
	requireCode(t, codes.FailedPrecondition, request(off, id, map[string]string{"size": "64Mi"}), "switched off")

	var disks *store.Store
	d := newDriver(t, func(s *csi.Server) {
		disks = s.Node.Volumes.(*publish.Publisher).Store
		s.Node.Inline = &publish.Inline{Store: disks}
	}, pool)
	requireCode(t, codes.InvalidArgument, request(d, id, map[string]string{}), "size")
	requireCode(t, codes.InvalidArgument, request(d, id, map[string]string{"size": "many"}), "size")
	requireCode(t, codes.InvalidArgument, request(d, id, map[string]string{"size": "64Mi", "fstype": "ext4"}), `did you mean "fsType"`)
	requireCode(t, codes.InvalidArgument, request(d, "pvc-1", map[string]string{"size": "64Mi"}))
	requireCode(t, codes.ResourceExhausted, request(d, id, map[string]string{"size": "64Gi"}))
	require.Empty(t, disks.List())

	require.NoError(t, request(d, id, map[string]string{"size": "64Mi", "fsType": "ext4"}))
	require.NoError(t, request(d, id, map[string]string{"size": "64Mi", "fsType": "ext4"}))
	list, err := d.ListVolumes(t.Context(), &spec.ListVolumesRequest{})
	require.NoError(t, err)
	require.Empty(t, list.GetEntries())
	out, err := exec.Command("dd", "if=/dev/zero", "of="+d.target("t/big"), "bs=1M", "count=80").CombinedOutput()
	require.Error(t, err, "an inline volume holds more than its size")
	require.Contains(t, string(out), "No space left")
	require.NoError(t, d.unpublish(t, id, d.target("t")))
	require.Empty(t, disks.List())
	require.NoError(t, d.unpublish(t, id, d.target("t")))
}

func TestNodeInfo(t *testing.T) {
	d := newDriver(t, func(s *csi.Server) { s.Node.MaxVolumes = 7 })
	info, err := d.NodeGetInfo(context.Background(), &spec.NodeGetInfoRequest{})
	require.NoError(t, err)
	require.Equal(t, node, info.GetNodeId())
	require.EqualValues(t, 7, info.GetMaxVolumesPerNode())
	require.Equal(t, map[string]string{"topology.quarry.storage/node": node}, info.GetAccessibleTopology().GetSegments())
}
