package backend

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

// Standing is what was found of an image volume when it was last proven to be
// up. The watcher compares it with what is there now; what differs is proven
// anew.
type Standing struct {
	Device loop.Device
	// Mounted is the mount of its filesystem; of a Block volume there is none.
	Mounted *mount.Info
}

// Up implements Backend: it attaches the image, verified, and mounts it or
// links its device. A second call changes nothing, unless the filesystem has
// become one that cannot be worked with: then it is mended, or the error is a
// *FilesystemError.
func (l loopImage) Up(ctx context.Context, v *Volume,
	directIO func() (bool, error)) (*Standing, error) {
	direct, err := directIO()
	if err != nil {
		return nil, err
	}
	image, err := openImage(v.Rec, v.Dir)
	if err != nil {
		return nil, err
	}
	defer image.Close()

	if err := l.Fault("attach again"); err != nil {
		return nil, err
	}
	opts := attachOptions(v.Rec, direct)
	opts.Before = l.dropLinkTo
	dev, err := loop.Attach(ctx, image, opts)
	if err != nil {
		return nil, err
	}
	// From here on its number cannot come to mean another image, whoever
	// detaches it.
	if err := loop.Pin(dev); err != nil {
		return nil, err
	}

	up := &Standing{Device: dev}
	if v.Rec.VolumeMode == record.ModeBlock {
		err = l.linkDevice(v.Rec.ID, dev)
	} else {
		up.Mounted, err = l.bringUpFilesystem(ctx, v.Rec, v.Dir, image, dev)
	}
	if err != nil {
		return nil, err
	}
	return up, nil
}

// bringUpFilesystem mounts the filesystem, unless it is mounted and well, and
// returns the mount.
func (b *Backends) bringUpFilesystem(ctx context.Context, rec *record.Volume, dir *beneath.Dir,
	image *os.File,
	dev loop.Device) (*mount.Info, error) {
	mounted, sick, err := b.lookInto(ctx, rec, dir, dev)
	if err != nil || mounted != nil && sick == nil {
		return mounted, err
	}
	if sick != nil {
		if err := b.unmountSick(ctx, rec, dir, dev, sick); err != nil {
			return nil, err
		}
	}

	if err := b.mountChecked(ctx, rec, dir, image, dev); err != nil {
		if sick != nil {
			sick.Detail += fmt.Sprintf(", and could not be mended: %v", err)
			err = errors.Join(sick, err)
		}
		return nil, err
	}

	mounted, again, err := b.lookInto(ctx, rec, dir, dev)
	switch {
	case err != nil:
		return nil, err
	case again != nil:
		again.By = b.elsewhere(dev)
		return nil, again
	case mounted == nil:
		return nil, &InactiveError{ID: rec.ID,
			Detail: "it was unmounted as soon as it was mounted"}
	}

	if sick != nil {
		b.Log.WarnContext(ctx, "the filesystem of a volume was unmounted, checked and mounted anew",
			"volume", rec.ID, "because", sick.Detail)
	}

	return mounted, nil
}

// lookInto looks whether the volume's filesystem is mounted in its place, and
// well.
func (b *Backends) lookInto(ctx context.Context, rec *record.Volume, dir *beneath.Dir,
	dev loop.Device) (*mount.Info, *FilesystemError, error) {
	target, err := OpenMount(dir)
	if err != nil {
		return nil, nil, err
	}
	defer target.Close()

	mounted, err := MountedAt(target, rec.ID, dev)
	if err != nil || mounted == nil {
		return nil, nil, err
	}

	return mounted, b.WellnessLocked(ctx, rec, target, mounted, true), nil
}

// unmountSick unmounts a filesystem that cannot be worked with, if nothing but
// ourselves has it; else the error is sick, with who.
func (b *Backends) unmountSick(ctx context.Context, rec *record.Volume, dir *beneath.Dir,
	dev loop.Device,
	sick *FilesystemError) error {
	if !sick.canBeMended() {
		return sick
	}
	if why := noRoomToMend(rec, dir); why != "" {
		sick.Detail += why
		return sick
	}

	users := func() error {
		var busy *InUseError
		err := b.CheckUnused(rec, dir, true)
		if errors.As(err, &busy) {
			sick.By = busy.By
			return sick
		}
		return err
	}
	if err := users(); err != nil {
		return err
	}
	if err := b.Fault("unmount to mend"); err != nil {
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

	sick.By = b.elsewhere(dev)

	// Those who begin to use it now see what those see who have it.
	return errors.Join(sick, mountImage(ctx, dir, rec, dev))
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
func (b *Backends) mountChecked(ctx context.Context, rec *record.Volume, dir *beneath.Dir,
	image *os.File,
	dev loop.Device) error {
	if err := IdentifySettled(image, rec); err != nil {
		return err
	}

	device, err := os.OpenFile(dev.Path, os.O_RDWR, 0)
	if err != nil {
		return err
	}

	repaired, err := b.check(ctx, rec, dir, dev, device)
	if err := errors.Join(err, device.Close()); err != nil {
		return err
	}
	if repaired {
		b.Log.WarnContext(ctx, "the filesystem of a volume was repaired before it was mounted",
			"volume", rec.ID)
	}

	if err := b.Fault("mount again"); err != nil {
		return err
	}
	if err := mountImage(ctx, dir, rec, dev); err != nil {
		return err
	}

	return thaw(dir)
}

// check has the filesystem checked, where it says that errors were seen.
func (b *Backends) check(ctx context.Context, rec *record.Volume, dir *beneath.Dir, dev loop.Device,
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
			return b.beginRepair(ctx, rec.ID, dir, n)
		}, Memory: b.RepairMemory.Load()})
	var damaged *filesystem.DamagedError
	if n.Attempts > 0 && !(errors.As(err, &damaged) && damaged.Unfinished) {
		// Also when this process is about to end: that is no repair that
		// failed.
		err = errors.Join(err, endRepair(dir))
	}

	return repaired, err
}
