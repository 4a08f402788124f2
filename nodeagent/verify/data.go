package verify

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/backend"
	"github.com/quarry-storage/quarry/nodeagent/btrfs"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/loop"
	"github.com/quarry-storage/quarry/nodeagent/quota"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

func (at *place) directory(ctx context.Context) {
	data, err := at.dir.OpenDir(record.DataDir)
	if err != nil {
		at.error("its data directory: %v", err)
		return
	}
	defer data.Close()
	restore := func(_ context.Context, at *place) error {
		_, err := backend.CheckLimit(at.root, at.rec)
		var lost *backend.EnforcementError
		if errors.As(err, &lost) && lost.Reason == v1alpha1.ReasonUncounted {
			return nil // it was put back as far as that can be
		}
		return err
	}
	id := uint32(at.rec.QuotaID)
	switch at.rec.QuotaKind {
	case "":
		if at.rec.Enforcement != record.EnforcementNone {
			at.error("its record names no quota, and enforcement is %s", at.rec.Enforcement)
		}
	case record.QuotaProject:
		if got, inherit, err := quota.GetProject(data.File()); err != nil {
			at.error("%v", err)
		} else if got != id || !inherit {
			at.repairable(SeverityError, "set it", restore,
				"its root directory has project id %d (inherited: %t), not %d", got, inherit, id)
		}
		limits, _, err := quota.GetLimits(at.root.File(), id)
		if err != nil {
			at.error("its limit cannot be read, so it is not in force: %v", err)
		} else if !backend.LimitHolds(at.rec, limits.Bytes) ||
			!backend.InodesHold(at.rec, limits.Inodes) {
			at.repairable(SeverityError, "set the limit", restore,
				"its limit is %d bytes and %d inodes, not %d and %d", limits.Bytes, limits.Inodes,
				at.rec.SizeBytes, at.rec.Inodes)
		}
		at.strays(ctx, data.File())
	case record.QuotaBtrfs:
		group, there, err := btrfs.GetGroup(at.root.File(), id)
		if err != nil {
			at.error("%v", err)
			return
		}
		if !there {
			at.repairable(SeverityError, "make it again", restore, "its qgroup 1/%d is gone", id)
			return
		}
		if !backend.LimitHolds(at.rec, group.Limit) {
			at.repairable(SeverityError, "set the limit", restore, "its limit is %d bytes, not %d",
				group.Limit, at.rec.SizeBytes)
		}
		at.strayedSubvolumes(data.File())
	default:
		at.error("its quota %q is not one this program knows", at.rec.QuotaKind)
	}
}

// strays reports files of the volume that are charged to another project.
func (at *place) strays(ctx context.Context, data *os.File) {
	report, err := quota.Check(ctx, data, uint32(at.rec.QuotaID), new(quota.Cursor), walkBudget)
	if err != nil {
		at.error("%v", err)
		return
	}
	if n := len(report.Strays); n > 0 {
		first := report.Strays[0]
		at.repairable(SeverityError, "put them back", putBack,
			"%d or more of its files are not charged to it, the first: %q has project id %d", n,
			first.Path, first.ID)
	}
}

// putBack has all files of a volume charged to it.
func putBack(ctx context.Context, at *place) error {
	data, err := at.dir.OpenDir(record.DataDir)
	if err != nil {
		return err
	}
	defer data.Close()
	for cursor := (quota.Cursor{}); !cursor.Done(); {
		if _, err := quota.Return(ctx, data.File(), uint32(at.rec.QuotaID), &cursor, time.Minute,
			backend.NewFlagNotes(at.view.Backends().Fault, at.dir)); err != nil {
			return err
		}
	}
	return nil
}

func (at *place) strayedSubvolumes(data *os.File) {
	id, err := btrfs.ID(data)
	if err != nil {
		at.error("%v", err)
		return
	}
	strays, err := btrfs.Strays(at.root.File(), id, uint32(at.rec.QuotaID))
	if err != nil {
		at.error("%v", err)
		return
	}
	foreign, err := btrfs.Foreign(at.root.File(), id, uint32(at.rec.QuotaID))
	if err != nil {
		at.error("%v", err)
		return
	}
	if len(strays) > 0 || len(foreign) > 0 {
		charge := func(_ context.Context, at *place) error {
			return backend.ChargeRightly(at.root.File(), uint32(at.rec.QuotaID), strays, foreign)
		}
		at.repairable(SeverityError, "charge each to its own volume", charge, "%s",
			backend.StrayText(strays, foreign))
	}
	if forgotten, err := btrfs.Forgotten(at.root.File(), id); err != nil {
		at.error("%v", err)
	} else if forgotten {
		at.warning("what was written to it before quotas were switched off and on again " +
			"is not counted")
	}
}

// bringUp is the repair for whatever a restart of the agent would put right.
func bringUp(ctx context.Context, at *place) error {
	_, err := at.view.Backends().Of(at.rec).Up(ctx,
		at.opened(),
		func() (bool, error) { return true, nil })
	return err
}

func (at *place) image(ctx context.Context) {
	image, err := at.dir.OpenFile(record.ImageFile, unix.O_RDONLY, 0)
	if err != nil {
		at.error("its image: %v", err)
		return
	}
	defer image.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(image.Fd()), &st); err != nil {
		at.error("its image: %v", err)
		return
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size < at.rec.SizeBytes ||
		st.Size > at.rec.Promise() {
		at.error("its image is of %d bytes, not %d", st.Size, at.rec.SizeBytes)
	}
	if allocated := st.Blocks * 512; at.rec.Allocation == record.AllocationThick &&
		allocated < st.Size {
		reserve := func(_ context.Context, at *place) error {
			image, err := at.dir.OpenFile(record.ImageFile, unix.O_RDWR, 0)
			if err != nil {
				return err
			}
			defer image.Close()
			return disk.Allocate(image, st.Size)
		}
		at.repairable(SeverityError, "reserve the rest", reserve,
			"its image is not thick any more: %d of %d bytes are reserved", allocated, st.Size)
	}
	devices := at.loops[loop.Backing{Dev: st.Dev, Inode: st.Ino}]
	if at.live {
		// Its lock is held now, and was not when the devices were listed.
		if devices, err = loop.Find(image); err != nil {
			at.error("%v", err)
			return
		}
	}
	switch len(devices) {
	case 0:
		at.repairable(SeverityError, "bring it up", bringUp, "no loop device is over its image")
		return
	case 1:
	default:
		var paths []string
		for _, d := range devices {
			paths = append(paths, d.Path+backend.HoldersText(d))
		}
		at.error("several loop devices are over its image: %s", strings.Join(paths, ", "))
		return
	}
	at.device(devices[0], st.Size)
	if at.rec.VolumeMode == record.ModeBlock {
		at.link(devices[0])
		return
	}
	at.mounted(ctx, image, devices[0])
}

// device looks at the settings of the one loop device.
func (at *place) device(d loop.Device, size int64) {
	if at.rec.LogicalBlockSize != 0 && d.BlockSize != at.rec.LogicalBlockSize {
		at.error("%s has blocks of %d bytes, and the data was written with %d", d.Path, d.BlockSize,
			at.rec.LogicalBlockSize)
	}
	if d.SizeBytes != size || d.Offset != 0 {
		at.error("%s has %d bytes from %d on, and the image %d", d.Path, d.SizeBytes, d.Offset,
			size)
	}
	if d.ReadOnly {
		at.error("%s is read-only", d.Path)
	}
	if d.Autoclear {
		at.repairable(SeverityError, "take the mark off", bringUp,
			"%s will detach itself when its last user closes it", d.Path)
	}
	if d.Discard && at.rec.Allocation == record.AllocationThick {
		at.repairable(SeverityError, "switch discards off", bringUp,
			"%s passes discards on, and one fstrim would thin its image", d.Path)
	}
	if !d.DirectIO {
		direct, err := at.dir.OpenFile(record.ImageFile, unix.O_RDONLY|unix.O_DIRECT, 0)
		if err == nil {
			// Blocks that are too small for it are the data's, which was
			// adopted as it was.
			possible := loop.BlockSize(direct) <= d.BlockSize
			direct.Close()
			if !possible {
				return
			}
			at.repairable(SeverityWarning, "switch it on", bringUp,
				"%s does not use direct I/O, so its data is cached twice", d.Path)
		}
	}
}

// link looks at the link of a Block volume.
func (at *place) link(d loop.Device) {
	to, err := os.Readlink(filepath.Join(at.view.Backends().DeviceDir, at.rec.ID))
	if err != nil || to != d.Path {
		at.repairable(SeverityError, "make the link", bringUp, "its link leads to %q, not to %s",
			to, d.Path)
	}
	if mounted, err := backend.IsMounted(at.dir); err != nil || mounted {
		at.error("it was handed out as a block device, and is mounted (%v)", err)
	}
}

// mounted looks at the filesystem of a loop volume and where it is mounted.
func (at *place) mounted(ctx context.Context, image *os.File, d loop.Device) {
	target, err := backend.OpenMount(at.dir)
	if err != nil {
		at.error("the directory it is mounted at: %v", err)
		return
	}
	defer target.Close()
	mounted, err := backend.MountedAt(target, at.rec.ID, d)
	if err != nil {
		at.error("%v", err)
		return
	}
	if mounted != nil {
		if sick := at.view.Backends().WellnessLocked(ctx, at.rec, target, mounted,
			false); sick != nil {
			at.repairable(SeverityError, "unmount, check and mount it, if nothing uses it", bringUp,
				"it %s", sick.Detail)
			return
		}
	}
	inner, err := at.dir.OpenDir(record.MountDir)
	if err != nil {
		at.error("%v", err)
		return
	}
	defer inner.Close()
	names, err := inner.Names()
	if err != nil {
		at.error("%v", err)
		return
	}
	if mounted == nil {
		at.repairable(SeverityError, "bring it up", bringUp, "it is not mounted")
		if len(names) > 0 {
			at.error("something was written to the directory it is mounted at while it was not: %s",
				names[0])
		}
		return
	}
	if err := backend.IdentifySettled(image, at.rec); err != nil {
		at.error("%v", err)
	}
	if st, err := inner.Stat(record.DataDir); errors.Is(err, fs.ErrNotExist) ||
		err == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		at.error("the directory its user sees (%s) is gone", record.DataDir)
	}
}
