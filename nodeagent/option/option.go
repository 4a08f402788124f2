// Package option is what the tables of allowed options are made of: those of
// mkfs (package filesystem) and those of a mount (package mount). A table has a
// Check for each option, which says what is wrong with a value; an option that
// is refused is an *Error.
package option

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Error is an option that is not allowed, or that nobody knows.
type Error struct {
	Of         string // whose option it is: "mkfs" or "mount"
	Filesystem string
	Option     string // as it was written
	Reason     string // why not; empty if the option is unknown
	Nearest    string // what may have been meant; can be empty
}

func (e *Error) Error() string {
	message := fmt.Sprintf("%s option %q is not allowed for %s", e.Of, e.Option, e.Filesystem)
	if e.Reason != "" {
		return message + ": " + e.Reason
	}

	message += ": unknown"
	if e.Nearest != "" {
		message += fmt.Sprintf(", did you mean %q?", e.Nearest)
	}

	return message
}

// Check says what is wrong with the value of an option, "" if nothing. given is
// false if the option stands alone.
type Check func(value string, given bool) string

// What a Check says begins with one of these, by which Wants knows it.
const (
	noValue = "it takes no value"
	wants   = "it wants "
)

// Wants is what a Check allows, for references: "a number from 1 to 300". It is
// empty if the option takes no value.
func (c Check) Wants() string {
	// No option has this value.
	switch text := strings.TrimPrefix(c("\x00", true), wants); {
	case text == noValue:
		return ""
	case c("", false) == "":
		return text + ", or nothing"
	default:
		return text
	}
}

// Flag is the Check of an option that stands alone.
func Flag(_ string, given bool) string {
	if given {
		return noValue
	}
	return ""
}

// Number allows the decimal numbers from least to most.
func Number(least, most uint64) Check {
	return func(value string, _ bool) string {
		if n, err := strconv.ParseUint(value, 10, 64); err != nil || n < least || n > most {
			return fmt.Sprintf(wants+"a number from %d to %d", least, most)
		}
		return ""
	}
}

// OneOf allows the values.
func OneOf(values ...string) Check {
	return func(value string, _ bool) string {
		if !slices.Contains(values, value) {
			return wants + "one of " + strings.Join(values, ", ")
		}
		return ""
	}
}

// Size allows a decimal number of at most that many bits, with one of the
// units, which are lower-case letters, behind it, or none. The example is shown
// to who gives another.
func Size(units string, bits int, example string) Check {
	return func(value string, _ bool) string {
		digits := strings.TrimRight(strings.ToLower(value), units)
		if _, err := strconv.ParseUint(digits, 10, bits); err != nil ||
			len(value)-len(digits) > 1 {
			return wants + "a size such as " + example
		}
		return ""
	}
}

// OrAlone allows what a Check allows, and the option without a value.
func OrAlone(c Check) Check {
	return func(value string, given bool) string {
		if !given {
			return ""
		}
		return c(value, true)
	}
}
