package csi_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
)

func TestCreateIsIdempotent(t *testing.T) {
	requireRoot(t)
	d := newDriver(t, nil, filesystem(t, "xfs", 4*gib))
	request := func(change ...func(*spec.CreateVolumeRequest)) (*spec.Volume, error) {
		r := &spec.CreateVolumeRequest{
			Name: "pvc-1", CapacityRange: &spec.CapacityRange{RequiredBytes: 64 * mib},
			VolumeCapabilities: []*spec.VolumeCapability{mountable(multiWriter)},
			Parameters: map[string]string{"fsType": "ext4", "csi.storage.k8s.io/pvc/name": "data",
				"csi.storage.k8s.io/pvc/namespace": "ns"},
		}
		for _, f := range change {
			f(r)
		}
		resp, err := d.CreateVolume(t.Context(), r)
		return resp.GetVolume(), err
	}
	v, err := request()
	require.NoError(t, err)
	require.Equal(t, "pvc-1", v.GetVolumeId())
	require.EqualValues(t, 64*mib, v.GetCapacityBytes())
	require.Equal(t, node, v.GetAccessibleTopology()[0].GetSegments()["topology.quarry.storage/node"])
	require.Len(t, v.GetVolumeContext(), 1, "what may change is not in what cannot be changed")
	require.Contains(t, v.GetVolumeContext()["quarry.storage/parameters"], `"fsType":"ext4"`)
	on, err := d.store.Get("pvc-1")
	require.NoError(t, err)
	require.Equal(t, "ns/data", on.Origin.ClaimNamespace+"/"+on.Origin.ClaimName)

	again, err := request()
	require.NoError(t, err)
	require.Equal(t, v.String(), again.String())
	for what, change := range map[string]func(*spec.CreateVolumeRequest){
		"larger":  func(r *spec.CreateVolumeRequest) { r.CapacityRange.RequiredBytes = 128 * mib },
		"limited": func(r *spec.CreateVolumeRequest) { r.CapacityRange = &spec.CapacityRange{LimitBytes: 32 * mib} },
		"block": func(r *spec.CreateVolumeRequest) {
			r.VolumeCapabilities = []*spec.VolumeCapability{block(multiWriter)}
		},
		"parameters": func(r *spec.CreateVolumeRequest) { r.Parameters["mode"] = "0700" },
	} {
		_, err := request(change)
		requireCode(t, codes.AlreadyExists, err)
		require.NotContains(t, err.Error(), "there is no volume", what)
	}
	// The sizes of one volume are one volume's, whoever grew it.
	grown, err := d.ControllerExpandVolume(t.Context(), &spec.ControllerExpandVolumeRequest{VolumeId: "pvc-1",
		CapacityRange: &spec.CapacityRange{RequiredBytes: 64 * mib}})
	require.NoError(t, err)
	require.False(t, grown.GetNodeExpansionRequired())
}

func TestCreateRefuses(t *testing.T) {
	requireRoot(t)
	d := newDriver(t, nil, filesystem(t, "xfs", 2*gib))
	fs := []*spec.VolumeCapability{mountable(multiWriter)}
	size := func(required, limit int64) *spec.CapacityRange {
		return &spec.CapacityRange{RequiredBytes: required, LimitBytes: limit}
	}
	other := &spec.TopologyRequirement{Requisite: []*spec.Topology{
		{Segments: map[string]string{"topology.quarry.storage/node": "other"}}}}
	foreign := &spec.TopologyRequirement{Requisite: []*spec.Topology{{Segments: map[string]string{"zone": "z"}}}}
	for what, test := range map[string]struct {
		req  *spec.CreateVolumeRequest
		code codes.Code
		text string
	}{
		"no name": {&spec.CreateVolumeRequest{VolumeCapabilities: fs}, codes.InvalidArgument, "name"},
		"a long name": {&spec.CreateVolumeRequest{Name: strings.Repeat("n", 129), VolumeCapabilities: fs},
			codes.InvalidArgument, "128"},
		"a name with NUL": {&spec.CreateVolumeRequest{Name: "a\x00b", VolumeCapabilities: fs},
			codes.InvalidArgument, "control"},
		"no capability": {&spec.CreateVolumeRequest{Name: "v"}, codes.InvalidArgument, "volume_capabilities"},
		"block and filesystem": {&spec.CreateVolumeRequest{Name: "v", VolumeCapabilities: []*spec.VolumeCapability{
			mountable(multiWriter), block(multiWriter)}}, codes.InvalidArgument, "contradict"},
		"negative": {&spec.CreateVolumeRequest{Name: "v", VolumeCapabilities: fs,
			CapacityRange: size(-1, 0)}, codes.OutOfRange, "negative"},
		"a range upside down": {&spec.CreateVolumeRequest{Name: "v", VolumeCapabilities: fs,
			CapacityRange: size(2*mib, mib)}, codes.OutOfRange, "more than limit_bytes"},
		"a range too narrow": {&spec.CreateVolumeRequest{Name: "v", VolumeCapabilities: fs,
			CapacityRange: size(4097, 4098)}, codes.OutOfRange, "multiple"},
		"huge": {&spec.CreateVolumeRequest{Name: "v", VolumeCapabilities: fs,
			CapacityRange: size(1<<62, 0)}, codes.OutOfRange, "large"},
		"no room": {&spec.CreateVolumeRequest{Name: "v", VolumeCapabilities: fs,
			CapacityRange: size(5*gib, 0)}, codes.ResourceExhausted, "room"},
		"too small for xfs": {&spec.CreateVolumeRequest{Name: "v", VolumeCapabilities: fs,
			CapacityRange: size(20*mib, 0), Parameters: map[string]string{"fsType": "xfs"}}, codes.OutOfRange, "300Mi"},
		"an unknown parameter": {&spec.CreateVolumeRequest{Name: "v", VolumeCapabilities: fs,
			Parameters: map[string]string{"fstype": "xfs"}}, codes.InvalidArgument, `did you mean "fsType"`},
		"a bad value": {&spec.CreateVolumeRequest{Name: "v", VolumeCapabilities: fs,
			Parameters: map[string]string{"backend": "loob"}}, codes.InvalidArgument, `did you mean "loop"`},
		"many parameters": {&spec.CreateVolumeRequest{Name: "v", VolumeCapabilities: fs,
			Parameters: map[string]string{"x": strings.Repeat("x", 5000)}}, codes.InvalidArgument, "bytes"},
		"an unknown pool": {&spec.CreateVolumeRequest{Name: "v", VolumeCapabilities: fs,
			Parameters: map[string]string{"pool": "nvme"}}, codes.ResourceExhausted, "nvme"},
		"another node": {&spec.CreateVolumeRequest{Name: "v", VolumeCapabilities: fs,
			AccessibilityRequirements: other}, codes.ResourceExhausted, "none of those"},
		"another topology": {&spec.CreateVolumeRequest{Name: "v", VolumeCapabilities: fs,
			AccessibilityRequirements: foreign}, codes.ResourceExhausted, "topologies"},
		"a source": {&spec.CreateVolumeRequest{Name: "v", VolumeCapabilities: fs,
			VolumeContentSource: &spec.VolumeContentSource{}}, codes.InvalidArgument,
			"volume_content_source"},
		"a bad mount flag": {&spec.CreateVolumeRequest{Name: "v",
			VolumeCapabilities: []*spec.VolumeCapability{mountable(multiWriter, "barrier=0")},
			Parameters:         map[string]string{"backend": "loop"}}, codes.InvalidArgument, "barrier"},
	} {
		t.Run(what, func(t *testing.T) {
			_, err := d.CreateVolume(t.Context(), test.req)
			requireCode(t, test.code, err, test.text)
			require.Empty(t, d.store.List())
		})
	}
}

// Names that cannot be a directory's are other volumes' than those that are
// made of them.
func TestNames(t *testing.T) {
	requireRoot(t)
	d := newDriver(t, nil, filesystem(t, "xfs", 2*gib))
	ids := map[string]string{}
	for _, name := range []string{"pvc-1", "PVC-1", "../../etc", "a/b", "ünï çødé", strings.Repeat("n", 128),
		"name-0123456789012345678901234567890123456789", ".quarry"} {
		resp, err := d.CreateVolume(t.Context(), &spec.CreateVolumeRequest{Name: name,
			CapacityRange:      &spec.CapacityRange{RequiredBytes: 2 * mib},
			VolumeCapabilities: []*spec.VolumeCapability{block(multiWriter)}})
		require.NoError(t, err, name)
		id := resp.GetVolume().GetVolumeId()
		require.Regexp(t, `^[a-z0-9-]{1,56}$`, id)
		require.NotContains(t, ids, id, "%q and %q", name, ids[id])
		ids[id] = name
	}
	require.Equal(t, "pvc-1", ids["pvc-1"])
}

func TestListPages(t *testing.T) {
	requireRoot(t)
	d := newDriver(t, nil, filesystem(t, "xfs", 2*gib))
	for i := range 5 {
		d.create(t, fmt.Sprintf("pvc-%d", i), 2*mib, block(multiWriter), nil)
	}
	page := func(token string) (ids []string, next string) {
		resp, err := d.ListVolumes(t.Context(), &spec.ListVolumesRequest{MaxEntries: 2, StartingToken: token})
		require.NoError(t, err)
		for _, e := range resp.GetEntries() {
			ids = append(ids, e.GetVolume().GetVolumeId())
		}
		return ids, resp.GetNextToken()
	}
	first, next := page("")
	require.Equal(t, []string{"pvc-0", "pvc-1"}, first)
	// The last of a page goes, one that was given comes, and one is still to
	// come: no other is missed or repeated.
	_, err := d.DeleteVolume(t.Context(), &spec.DeleteVolumeRequest{VolumeId: "pvc-1"})
	require.NoError(t, err)
	d.create(t, "pvc-00", 2*mib, block(multiWriter), nil)
	second, next := page(next)
	require.Equal(t, []string{"pvc-2", "pvc-3"}, second)
	third, next := page(next)
	require.Equal(t, []string{"pvc-4"}, third)
	require.Empty(t, next)
	for _, token := range []string{"invalid-token", "YWZ0ZXI6", "YWZ0ZXI6Li4vLi4", "\x00"} {
		_, err := d.ListVolumes(t.Context(), &spec.ListVolumesRequest{StartingToken: token})
		requireCode(t, codes.Aborted, err)
	}
	_, err = d.ListVolumes(t.Context(), &spec.ListVolumesRequest{MaxEntries: -1})
	requireCode(t, codes.InvalidArgument, err)
}

// The largest volume is what one pool can take, not all of them together; pools
// on one filesystem share its room.
func TestCapacity(t *testing.T) {
	requireRoot(t)
	large := filesystem(t, "xfs", 2*gib)
	d := newDriver(t, nil, filesystem(t, "ext4", 1*gib), large, large+"/sub")
	get := func(r *spec.GetCapacityRequest) (available, largest int64) {
		resp, err := d.GetCapacity(t.Context(), r)
		require.NoError(t, err)
		return resp.GetAvailableCapacity(), resp.GetMaximumVolumeSize().GetValue()
	}
	available, largest := get(&spec.GetCapacityRequest{})
	require.Greater(t, largest, int64(gib))
	require.Greater(t, available, largest+gib/2)
	require.Less(t, available, int64(3*gib))
	one, alone := get(&spec.GetCapacityRequest{Parameters: map[string]string{"pool": "a"}})
	require.Equal(t, one, alone)
	require.Less(t, one, int64(gib))
	none, _ := get(&spec.GetCapacityRequest{Parameters: map[string]string{"backend": "directory"}})
	require.Zero(t, none, "no pool here enforces the size of a directory")
	for _, topology := range []map[string]string{{"topology.quarry.storage/node": "other"}, {"zone": "z"}} {
		none, _ = get(&spec.GetCapacityRequest{AccessibleTopology: &spec.Topology{Segments: topology}})
		require.Zero(t, none)
	}
	// While a pool is away a volume is only made for a wish that it cannot be
	// on.
	d.create(t, "pvc-1", gib, block(multiWriter), map[string]string{"pool": "b"})
	after, _ := get(&spec.GetCapacityRequest{})
	require.InDelta(t, available-gib, after, 16*mib)
}

func TestValidate(t *testing.T) {
	requireRoot(t)
	d := newDriver(t, nil, filesystem(t, "xfs", 2*gib))
	id := d.create(t, "pvc-1", 64*mib, mountable(multiWriter), map[string]string{"fsType": "ext4"})
	confirmed := func(c *spec.VolumeCapability, change ...func(*spec.ValidateVolumeCapabilitiesRequest)) bool {
		r := &spec.ValidateVolumeCapabilitiesRequest{VolumeId: id, VolumeCapabilities: []*spec.VolumeCapability{c}}
		for _, f := range change {
			f(r)
		}
		resp, err := d.ValidateVolumeCapabilities(t.Context(), r)
		require.NoError(t, err)
		require.Equal(t, resp.GetConfirmed() == nil, resp.GetMessage() != "")
		return resp.GetConfirmed() != nil
	}
	require.True(t, confirmed(mountable(singleWriter)))
	require.False(t, confirmed(block(multiWriter)))
	require.False(t, confirmed(mountable(spec.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER)))
	require.True(t, confirmed(mountable(multiWriter), func(r *spec.ValidateVolumeCapabilitiesRequest) {
		r.VolumeContext = map[string]string{"quarry.storage/node": "where it was made"} // of a version that wrote it
	}))
	require.False(t, confirmed(mountable(multiWriter), func(r *spec.ValidateVolumeCapabilitiesRequest) {
		r.Parameters = map[string]string{"colour": "blue"}
	}))
	v, err := d.ControllerGetVolume(t.Context(), &spec.ControllerGetVolumeRequest{VolumeId: id})
	require.NoError(t, err)
	require.EqualValues(t, 64*mib, v.GetVolume().GetCapacityBytes())
	_, err = d.ControllerGetVolume(t.Context(), &spec.ControllerGetVolumeRequest{VolumeId: "../" + id})
	requireCode(t, codes.NotFound, err)
}

// xfs grows while it is mounted; the filesystem in the volume is as large as it
// was said to be.
func TestExpand(t *testing.T) {
	requireRoot(t)
	d := newDriver(t, nil, filesystem(t, "ext4", 2*gib))
	c := mountable(multiWriter)
	id := d.create(t, "pvc-1", 320*mib, c, map[string]string{"fsType": "xfs"})
	require.NoError(t, d.publish(t, id, d.target("t"), c, false))
	resp, err := d.ControllerExpandVolume(t.Context(), &spec.ControllerExpandVolumeRequest{VolumeId: id,
		CapacityRange: &spec.CapacityRange{RequiredBytes: 512 * mib}})
	require.NoError(t, err)
	require.EqualValues(t, 512*mib, resp.GetCapacityBytes())
	stats, err := d.NodeGetVolumeStats(t.Context(), &spec.NodeGetVolumeStatsRequest{VolumeId: id,
		VolumePath: d.target("t")})
	require.NoError(t, err)
	require.Greater(t, stats.GetUsage()[0].GetTotal(), int64(400*mib))
	node, err := d.NodeExpandVolume(t.Context(), &spec.NodeExpandVolumeRequest{VolumeId: id, VolumePath: d.target("t")})
	require.NoError(t, err)
	require.EqualValues(t, 512*mib, node.GetCapacityBytes())

	for _, test := range []struct {
		r    *spec.CapacityRange
		code codes.Code
	}{
		{nil, codes.InvalidArgument},
		{&spec.CapacityRange{}, codes.InvalidArgument},
		{&spec.CapacityRange{RequiredBytes: -5}, codes.OutOfRange},
		{&spec.CapacityRange{RequiredBytes: 64 * gib}, codes.OutOfRange},
		{&spec.CapacityRange{RequiredBytes: 100 * mib, LimitBytes: 200 * mib}, codes.OutOfRange},
	} {
		_, err := d.ControllerExpandVolume(context.Background(), &spec.ControllerExpandVolumeRequest{VolumeId: id,
			CapacityRange: test.r})
		requireCode(t, test.code, err)
	}
	_, err = d.ControllerExpandVolume(t.Context(), &spec.ControllerExpandVolumeRequest{VolumeId: "pvc-none",
		CapacityRange: &spec.CapacityRange{RequiredBytes: 1}})
	requireCode(t, codes.NotFound, err)
}
