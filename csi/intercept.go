package csi

import (
	"context"
	"fmt"
	"log/slog"
	"path"
	"runtime/debug"
	"strconv"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// chain is what every call passes: logged, with panics caught, with ids put into
// our words, one at a time for each volume.
func chain(log *slog.Logger, ids IDs) grpc.ServerOption {
	calls := []grpc.UnaryServerInterceptor{logged(log), recovered(log)}
	if ids != nil {
		calls = append(calls, translated(ids))
	}
	return grpc.ChainUnaryInterceptor(append(calls, oneAtATime(&inFlight{}))...)
}

// logged writes one line for each call, and for each failed one. Of a request
// only what is listed here is ever written: ids, names and paths. Secrets,
// contexts and parameters never are, and a field added to the specification is
// not by itself.
func logged(log *slog.Logger) grpc.UnaryServerInterceptor {
	started := strconv.FormatInt(time.Now().UnixNano(), 36)
	var count atomic.Int64
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo,
		handler grpc.UnaryHandler) (any, error) {
		log := log.With(
			"request",
			started+"-"+strconv.FormatInt(count.Add(1), 36),
			"method",
			path.Base(info.FullMethod),
		)
		for field, value := range loggable(req) {
			log = log.With(field, quote(value))
		}

		log.DebugContext(ctx, "CSI call")
		start := time.Now()
		resp, err := handler(ctx, req)
		log = log.With(
			"code",
			status.Code(err).String(),
			"took",
			time.Since(start).Round(time.Microsecond).String(),
		)
		switch status.Code(err) {
		case codes.OK:
			log.DebugContext(ctx, "CSI call ended")
		case codes.Internal, codes.Unknown, codes.DataLoss:
			log.ErrorContext(ctx, "CSI call failed", "error", status.Convert(err).Message())
		default:
			log.InfoContext(ctx, "CSI call refused", "error", status.Convert(err).Message())
		}

		return resp, err
	}
}

// loggable are the fields of a request that may be written.
func loggable(req any) map[string]string {
	fields := map[string]string{}
	if r, ok := req.(interface{ GetVolumeId() string }); ok {
		fields["volume"] = r.GetVolumeId()
	}
	if r, ok := req.(interface{ GetName() string }); ok {
		fields["name"] = r.GetName()
	}
	if r, ok := req.(interface{ GetTargetPath() string }); ok {
		fields["target"] = r.GetTargetPath()
	}
	if r, ok := req.(interface{ GetVolumePath() string }); ok {
		fields["path"] = r.GetVolumePath()
	}

	return fields
}

// recovered answers INTERNAL for a call that panics, and keeps the process:
// others' calls go on.
func recovered(log *slog.Logger) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo,
		handler grpc.UnaryHandler) (resp any, err error) {
		defer func() {
			if p := recover(); p != nil {
				log.ErrorContext(
					ctx,
					"CSI call panicked",
					"method",
					path.Base(info.FullMethod),
					"panic",
					fmt.Sprint(p),
					"stack",
					string(debug.Stack()),
				)
				resp, err = nil, status.Error(codes.Internal,
					"the call met a defect of the program; its log says more")
			}
		}()
		return handler(ctx, req)
	}
}

// readers are the calls that change nothing, so that any number of them may run
// beside others.
var readers = map[string]bool{
	"ValidateVolumeCapabilities": true,
	"ControllerGetVolume":        true,
	"NodeGetVolumeStats":         true,
}

// oneAtATime lets one changing call at a time through for each volume, and for
// each name of a volume to be.
func oneAtATime(f *inFlight) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo,
		handler grpc.UnaryHandler) (any, error) {
		method := path.Base(info.FullMethod)
		var keys []string
		if r, ok := req.(interface{ GetVolumeId() string }); ok && r.GetVolumeId() != "" {
			keys = append(keys, "volume "+r.GetVolumeId())
		}
		if r, ok := req.(interface{ GetName() string }); ok && r.GetName() != "" {
			keys = append(keys, "name "+r.GetName())
		}
		if len(keys) == 0 || readers[method] {
			return handler(ctx, req)
		}

		end, err := f.begin(method, keys...)
		if err != nil {
			return nil, err
		}

		defer end()
		return handler(ctx, req)
	}
}
