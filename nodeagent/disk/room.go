package disk

import (
	"errors"
	"fmt"
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

// CapacityError says that a pool has no room for what was asked. Sizes are bytes.
type CapacityError struct {
	Pool      string // empty: none of the pools that match
	Need      int64
	Available int64 // of the pool with the most room
	// Freeing is promised to what was deleted, and comes back as it is freed.
	Freeing int64
}

func (e *CapacityError) Error() string {
	freeing := ""
	if e.Freeing > 0 {
		freeing = fmt.Sprintf("; %s of deleted volumes are being freed", BytesText(e.Freeing))
	}
	if e.Pool != "" {
		return fmt.Sprintf("pool %s does not have room for %s: %s can still be promised%s", e.Pool,
			BytesText(e.Need), BytesText(e.Available), freeing)
	}
	return fmt.Sprintf("no pool that matches has room for %s: at most %s can still be promised%s",
		BytesText(e.Need), BytesText(e.Available), freeing)
}

// BytesText prints bytes as people write them in a PVC where that is exact, else
// with two decimals.
func BytesText(n int64) string {
	units := []struct {
		size int64
		name string
	}{{1 << 40, "Ti"}, {1 << 30, "Gi"}, {1 << 20, "Mi"}, {1 << 10, "Ki"}}
	for _, u := range units {
		if n >= u.size && n%u.size == 0 {
			return fmt.Sprintf("%d%s", n/u.size, u.name)
		}
	}
	for _, u := range units {
		if n >= u.size {
			return fmt.Sprintf("%.2f%s", float64(n)/float64(u.size), u.name)
		}
	}
	return fmt.Sprintf("%d bytes", n)
}
