package btrfs

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// flagNoCOW is FS_NOCOW_FL of linux/fs.h.
const flagNoCOW = 0x00800000

// SetNoCOW has files that are made in an empty directory from then on, at any
// depth, overwritten in place, and reads that back. They are neither
// checksummed nor compressed by btrfs. A file's or a directory's owner can take
// it off while that is empty (chattr -C). A second call changes nothing.
//
// Without it each page that is rewritten is a new extent, and the old one stays
// charged for as long as any byte of it is referred to: a file that does not
// grow uses up the limit of its volume.
func SetNoCOW(dir *os.File) error {
	err := control(dir, func(fd int) error {
		flags, err := unix.IoctlGetInt(fd, unix.FS_IOC_GETFLAGS)
		if err != nil || flags&flagNoCOW != 0 {
			return err
		}
		if err := unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, flags|flagNoCOW); err != nil {
			return err
		}
		if flags, err = unix.IoctlGetInt(fd, unix.FS_IOC_GETFLAGS); err == nil &&
			flags&flagNoCOW == 0 {
			err = fmt.Errorf("read back flags %#x", flags)
		}
		return err
	})
	if err != nil {
		return &os.PathError{Op: "switch copy-on-write off in", Path: dir.Name(), Err: err}
	}
	return nil
}
