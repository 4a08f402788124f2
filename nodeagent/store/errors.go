package store

import (
	"errors"
	"fmt"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/backend"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/filesystem"
	"github.com/quarry-storage/quarry/nodeagent/quota"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// RefusedError says that a request cannot be met here and that nothing of it
// was left on disk. Reason is one of the API's reasons of the condition Ready.
type RefusedError struct {
	Reason  string
	Message string
}

func (e *RefusedError) Error() string { return e.Message }

func refuse(reason, format string, args ...any) error {
	return &RefusedError{Reason: reason, Message: fmt.Sprintf(format, args...)}
}

// KeptError says that a volume is on its disk and could not be brought up. What
// it wraps may be a reason to refuse one that is not there: this one is.
type KeptError struct{ Err error }

func (e *KeptError) Error() string { return e.Err.Error() }

func (e *KeptError) Unwrap() error { return e.Err }

// GroupError says that a volume was not admitted because another one of its
// group was not.
type GroupError struct{ Err error }

func (e *GroupError) Error() string {
	return "the claims of one pod are admitted together, and one was not: " + e.Err.Error()
}

func (e *GroupError) Unwrap() error { return e.Err }

// TooSmallError says that a filesystem cannot be made so small. Sizes are
// bytes.
type TooSmallError struct {
	FSType        string
	Size, Minimum int64
}

func (e *TooSmallError) Error() string {
	return fmt.Sprintf("a volume of %s is too small for %s, which needs at least %s",
		disk.BytesText(e.Size), e.FSType, disk.BytesText(e.Minimum))
}

// NotFoundError says that there is no such volume.
type NotFoundError struct {
	ID string
	// Unseen are the pools that could not be looked at: it may be on one of
	// them.
	Unseen []*disk.OfflineError
}

func (e *NotFoundError) Error() string {
	if len(e.Unseen) > 0 {
		return fmt.Sprintf("there is no volume %s on the pools that can be looked at, "+
			"and not all can: %v", e.ID, e.Unseen[0])
	}
	return fmt.Sprintf("there is no volume %s", e.ID)
}

// UnseenError says that a volume is on no disk that could be looked at, and
// that not all could be: whether it is gone is not known.
type UnseenError struct {
	ID     string
	Unseen []*disk.OfflineError
}

func (e *UnseenError) Error() string {
	return fmt.Sprintf("volume %s may be on a pool that cannot be looked at: %v", e.ID,
		e.Unseen[0])
}

func (e *UnseenError) Unwrap() error { return e.Unseen[0] }

// ConflictError says that another volume is there under the id that was asked
// for.
type ConflictError struct{ ID, Detail string }

func (e *ConflictError) Error() string {
	return fmt.Sprintf("volume %s is there already, but %s", e.ID, e.Detail)
}

// Reason returns the API's reason of the condition Ready for an error of this
// package, and whether the request was refused: it is of no use to try again as
// it is, and nothing of it is on disk.
func Reason(err error) (reason string, refused bool) {
	var (
		kept     *KeptError
		refusal  *RefusedError
		capacity *disk.CapacityError
		group    *GroupError
		small    *TooSmallError
		offline  *disk.OfflineError
		conflict *ConflictError
		mismatch *disk.MismatchError
		badID    *record.IDError
		tooLarge *record.TooLargeError
		sick     *backend.FilesystemError
		damaged  *filesystem.DamagedError
	)
	switch {
	case err == nil:
		return v1alpha1.ReasonReady, false
	case errors.As(err, &kept):
		reason, _ = Reason(kept.Err)
		return reason, false
	case errors.As(err, &group):
		return v1alpha1.ReasonGroupRefused, true
	case errors.As(err, &refusal):
		return refusal.Reason, true
	case errors.As(err, &capacity):
		return v1alpha1.ReasonInsufficientCapacity, true
	case errors.As(err, &small):
		return v1alpha1.ReasonTooSmall, true
	case errors.As(err, &offline):
		return v1alpha1.ReasonPoolOffline, true
	case errors.As(err, &conflict):
		return v1alpha1.ReasonIDConflict, true
	case errors.As(err, &badID), errors.As(err, &tooLarge):
		return v1alpha1.ReasonInvalidOptions, true
	case errors.Is(err, quota.ErrNoFreeID):
		return v1alpha1.ReasonUnsupported, true
	case errors.As(err, &mismatch):
		return v1alpha1.ReasonMismatch, false
	case errors.As(err, &damaged): // before sick: it says why what is sick was not mended
		return v1alpha1.ReasonDamaged, false
	case errors.As(err, &sick):
		return sick.Reason, false
	default:
		return v1alpha1.ReasonFailed, false
	}
}

// NotEmptyError says that a volume, which was to be deleted only if nothing is
// in it, holds something, or may.
type NotEmptyError struct {
	ID  string
	Why string
}

func (e *NotEmptyError) Error() string {
	return fmt.Sprintf("volume %s is not empty: %s", e.ID, e.Why)
}
