package parameters

import (
	"fmt"
	"strings"

	"github.com/quarry-storage/quarry/api/nearest"
	"github.com/quarry-storage/quarry/api/v1alpha1"
)

// Error says that a StorageClass parameter cannot be served. It names the
// parameter, what is allowed, and the nearest thing that is.
type Error struct {
	Parameter string
	Message   string
}

func (e *Error) Error() string {
	return fmt.Sprintf("StorageClass parameter %q: %s", e.Parameter, e.Message)
}

// Reason returns v1alpha1.ReasonInvalidParameter.
func (e *Error) Reason() string { return v1alpha1.ReasonInvalidParameter }

// didYouMean names the candidate nearest to what was written, if one is near
// enough to be a slip of the pen.
func didYouMean(written string, candidates []string) string {
	word := nearest.Word(written, candidates)
	if word == "" {
		return ""
	}
	return fmt.Sprintf(" (did you mean %q?)", word)
}

// shorten cuts what a user wrote, so that it does not fill an event, whose text
// ends at 1024 bytes.
func shorten(s string) string {
	const longest = 64
	if len(s) <= longest {
		return s
	}
	return strings.ToValidUTF8(s[:longest], "") + "..."
}

func quote(s string) string { return fmt.Sprintf("%q", shorten(s)) }
