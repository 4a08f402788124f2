package store

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/nodeagent/beneath"
	"github.com/quarry-storage/quarry/nodeagent/filesystem"
	"github.com/quarry-storage/quarry/nodeagent/loop"
	"github.com/quarry-storage/quarry/nodeagent/mount"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// standing is what was found of an image volume when it was last proven to be
// up. The watcher compares it with what is there now; what differs is proven
// anew.
type standing struct {
	device loop.Device
	// mounted is the mount of its filesystem; of a Block volume there is none.
	mounted *mount.Info
}

// activateLoop attaches the image, verified, and mounts it or links its device.
// A second call changes nothing, unless the filesystem has become one that can
// not be worked with: then it is mended, or the error is a *FilesystemError.
func (s *Store) activateLoop(ctx context.Context, v *volume, dir *beneath.Dir,
	directIO bool) error {
	s.setStanding(v, nil)
	image, err := openImage(&v.rec, dir)
	if err != nil {
		return err
	}
	defer image.Close()

	if err := s.fault("attach again"); err != nil {
		return err
	}

	opts := attachOptions(&v.rec, directIO)
	opts.Before = s.dropLinkTo
	dev, err := loop.Attach(ctx, image, opts)
	if err != nil {
		return err
	}

	// From here on its number can not come to mean another image, whoever
	// detaches it.
	if err := loop.Pin(dev); err != nil {
		return err
	}

	up := &standing{device: dev}
	if v.rec.VolumeMode == record.ModeBlock {
		err = s.linkDevice(v.rec.ID, dev)
	} else {
		up.mounted, err = s.bringUpFilesystem(ctx, v, dir, image, dev)
	}

	if err != nil {
		return err
	}

	s.leaveFormer(v, dev)
	s.setStanding(v, up)
	return nil
}

// leaveFormer lets go of the device that the volume was up on before, if it is
// up on another one now: an image that was taken away and put back is another
// file. What the former one is over stays until somebody detaches it; we are
// not who keeps it.
func (s *Store) leaveFormer(v *volume, now loop.Device) {
	s.mu.Lock()
	defer s.mu.Unlock()

	former := v.device
	v.device = &now
	if former == nil || former.Number == now.Number {
		return
	}

	for _, other := range s.volumes {
		if other.device != nil && other.device.Number == former.Number {
			return // it was detached meanwhile, and is another volume's
		}
	}

	loop.Unpin(former.Number)
}

func (s *Store) setStanding(v *volume, up *standing) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v.up = up
}

// bringUpFilesystem mounts the filesystem, unless it is mounted and well, and
// returns the mount.
func (s *Store) bringUpFilesystem(ctx context.Context, v *volume, dir *beneath.Dir, image *os.File,
	dev loop.Device) (*mount.Info, error) {
	mounted, sick, err := s.lookInto(ctx, &v.rec, dir, dev)
	if err != nil || mounted != nil && sick == nil {
		return mounted, err
	}
	if sick != nil {
		if err := s.unmountSick(ctx, v, dir, dev, sick); err != nil {
			return nil, err
		}
	}

	if err := s.mountChecked(ctx, v, dir, image, dev); err != nil {
		if sick != nil {
			sick.Detail += fmt.Sprintf(", and could not be mended: %v", err)
			err = errors.Join(sick, err)
		}
		return nil, err
	}

	mounted, again, err := s.lookInto(ctx, &v.rec, dir, dev)
	switch {
	case err != nil:
		return nil, err
	case again != nil:
		again.By = s.elsewhere(dev)
		return nil, again
	case mounted == nil:
		return nil, &InactiveError{ID: v.rec.ID,
			Detail: "it was unmounted as soon as it was mounted"}
	}

	if sick != nil {
		s.log.WarnContext(ctx, "the filesystem of a volume was unmounted, checked and mounted anew",
			"volume", v.id, "because", sick.Detail)
	}

	return mounted, nil
}

// lookInto looks whether the volume's filesystem is mounted in its place, and
// well.
func (s *Store) lookInto(ctx context.Context, rec *record.Volume, dir *beneath.Dir,
	dev loop.Device) (*mount.Info, *FilesystemError, error) {
	target, err := openMount(dir)
	if err != nil {
		return nil, nil, err
	}
	defer target.Close()

	mounted, err := mountedAt(target, rec.ID, dev)
	if err != nil || mounted == nil {
		return nil, nil, err
	}

	return mounted, s.wellnessLocked(ctx, rec, target, mounted, true), nil
}

// unmountSick unmounts a filesystem that can not be worked with, if nothing but
// ourselves has it; else the error is sick, with who.
func (s *Store) unmountSick(ctx context.Context, v *volume, dir *beneath.Dir, dev loop.Device,
	sick *FilesystemError) error {
	if !sick.canBeMended() {
		return sick
	}
	if why := noRoomToMend(&v.rec, dir); why != "" {
		sick.Detail += why
		return sick
	}

	users := func() error {
		var busy *InUseError
		err := s.users(&v.rec, dir, true)
		if errors.As(err, &busy) {
			sick.By = busy.By
			return sick
		}
		return err
	}
	if err := users(); err != nil {
		return err
	}
	if err := s.fault("unmount to mend"); err != nil {
		return err
	}

	err := unmount(ctx, dir)
	if errors.Is(err, unix.EBUSY) {
		sick.By = []string{"a process with an open file or its working directory in it"}
		return sick
	}
	if err != nil {
		return err
	}

	// What O_EXCL is refused for is mounted elsewhere still, or held by device
	// mapper, and must not be written by a check.
	claimed, err := loop.IsClaimed(dev)
	if err != nil || !claimed {
		return err
	}

	sick.By = s.elsewhere(dev)

	// Those who begin to use it now see what those see who have it.
	return errors.Join(sick, mountImage(ctx, dir, &v.rec, dev))
}

// noRoomToMend says why mending would be in vain: a thin image on a full disk,
// whose check or log replay would have to write.
func noRoomToMend(rec *record.Volume, dir *beneath.Dir) string {
	const little = 16 << 20 // a journal's replay
	var st unix.Statfs_t
	if rec.Allocation != record.AllocationThin || unix.Fstatfs(int(dir.File().Fd()), &st) != nil ||
		int64(st.Bfree)*st.Bsize >= little {
		return ""
	}
	return ", and the disk that its image grows on is full: it is checked and mounted anew once " +
		"there is room"
}

// mountChecked mounts the filesystem on a device, which nothing has mounted,
// after it was proven to be the volume's and, where that is due, checked.
func (s *Store) mountChecked(ctx context.Context, v *volume, dir *beneath.Dir, image *os.File,
	dev loop.Device) error {
	if err := identifySettled(image, &v.rec); err != nil {
		return err
	}

	device, err := os.OpenFile(dev.Path, os.O_RDWR, 0)
	if err != nil {
		return err
	}

	repaired, err := s.check(ctx, v, dir, dev, device)
	if err := errors.Join(err, device.Close()); err != nil {
		return err
	}
	if repaired {
		s.log.WarnContext(ctx, "the filesystem of a volume was repaired before it was mounted",
			"volume", v.rec.ID)
	}

	if err := s.fault("mount again"); err != nil {
		return err
	}
	if err := mountImage(ctx, dir, &v.rec, dev); err != nil {
		return err
	}

	return thaw(dir)
}

// check has the filesystem checked, where it says that errors were seen.
func (s *Store) check(ctx context.Context, v *volume, dir *beneath.Dir, dev loop.Device,
	device *os.File) (repaired bool, err error) {
	claimed, err := loop.IsClaimed(dev)
	if err != nil {
		return false, err
	}

	if claimed {
		// Mounted in a namespace that is not ours, where it was let go of here:
		// it must not be written by a check. The mount that follows gives the
		// same filesystem.
		return false, nil
	}

	n, err := readRepairNote(dir)
	if err != nil {
		return false, err
	}

	repaired, err = filesystem.Check(ctx, device, filesystem.CheckOptions{
		Before: func() error {
			return s.beginRepair(ctx, v, dir, n)
		}, Memory: s.repairMemory.Load()})
	var damaged *filesystem.DamagedError
	if n.Attempts > 0 && !(errors.As(err, &damaged) && damaged.Unfinished) {
		// Also when this process is about to end: that is no repair that
		// failed.
		err = errors.Join(err, endRepair(dir))
	}

	return repaired, err
}
