package filesystem

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/nodeagent/mount"
)

// Grow makes a mounted filesystem as large as its device is now, by ioctl(2),
// and returns its size in bytes as it is then. mountpoint is any directory in
// it, device the open device; that they belong together is checked. It is
// idempotent, works while the filesystem is used, and a device smaller than
// the filesystem is an error: nothing is ever shrunk.
//
// The result may be short of the device by what is too little for another
// block group: up to some MiB for ext4.
func Grow(ctx context.Context, mountpoint, device *os.File) (int64, error) {
	size, err := grow(ctx, mountpoint, device)
	if err != nil {
		return 0, fmt.Errorf("grow the filesystem at %s: %w", mountpoint.Name(), err)
	}
	return size, nil
}

func grow(ctx context.Context, mountpoint, device *os.File) (int64, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	dev, err := mount.BlockDevice(device)
	if err != nil {
		return 0, err
	}
	devs, err := mount.DevicesOf(mountpoint)
	if err != nil {
		return 0, err
	}
	if !slices.Equal(devs, []mount.Dev{dev}) {
		return 0, fmt.Errorf("it is on %v, not on %s (%s)", devs, dev, device.Name())
	}
	target, err := device.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, err
	}
	// An ioctl wants a descriptor that is not O_PATH.
	dir, err := os.Open("/proc/self/fd/" + strconv.Itoa(int(mountpoint.Fd())))
	if err != nil {
		return 0, err
	}
	defer dir.Close()
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(dir.Fd()), &st); err != nil {
		return 0, fmt.Errorf("statfs: %w", err)
	}
	var size, slack int64
	switch int64(st.Type) {
	case unix.EXT4_SUPER_MAGIC:
		size, err = growExt4(ctx, dir, device, target, int64(st.Bsize))
		slack = 32 << 20 // a last group that would hold its own tables only is left out
	case unix.XFS_SUPER_MAGIC:
		size, err = growXFS(dir, target)
		slack = 16 << 20 // a last allocation group needs 64 blocks, and is left out otherwise
	case unix.BTRFS_SUPER_MAGIC:
		size, err = growBtrfs(dir, device)
		slack = 1 << 20
	default:
		return 0, &UnknownError{Signature: fmt.Sprintf("a filesystem with magic number %#x",
			st.Type)}
	}
	if err != nil {
		return 0, err
	}
	if size > target || target-size > slack {
		return size, fmt.Errorf("it has %d bytes after growing, its device %d", size, target)
	}
	return size, nil
}

var errShrink = errors.New("the device is smaller than the filesystem, which is never shrunk")

// growExt4 uses EXT4_IOC_RESIZE_FS, which wants the number of blocks and knows
// by itself which groups to add. It takes CAP_SYS_RESOURCE, unlike all else
// here.
func growExt4(ctx context.Context, dir, device *os.File, target, block int64) (int64, error) {
	before, err := identifyMounted(ctx, device)
	if err != nil {
		return 0, err
	}
	if target < before.SizeBytes {
		return 0, errShrink
	}
	blocks := uint64(target / block)
	if blocks == uint64(before.SizeBytes/block) {
		return before.SizeBytes, nil
	}
	err = ioctl(dir, 0x40086610 /* _IOW('f', 16, __u64) */, unsafe.Pointer(&blocks))
	if errors.Is(err, unix.EPERM) {
		return 0, fmt.Errorf("EXT4_IOC_RESIZE_FS: %w (it takes CAP_SYS_RESOURCE, and a filesystem "+
			"without errors)", err)
	}
	if err != nil {
		return 0, fmt.Errorf("EXT4_IOC_RESIZE_FS to %d blocks: %w", blocks, err)
	}
	after, err := identifyMounted(ctx, device)
	return after.SizeBytes, err
}

// identifyMounted reads the superblock of an ext4 that is mounted, which is in
// the device's cache. The kernel changes it there and computes its checksum
// somewhat later, so a wrong one is no damage before it has stayed wrong for a
// while.
func identifyMounted(ctx context.Context, device io.ReaderAt) (Info, error) {
	const patience = 2 * time.Second
	deadline := time.Now().Add(patience)
	for wait := time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		info, err := Identify(device)
		var corrupt *CorruptError
		if !errors.As(err, &corrupt) || time.Now().After(deadline) {
			return info, err
		}
		select {
		case <-ctx.Done():
			return info, errors.Join(err, ctx.Err())
		case <-time.After(wait):
		}
	}
}

// xfsGeometry is struct xfs_fsop_geom_v1 of fs/xfs/libxfs/xfs_fs.h.
type xfsGeometry struct {
	blockSize, rtExtSize, agBlocks, agCount uint32
	logBlocks, sectSize, inodeSize, imaxPct uint32
	dataBlocks                              uint64
	_                                       [112 - 40]byte
}

// xfsGrow is struct xfs_growfs_data.
type xfsGrow struct {
	newBlocks uint64
	imaxPct   uint32
	_         uint32
}

func growXFS(dir *os.File, target int64) (int64, error) {
	const geometry = 0x80705864 // XFS_IOC_FSGEOMETRY_V1, _IOR('X', 100, struct xfs_fsop_geom_v1)
	var g xfsGeometry
	if err := ioctl(dir, geometry, unsafe.Pointer(&g)); err != nil {
		return 0, fmt.Errorf("XFS_IOC_FSGEOMETRY: %w", err)
	}
	want := uint64(target) / uint64(g.blockSize)
	if want < g.dataBlocks {
		return 0, errShrink // newer kernels would try it
	}
	if want > g.dataBlocks {
		arg := xfsGrow{newBlocks: want, imaxPct: g.imaxPct}
		err := ioctl(dir, 0x4010586e, /* _IOW('X', 110, struct xfs_growfs_data) */
			unsafe.Pointer(&arg))
		// EINVAL: it adds less than an allocation group's least, so nothing.
		// Whether that is so the caller sees by the size.
		if err != nil && !errors.Is(err, unix.EINVAL) {
			return 0, fmt.Errorf("XFS_IOC_FSGROWFSDATA to %d blocks: %w", want, err)
		}
	}
	if err := ioctl(dir, geometry, unsafe.Pointer(&g)); err != nil {
		return 0, fmt.Errorf("XFS_IOC_FSGEOMETRY: %w", err)
	}
	return int64(g.dataBlocks) * int64(g.blockSize), nil
}

// btrfsVolArgs is struct btrfs_ioctl_vol_args of linux/btrfs.h.
type btrfsVolArgs struct {
	_    int64
	name [4088]byte
}

// growBtrfs resizes device 1, the only one there is.
func growBtrfs(dir, device *os.File) (int64, error) {
	size, err := mount.BtrfsDeviceSize(dir)
	if err != nil {
		return 0, err
	}
	target, err := device.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, err
	}
	const sector = 4096
	switch target &^= sector - 1; {
	case target < size:
		return 0, errShrink // "max" would shrink it
	case target == size:
		return size, nil
	}
	var arg btrfsVolArgs
	copy(arg.name[:], "1:max")
	if err := ioctl(dir, 0x50009403, /* _IOW(0x94, 3, struct btrfs_ioctl_vol_args) */
		unsafe.Pointer(&arg)); err != nil {
		return 0, fmt.Errorf("BTRFS_IOC_RESIZE: %w", err)
	}
	return mount.BtrfsDeviceSize(dir)
}

func ioctl(f *os.File, request uintptr, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}
