package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/quarry-storage/quarry/nodeagent/backend"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// Delete takes the volume away: renamed into the trash at once, however much is
// in it, and freed in the background when its deletion policy says. It begins
// with the proof that nothing uses the volume; without it the error is an
// *InUseError, and nothing has changed that a user could see. A volume that is
// not there, or is in the trash already, is not an error; purge hurries one in
// the trash. A volume that cannot be read is a *MismatchError and stays. A
// volume counts as absent only after a look at the disks of all pools. If not
// all of them could be looked at, the error is an *UnseenError, and the caller
// may know whether the volume can be there.
func (s *Store) Delete(ctx context.Context, id string, how record.Deletion) error {
	return s.lockAndDelete(ctx, id, how, false)
}

// DeleteUntouched is Delete for a volume that nobody is known to have been
// given. It deletes only an empty one: no entry in the directory that its user
// sees, no block of a raw image written. Any other stays as it was, and the
// error is a *NotEmptyError; one that is in the trash because somebody asked
// for that stays there, too. This is decided with the volume's lock held, about
// whatever is found on any disk, before the proof that nothing uses the volume.
func (s *Store) DeleteUntouched(ctx context.Context, id string, how record.Deletion) error {
	return s.lockAndDelete(ctx, id, how, true)
}

// lockAndDelete is Delete; with onlyUntouched it is DeleteUntouched.
func (s *Store) lockAndDelete(ctx context.Context, id string, how record.Deletion,
	onlyUntouched bool) error {
	if err := record.CheckID(id); err != nil {
		return err
	}

	unlock, err := s.locks.Lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()

	// A volume is gone if it is on no disk, not if it is just not known here.
	v, unseen, err := s.seekAllLocked(ctx, id)
	if copied := (*disk.CopyError)(nil); errors.As(err, &copied) && len(s.entriesOf(id)) > 0 {
		err = nil // it is the volume that was deleted, and the copy is nobody's
	}

	if err != nil {
		return fmt.Errorf("delete volume %s: %w", id, err)
	}

	end := s.removeLocked
	if onlyUntouched {
		if err := s.mustBeDue(id); err != nil {
			return err
		}
		end = s.removeUntouchedLocked
	}

	if v == nil {
		return s.deleteUnfoundLocked(id, how, unseen)
	}

	err = end(ctx, v, how)
	if errors.Is(err, errNoDirectory) {
		// It is not where it was. It may be on another disk of the node by now,
		// or in the trash.
		s.setGone(v, true)
		if v, unseen, err = s.seekAllLocked(ctx, id); err == nil && !s.isGone(v) {
			err = end(ctx, v, how)
		} else if err == nil && len(unseen) > 0 && len(s.entriesOf(id)) == 0 {
			return &UnseenError{ID: id, Unseen: unseen} // it stays known as gone from there
		} else if err == nil {
			if err = s.forgetLostLocked(v); err == nil {
				return s.deleteUnfoundLocked(id, how, unseen)
			}
		}
	}

	if err != nil {
		return fmt.Errorf("delete volume %s: %w", id, err)
	}

	s.notifyOf(id)
	s.freer.wake()
	return nil
}

// removeUntouchedLocked is called with the volume's lock held.
func (s *Store) removeUntouchedLocked(ctx context.Context, v *volume, how record.Deletion) error {
	if err := s.mustBeUntouchedLocked(ctx, v); err != nil {
		return err
	}
	return s.removeLocked(ctx, v, how)
}

// deleteUnfoundLocked deletes from the trash a volume that is on none of the
// pools that were looked at. If it is not in the trash either it is gone,
// unless there are pools that could not be looked at. It is called with the
// volume's lock held.
func (s *Store) deleteUnfoundLocked(id string, how record.Deletion,
	unseen []*disk.OfflineError) error {
	if len(unseen) > 0 && len(s.entriesOf(id)) == 0 {
		return &UnseenError{ID: id, Unseen: unseen}
	}
	return s.deleteTrashedLocked(id, how)
}

// removeLocked is called with the volume's lock held.
func (s *Store) removeLocked(ctx context.Context, v *volume, how record.Deletion) error {
	r, err := v.pool.open()
	if err != nil {
		return err
	}
	defer r.Close()

	dir, err := r.OpenDir(v.rec.ID)
	if errors.Is(err, fs.ErrNotExist) {
		return errNoDirectory
	}
	if err != nil {
		return err
	}
	defer dir.Close()

	// A record that was swapped since it was read must not make us delete
	// something else.
	if rec, err := disk.ReadVolume(r.Dir, v.rec.ID); err != nil {
		return err
	} else if rec.ID != v.rec.ID || !rec.CreatedAt.Equal(v.rec.CreatedAt) {
		return &disk.MismatchError{ID: v.rec.ID, Detail: "its record was replaced"}
	}

	if err := s.backends.CheckUnused(&v.rec, dir, v.held); err != nil {
		return err
	}

	rec := v.rec
	t := &trashed{pool: v.pool, id: v.id, rec: &rec, since: time.Now(),
		trash: record.Trash{DeletedAt: s.deletedNow(v.id), Deletion: how}}
	err = s.backends.TakeDown(ctx, v.id, dir)
	_, v.held = errors.AsType[*backend.InUseError](err)
	if err == nil && rec.VolumeMode == record.ModeBlock {
		// Again: a container may have been given the device in between, without
		// opening it yet. Of a filesystem in an image the kernel has just said
		// that nobody uses it, and of a directory nothing was taken down.
		err = s.backends.CheckUnused(&v.rec, dir, true)
	}

	if err == nil {
		// Before it goes: after a crash in between, bringing the volume up
		// makes the link again.
		err = s.removeLink(r, &v.rec)
	}

	if err == nil {
		err = s.discard(r, r.Dir, dir, t, v.pool.key(v.id))
	}

	if s.lookup(v.id) == v {
		// The volume stays, so it is served as before.
		return errors.Join(err, s.activateLocked(context.WithoutCancel(ctx), v))
	}

	// The volume is in the trash, even if that is not durable yet.
	s.unindexClaim(ctx, r, v)
	return err
}

// forgetLostLocked forgets a volume whose directory is gone although its pool
// is there: nothing is left to delete. It is called with the volume's lock
// held.
func (s *Store) forgetLostLocked(v *volume) error {
	if err := s.backends.UnlinkDevice(v.id); err != nil {
		return err
	}

	s.log.Warn("a volume that was to be deleted is not on its pool any more",
		"pool", v.pool.name(), "volume", v.id)
	s.mu.Lock()
	delete(s.volumes, v.id)
	s.mu.Unlock()

	if space := v.pool.books(); space != nil {
		space.ledger.Release(v.pool.key(v.id))
		// Its quota id stays taken: wherever the directory went, its files may
		// still carry it.
	}

	return nil
}
