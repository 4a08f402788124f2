package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/quarry-storage/quarry/nodeagent/backend"
)

// errNoDirectory says that a volume is not on the pool that it was on.
var errNoDirectory = errors.New("its directory is not there")

// mustBeUntouchedLocked brings a volume up, to look into it. One that cannot be
// looked into is an error that says nothing of its content. It is called with
// the volume's lock held.
func (s *Store) mustBeUntouchedLocked(ctx context.Context, v *volume) error {
	if err := s.activateLocked(ctx, v); err != nil {
		if s.isGone(v) {
			return errNoDirectory
		}
		return err
	}

	r, err := v.pool.open()
	if err != nil {
		return err
	}
	defer r.Close()

	dir, err := r.OpenDir(v.rec.ID)
	if err != nil {
		return err
	}
	defer dir.Close()

	untouched, err := s.backends.Of(&v.rec).IsEmpty(
		&backend.Volume{Pool: v.pool.name(), Rec: &v.rec, Root: r, Dir: dir})
	if err != nil {
		return fmt.Errorf("look whether volume %s holds anything: %w", v.rec.ID, err)
	}
	if !untouched {
		return &NotEmptyError{ID: v.rec.ID, Why: "there is something in it"}
	}

	return nil
}

// mustBeDue refuses to end the retention of a volume in the trash: somebody
// asked for the retention, and nobody for its end.
func (s *Store) mustBeDue(id string) error {
	for _, t := range s.entriesOf(id) {
		if t.left() > 0 {
			return &NotEmptyError{ID: id,
				Why: "it is in the trash, and its retention has not ended"}
		}
	}
	return nil
}
