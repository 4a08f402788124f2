package disk

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// IsFull reports whether err is of a disk, or of a quota around the pool, that
// has nothing left.
func IsFull(err error) bool { return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) }

// Allocate gives a file all its blocks up to size bytes, and that size:
// unwritten extents, which read as zeros. A second call changes nothing. After
// an error it may have some of them.
func Allocate(file *os.File, size int64) error {
	for {
		err := unix.Fallocate(int(file.Fd()), 0, 0, size)
		if err != unix.EINTR {
			return err
		}
	}
}

// Reserves reports whether preallocated room is taken from the disk: some
// filesystems (OpenZFS, and servers over it) say so and take none.
func Reserves(file *os.File, size int64) (bool, error) {
	if err := file.Sync(); err != nil {
		return false, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &st); err != nil {
		return false, err
	}
	return st.Blocks*512 >= size, nil // st_blocks is in units of 512 bytes (stat(2))
}
