package mount

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Dev is a device number.
type Dev struct{ Major, Minor uint32 }

// String returns it as the kernel prints it: "7:3".
func (d Dev) String() string {
	return strconv.FormatUint(uint64(d.Major), 10) + ":" + strconv.FormatUint(uint64(d.Minor), 10)
}

func devOf(rdev uint64) Dev { return Dev{unix.Major(rdev), unix.Minor(rdev)} }

// BlockDevice returns the number of the block device that f is a node of. f
// may be opened with O_PATH.
func BlockDevice(f *os.File) (Dev, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return Dev{}, &os.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return Dev{}, fmt.Errorf("%s: %w", f.Name(), unix.ENOTBLK)
	}
	return devOf(uint64(st.Rdev)), nil
}

// DevicesOf returns the block devices that the filesystem in which f lies was
// mounted from: one, but for a btrfs of several devices. f may be opened with
// O_PATH. A filesystem without a device (tmpfs, overlay) returns its anonymous
// number, whose major is 0.
func DevicesOf(f *os.File) ([]Dev, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return nil, &os.PathError{Op: "statfs", Path: f.Name(), Err: err}
	}
	if int64(st.Type) == unix.BTRFS_SUPER_MAGIC {
		return btrfsDevices(f)
	}
	var x unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &x); err != nil {
		return nil, &os.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	return []Dev{devOf(uint64(x.Dev))}, nil
}

// From linux/btrfs.h.
const (
	btrfsIocDevInfo = 0xd000941e // _IOWR(0x94, 30, struct btrfs_ioctl_dev_info_args)
	btrfsIocFsInfo  = 0x8400941f // _IOR(0x94, 31, struct btrfs_ioctl_fs_info_args)
)

type btrfsFsInfo struct {
	maxID, numDevices uint64
	_                 [1024 - 16]byte
}

type btrfsDevInfo struct {
	devid     uint64
	uuid      [16]byte
	bytesUsed uint64
	total     uint64
	_         [379 * 8]byte
	path      [1024]byte
}

// BtrfsDeviceSize returns how many bytes of its device a btrfs of one device
// uses. dir is a directory in it, not opened with O_PATH.
func BtrfsDeviceSize(dir *os.File) (int64, error) {
	info := btrfsDevInfo{devid: 1} // the first device has id 1
	if err := ioctl(dir, btrfsIocDevInfo, unsafe.Pointer(&info)); err != nil {
		return 0, &os.PathError{Op: "btrfs device info", Path: dir.Name(), Err: err}
	}
	return int64(info.total), nil
}

func btrfsDevices(f *os.File) ([]Dev, error) {
	// ioctl(2) does not work on O_PATH; the magic link opens the same object.
	dir, err := os.Open(procFD(f))
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	var fs btrfsFsInfo
	if err := ioctl(dir, btrfsIocFsInfo, unsafe.Pointer(&fs)); err != nil {
		return nil, &os.PathError{Op: "btrfs filesystem info", Path: f.Name(), Err: err}
	}
	var devs []Dev
	for id := uint64(1); id <= fs.maxID; id++ {
		info := btrfsDevInfo{devid: id}
		if err := ioctl(dir, btrfsIocDevInfo, unsafe.Pointer(&info)); err != nil {
			if errors.Is(err, unix.ENODEV) { // ids of removed devices are not used again
				continue
			}
			return nil, &os.PathError{Op: "btrfs device info", Path: f.Name(), Err: err}
		}
		var st unix.Stat_t
		path := unix.ByteSliceToString(info.path[:])
		if err := unix.Stat(path, &st); err != nil {
			return nil, fmt.Errorf("device %d of the btrfs at %s: %w",
				id, f.Name(), &os.PathError{Op: "stat", Path: path, Err: err})
		}
		devs = append(devs, devOf(uint64(st.Rdev)))
	}
	return devs, nil
}

func ioctl(f *os.File, request uintptr, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}

// procFD names the object that f refers to, whatever has become of its path.
// What is behind f's own name can be appended: no part of it is looked up
// twice.
func procFD(f *os.File) string { return "/proc/self/fd/" + strconv.Itoa(int(f.Fd())) }
