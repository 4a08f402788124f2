package quota

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// An inode that is immutable or append-only keeps its project id too. To give
// it another one these flags are taken off, and a process that dies in that
// moment must not leave them off: so it is written down before, and whoever
// comes next puts them back.

// Bare is an inode whose flags are off for a moment: its handle
// (name_to_handle_at(2)), by which it is found whatever it is called by then,
// and what has to be put back.
type Bare struct {
	HandleType int32  `json:"handleType"`
	Handle     []byte `json:"handle"`
	Flags      uint32 `json:"flags"` // of struct fsxattr
}

// Journal is where inodes are written down whose flags are off.
type Journal interface {
	// Note writes one down, durably, before its flags are taken off. Another
	// one is not noted then: it replaces nothing.
	Note(Bare) error
	// Off is called while they are off. An error leaves them so.
	Off() error
	// Forget ends a note, once the flags are back. A second call does nothing.
	Forget() error
}

const bothFlags = xflagImmutable | xflagAppend

// errFlagsStay says that the flags cannot be taken off.
var errFlagsStay = errors.New("its flags cannot be taken off")

// withoutFlags calls do while the inode is neither immutable nor append-only.
func withoutFlags(fd int, journal Journal, do func() error) error {
	attr, err := getFSXattr(fd)
	if err != nil {
		return err
	}
	handle, _, err := unix.NameToHandleAt(fd, "", unix.AT_EMPTY_PATH)
	if err != nil {
		return fmt.Errorf("name_to_handle_at: %w", err)
	}
	flags := attr.XFlags & bothFlags
	if err := journal.Note(Bare{HandleType: handle.Type(), Handle: handle.Bytes(),
		Flags: flags}); err != nil {
		return err
	}
	attr.XFlags &^= bothFlags
	if err := ioctl(fd, fsIocFSSetXattr, unsafe.Pointer(&attr)); err != nil {
		return errors.Join(errFlagsStay, err, journal.Forget())
	}
	if err := journal.Off(); err != nil {
		return err
	}
	err = do()
	if e := setFlags(fd, flags); e != nil {
		return errors.Join(err, e) // the note stays
	}
	return errors.Join(err, journal.Forget())
}

func setFlags(fd int, flags uint32) error {
	attr, err := getFSXattr(fd)
	if err != nil || attr.XFlags&flags == flags {
		return err
	}
	attr.XFlags |= flags
	if err := ioctl(fd, fsIocFSSetXattr, unsafe.Pointer(&attr)); err != nil {
		return fmt.Errorf("put back flags %#x: %w", flags, err)
	}
	return nil
}

// PutBack gives an inode of the filesystem that fs is on the flags that it had.
// A second call changes nothing. One that is gone needs none. It is for what a
// journal has, which nobody but us can have written: a handle leads to any
// inode.
func PutBack(fs *os.File, b Bare) error {
	if b.Flags&^bothFlags != 0 {
		return fmt.Errorf("put back flags %#x: %w", b.Flags, unix.EINVAL)
	}
	var fd int
	err := control(fs, func(mount int) (err error) {
		// NONBLOCK: a lease on the file would make us wait.
		fd, err = unix.OpenByHandleAt(mount, unix.NewFileHandle(b.HandleType, b.Handle),
			unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOATIME|unix.O_CLOEXEC)
		return err
	})
	if errors.Is(err, unix.ESTALE) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open an inode whose flags are off: %w", err)
	}
	defer unix.Close(fd)
	return setFlags(fd, b.Flags)
}
