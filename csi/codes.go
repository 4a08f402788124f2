package csi

import (
	"context"
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

// codeOf is the one table from reasons to gRPC codes. It is here because codes
// are this package's language alone: the packages that do the work give
// reasons, which people and events see too. What a sidecar makes of a code is
// the reason for most rows: external-provisioner asks the scheduler again after
// ResourceExhausted, carries on in the background after Aborted, Unavailable
// and DeadlineExceeded, and takes any other as final for this try;
// external-resizer takes OutOfRange and InvalidArgument as infeasible, so that
// the user may ask for less (KEP-1790).
var codeOf = map[string]codes.Code{
	// The agent will not make it here.
	v1alpha1.ReasonInsufficientCapacity: codes.ResourceExhausted,
	v1alpha1.ReasonGroupRefused:         codes.ResourceExhausted,
	v1alpha1.ReasonUnsupported:          codes.ResourceExhausted,
	v1alpha1.ReasonPoolNotFound:         codes.ResourceExhausted,
	v1alpha1.ReasonPoolOffline:          codes.ResourceExhausted,
	v1alpha1.ReasonCreateFailed:         codes.ResourceExhausted,
	v1alpha1.ReasonNodeGone:             codes.ResourceExhausted,
	v1alpha1.ReasonNoSuitableNode:       codes.ResourceExhausted,
	// No node will make it.
	v1alpha1.ReasonTooSmall:         codes.OutOfRange,
	v1alpha1.ReasonInvalidOptions:   codes.InvalidArgument,
	v1alpha1.ReasonInvalidParameter: codes.InvalidArgument,
	v1alpha1.ReasonUnsupportedClaim: codes.InvalidArgument,
	v1alpha1.ReasonSourceNotFound:   codes.NotFound,
	v1alpha1.ReasonIDConflict:       codes.AlreadyExists,
	v1alpha1.ReasonAlreadyExists:    codes.AlreadyExists,
	// It may come, or is coming.
	v1alpha1.ReasonPending:         codes.Aborted,
	v1alpha1.ReasonDeletePending:   codes.Aborted,
	v1alpha1.ReasonClaimGone:       codes.Aborted,
	v1alpha1.ReasonWaitingForGroup: codes.Aborted,
	v1alpha1.ReasonCreating:        codes.Aborted,
	v1alpha1.ReasonResizing:        codes.Aborted,
	v1alpha1.ReasonAgentNotReady:   codes.Unavailable,
	v1alpha1.ReasonAPIError:        codes.Unavailable,
	// It exists, and cannot be had.
	v1alpha1.ReasonVolumeNotFound:    codes.NotFound,
	v1alpha1.ReasonVolumeUnavailable: codes.Unavailable,
	v1alpha1.ReasonMismatch:          codes.Internal,
	v1alpha1.ReasonReadOnly:          codes.Unavailable,
	v1alpha1.ReasonShutDown:          codes.Unavailable,
	v1alpha1.ReasonNotResponding:     codes.Unavailable,
	v1alpha1.ReasonDamaged:           codes.Internal,
	v1alpha1.ReasonLost:              codes.DataLoss,
	v1alpha1.ReasonFailed:            codes.Internal,
	v1alpha1.ReasonResizeInfeasible:  codes.OutOfRange,
	// Spec, DeleteVolume: "Volume in use".
	v1alpha1.ReasonVolumeInUse: codes.FailedPrecondition,
	v1alpha1.ReasonNotOurs:     codes.FailedPrecondition,
	// Publishing. Spec, NodePublishVolume: stage first.
	v1alpha1.ReasonNotActive:     codes.FailedPrecondition,
	v1alpha1.ReasonInvalidTarget: codes.InvalidArgument,
	v1alpha1.ReasonTargetTaken:   codes.FailedPrecondition,
	// Never FailedPrecondition: waiting is all that helps.
	v1alpha1.ReasonTargetBusy:         codes.Internal,
	v1alpha1.ReasonPublishedOtherwise: codes.AlreadyExists,
	// Spec, NodePublishVolume, second table.
	v1alpha1.ReasonPublishedElsewhere: codes.FailedPrecondition,
	v1alpha1.ReasonNotPublished:       codes.NotFound, // spec, NodeGetVolumeStats
}

// reasoner is an error that knows its row in the table.
type reasoner interface {
	error
	Reason() string
}

// toStatus is the answer that a caller gets for an error of the packages that
// do the work.
func toStatus(err error) error {
	if err == nil {
		return nil
	}
	if _, is := status.FromError(err); is {
		return err
	}

	if reasoned, is := errors.AsType[reasoner](err); is {
		if code, known := codeOf[reasoned.Reason()]; known {
			return status.Error(code, err.Error())
		}
		return status.Error(codes.Internal, err.Error())
	}

	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return status.Error(codes.DeadlineExceeded, err.Error())
	case errors.Is(err, context.Canceled):
		return status.Error(codes.Canceled, err.Error())
	}

	return status.Error(codes.Internal, err.Error())
}

func invalid(format string, args ...any) error {
	return status.Errorf(codes.InvalidArgument, format, args...)
}
