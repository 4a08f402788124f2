package record

import (
	"fmt"
	"maps"
	"slices"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

const (
	// MaxSize is how many bytes of a record are written at the most.
	MaxSize = 1 << 20
	// MaxRead is how many bytes of a record are read at the most. It is larger
	// than MaxSize: versions before 0.2 wrote what they were given, up to what
	// an API server takes, and such a volume must not be lost to its user.
	MaxRead = 8 << 20
)

// TooLargeError is returned for what would make a record that is not written,
// since it could not be relied on to be read back. Sizes are bytes.
type TooLargeError struct {
	What string // the name of the file
	Size int
}

func (e *TooLargeError) Error() string {
	return fmt.Sprintf("%s would have %d bytes, and at most %d are written; "+
		"are there labels, attributes or options that it can do without?", e.What, e.Size, MaxSize)
}

// bounded returns data, or a *TooLargeError if it is too large for the file.
func bounded(file string, data []byte, err error) ([]byte, error) {
	if err == nil && len(data) > MaxSize {
		return nil, &TooLargeError{What: file, Size: len(data)}
	}
	return data, err
}

// Bound keeps o within what a record has room for: of the claim's labels those
// that come first by name, of which ClaimLabelsLeftOut says how many are
// missing. A second call changes nothing.
func (o Origin) Bound() Origin {
	names := slices.Sorted(maps.Keys(o.ClaimLabels))
	bytes, kept := 0, 0
	for _, name := range names {
		bytes += len(name) + len(o.ClaimLabels[name])
		if kept == v1alpha1.MaxClaimLabels || bytes > v1alpha1.MaxClaimLabelBytes {
			break
		}
		kept++
	}
	if kept == len(names) {
		return o
	}

	labels := make(map[string]string, kept)
	for _, name := range names[:kept] {
		labels[name] = o.ClaimLabels[name]
	}
	o.ClaimLabels = labels
	o.ClaimLabelsLeftOut += len(names) - kept
	return o
}
