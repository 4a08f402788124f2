package csi

import (
	"context"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

// Identity is the Identity service.
type Identity struct {
	spec.UnimplementedIdentityServer
	// Version is the program's.
	Version string
	// Ready is asked by Probe; an error means that calls would fail. Nil:
	// always ready.
	Ready func(context.Context) error
}

// GetPluginInfo implements the RPC.
func (i *Identity) GetPluginInfo(
	context.Context,
	*spec.GetPluginInfoRequest,
) (*spec.GetPluginInfoResponse, error) {
	version := i.Version
	if version == "" {
		version = "unknown" // the field is required
	}
	return &spec.GetPluginInfoResponse{
		Name:          v1alpha1.CSIDriver,
		VendorVersion: version,
	}, nil
}

// GetPluginCapabilities implements the RPC. It describes the plugin as a whole:
// all instances of a version have to answer the same, whichever services they
// serve themselves (spec, GetPluginCapabilities).
func (i *Identity) GetPluginCapabilities(
	context.Context,
	*spec.GetPluginCapabilitiesRequest,
) (*spec.GetPluginCapabilitiesResponse, error) {
	services := []spec.PluginCapability_Service_Type{
		spec.PluginCapability_Service_VOLUME_ACCESSIBILITY_CONSTRAINTS,
		spec.PluginCapability_Service_CONTROLLER_SERVICE,
	}
	resp := &spec.GetPluginCapabilitiesResponse{Capabilities: []*spec.PluginCapability{
		{
			Type: &spec.PluginCapability_VolumeExpansion_{
				VolumeExpansion: &spec.PluginCapability_VolumeExpansion{
					Type: spec.PluginCapability_VolumeExpansion_ONLINE,
				},
			},
		},
	}}
	for _, s := range services {
		resp.Capabilities = append(resp.Capabilities, &spec.PluginCapability{
			Type: &spec.PluginCapability_Service_{Service: &spec.PluginCapability_Service{Type: s}},
		})
	}

	return resp, nil
}

// Probe implements the RPC.
func (i *Identity) Probe(ctx context.Context, _ *spec.ProbeRequest) (*spec.ProbeResponse, error) {
	if i.Ready != nil {
		if err := i.Ready(ctx); err != nil {
			return &spec.ProbeResponse{Ready: wrapperspb.Bool(false)}, nil
		}
	}
	return &spec.ProbeResponse{Ready: wrapperspb.Bool(true)}, nil
}
