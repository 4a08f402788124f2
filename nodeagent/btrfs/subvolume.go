package btrfs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// topInode is the number of every subvolume's top directory
// (BTRFS_FIRST_FREE_OBJECTID), and the smallest id of a subvolume that is not
// the filesystem's own.
const topInode = 256

// ErrNotSubvolume says that a directory is no subvolume.
var ErrNotSubvolume = errors.New("not a btrfs subvolume")

// NoGroup puts a new subvolume into no group but those the kernel chooses.
const NoGroup uint32 = 0

// CreateSubvolume makes the subvolume name, one path element, in the directory
// parent, in the same step a member of level-1 group 1/group, which must exist;
// that it is one is read back. With NoGroup it inherits the groups of the
// subvolume parent is in, if simple quotas are on.
//
// The subvolume belongs to root and has the mode 0777 less the umask. EEXIST
// means that name is taken: a second call is an error.
func CreateSubvolume(parent *os.File, name string, group uint32) error {
	return create(parent, iocSubvolCreateV2, &volArgs{}, name, group)
}

// Snapshot makes the subvolume name in dst a snapshot of the subvolume src, on
// the same filesystem (EXDEV otherwise), as CreateSubvolume does. Subvolumes
// inside src are not part of it.
func Snapshot(src, dst *os.File, name string, readOnly bool, group uint32) error {
	return control(src, func(fd int) error {
		args := &volArgs{FD: int64(fd)}
		if readOnly {
			args.Flags |= subvolReadOnly
		}
		return create(dst, iocSnapCreateV2, args, name, group)
	})
}

func create(parent *os.File, request uintptr, args *volArgs, name string, group uint32) error {
	path := filepath.Join(parent.Name(), name)
	if err := checkName(name); err != nil {
		return &os.PathError{Op: "create subvolume", Path: path, Err: err}
	}
	copy(args.Name[:len(args.Name)-1], name)
	if group != NoGroup {
		inherit := &qgroupInherit{Groups: 1, Group: qgroupID(group)}
		args.Flags |= subvolQgroupInherit
		args.Size = uint64(unsafe.Sizeof(*inherit))
		args.Inherit = unsafe.Pointer(inherit)
	}
	if err := ioctl(parent, request, unsafe.Pointer(args)); err != nil {
		return &os.PathError{Op: "create subvolume", Path: path, Err: err}
	}
	if group == NoGroup {
		return nil
	}
	f, err := openBeneath(parent, name)
	if err != nil {
		return err
	}
	defer f.Close()
	id, err := ID(f)
	if err != nil {
		return err
	}
	member, err := isMember(parent, id, group)
	if err != nil {
		return err
	}
	if !member {
		return fmt.Errorf("create subvolume %s: %w",
			path, &ErrNotInForce{Group: group, Subvolume: id})
	}
	return nil
}

// IsSubvolume reports whether f is the top directory of a btrfs subvolume.
func IsSubvolume(f *os.File) (bool, error) {
	var fs unix.Statfs_t
	var st unix.Stat_t
	err := control(f, func(fd int) error {
		return errors.Join(unix.Fstatfs(fd, &fs), unix.Fstat(fd, &st))
	})
	if err != nil {
		return false, &os.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	return fs.Type == unix.BTRFS_SUPER_MAGIC && st.Ino == topInode &&
		st.Mode&unix.S_IFMT == unix.S_IFDIR, nil
}

// ID returns the id of the subvolume f is in. Ids are not used again while the
// filesystem lives.
func ID(f *os.File) (uint64, error) {
	// struct btrfs_ioctl_ino_lookup_args; tree 0 asks for f's own.
	args := struct {
		Tree, Object uint64
		Name         [4080]byte
	}{Object: topInode}
	if err := ioctl(f, iocInoLookup, unsafe.Pointer(&args)); err != nil {
		return 0, &os.PathError{Op: "get subvolume id of", Path: f.Name(), Err: err}
	}
	return args.Tree, nil
}

// IsReadOnly reports whether the subvolume whose top directory f is may not be
// written to.
func IsReadOnly(f *os.File) (bool, error) {
	var flags uint64
	if err := ioctl(f, iocSubvolGetFlags, unsafe.Pointer(&flags)); err != nil {
		return false, &os.PathError{Op: "get subvolume flags of", Path: f.Name(), Err: err}
	}
	return flags&subvolReadOnly != 0, nil
}

// SetReadOnly sets whether the subvolume whose top directory f is may be
// written to. A second call changes nothing.
func SetReadOnly(f *os.File, readOnly bool) error {
	was, err := IsReadOnly(f)
	if err != nil || was == readOnly {
		return err
	}
	var flags uint64
	if readOnly {
		flags = subvolReadOnly
	}
	if err := ioctl(f, iocSubvolSetFlags, unsafe.Pointer(&flags)); err != nil {
		return &os.PathError{Op: "set subvolume flags of", Path: f.Name(), Err: err}
	}
	return nil
}

// Nested returns the ids of the subvolumes directly inside the subvolume with
// the given id, wherever in it they are.
func Nested(fs *os.File, id uint64) ([]uint64, error) {
	var ids []uint64
	err := search(fs, rootTree, rootRef, one(id), anyNumber, func(it item) bool {
		ids = append(ids, it.Offset)
		return true
	})
	return ids, err
}

// Sync commits the current transaction: usage read afterwards includes what was
// written before.
func Sync(fs *os.File) error {
	if err := ioctl(fs, iocSync, nil); err != nil {
		return fmt.Errorf("sync btrfs: %w", err)
	}
	return nil
}

func checkName(name string) error {
	if name == "" || name == "." || name == ".." || len(name) > 255 ||
		strings.ContainsAny(name, "/\x00") {
		return unix.EINVAL
	}
	return nil
}

// openBeneath opens a directory that is directly inside parent and on the same
// mount. No link is followed.
func openBeneath(parent *os.File, name string) (*os.File, error) {
	path := filepath.Join(parent.Name(), name)
	if err := checkName(name); err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	how := unix.OpenHow{
		Flags: unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS |
			unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	}
	var fd int
	err := control(parent, func(dir int) (err error) {
		for {
			fd, err = unix.Openat2(dir, name, &how)
			if !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) {
				return err
			}
		}
	})
	if err != nil {
		return nil, &os.PathError{Op: "openat2", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}
