package translate

import (
	"errors"
	"fmt"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/backend"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/keylock"
	"github.com/quarry-storage/quarry/nodeagent/record"
	"github.com/quarry-storage/quarry/nodeagent/store"
)

// Error is an error with one of the API's reasons.
type Error struct {
	Code string // a v1alpha1.Reason*
	Err  error
}

func (e *Error) Error() string { return e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

// Reason is what follows from the error, in the API's words.
func (e *Error) Reason() string { return e.Code }

// Errorf is fmt.Errorf with a reason.
func Errorf(reason, format string, args ...any) error {
	return &Error{Code: reason, Err: fmt.Errorf(format, args...)}
}

// WithReason gives an error of the store about a volume that is there, or
// should be, its reason. Nil stays nil, and an [Error] as it is.
func WithReason(err error) error {
	missing, _ := errors.AsType[*store.NotFoundError](err)
	switch {
	case err == nil || is[*Error](err):
		return err
	case missing != nil && len(missing.Unseen) > 0: // it may be on what could not be looked at
		return &Error{v1alpha1.ReasonVolumeUnavailable, err}
	case is[*store.NotFoundError](err), is[*record.IDError](err):
		return &Error{v1alpha1.ReasonVolumeNotFound, err}
	case is[*backend.InUseError](err):
		return &Error{v1alpha1.ReasonVolumeInUse, err}
	case is[*backend.InactiveError](err):
		return &Error{v1alpha1.ReasonNotActive, err}
	case is[*keylock.BusyError](err):
		return &Error{v1alpha1.ReasonPending, err}
	case is[*disk.OfflineError](err):
		return &Error{v1alpha1.ReasonVolumeUnavailable, err}
	}

	reason, _ := store.Reason(err)
	return &Error{reason, err}
}

func is[E error](err error) bool {
	_, ok := errors.AsType[E](err)
	return ok
}
