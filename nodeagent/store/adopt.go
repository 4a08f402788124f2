package store

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/nodeagent/backend"
	"github.com/quarry-storage/quarry/nodeagent/beneath"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/filesystem"
	"github.com/quarry-storage/quarry/nodeagent/mount"
	"github.com/quarry-storage/quarry/nodeagent/quota"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// adoptLocked is buildLocked for a volume that is made of data which was found.
// It is called with the volume's lock held. Data that was moved stays moved:
// then the store knows the volume even if adoptLocked returns an error, and
// bringing the volume up again carries on.
func (s *Store) adoptLocked(ctx context.Context, a *Admission) (_ *volume, err error) {
	r, err := a.pool.open()
	if err != nil {
		return nil, err
	}
	defer r.Close()

	id := a.req.ID
	if there, err := r.Exists(id); err != nil {
		return nil, err
	} else if there && id == a.req.found.from {
		return nil, notAdoptable("the volume is called like the directory it is to be made of, "+
			"%s, and needs another name", id)
	} else if there {
		return nil, &ConflictError{ID: id, Detail: "its directory is not a volume that can be read"}
	}

	tmp, err := r.Sub(record.TmpDir)
	if err != nil {
		return nil, err
	}
	defer tmp.Close()

	if err := s.scrapLocked(ctx, a.pool, r, tmp, id); err != nil {
		return nil, fmt.Errorf("clear away an earlier attempt: %w", err)
	}

	m := &moving{store: s, adm: a, root: r, tmp: tmp, rec: newRecord(a)}
	if m.old, err = disk.OpenOldPath(r, a.req.found.from); err != nil {
		return nil, err
	}
	defer m.old.Close()

	if m.source, err = m.old.Open(); err != nil {
		return nil, err
	}
	defer m.source.Close()

	if !a.req.found.is(m.source) {
		return nil, fmt.Errorf("%s was replaced since it was looked at", a.req.Adopt.Path)
	}

	err = m.run(ctx)
	if m.dir != nil {
		defer m.dir.Close()
	}

	if err != nil && !m.moved {
		// The caller's context may be what ended the work; clearing away must
		// not end with it.
		if e := s.takeBack(context.WithoutCancel(ctx), a.pool, r, tmp, id); e != nil {
			s.freer.sweepAgain.Store(true)
			err = errors.Join(err, fmt.Errorf("clear away: %w", e))
		}

		if m.rec.QuotaKind != "" {
			a.space.ledger.Disown(tmpKey(a.pool, id), uint32(m.rec.QuotaID))
		}
		return nil, err
	}

	v := &volume{id: id, pool: a.pool, rec: *m.rec, unavailable: errNotUp, poolUID: a.pool.uid()}
	key := a.pool.key(id)
	s.mu.Lock()
	s.volumes[id] = v
	s.mu.Unlock()

	s.unmarkBroken(a.pool, a.req.found.from) // a directory of the pool that was no volume
	a.pool.promise(a.space, key, m.rec.Owed())
	a.space.ledger.Release(a.key)
	a.space.move(tmpKey(a.pool, id), key, m.rec)
	a.space.expire()

	return v, err
}

// moving is data on its way into a volume.
type moving struct {
	store  *Store
	adm    *Admission
	root   *disk.Root
	tmp    *beneath.Dir
	dir    *beneath.Dir // the volume's, first under tmp
	old    *disk.OldPath
	source *os.File // what is adopted, O_PATH
	rec    *record.Volume
	// moved: the data is in the volume's directory.
	moved bool
}

func (m *moving) run(ctx context.Context) (err error) {
	s := m.store
	if err := s.fault("adopt: mkdir tmp"); err != nil {
		return err
	}

	// Users of the old path keep their access: the data's own permissions
	// decide, not those of the directories above it.
	if m.dir, err = m.tmp.EnsureDir(m.rec.ID, 0o711); err != nil {
		return err
	}
	if err := s.fault("adopt: link"); err != nil {
		return err
	}
	if err := m.dir.Symlink(disk.LinkTarget(m.rec), disk.DataName(m.rec)); err != nil {
		return err
	}
	if m.rec.Backend == record.BackendLoop && m.rec.VolumeMode == record.ModeFilesystem {
		if err := m.dir.Mkdir(record.MountDir, 0o700); err != nil {
			return err
		}
	}

	if err := m.limit(); err != nil {
		return err
	}
	if err := s.fault("adopt: write record"); err != nil {
		return err
	}
	if err := disk.WriteVolume(m.dir, m.rec); err != nil {
		return err
	}
	if err := s.fault("adopt: into the pool"); err != nil {
		return err
	}
	if err := m.tmp.Rename(m.rec.ID, m.root.Dir, m.rec.ID); err != nil {
		return err
	}
	if err := errors.Join(m.root.Sync(), m.tmp.Sync()); err != nil {
		return err
	}
	if err := m.exchange(); err != nil {
		return err
	}
	if m.rec.Backend == record.BackendDirectory {
		return nil
	}

	return m.prove(ctx)
}

// limit puts the directory's limit in force, on a quota id that no file carries
// yet.
func (m *moving) limit() error {
	if m.adm.plan.quotaKind == "" || m.rec.Backend == record.BackendLoop {
		return nil
	}

	fs := m.root.File()
	id, err := m.adm.space.ledger.Draw(tmpKey(m.adm.pool, m.rec.ID), func(id uint32) (bool, error) {
		return quota.Free(fs, id)
	})
	if err != nil {
		return err
	}

	m.rec.QuotaKind, m.rec.QuotaID = record.QuotaProject, uint64(id)
	if err := m.store.fault("adopt: note quota id"); err != nil {
		return err
	}
	if err := disk.WriteVolume(m.dir, m.rec); err != nil {
		return err
	}
	if err := m.store.fault("adopt: set limit"); err != nil {
		return err
	}

	return backend.SetLimit(m.root, m.rec, m.rec.SizeBytes)
}

// exchange is the commit: the data and the link take each other's places. All
// filesystems that have the RENAME_NOREPLACE by which volumes are committed
// have RENAME_EXCHANGE too (renameat2(2)).
func (m *moving) exchange() error {
	if err := m.store.fault("adopt: exchange"); err != nil {
		return err
	}

	name := disk.DataName(m.rec)
	err := m.old.Parent.Exchange(m.old.Name, m.dir, name)
	switch {
	case errors.Is(err, unix.EXDEV):
		return notAdoptable("%s cannot be renamed into the pool: it is in another subvolume or "+
			"quota project (%v); copy it into a new volume", m.adm.req.Adopt.Path, err)
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EBUSY), errors.Is(err, unix.EINVAL):
		return notAdoptable(
			"%s cannot be renamed (%v); is it immutable (lsattr -d), or a mount point?",
			m.adm.req.Adopt.Path, err)
	case err != nil:
		return err
	}

	m.moved = true
	there, err := m.dir.OpenFile(name, unix.O_PATH, 0)
	if there != nil {
		defer there.Close()
	}
	if err != nil || !m.adm.req.found.is(there) {
		return errors.Join(fmt.Errorf("%s was replaced while it was adopted", m.adm.req.Adopt.Path),
			err, m.back())
	}

	if err := m.store.fault("adopt: sync exchange"); err != nil {
		return err
	}

	return errors.Join(m.dir.Sync(), m.old.Parent.Sync())
}

// back takes the exchange back.
func (m *moving) back() error {
	err := m.dir.Exchange(disk.DataName(m.rec), m.old.Parent, m.old.Name)
	if err == nil {
		m.moved = false
		err = errors.Join(m.old.Parent.Sync(), m.dir.Sync())
	}
	return err
}

// prove brings the image up, which was not possible before it was in its place,
// and puts it back where it was if that fails. Up to then nothing in it has
// changed but what a mount changes.
func (m *moving) prove(ctx context.Context) error {
	s := m.store
	err := s.fault("adopt: prove")
	if err == nil {
		v := &volume{id: m.rec.ID, pool: m.adm.pool, rec: *m.rec}
		if err = s.upAdopted(ctx, v, m.root, m.dir); err == nil {
			err = checkMovable(m.dir, m.rec)
		}
	}

	if err == nil {
		return nil
	}

	ctx = context.WithoutCancel(ctx)
	undo := s.backends.TakeDown(ctx, m.rec.ID, m.dir)
	if undo == nil {
		undo = shrinkTo(m.dir, m.adm.req.found.stat.Size)
	}

	if undo == nil {
		undo = m.back()
	}

	if undo != nil {
		// Not a refusal, since the volume is on disk.
		return fmt.Errorf("%v; and the image could not be put back: %w", err, undo)
	}

	var (
		mismatch *disk.MismatchError
		damaged  *filesystem.DamagedError
		unusable *mount.Error
		refused  *RefusedError
	)
	if errors.As(err, &mismatch) || errors.As(err, &damaged) || errors.As(err, &unusable) ||
		errors.As(err, &refused) {
		return notAdoptable(
			"the image %s cannot be brought up as a volume, and is where it was: %v",
			m.adm.req.Adopt.Path, err)
	}

	return err
}

// shrinkTo cuts off the padding that filled up the image's last block.
func shrinkTo(dir *beneath.Dir, size int64) error {
	image, err := dir.OpenFile(record.ImageFile, unix.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer image.Close()

	now, err := image.Stat()
	if err != nil || now.Size() == size {
		return err
	}

	// Somebody made the image larger meanwhile; that part is not ours to cut
	// off.
	if now.Size() != roundUp(size) {
		return nil
	}

	return image.Truncate(size)
}

// takeBack clears away an adoption whose data was not moved, however far it
// came. A second call finishes what the first could not.
func (s *Store) takeBack(ctx context.Context, p *pool, r *disk.Root, tmp *beneath.Dir,
	id string) error {
	if rec, err := disk.ReadEntry(r.Dir, id, id); err == nil {
		if err := s.uncommitAdoption(r, tmp, rec); err != nil {
			return err
		}
	}
	return s.scrapLocked(ctx, p, r, tmp, id)
}

// uncommitAdoption renames the volume's directory back to tmp, for an adoption
// whose data was not moved.
func (s *Store) uncommitAdoption(r *disk.Root, tmp *beneath.Dir, rec *record.Volume) error {
	if unmoved, err := disk.IsUnmoved(r.Dir, rec); err != nil || !unmoved {
		return errors.Join(err, fmt.Errorf("volume %s holds adopted data and stays", rec.ID))
	}
	if err := s.fault("adopt: out of the pool"); err != nil {
		return err
	}
	if err := r.Rename(rec.ID, tmp, rec.ID); err != nil {
		return err
	}

	return errors.Join(tmp.Sync(), r.Sync())
}
