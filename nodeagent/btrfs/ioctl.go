package btrfs

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Request numbers from linux/btrfs.h.
const (
	iocSubvolCreateV2  = 0x50009418
	iocSnapCreateV2    = 0x50009417
	iocSnapDestroyV2   = 0x5000943f
	iocSubvolGetFlags  = 0x80089419
	iocSubvolSetFlags  = 0x4008941a
	iocTreeSearchV2    = 0xc0709411
	iocInoLookup       = 0xd0009412
	iocStartSync       = 0x80089418
	iocSync            = 0x00009408
	iocQuotaCtl        = 0xc0109428
	iocQgroupAssign    = 0x40189429
	iocQgroupCreate    = 0x4010942a
	iocQgroupLimit     = 0x8030942b
	quotaCtlEnableSimp = 4 // BTRFS_QUOTA_CTL_ENABLE_SIMPLE_QUOTA
)

// Flags of volArgs and of BTRFS_IOC_SUBVOL_{GET,SET}FLAGS.
const (
	subvolReadOnly      = 1 << 1
	subvolQgroupInherit = 1 << 2
)

// volArgs is struct btrfs_ioctl_vol_args_v2.
type volArgs struct {
	FD      int64
	TransID uint64
	Flags   uint64
	Size    uint64 // of what Inherit points at
	Inherit unsafe.Pointer
	_       [2]uint64
	Name    [4040]byte
}

// qgroupInherit is struct btrfs_qgroup_inherit with room for one group.
type qgroupInherit struct {
	Flags      uint64
	Groups     uint64 // how many are in Group
	RefCopies  uint64
	ExclCopies uint64
	Limit      qgroupLimit
	Group      uint64
}

// qgroupLimit is struct btrfs_qgroup_limit. Sizes are bytes.
type qgroupLimit struct {
	Flags   uint64
	MaxRfer uint64
	MaxExcl uint64
	RsvRfer uint64
	RsvExcl uint64
}

const limitMaxRfer = 1 << 0 // BTRFS_QGROUP_LIMIT_MAX_RFER

// ErrUnsupported says that the running kernel lacks a feature.
type ErrUnsupported struct {
	Feature string
	Since   string // the Linux version that has it
}

func (e *ErrUnsupported) Error() string {
	return fmt.Sprintf("%s: not supported by this kernel; needs Linux %s", e.Feature, e.Since)
}

// ioctl runs a request on f's descriptor and returns its bare errno.
func ioctl(f *os.File, request uintptr, arg unsafe.Pointer) error {
	return control(f, func(fd int) error {
		for {
			_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(arg))
			switch errno {
			case 0:
				return nil
			case unix.EINTR:
			default:
				return errno
			}
		}
	})
}

// control runs op on f's descriptor, which stays open meanwhile.
func control(f *os.File, op func(fd int) error) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var opErr error
	if err := conn.Control(func(fd uintptr) { opErr = op(int(fd)) }); err != nil {
		return err
	}
	return opErr
}
