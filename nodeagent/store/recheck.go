package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/beneath"
	"github.com/quarry-storage/quarry/nodeagent/quota"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// recheckAtOnce is how many inodes of a volume one Recheck looks at; the next one goes on from there.
const recheckAtOnce = 20_000

// EnforcementError says that a volume's size is not, or for a while was not, in force. Reason is one of the API's reasons
// of the condition Enforced.
type EnforcementError struct {
	ID     string
	Reason string
	Detail string
}

func (e *EnforcementError) Error() string {
	return fmt.Sprintf("the size of volume %s is not enforced: %s", e.ID, e.Detail)
}

// Recheck looks whether the size of a directory volume is still in force, and puts back what is not: the filesystem may have
// been mounted without its quota, an administrator may have lifted the limit, and the owner of a file may have taken it out of
// the volume's project or, on btrfs, made a subvolume outside of its group. What it found is an *EnforcementError, which stays
// with the volume (Volume.NotEnforced) until a whole round finds nothing. Images are as large as they are: nothing to look at.
func (s *Store) Recheck(ctx context.Context, id string) error {
	unlock, err := s.locks.Lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	v := s.lookup(id)
	if v == nil {
		return &NotFoundError{ID: id}
	}
	if v.rec.Backend != record.BackendDirectory || v.rec.QuotaKind == "" {
		return nil
	}
	round, err := s.recheck(ctx, v)
	var lost *EnforcementError
	if err != nil && !errors.As(err, &lost) {
		return err
	}
	if lost != nil || round {
		s.setNotEnforced(v, err)
	}
	return err
}

// setNotEnforced keeps what was found. A nil error says that all holds again.
func (s *Store) setNotEnforced(v *volume, err error) {
	s.mu.Lock()
	changed := (v.notEnforced == nil) != (err == nil)
	v.notEnforced = err
	s.mu.Unlock()
	if changed {
		s.notify()
	}
}

// recheck is called with the lock held. round: all of the volume has been looked at by now, over one or more calls.
func (s *Store) recheck(ctx context.Context, v *volume) (round bool, err error) {
	r, err := v.pool.open()
	if err != nil {
		return false, err
	}
	defer r.Close()
	if err := enforced(r, &v.rec, true); err != nil {
		return false, err
	}
	data, err := r.OpenDir(v.rec.ID + "/" + record.DataDir)
	if err != nil {
		return false, &MismatchError{ID: v.rec.ID, Detail: fmt.Sprintf("its data directory: %v", err)}
	}
	defer data.Close()
	if v.rec.QuotaKind == record.QuotaBtrfs {
		return true, returnSubvolumes(r, data.File(), &v.rec)
	}
	report, err := quota.Check(ctx, data.File(), uint32(v.rec.QuotaID), &v.cursor, recheckAtOnce)
	if err != nil {
		return false, err
	}
	round = v.cursor.Done()
	if round {
		v.cursor = quota.Cursor{}
	}
	if len(report.Strays) == 0 {
		return round, nil
	}
	return false, returnStrays(ctx, data, &v.rec, report.Strays)
}

// enforced proves that the limit is in force, putting back what was lost. Where it can not be had it is an *EnforcementError,
// and with tell also where it had to be put back.
func enforced(r *root, rec *record.Volume, tell bool) error {
	repaired, err := checkDirectory(r, rec)
	var mismatch *MismatchError
	var lost *EnforcementError
	switch {
	case errors.As(err, &mismatch), errors.As(err, &lost):
		return err
	case err != nil:
		return &EnforcementError{ID: rec.ID, Reason: v1alpha1.ReasonQuotaLost, Detail: err.Error()}
	case repaired && tell:
		return &EnforcementError{ID: rec.ID, Reason: v1alpha1.ReasonQuotaLost, Detail: "its limit had been changed or lifted; it was put back"}
	}
	return nil
}

// returnStrays puts inodes that left the volume's project back, so that what they hold counts again. It says that it had to.
func returnStrays(ctx context.Context, data *beneath.Dir, rec *record.Volume, strays []quota.Stray) error {
	lost := &EnforcementError{ID: rec.ID, Reason: v1alpha1.ReasonEscaped,
		Detail: fmt.Sprintf("%d files or directories had left its project (%s, for one); they were put back", len(strays), strays[0].Path)}
	if _, err := quota.Assign(ctx, data.File(), uint32(rec.QuotaID)); err != nil {
		lost.Detail = fmt.Sprintf("%d files or directories have left its project (%s, for one), and could not be put back: %v", len(strays), strays[0].Path, err)
	}
	return lost
}
