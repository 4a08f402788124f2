package csi_test

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Every fuzz test sends one RPC what a hostile caller could, to a driver whose
// only pool is offline: whatever it is sent, it answers with one of the codes
// that the specification has for that RPC, and touches nothing.

// hostile are strings that have broken programs before.
var hostile = []string{
	"", ".", "..", "/", "../../etc/passwd", "/etc/passwd", "pvc-1",
	"pvc-1/../pvc-2", "pvc-1\x00", "\x00", "-rf", ".quarry", "lost+found",
	"pvc-1\n", "pvc-é", strings.Repeat("€", 1365), strings.Repeat("a", 128),
	strings.Repeat("a", 129), "\xff\xfe", "%s%n", "$(id)",
	"name-0123456789012345678901234567890123456789", "PVC-1", "csi-1",
	strings.Repeat("/a", 2048), "/tmp/../etc", "//tmp", "/tmp/",
}

// quiet answers for the whole fuzz test.
type quiet struct {
	*driver
	pool string
}

func newQuiet(f *testing.F) *quiet {
	pool := filepath.Join(f.TempDir(), "pool") // there is none
	return &quiet{newDriver(f, nil, pool), pool}
}

// check fails unless the answer is one of the codes, or OK, and nothing was
// touched.
func (q *quiet) check(t *testing.T, err error, allowed ...codes.Code) {
	t.Helper()
	require.Contains(t, append(allowed, codes.OK), status.Code(err), "%v", err)
	require.NoDirExists(t, q.pool)
	var found []string
	require.NoError(t, filepath.WalkDir(q.dir, func(path string, _ fs.DirEntry, err error) error {
		found = append(found, path)
		return err
	}))
	require.Equal(t, []string{q.dir}, found)
	for line := range strings.Lines(q.log.String()) {
		require.Less(t, len(line), 4096, "a line of the log is as long as a caller likes")
	}
	q.log.mu.Lock()
	q.log.b.Reset()
	q.log.mu.Unlock()
}

// unsent are errors of the client before anything was sent: protobuf wants
// UTF-8.
func unsent(err error) bool {
	return status.Code(err) == codes.Internal && strings.Contains(err.Error(), "marshal")
}

func capability(kind byte, mode int32, text string) *spec.VolumeCapability {
	c := &spec.VolumeCapability{AccessMode: &spec.VolumeCapability_AccessMode{
		Mode: spec.VolumeCapability_AccessMode_Mode(mode)}}
	switch kind % 4 {
	case 0:
		c.AccessType = &spec.VolumeCapability_Block{}
	case 1:
		c.AccessType = &spec.VolumeCapability_Mount{Mount: &spec.VolumeCapability_MountVolume{FsType: text,
			MountFlags: []string{text}}}
	case 2:
		c.AccessMode = nil
	}
	return c
}

func FuzzCreateVolume(f *testing.F) {
	q := newQuiet(f)
	for i, s := range hostile {
		f.Add(s, byte(i), int32(i%9), s, "backend", s, int64(i)<<uint(i), int64(i-3)<<uint(i%50))
	}
	f.Add("v", byte(1), int32(1), "", "inodes", "99999999999999999999", int64(-1), int64(-1))
	f.Add("v", byte(1), int32(1), "", "trashRetention", "-1h", int64(1)<<62, int64(1))
	f.Fuzz(func(t *testing.T, name string, kind byte, mode int32, text, key, value string, required, limit int64) {
		_, err := q.CreateVolume(context.Background(), &spec.CreateVolumeRequest{
			Name: name, VolumeCapabilities: []*spec.VolumeCapability{capability(kind, mode, text)},
			Parameters:    map[string]string{key: value},
			CapacityRange: &spec.CapacityRange{RequiredBytes: required, LimitBytes: limit},
			AccessibilityRequirements: &spec.TopologyRequirement{
				Preferred: []*spec.Topology{{Segments: map[string]string{
					"topology.quarry.storage/node": node, key: value}}}},
		})
		if unsent(err) {
			return
		}
		require.Error(t, err, "a volume without a pool")
		q.check(t, err, codes.InvalidArgument, codes.OutOfRange, codes.ResourceExhausted)
	})
}

func FuzzDeleteVolume(f *testing.F) {
	q := newQuiet(f)
	fuzzID(f, q, func(ctx context.Context, id, _ string) error {
		_, err := q.DeleteVolume(ctx, &spec.DeleteVolumeRequest{VolumeId: id})
		return err
		// That the volume is not there cannot be said of a pool that is
		// offline.
	}, codes.InvalidArgument, codes.Unavailable)
}

func FuzzValidateVolumeCapabilities(f *testing.F) {
	q := newQuiet(f)
	fuzzID(f, q, func(ctx context.Context, id, text string) error {
		_, err := q.ValidateVolumeCapabilities(ctx, &spec.ValidateVolumeCapabilitiesRequest{VolumeId: id,
			VolumeContext:      map[string]string{text: text},
			VolumeCapabilities: []*spec.VolumeCapability{capability(1, 1, text)},
			Parameters:         map[string]string{text: text}})
		return err
	}, codes.InvalidArgument, codes.NotFound, codes.Unavailable)
}

func FuzzControllerGetVolume(f *testing.F) {
	q := newQuiet(f)
	fuzzID(f, q, func(ctx context.Context, id, _ string) error {
		_, err := q.ControllerGetVolume(ctx, &spec.ControllerGetVolumeRequest{VolumeId: id})
		return err
	}, codes.InvalidArgument, codes.NotFound, codes.Unavailable)
}

func FuzzControllerExpandVolume(f *testing.F) {
	q := newQuiet(f)
	for i, s := range hostile {
		f.Add(s, int64(i)<<uint(i), int64(i-3)<<uint(i))
	}
	f.Fuzz(func(t *testing.T, id string, required, limit int64) {
		_, err := q.ControllerExpandVolume(context.Background(), &spec.ControllerExpandVolumeRequest{VolumeId: id,
			CapacityRange: &spec.CapacityRange{RequiredBytes: required, LimitBytes: limit}})
		if !unsent(err) {
			q.check(t, err, codes.InvalidArgument, codes.NotFound, codes.Unavailable, codes.OutOfRange)
		}
	})
}

func FuzzListVolumes(f *testing.F) {
	q := newQuiet(f)
	for i, s := range hostile {
		f.Add(s, int32(i-5))
	}
	f.Fuzz(func(t *testing.T, token string, entries int32) {
		_, err := q.ListVolumes(context.Background(), &spec.ListVolumesRequest{StartingToken: token,
			MaxEntries: entries})
		if !unsent(err) {
			q.check(t, err, codes.InvalidArgument, codes.Aborted)
		}
	})
}

func FuzzGetCapacity(f *testing.F) {
	q := newQuiet(f)
	for i, s := range hostile {
		f.Add(s, s, byte(i), int32(i%9))
	}
	f.Fuzz(func(t *testing.T, key, value string, kind byte, mode int32) {
		_, err := q.GetCapacity(context.Background(),
			&spec.GetCapacityRequest{Parameters: map[string]string{key: value},
				VolumeCapabilities: []*spec.VolumeCapability{capability(kind, mode, value)},
				AccessibleTopology: &spec.Topology{Segments: map[string]string{key: value}}})
		if !unsent(err) {
			q.check(t, err, codes.InvalidArgument)
		}
	})
}

func FuzzNodeStageVolume(f *testing.F) {
	q := newQuiet(f)
	fuzzID(f, q, func(ctx context.Context, id, path string) error {
		_, err := q.NodeStageVolume(ctx, &spec.NodeStageVolumeRequest{VolumeId: id, StagingTargetPath: path,
			VolumeCapability: capability(1, 1, ""),
			VolumeContext:    map[string]string{path: id}})
		return err
	}, codes.InvalidArgument, codes.NotFound, codes.Unavailable)
}

func FuzzNodeUnstageVolume(f *testing.F) {
	q := newQuiet(f)
	fuzzID(f, q, func(ctx context.Context, id, path string) error {
		_, err := q.NodeUnstageVolume(ctx, &spec.NodeUnstageVolumeRequest{VolumeId: id, StagingTargetPath: path})
		return err
	}, codes.InvalidArgument)
}

func FuzzNodePublishVolume(f *testing.F) {
	q := newQuiet(f)
	fuzzID(f, q, func(ctx context.Context, id, path string) error {
		_, err := q.NodePublishVolume(ctx, &spec.NodePublishVolumeRequest{VolumeId: id, StagingTargetPath: "/staging",
			TargetPath:       path,
			VolumeCapability: capability(1, 1, ""),
			VolumeContext:    map[string]string{"csi.storage.k8s.io/ephemeral": id}})
		return err
	}, codes.InvalidArgument, codes.NotFound, codes.Unavailable, codes.FailedPrecondition)
}

func FuzzNodeUnpublishVolume(f *testing.F) {
	q := newQuiet(f)
	fuzzID(f, q, func(ctx context.Context, id, path string) error {
		_, err := q.NodeUnpublishVolume(ctx, &spec.NodeUnpublishVolumeRequest{VolumeId: id, TargetPath: path})
		return err
	}, codes.InvalidArgument, codes.FailedPrecondition)
}

func FuzzNodeGetVolumeStats(f *testing.F) {
	q := newQuiet(f)
	fuzzID(f, q, func(ctx context.Context, id, path string) error {
		_, err := q.NodeGetVolumeStats(ctx, &spec.NodeGetVolumeStatsRequest{VolumeId: id, VolumePath: path})
		return err
	}, codes.InvalidArgument, codes.NotFound, codes.Unavailable)
}

func FuzzNodeExpandVolume(f *testing.F) {
	q := newQuiet(f)
	fuzzID(f, q, func(ctx context.Context, id, path string) error {
		_, err := q.NodeExpandVolume(ctx, &spec.NodeExpandVolumeRequest{VolumeId: id, VolumePath: path,
			CapacityRange: &spec.CapacityRange{RequiredBytes: int64(len(id)), LimitBytes: int64(len(path))}})
		return err
	}, codes.InvalidArgument, codes.NotFound, codes.Unavailable, codes.OutOfRange)
}

// fuzzID fuzzes a call that takes an id and one more string, a path mostly. The
// pool is offline, so of a good id nobody can say that its volume is not there.
func fuzzID(f *testing.F, q *quiet, call func(ctx context.Context, id, text string) error, allowed ...codes.Code) {
	for i, s := range hostile {
		f.Add(s, hostile[len(hostile)-1-i])
		f.Add(s, "/some/path")
		f.Add("pvc-1", s)
	}
	before, err := os.ReadFile("/proc/self/mountinfo")
	require.NoError(f, err)
	f.Fuzz(func(t *testing.T, id, text string) {
		err := call(context.Background(), id, text)
		if unsent(err) {
			return
		}
		q.check(t, err, allowed...)
	})
	f.Cleanup(func() {
		after, err := os.ReadFile("/proc/self/mountinfo")
		require.NoError(f, err)
		require.Equal(f, strings.Count(string(before), q.dir), strings.Count(string(after), q.dir))
	})
}

// A message that is larger than any may be never reaches a method.
func TestLargeMessages(t *testing.T) {
	d := newDriver(t, nil)
	_, err := d.DeleteVolume(t.Context(), &spec.DeleteVolumeRequest{VolumeId: strings.Repeat("x", 2<<20)})
	requireCode(t, codes.ResourceExhausted, err, "larger than max")
}
