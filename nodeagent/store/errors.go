package store

import (
	"errors"
	"fmt"
	"strings"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/filesystem"
	"github.com/quarry-storage/quarry/nodeagent/quota"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// RefusedError says that a request can not be met here and that nothing of it was left on disk. Reason is one of the
// API's reasons of the condition Ready.
type RefusedError struct {
	Reason  string
	Message string
}

func (e *RefusedError) Error() string { return e.Message }

func refuse(reason, format string, args ...any) error {
	return &RefusedError{Reason: reason, Message: fmt.Sprintf(format, args...)}
}

// CapacityError says that a pool has no room for what was asked. Sizes are bytes.
type CapacityError struct {
	Pool      string // empty: none of the pools that match
	Need      int64
	Available int64 // of the pool with the most room
	// Freeing is promised to what was deleted, and comes back as it is freed.
	Freeing int64
}

func (e *CapacityError) Error() string {
	freeing := ""
	if e.Freeing > 0 {
		freeing = fmt.Sprintf("; %s of deleted volumes are being freed", bytesText(e.Freeing))
	}
	if e.Pool != "" {
		return fmt.Sprintf("pool %s does not have room for %s: %s can still be promised%s", e.Pool, bytesText(e.Need), bytesText(e.Available), freeing)
	}
	return fmt.Sprintf("no pool that matches has room for %s: at most %s can still be promised%s", bytesText(e.Need), bytesText(e.Available), freeing)
}

// KeptError says that a volume is on its disk and could not be brought up. What
// it wraps may be a reason to refuse one that is not there: this one is.
type KeptError struct{ Err error }

func (e *KeptError) Error() string { return e.Err.Error() }
func (e *KeptError) Unwrap() error { return e.Err }

// GroupError says that a volume was not admitted because another one of its group was not.
type GroupError struct{ Err error }

func (e *GroupError) Error() string {
	return "the claims of one pod are admitted together, and one was not: " + e.Err.Error()
}
func (e *GroupError) Unwrap() error { return e.Err }

// TooSmallError says that a filesystem can not be made so small. Sizes are bytes.
type TooSmallError struct {
	FSType        string
	Size, Minimum int64
}

func (e *TooSmallError) Error() string {
	return fmt.Sprintf("a volume of %s is too small for %s, which needs at least %s", bytesText(e.Size), e.FSType, bytesText(e.Minimum))
}

// NotFoundError says that there is no such volume.
type NotFoundError struct {
	ID string
	// Unseen are the pools that could not be looked at: it may be on one of them.
	Unseen []*disk.OfflineError
}

func (e *NotFoundError) Error() string {
	if len(e.Unseen) > 0 {
		return fmt.Sprintf("there is no volume %s on the pools that can be looked at, and not all can: %v", e.ID, e.Unseen[0])
	}
	return fmt.Sprintf("there is no volume %s", e.ID)
}

// UnseenError says that a volume is on no disk that could be looked at, and that
// not all could be: whether it is gone is not known.
type UnseenError struct {
	ID     string
	Unseen []*disk.OfflineError
}

func (e *UnseenError) Error() string {
	return fmt.Sprintf("volume %s may be on a pool that can not be looked at: %v", e.ID, e.Unseen[0])
}

func (e *UnseenError) Unwrap() error { return e.Unseen[0] }

// ConflictError says that another volume is there under the id that was asked for.
type ConflictError struct{ ID, Detail string }

func (e *ConflictError) Error() string {
	return fmt.Sprintf("volume %s is there already, but %s", e.ID, e.Detail)
}

// InUseError says that something still uses a volume. Reason is one of the API's reasons of the condition InUse.
type InUseError struct {
	ID     string
	Reason string
	By     []string
}

func (e *InUseError) Error() string {
	by := e.By
	more := ""
	if len(by) > 3 {
		by, more = by[:3], fmt.Sprintf(" and %d more", len(e.By)-3)
	}
	return fmt.Sprintf("volume %s is in use by %s%s", e.ID, strings.Join(by, ", "), more)
}

// Reason returns the API's reason of the condition Ready for an error of this package, and whether the request was
// refused: it is of no use to try again as it is, and nothing of it is on disk.
func Reason(err error) (reason string, refused bool) {
	var (
		kept     *KeptError
		refusal  *RefusedError
		capacity *CapacityError
		group    *GroupError
		small    *TooSmallError
		offline  *disk.OfflineError
		conflict *ConflictError
		mismatch *disk.MismatchError
		badID    *record.IDError
		tooLarge *record.TooLargeError
		sick     *FilesystemError
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

// bytesText prints bytes as people write them in a PVC where that is exact, else in GiB with two decimals.
func bytesText(n int64) string {
	units := []struct {
		size int64
		name string
	}{{1 << 40, "Ti"}, {1 << 30, "Gi"}, {1 << 20, "Mi"}, {1 << 10, "Ki"}}
	for _, u := range units {
		if n >= u.size && n%u.size == 0 {
			return fmt.Sprintf("%d%s", n/u.size, u.name)
		}
	}
	for _, u := range units {
		if n >= u.size {
			return fmt.Sprintf("%.2f%s", float64(n)/float64(u.size), u.name)
		}
	}
	return fmt.Sprintf("%d bytes", n)
}

// FilesystemError says that the filesystem in a volume's image is not one that can be worked with. Reason is one of the API's
// reasons of the condition Ready.
type FilesystemError struct {
	ID     string
	Reason string
	Detail string
	// By are those who keep it from being mended: it is not unmounted under anybody.
	By []string
}

func (e *FilesystemError) Error() string {
	text := fmt.Sprintf("the filesystem of volume %s %s", e.ID, e.Detail)
	if len(e.By) == 0 {
		return text
	}
	return text + "; it is checked and mounted anew once nothing uses it: " + (&InUseError{ID: e.ID, By: e.By}).Error()
}

// canBeMended reports whether unmounting, checking and mounting is a cure. What does not answer would not be unmounted either.
func (e *FilesystemError) canBeMended() bool { return e.Reason != v1alpha1.ReasonNotResponding }

// EnforcementError says that a volume's size is not, or for a while was not, in force. Reason is one of the API's reasons
// of the condition Enforced.
type EnforcementError struct {
	ID     string
	Reason string
	Detail string
}

func (e *EnforcementError) Error() string {
	return fmt.Sprintf("the size of volume %s is not enforced: %s", e.ID, e.Detail)
}

// InactiveError says that a volume is not up: what is in its place is not it, or is not there. Activate brings it up.
type InactiveError struct{ ID, Detail string }

func (e *InactiveError) Error() string {
	return fmt.Sprintf("volume %s is not up: %s", e.ID, e.Detail)
}

// NotEmptyError says that a volume, which was to be deleted only if nothing is in it, holds something, or may.
type NotEmptyError struct {
	ID  string
	Why string
}

func (e *NotEmptyError) Error() string { return fmt.Sprintf("volume %s is not empty: %s", e.ID, e.Why) }
