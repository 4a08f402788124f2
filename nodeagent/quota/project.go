package quota

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// From linux/fs.h; see ioctl_fsgetxattr(2) and ioctl_xfs_fssetxattr(2).
const (
	fsIocFSGetXattr = 0x801c581f
	fsIocFSSetXattr = 0x401c5820

	xflagImmutable   = 0x00000008
	xflagAppend      = 0x00000010
	xflagProjInherit = 0x00000200
)

// fsxattr is struct fsxattr.
type fsxattr struct {
	XFlags     uint32
	ExtSize    uint32
	NExtents   uint32
	ProjectID  uint32
	CowExtSize uint32
	_          [8]byte
}

// GetProject returns the project id of the inode f is open on, and whether
// what is made inside it (it must be a directory) inherits the id.
//
// f must be a real descriptor, not O_PATH, and must have been opened without
// following links: on a tenant's tree the caller's duty.
func GetProject(f *os.File) (id uint32, inherit bool, err error) {
	var attr fsxattr
	err = control(f, func(fd int) error {
		attr, err = getFSXattr(fd)
		return err
	})
	if err != nil {
		return 0, false, &os.PathError{Op: "get project id of", Path: f.Name(), Err: err}
	}
	return attr.ProjectID, attr.inherits(), nil
}

// SetProject sets the project id of the inode f is open on, for a directory
// also whether what is made inside inherits it, and reads both back. All other
// attributes are kept. What exists inside a directory is not touched: see
// Assign. The demands on f are GetProject's. A second call changes nothing.
func SetProject(f *os.File, id uint32, inherit bool) error {
	err := control(f, func(fd int) error {
		_, err := setProject(fd, id, inherit)
		return err
	})
	if err != nil {
		return &os.PathError{Op: fmt.Sprintf("set project id %d on", id), Path: f.Name(), Err: err}
	}
	return nil
}

// setProject reports whether it had anything to change.
func setProject(fd int, id uint32, inherit bool) (changed bool, err error) {
	attr, err := getFSXattr(fd)
	if err != nil {
		return false, err
	}
	if attr.ProjectID == id && attr.inherits() == inherit {
		return false, nil
	}
	attr.ProjectID = id
	attr.XFlags &^= xflagProjInherit
	if inherit {
		attr.XFlags |= xflagProjInherit
	}
	if err := ioctl(fd, fsIocFSSetXattr, unsafe.Pointer(&attr)); err != nil {
		return false, err
	}
	got, err := getFSXattr(fd)
	if err != nil {
		return false, err
	}
	if got.ProjectID != id || got.inherits() != inherit {
		return false, fmt.Errorf("set project id %d (inherit %t), read back %d (inherit %t)",
			id, inherit, got.ProjectID, got.inherits())
	}
	return true, nil
}

func (a fsxattr) inherits() bool { return a.XFlags&xflagProjInherit != 0 }

func getFSXattr(fd int) (attr fsxattr, err error) {
	err = ioctl(fd, fsIocFSGetXattr, unsafe.Pointer(&attr))
	return attr, err
}

func ioctl(fd int, request uintptr, arg unsafe.Pointer) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(arg))
	if errno != 0 {
		return errno
	}
	return nil
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
