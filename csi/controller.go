package csi

import (
	"context"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

// Controller is the Controller service. It keeps nothing between calls, so any
// number of replicas may serve it.
type Controller struct {
	spec.UnimplementedControllerServer
	Volumes    Volumes
	Catalogue  Catalogue
	Parameters Parameters
}

// ControllerGetCapabilities implements the RPC.
func (c *Controller) ControllerGetCapabilities(
	context.Context,
	*spec.ControllerGetCapabilitiesRequest,
) (*spec.ControllerGetCapabilitiesResponse, error) {
	resp := &spec.ControllerGetCapabilitiesResponse{}
	for _, t := range []spec.ControllerServiceCapability_RPC_Type{
		spec.ControllerServiceCapability_RPC_CREATE_DELETE_VOLUME,
		spec.ControllerServiceCapability_RPC_LIST_VOLUMES,
		spec.ControllerServiceCapability_RPC_GET_VOLUME,
		spec.ControllerServiceCapability_RPC_GET_CAPACITY,
		spec.ControllerServiceCapability_RPC_EXPAND_VOLUME,
		spec.ControllerServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER,
	} {
		resp.Capabilities = append(resp.Capabilities, &spec.ControllerServiceCapability{
			Type: &spec.ControllerServiceCapability_Rpc{
				Rpc: &spec.ControllerServiceCapability_RPC{Type: t},
			},
		})
	}
	return resp, nil
}

// DeleteVolume implements the RPC.
func (c *Controller) DeleteVolume(
	ctx context.Context,
	req *spec.DeleteVolumeRequest,
) (*spec.DeleteVolumeResponse, error) {
	possible, err := checkID(req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	if possible {
		if err := c.Volumes.Delete(ctx, req.GetVolumeId()); err != nil {
			return nil, toStatus(err)
		}
	}
	return &spec.DeleteVolumeResponse{}, nil
}

// ValidateVolumeCapabilities implements the RPC. What cannot be confirmed is
// answered with a message, not with an error.
func (c *Controller) ValidateVolumeCapabilities(
	ctx context.Context,
	req *spec.ValidateVolumeCapabilitiesRequest,
) (*spec.ValidateVolumeCapabilitiesResponse, error) {
	if req.GetVolumeId() == "" {
		return nil, invalid("volume_id is missing")
	}
	if len(req.GetVolumeCapabilities()) == 0 {
		return nil, invalid("volume_capabilities are missing")
	}
	if err := checkMap("parameters", req.GetParameters()); err != nil {
		return nil, err
	}

	v, err := c.get(ctx, req.GetVolumeId())
	if err != nil {
		return nil, err
	}

	no := func(why string) (*spec.ValidateVolumeCapabilitiesResponse, error) {
		return &spec.ValidateVolumeCapabilitiesResponse{Message: why}, nil
	}
	w, err := wanted(req.GetVolumeCapabilities())
	if err != nil {
		return no(status.Convert(err).Message())
	}
	if why := w.mismatch(v); why != "" {
		return no(why)
	}
	if len(req.GetParameters()) > 0 {
		if _, err := c.Parameters(req.GetParameters(), v.Spec.DeepCopy()); err != nil {
			return no(err.Error())
		}
	}

	return &spec.ValidateVolumeCapabilitiesResponse{
		Confirmed: &spec.ValidateVolumeCapabilitiesResponse_Confirmed{
			VolumeContext:      req.GetVolumeContext(),
			VolumeCapabilities: req.GetVolumeCapabilities(),
			Parameters:         req.GetParameters(),
		},
	}, nil
}

// ControllerGetVolume implements the RPC.
func (c *Controller) ControllerGetVolume(
	ctx context.Context,
	req *spec.ControllerGetVolumeRequest,
) (*spec.ControllerGetVolumeResponse, error) {
	v, err := c.get(ctx, req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	return &spec.ControllerGetVolumeResponse{
		Volume: message(v, ""),
		Status: &spec.ControllerGetVolumeResponse_VolumeStatus{},
	}, nil
}

// ControllerExpandVolume implements the RPC. The volume's node does all of it,
// online, so nothing is left for NodeExpandVolume.
func (c *Controller) ControllerExpandVolume(
	ctx context.Context,
	req *spec.ControllerExpandVolumeRequest,
) (*spec.ControllerExpandVolumeResponse, error) {
	if err := existingID(req.GetVolumeId()); err != nil {
		return nil, err
	}

	size, err := expandTo(req.GetCapacityRange())
	if err != nil {
		return nil, err
	}

	v, err := c.get(ctx, req.GetVolumeId())
	if err != nil {
		return nil, err
	}

	if req.GetVolumeCapability() != nil {
		w, err := wantedOne(req.GetVolumeCapability())
		if err != nil {
			return nil, err
		}
		if why := w.mismatch(v); why != "" {
			return nil, invalid("volume %s: %s", v.Name, why)
		}
	}

	if v, err = c.Volumes.Expand(ctx, v.Name, size); err != nil {
		return nil, toStatus(err)
	}
	if err := withinLimit(v, req.GetCapacityRange()); err != nil {
		return nil, err
	}

	return &spec.ControllerExpandVolumeResponse{
		CapacityBytes:         capacityOf(v),
		NodeExpansionRequired: false,
	}, nil
}

// GetCapacity implements the RPC.
func (c *Controller) GetCapacity(
	ctx context.Context,
	req *spec.GetCapacityRequest,
) (*spec.GetCapacityResponse, error) {
	if err := checkMap("parameters", req.GetParameters()); err != nil {
		return nil, err
	}

	var wish v1alpha1.VolumeSpec
	if len(req.GetVolumeCapabilities()) > 0 {
		w, err := wanted(req.GetVolumeCapabilities())
		if err != nil {
			return nil, err
		}
		wish.VolumeMode = w.mode
	}

	if _, err := c.Parameters(req.GetParameters(), &wish); err != nil {
		return nil, toStatus(err)
	}

	node := ""
	if t := req.GetAccessibleTopology(); t != nil && len(t.GetSegments()) > 0 {
		var known bool
		if node, known = t.GetSegments()[v1alpha1.TopologyNode]; !known || node == "" {
			// No node of ours is there.
			return &spec.GetCapacityResponse{MaximumVolumeSize: wrapperspb.Int64(0)}, nil
		}
	}

	available, largest, err := c.Catalogue.Room(ctx, node, wish)
	if err != nil {
		return nil, toStatus(err)
	}

	return &spec.GetCapacityResponse{
		AvailableCapacity: available,
		MaximumVolumeSize: wrapperspb.Int64(largest),
	}, nil
}

// get is the volume of an id that a caller sent.
func (c *Controller) get(ctx context.Context, id string) (*v1alpha1.Volume, error) {
	if err := existingID(id); err != nil {
		return nil, err
	}
	v, err := c.Catalogue.Get(ctx, id)
	return v, toStatus(err)
}

// message is a volume as callers get it. parameters are in it only where the
// volume is made.
func message(v *v1alpha1.Volume, parameters string) *spec.Volume {
	m := &spec.Volume{
		VolumeId:      v.Name,
		CapacityBytes: capacityOf(v),
		VolumeContext: volumeContext(v, parameters),
	}
	if v.Spec.NodeName != "" {
		m.AccessibleTopology = []*spec.Topology{
			{Segments: map[string]string{v1alpha1.TopologyNode: v.Spec.NodeName}},
		}
	}
	return m
}

// volumeContext ends up in the PersistentVolume's volumeAttributes, from which
// a lost Volume is written again. Those attributes cannot be changed: what may
// change, the node and the pool, is not among them.
func volumeContext(v *v1alpha1.Volume, parameters string) map[string]string {
	m := map[string]string{}
	if name := v.Spec.Attributes[v1alpha1.AttributeName]; name != "" {
		m[v1alpha1.AttributeName] = name
	}
	if parameters != "" {
		m[v1alpha1.AnnotationParameters] = parameters
	}
	return m
}

// capacityOf is the size in force, in bytes.
func capacityOf(v *v1alpha1.Volume) int64 {
	if v.Status.Capacity != nil {
		return v.Status.Capacity.Value()
	}
	return v.Spec.Capacity.Value()
}

// withinLimit compares what there is with the limit a caller gave.
func withinLimit(v *v1alpha1.Volume, r *spec.CapacityRange) error {
	if have, limit := capacityOf(v), r.GetLimitBytes(); limit > 0 && have > limit {
		return status.Errorf(
			codes.OutOfRange,
			"volume %s is of %d bytes, more than the limit of %d; volumes do not shrink",
			v.Name,
			have,
			limit,
		)
	}
	return nil
}
