package record

import (
	"fmt"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

// MaxID is the longest id of a volume, in bytes.
const MaxID = v1alpha1.MaxVolumeIDLength

// IDError is returned for what cannot be the id of a volume.
type IDError struct{ ID string }

func (e *IDError) Error() string {
	id := e.ID
	if len(id) > 64 {
		id = id[:64] + "..."
	}
	return fmt.Sprintf("%q is not a volume id: lower-case letters, digits and inner dashes, 1 "+
		"to %d of them", id, MaxID)
}

// CheckID returns an *IDError unless id is of the grammar of volume ids. It is
// called before an id touches any path.
func CheckID(id string) error {
	if !v1alpha1.IsVolumeID(id) {
		return &IDError{ID: id}
	}
	return nil
}
