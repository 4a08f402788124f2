package disk

import (
	"fmt"

	"github.com/quarry-storage/quarry/nodeagent/record"
)

// MismatchError says that what is on disk is not what the record says. Nothing
// was touched.
type MismatchError struct{ ID, Detail string }

func (e *MismatchError) Error() string {
	return fmt.Sprintf("volume %s does not match its record: %s", e.ID, e.Detail)
}

// A volume's record names the pool that it was made on. That tells a copy on
// another pool (a backup that was put there, say) from the volume itself, even
// while the volume's own disk is away. Copies are left alone. A record that
// names no pool, written by a version before 0.2, is believed.

// CopyError means that the only directory there is of a volume has a record
// that names another pool than the one it lies in.
type CopyError struct {
	ID string
	// Pool is the pool that has it, and PoolUID its identity.
	Pool, PoolUID string
	// Of is the identity of the pool that the record names.
	Of string
}

func (e *CopyError) Error() string { return "volume " + e.ID + ": " + e.Detail() }

// Unwrap makes it a *MismatchError.
func (e *CopyError) Unwrap() error { return &MismatchError{ID: e.ID, Detail: e.Detail()} }

// Detail says it without the volume's name.
func (e *CopyError) Detail() string {
	return fmt.Sprintf("what pool %s (%s) has of it is a copy, for its record names pool %s; "+
		"it is left alone "+
		"(docs/runbook.md, \"A copy of a volume\", says how it is made the volume)",
		e.Pool, e.PoolUID, e.Of)
}

// CopyOn returns a *CopyError if the record found on the open pool, which is
// called so, names another one.
func CopyOn(r *Root, pool string, rec *record.Volume) error {
	if rec.PoolUID == "" || r.UID == "" || rec.PoolUID == r.UID {
		return nil
	}
	return &CopyError{ID: rec.ID, Pool: pool, PoolUID: r.UID, Of: rec.PoolUID}
}
