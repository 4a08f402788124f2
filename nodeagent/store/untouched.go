package store

import (
	"context"
	"fmt"

	"github.com/quarry-storage/quarry/nodeagent/backend"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// DeleteUntouched is Delete for a volume that nobody is known to have been
// given. It deletes only an empty one: no entry in the directory that its user
// sees, no block of a raw image written. Any other stays as it was, and the
// error is a *NotEmptyError; one that is in the trash because somebody asked
// for that stays there, too. This is decided with the volume's lock held, about
// whatever is found on any disk, before the proof that nothing uses the volume.
func (s *Store) DeleteUntouched(ctx context.Context, id string, how record.Deletion) error {
	return s.lockAndDelete(ctx, id, how, true)
}

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
