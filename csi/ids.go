package csi

import (
	"context"
	"path"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// IDs are the ids that callers know volumes by, where these are not the
// volumes' own: on a machine by itself they say whose volume it is.
type IDs interface {
	// Given is the id that callers are given for the volume of an id.
	Given(id string) string

	// Own is the id of the volume that a caller means by an id that it was
	// given. A volume of somebody else is an error with ReasonNotOurs; unless,
	// with cleanup set, no volume here has that id: what is to be taken away is
	// then looked for all the same.
	Own(ctx context.Context, given string, cleanup bool) (string, error)
}

// cleanups are the calls by which a caller takes away what it may have left.
var cleanups = map[string]bool{"NodeUnpublishVolume": true, "NodeUnstageVolume": true}

// translated puts the ids of requests and answers into the other side's words.
func translated(ids IDs) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo,
		handler grpc.UnaryHandler) (any, error) {
		if err := toOwn(ctx, ids, req, path.Base(info.FullMethod)); err != nil {
			return nil, err
		}
		resp, err := handler(ctx, req)
		toGiven(ids, resp)
		return resp, err
	}
}

// toOwn rewrites the id that a request names, if it names one.
func toOwn(ctx context.Context, ids IDs, req any, method string) error {
	message, is := req.(proto.Message)
	if !is {
		return nil
	}
	fields := message.ProtoReflect()
	field := fields.Descriptor().Fields().ByName("volume_id")
	if field == nil || fields.Get(field).String() == "" {
		return nil
	}

	own, err := ids.Own(ctx, fields.Get(field).String(), cleanups[method])
	switch {
	case err == nil:
		fields.Set(field, protoreflect.ValueOfString(own))
		return nil
	case method == "DeleteVolume":
		// Not NOT_FOUND, which the caller would take for success: the volume is
		// on the disk of another machine.
		return toStatus(err)
	}
	return status.Error(codes.NotFound, err.Error())
}

// toGiven rewrites the ids in an answer.
func toGiven(ids IDs, resp any) {
	given := func(v *spec.Volume) {
		if v != nil {
			v.VolumeId = ids.Given(v.GetVolumeId())
		}
	}
	switch r := resp.(type) {
	case *spec.CreateVolumeResponse:
		given(r.GetVolume())
	case *spec.ControllerGetVolumeResponse:
		given(r.GetVolume())
	case *spec.ListVolumesResponse:
		for _, e := range r.GetEntries() {
			given(e.GetVolume())
		}
	}
}
