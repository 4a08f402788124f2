package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/nodeagent/backend"
	"github.com/quarry-storage/quarry/nodeagent/beneath"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/quota"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// finishAdoptionLocked does what is left to do once the data is in its place,
// and notes that it is done. Every part of it can be repeated. It is called
// with the volume's lock held, whenever a volume whose adoption is not finished
// is brought up.
func (s *Store) finishAdoptionLocked(ctx context.Context, v *volume, r *disk.Root,
	dir *beneath.Dir) error {
	// One adoption at a time, and not counted among the heavy jobs: walking a
	// large tree takes long, and no new volume should wait for it.
	space := v.pool.books()
	if space == nil {
		return v.pool.gone()
	}
	if err := space.adopting.Acquire(ctx, 1); err != nil {
		return fmt.Errorf("wait for another adoption to be finished: %w", err)
	}
	defer space.adopting.Release(1)

	var err error
	if v.rec.Backend == record.BackendDirectory {
		err = s.finishDirectory(ctx, v, r, dir)
	} else {
		err = s.finishImage(ctx, v, r, dir)
	}

	if err != nil {
		return fmt.Errorf("finish the adoption of %s: %w", v.rec.AdoptedFrom, err)
	}
	if err := s.fault("adopt: done"); err != nil {
		return err
	}
	if err := s.noteAdoption(v, dir, ""); err != nil {
		return err
	}
	if _, space, err := v.pool.state(); err == nil {
		space.expire()
	}

	return nil
}

// noteAdoption writes down how far an adoption has come.
func (s *Store) noteAdoption(v *volume, dir *beneath.Dir, phase string) error {
	next := v.next()
	next.Adopting = phase
	if err := disk.WriteVolume(dir, &next); err != nil {
		return err
	}
	s.setRecord(v, next)
	return nil
}

// finishDirectory gives everything in the directory the volume's project id,
// while others may be writing there.
func (s *Store) finishDirectory(ctx context.Context, v *volume, r *disk.Root,
	dir *beneath.Dir) error {
	if v.rec.QuotaKind != record.QuotaProject {
		return nil
	}
	if err := s.fault("adopt: limit"); err != nil {
		return err
	}
	if err := backend.SetLimit(r, &v.rec, v.rec.Promise()); err != nil {
		return err
	}

	data, err := dir.OpenDir(record.DataDir)
	if err != nil {
		return err
	}
	defer data.Close()

	if err := s.fault("adopt: assign"); err != nil {
		return err
	}

	id := uint32(v.rec.QuotaID)
	if _, err := quota.AssignFiles(ctx, data.File(), id); err != nil {
		return err
	}

	// The first round leaves only files that were made before their directory
	// had the inherit flag, the second none but what its users moved about at
	// that moment.
	const rounds = 10
	for range rounds {
		if err := s.fault("adopt: assign again"); err != nil {
			return err
		}

		report, err := quota.Assign(ctx, data.File(), id)
		if err != nil || report.Changed == 0 {
			return err
		}
	}

	return errors.New("its users move its files about faster than they can be put into its quota " +
		"project; it is tried again")
}

// finishImage brings the image up and puts what is in its filesystem where
// users are given it: into the directory data.
func (s *Store) finishImage(ctx context.Context, v *volume, r *disk.Root, dir *beneath.Dir) error {
	if err := s.upAdopted(ctx, v, r, dir); err != nil {
		return err
	}
	if v.rec.VolumeMode == record.ModeBlock {
		return nil
	}

	mounted, err := dir.OpenDir(record.MountDir)
	if err != nil {
		return err
	}
	defer mounted.Close()

	// Its content is hostile: nothing below is reached over a mount or a link.
	inner, err := mounted.NoCross()
	if err != nil {
		return err
	}
	defer inner.Close()

	staging := stagingName(v.rec.ID)
	if v.rec.Adopting == record.AdoptionMoving {
		if err := s.gather(ctx, inner, staging, v.rec.FSType); err != nil {
			return err
		}
		if err := unix.Syncfs(int(inner.File().Fd())); err != nil {
			return err
		}
		if err := s.fault("adopt: note renaming"); err != nil {
			return err
		}
		if err := s.noteAdoption(v, dir, record.AdoptionRenaming); err != nil {
			return err
		}
	}

	// From here on a directory called data is ours, if the other name is gone.
	if err := s.fault("adopt: rename data"); err != nil {
		return err
	}
	if err := inner.Rename(staging, inner, record.DataDir); err != nil &&
		!errors.Is(err, fs.ErrNotExist) {
		return err
	}

	return unix.Syncfs(int(inner.File().Fd()))
}

// gather moves everything in the root of a filesystem into the directory
// staging there, which gets the root's owner, permissions and attributes, since
// its users will take it for the root.
func (s *Store) gather(ctx context.Context, inner *beneath.Dir, staging, fstype string) error {
	if err := s.fault("adopt: mkdir staging"); err != nil {
		return err
	}

	to, err := inner.EnsureDir(staging, 0o700)
	if err != nil {
		return err
	}
	defer to.Close()

	for {
		// The entries that stay are too few to fill one reading.
		names, err := disk.SomeNames(inner)
		if err != nil {
			return err
		}

		left := 0
		for _, name := range names {
			st, err := inner.Stat(name)
			if err != nil {
				return err
			}
			if name == staging || fstype == "ext4" && name == "lost+found" &&
				st.Mode&unix.S_IFMT == unix.S_IFDIR {
				continue // e2fsck wants it in the root
			}

			left++
			if err := errors.Join(ctx.Err(), s.fault("adopt: gather")); err != nil {
				return err
			}
			if err := inner.Rename(name, to, name); err != nil {
				return err
			}
		}

		if left == 0 {
			return likeRoot(inner.File(), to.File())
		}
	}
}

// likeRoot gives a directory the owner, permissions and extended attributes
// (ACLs among them) of another.
func likeRoot(from, to *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(from.Fd()), &st); err != nil {
		return err
	}
	if err := unix.Fchown(int(to.Fd()), int(st.Uid), int(st.Gid)); err != nil {
		return err
	}

	names := make([]byte, 64<<10) // XATTR_LIST_MAX
	n, err := unix.Flistxattr(int(from.Fd()), names)
	if err != nil && !errors.Is(err, unix.ENOTSUP) {
		return fmt.Errorf("list its root's attributes: %w", err)
	}

	value := make([]byte, 64<<10) // XATTR_SIZE_MAX
	for start, i := 0, 0; i < n; i++ {
		if names[i] != 0 {
			continue
		}

		name := string(names[start:i])
		start = i + 1
		size, err := unix.Fgetxattr(int(from.Fd()), name, value)
		if err == nil {
			err = unix.Fsetxattr(int(to.Fd()), name, value[:size], 0)
		}

		if err != nil && !errors.Is(err, unix.ENODATA) {
			return fmt.Errorf("copy its root's attribute %s: %w", name, err)
		}
	}

	// Last: chown clears set-id bits, and an ACL changes the group's.
	return unix.Fchmod(int(to.Fd()), st.Mode&0o7777)
}
