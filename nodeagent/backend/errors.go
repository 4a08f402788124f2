package backend

import (
	"fmt"
	"strings"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

// InUseError says that something still uses a volume. Reason is one of the
// API's reasons of the condition InUse.
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

// FilesystemError says that the filesystem in a volume's image is not one that
// can be worked with. Reason is one of the API's reasons of the condition
// Ready.
type FilesystemError struct {
	ID     string
	Reason string
	Detail string
	// By are those who keep it from being mended: it is not unmounted under
	// anybody.
	By []string
}

func (e *FilesystemError) Error() string {
	text := fmt.Sprintf("the filesystem of volume %s %s", e.ID, e.Detail)
	if len(e.By) == 0 {
		return text
	}
	return text + "; it is checked and mounted anew once nothing uses it: " + (&InUseError{ID: e.ID,
		By: e.By}).Error()
}

// EnforcementError says that a volume's size is not, or for a while was not, in
// force. Reason is one of the API's reasons of the condition Enforced.
type EnforcementError struct {
	ID     string
	Reason string
	Detail string
}

func (e *EnforcementError) Error() string {
	return fmt.Sprintf("the size of volume %s is not enforced: %s", e.ID, e.Detail)
}

// InactiveError says that a volume is not up: what is in its place is not it,
// or is not there. Activate brings it up.
type InactiveError struct{ ID, Detail string }

func (e *InactiveError) Error() string {
	return fmt.Sprintf("volume %s is not up: %s", e.ID, e.Detail)
}

// canBeMended reports whether unmounting, checking and mounting is a cure. What
// does not answer would not be unmounted either.
func (e *FilesystemError) canBeMended() bool { return e.Reason != v1alpha1.ReasonNotResponding }
