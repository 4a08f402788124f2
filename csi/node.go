package csi

import (
	"context"
	"slices"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

// Node is the Node service.
type Node struct {
	spec.UnimplementedNodeServer
	// Name is this node's: the node_id, and the value of the topology.
	Name    string
	Volumes NodeVolumes
	// MaxVolumes is how many volumes the CO may publish here; 0: it decides.
	MaxVolumes int64
	// Inline makes inline volumes. Nil: they are refused at publish.
	Inline InlineVolumes
	// Parameters reads an inline volume's attributes. Needed with Inline only.
	Parameters Parameters
}

// NodeGetInfo implements the RPC.
func (n *Node) NodeGetInfo(
	context.Context,
	*spec.NodeGetInfoRequest,
) (*spec.NodeGetInfoResponse, error) {
	return &spec.NodeGetInfoResponse{
		NodeId:            n.Name,
		MaxVolumesPerNode: n.MaxVolumes,
		AccessibleTopology: &spec.Topology{
			Segments: map[string]string{v1alpha1.TopologyNode: n.Name},
		},
	}, nil
}

// NodeGetCapabilities implements the RPC.
func (n *Node) NodeGetCapabilities(
	context.Context,
	*spec.NodeGetCapabilitiesRequest,
) (*spec.NodeGetCapabilitiesResponse, error) {
	resp := &spec.NodeGetCapabilitiesResponse{}
	for _, t := range []spec.NodeServiceCapability_RPC_Type{
		spec.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME,
		spec.NodeServiceCapability_RPC_GET_VOLUME_STATS,
		spec.NodeServiceCapability_RPC_EXPAND_VOLUME,
		spec.NodeServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER,
	} {
		resp.Capabilities = append(resp.Capabilities, &spec.NodeServiceCapability{
			Type: &spec.NodeServiceCapability_Rpc{Rpc: &spec.NodeServiceCapability_RPC{Type: t}},
		})
	}
	return resp, nil
}

// NodeStageVolume implements the RPC: it brings the volume up in its own place
// and proves that it is the one. Nothing is mounted at the staging path;
// publishing binds from the volume's place, which does not depend on a path the
// caller names.
func (n *Node) NodeStageVolume(
	ctx context.Context,
	req *spec.NodeStageVolumeRequest,
) (*spec.NodeStageVolumeResponse, error) {
	if req.GetVolumeId() == "" {
		return nil, invalid("volume_id is missing")
	}
	if err := checkPath("staging_target_path", req.GetStagingTargetPath()); err != nil {
		return nil, err
	}

	w, err := wantedOne(req.GetVolumeCapability())
	if err != nil {
		return nil, err
	}
	if err := existingID(req.GetVolumeId()); err != nil {
		return nil, err
	}
	if isInline(req.GetVolumeContext()) {
		return nil, invalid("an inline volume is published without being staged")
	}
	if err := n.stage(ctx, req.GetVolumeId(), w); err != nil {
		return nil, err
	}

	return &spec.NodeStageVolumeResponse{}, nil
}

// stage brings the volume up and compares it with what is wanted of it.
func (n *Node) stage(ctx context.Context, id string, w want) error {
	v, err := n.Volumes.Stage(ctx, id)
	if err != nil {
		return toStatus(err)
	}
	if why := w.mismatch(v); why != "" {
		return invalid("volume %s: %s", id, why)
	}
	return nil
}

// NodeUnstageVolume implements the RPC. The volume stays up: that costs
// nothing, a classic PersistentVolume would need it, and deleting takes it
// down. What is at the staging path is the caller's.
func (n *Node) NodeUnstageVolume(
	_ context.Context,
	req *spec.NodeUnstageVolumeRequest,
) (*spec.NodeUnstageVolumeResponse, error) {
	if _, err := checkID(req.GetVolumeId()); err != nil {
		return nil, err
	}
	if err := checkPath("staging_target_path", req.GetStagingTargetPath()); err != nil {
		return nil, err
	}
	return &spec.NodeUnstageVolumeResponse{}, nil
}

// NodeUnpublishVolume implements the RPC. An id that no volume has is fine as
// long as nothing is mounted at the path: the CO has to be able to clean up
// after a volume that never was.
func (n *Node) NodeUnpublishVolume(
	ctx context.Context,
	req *spec.NodeUnpublishVolumeRequest,
) (*spec.NodeUnpublishVolumeResponse, error) {
	possible, err := checkID(req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	if err := checkPath("target_path", req.GetTargetPath()); err != nil {
		return nil, err
	}
	if err := n.Volumes.Unpublish(ctx, req.GetVolumeId(), req.GetTargetPath()); err != nil {
		return nil, toStatus(err)
	}
	if n.Inline != nil && possible {
		if err := n.Inline.Remove(ctx, req.GetVolumeId()); err != nil {
			return nil, toStatus(err)
		}
	}

	return &spec.NodeUnpublishVolumeResponse{}, nil
}

// NodeGetVolumeStats implements the RPC.
func (n *Node) NodeGetVolumeStats(
	ctx context.Context,
	req *spec.NodeGetVolumeStatsRequest,
) (*spec.NodeGetVolumeStatsResponse, error) {
	if req.GetVolumeId() == "" {
		return nil, invalid("volume_id is missing")
	}
	if req.GetVolumePath() == "" {
		return nil, invalid("volume_path is missing")
	}
	if err := existingID(req.GetVolumeId()); err != nil {
		return nil, err
	}

	st, err := n.statfs(ctx, req.GetVolumeId(), req.GetVolumePath())
	if err != nil {
		return nil, err
	}

	return &spec.NodeGetVolumeStatsResponse{Usage: usage(st)}, nil
}

// statfs is Volumes.Statfs for a path that a caller sent: nothing is ever
// published at one that is not absolute and clean.
func (n *Node) statfs(ctx context.Context, id, path string) (unix.Statfs_t, error) {
	if checkPath("volume_path", path) != nil {
		return unix.Statfs_t{}, status.Errorf(codes.NotFound,
			"no volume is published at %s", quote(path))
	}
	st, err := n.Volumes.Statfs(ctx, id, path)
	return st, toStatus(err)
}

func usage(st unix.Statfs_t) []*spec.VolumeUsage {
	unit := uint64(st.Bsize)
	if st.Type == 0 {
		// A Block volume. "Used" would make it look full when compared with the
		// total; alerts leave out what reports no use.
		return []*spec.VolumeUsage{{
			Unit:  spec.VolumeUsage_BYTES,
			Total: int64(st.Blocks * unit),
		}}
	}

	out := []*spec.VolumeUsage{{
		Unit:      spec.VolumeUsage_BYTES,
		Total:     int64(st.Blocks * unit),
		Available: int64(st.Bavail * unit),
		Used:      int64((st.Blocks - st.Bfree) * unit),
	}}
	if st.Files > 0 {
		out = append(out, &spec.VolumeUsage{
			Unit:      spec.VolumeUsage_INODES,
			Total:     int64(st.Files),
			Available: int64(st.Ffree),
			Used:      int64(st.Files - st.Ffree),
		})
	}

	return out
}

// NodeExpandVolume implements the RPC. A volume is grown by its controller, so
// this mostly confirms.
func (n *Node) NodeExpandVolume(
	ctx context.Context,
	req *spec.NodeExpandVolumeRequest,
) (*spec.NodeExpandVolumeResponse, error) {
	if req.GetVolumeId() == "" {
		return nil, invalid("volume_id is missing")
	}
	if req.GetVolumePath() == "" {
		return nil, invalid("volume_path is missing")
	}
	if err := existingID(req.GetVolumeId()); err != nil {
		return nil, err
	}

	r := req.GetCapacityRange()
	if err := checkRange(r.GetRequiredBytes(), r.GetLimitBytes()); err != nil {
		return nil, err
	}
	if req.GetVolumeCapability() != nil {
		if _, err := wantedOne(req.GetVolumeCapability()); err != nil {
			return nil, err
		}
	}
	// That the path is this volume's is proven as for its statistics.
	if _, err := n.statfs(ctx, req.GetVolumeId(), req.GetVolumePath()); err != nil {
		return nil, err
	}

	v, err := n.Volumes.Expand(ctx, req.GetVolumeId(), max(r.GetRequiredBytes(), 1))
	if err != nil {
		return nil, toStatus(err)
	}
	if err := withinLimit(v, r); err != nil {
		return nil, err
	}

	return &spec.NodeExpandVolumeResponse{CapacityBytes: capacityOf(v)}, nil
}

// flagsOf are the mount flags of a publish.
func flagsOf(req *spec.NodePublishVolumeRequest, w want) []string {
	var flags []string
	if w.mode == corev1.PersistentVolumeFilesystem {
		flags = slices.Clone(w.mountFlags)
	}

	readOnly := req.GetReadonly() || slices.Contains(w.accesses, corev1.ReadOnlyMany)
	if readOnly && !slices.Contains(flags, "ro") {
		flags = append(flags, "ro")
	}

	return flags
}

func failedPrecondition(format string, args ...any) error {
	return status.Errorf(codes.FailedPrecondition, format, args...)
}
