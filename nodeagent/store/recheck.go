package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/backend"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/quota"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// recheckSlice is how long one volume is walked through at a time, with its
// lock held.
const recheckSlice = 100 * time.Millisecond

// Recheck looks at all of a directory volume, whether its size is still in
// force, and puts back what is not: the filesystem may have been mounted
// without its quota, an administrator may have lifted the limit, and files or
// subvolumes may be charged to another volume or to none. What it found is an
// *EnforcementError, which stays with the volume (Volume.NotEnforced) until a
// whole round finds nothing. An image is as large as it is, so there is nothing
// to look at.
//
// The volume's lock is held for a slice at a time, so that a deletion, say,
// does not wait for a large tree.
func (s *Store) Recheck(ctx context.Context, id string) error {
	for {
		done, err := s.recheckSlice(ctx, id)
		var lost *backend.EnforcementError
		if done || err != nil && !errors.As(err, &lost) {
			return err
		}
	}
}

// recheckSlice looks at the limit, and walks on through the volume's tree for a
// slice. done is true if a round has come to its end, and the error is what it
// found. A round that could not be finished changes nothing of what an earlier
// one found.
func (s *Store) recheckSlice(ctx context.Context, id string) (done bool, err error) {
	unlock, err := s.locks.Lock(ctx, id)
	if err != nil {
		return false, err
	}
	defer unlock()

	v := s.lookup(id)
	if v == nil {
		return true, &NotFoundError{ID: id}
	}
	if !backend.IsHeldByQuota(&v.rec) {
		return true, nil
	}

	done, err = s.recheckLocked(ctx, v)
	var lost *backend.EnforcementError
	if err != nil && !errors.As(err, &lost) {
		return false, err
	}

	if lost != nil {
		s.setNotEnforced(v, lost)
		if v.round.found == nil {
			v.round.found = lost
		}
	}

	if !done {
		return false, err
	}

	found := v.round.found
	s.mu.Lock()
	v.round = round{looked: time.Now()}
	s.mu.Unlock()

	if found == nil {
		s.setNotEnforced(v, nil)
	}

	return true, found
}

// setNotEnforced keeps what was found. A nil error means that all holds again.
func (s *Store) setNotEnforced(v *volume, err error) {
	s.mu.Lock()
	changed := whyNotEnforced(v.notEnforced) != whyNotEnforced(err)
	v.notEnforced = err
	s.mu.Unlock()
	if changed {
		s.notifyOf(v.id)
	}
}

// whyNotEnforced is the reason of an *EnforcementError, and empty where all
// holds.
func whyNotEnforced(err error) string {
	if lost, ok := errors.AsType[*backend.EnforcementError](err); ok {
		return lost.Reason
	}
	return ""
}

// recheckLocked is called with the volume's lock held. done is true if all of
// the volume has been looked at by now, over one or more calls.
func (s *Store) recheckLocked(ctx context.Context, v *volume) (done bool, err error) {
	r, err := v.pool.open()
	if err != nil {
		return false, err
	}
	defer r.Close()

	if err := backend.Enforce(r, &v.rec, true); err != nil {
		return true, err // without a limit there is nothing that a walk could find
	}

	dir, err := r.OpenDir(v.rec.ID)
	if err != nil {
		return false, &disk.MismatchError{ID: v.rec.ID,
			Detail: fmt.Sprintf("its directory: %v", err)}
	}
	defer dir.Close()

	data, err := dir.OpenDir(record.DataDir)
	if err != nil {
		return false, &disk.MismatchError{ID: v.rec.ID,
			Detail: fmt.Sprintf("its data directory: %v", err)}
	}
	defer data.Close()

	if v.rec.QuotaKind == record.QuotaBtrfs {
		err := backend.ReturnSubvolumes(r, data.File(), &v.rec, &v.round.charged,
			recheckSlice)
		return v.round.charged.Done(), err
	}

	report, err := quota.Return(ctx, data.File(), uint32(v.rec.QuotaID), &v.round.cursor,
		recheckSlice, backend.NewFlagNotes(s.fault, dir))
	if err != nil {
		return false, err
	}

	return v.round.cursor.Done(), s.strayed(v, &report)
}

// strayed says that files were not charged to the volume, and what became of
// them.
func (s *Store) strayed(v *volume, report *quota.Report) error {
	n := report.Changed + report.Immutable
	switch {
	case n == 0 && report.TooDeep > 0:
		return &backend.EnforcementError{ID: v.rec.ID, Reason: v1alpha1.ReasonUnchecked,
			Detail: fmt.Sprintf("%d of its directories are so far down that what is in them is "+
				"not looked at", report.TooDeep)}
	case n == 0:
		return nil
	}

	others := 0
	for _, stray := range report.Strays {
		if space := v.pool.books(); space != nil && stray.ID != uint32(v.rec.QuotaID) &&
			space.ledger.Owner(stray.ID) != "" {
			others++
		}
	}

	detail := fmt.Sprintf("%d files or directories were not charged to it (%.200q, for one)",
		n, report.Strays[0].Path)
	if others > 0 {
		detail = fmt.Sprintf("%s, %d or more of them to another volume", detail, others)
	}

	detail += "; they were put back"
	if report.Immutable > 0 {
		detail = fmt.Sprintf("%s but for %d that are immutable", detail, report.Immutable)
	}

	return &backend.EnforcementError{ID: v.rec.ID, Reason: v1alpha1.ReasonEscaped, Detail: detail}
}
