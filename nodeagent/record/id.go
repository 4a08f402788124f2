package record

import (
	"fmt"
	"regexp"
)

// MaxID is the longest id of a volume, in bytes. With the trash's time behind it, it still is one path element.
const MaxID = 128

// A leading letter or digit keeps ids apart from .quarry and from options; no dot keeps them apart from lost+found and temporary files.
var idGrammar = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`)

// IDError is returned for what can not be the id of a volume.
type IDError struct{ ID string }

func (e *IDError) Error() string {
	id := e.ID
	if len(id) > 64 {
		id = id[:64] + "..."
	}
	return fmt.Sprintf("%q is not a volume id: lower-case letters, digits and inner dashes, 1 to %d of them", id, MaxID)
}

// CheckID returns an *IDError unless id is of the grammar of volume ids. It is called before an id touches any path.
func CheckID(id string) error {
	if len(id) > MaxID || !idGrammar.MatchString(id) {
		return &IDError{ID: id}
	}
	return nil
}
