package verify

import (
	"context"
	"errors"
	"fmt"
)

// Severity says how bad a finding is.
type Severity string

// Severities.
const (
	// SeverityError: a guarantee does not hold for a volume or a pool.
	SeverityError Severity = "error"
	// SeverityWarning: something was left behind or is not as it was made. No
	// volume suffers from it now.
	SeverityWarning Severity = "warning"
	// SeverityNote: something could not be looked at, or is being worked on.
	SeverityNote Severity = "note"
)

// Finding is one thing that does not hold.
type Finding struct {
	Severity Severity `json:"severity"`
	Pool     string   `json:"pool,omitempty"`
	// Volume is a volume's id, or the name of what is in a volume's place: an
	// entry of the trash, say.
	Volume string `json:"volume,omitempty"`
	What   string `json:"what"`
	// Repair says what Apply would do; empty: a person has to look at it.
	Repair string `json:"repair,omitempty"`

	apply func(context.Context) error
}

// Apply does what Repair says. It loses no data, and a second call changes
// nothing.
func (f Finding) Apply(ctx context.Context) error {
	if f.apply == nil {
		return fmt.Errorf("%s: there is no repair that is safe without a person", f.What)
	}
	if err := f.apply(ctx); err != nil {
		return fmt.Errorf("%s: %w", f.Repair, err)
	}
	return nil
}

// Repair applies every repair there is. It goes on after an error and returns
// all of them.
func Repair(ctx context.Context, findings []Finding) error {
	var errs []error
	for _, f := range findings {
		if f.apply != nil {
			errs = append(errs, f.Apply(ctx))
		}
	}
	return errors.Join(errs...)
}

// Holds reports whether nothing worse than a note was found: it decides the
// exit status of `quarry verify`.
func Holds(findings []Finding) bool {
	for _, f := range findings {
		if f.Severity != SeverityNote {
			return false
		}
	}
	return true
}
