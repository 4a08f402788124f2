package quota

import (
	"fmt"
	"math"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Commands of quotactl(2) from linux/dqblk_xfs.h. ext4 answers them as well:
// fs/quota/quota.c translates every format to one, so a single pair of
// structures serves both filesystems.
const (
	qXGetQuota     = 'X'<<8 + 3
	qXSetLimit     = 'X'<<8 + 4
	qXGetState     = 'X'<<8 + 8
	qXGetNextQuota = 'X'<<8 + 9

	prjQuota = 2 // the quota type; user is 0, group is 1
)

// basicBlock is the unit of every block count in struct fs_disk_quota.
const basicBlock = 512

// Bits of diskQuota.FieldMask, FS_DQ_* in linux/dqblk_xfs.h.
const (
	maskInodeSoft = 1 << 0
	maskInodeHard = 1 << 1
	maskBlockSoft = 1 << 2
	maskBlockHard = 1 << 3
)

const (
	diskQuotaVersion = 1      // FS_DQUOT_VERSION
	projectQuota     = 1 << 1 // FS_PROJ_QUOTA
)

// diskQuota is struct fs_disk_quota.
type diskQuota struct {
	Version     int8
	Flags       int8
	FieldMask   uint16
	ID          uint32
	BlockHard   uint64 // basic blocks
	BlockSoft   uint64
	InodeHard   uint64
	InodeSoft   uint64
	BlockCount  uint64 // basic blocks
	InodeCount  uint64
	InodeTimer  int32
	BlockTimer  int32
	InodeWarns  uint16
	BlockWarns  uint16
	TimersHigh  [3]int8
	_           int8
	RTBlockHard uint64
	RTBlockSoft uint64
	RTBlocks    uint64
	RTTimer     int32
	RTWarns     uint16
	_           int16
	_           [8]byte
}

const (
	stateVersion = 1 // FS_QSTATV_VERSION1

	stateAccounting = 1 << 4 // FS_QUOTA_PDQ_ACCT
	stateEnforced   = 1 << 5 // FS_QUOTA_PDQ_ENFD
)

// quotaState is struct fs_quota_statv.
type quotaState struct {
	Version   int8
	_         uint8
	Flags     uint16
	InCore    uint32
	Files     [3]quotaFile // user, group, project
	TimeLimit [3]int32
	WarnLimit [3]uint16
	_         uint16
	_         uint32
	_         [7]uint64
}

type quotaFile struct {
	Inode, Blocks uint64
	Extents, _    uint32
}

// quotactl runs one command for project quotas on the filesystem f is on.
func quotactl(f *os.File, command int, id uint32, arg unsafe.Pointer) error {
	return control(f, func(fd int) error {
		for {
			_, _, errno := unix.Syscall6(unix.SYS_QUOTACTL_FD, uintptr(fd),
				uintptr(command<<8|prjQuota), uintptr(id), uintptr(arg), 0, 0)
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

// toBasicBlocks converts a limit in bytes to the kernel's unit, rounded up to
// whole filesystem blocks of blockSize bytes (a multiple of 512).
func toBasicBlocks(bytes, blockSize uint64) (uint64, error) {
	// The kernel keeps quota in signed 64-bit bytes (qsize_t).
	if bytes > math.MaxInt64-blockSize {
		return 0, fmt.Errorf("limit of %d bytes: %w", bytes, unix.ERANGE)
	}
	blocks := (bytes + blockSize - 1) / blockSize
	return blocks * (blockSize / basicBlock), nil
}

// fromBasicBlocks converts the kernel's unit to bytes.
func fromBasicBlocks(blocks uint64) uint64 { return blocks * basicBlock }

// blockSize returns the block size of the filesystem f is on, in bytes: the
// granularity of its limits.
func blockSize(f *os.File) (uint64, error) {
	st, err := statfs(f)
	if err != nil {
		return 0, err
	}
	return max(uint64(st.Bsize), basicBlock), nil
}

func statfs(f *os.File) (unix.Statfs_t, error) {
	var st unix.Statfs_t
	if err := control(f, func(fd int) error { return unix.Fstatfs(fd, &st) }); err != nil {
		return st, &os.PathError{Op: "statfs", Path: f.Name(), Err: err}
	}
	return st, nil
}
