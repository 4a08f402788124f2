package mount

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Error is a mount that failed.
type Error struct {
	Op     string // the system call
	Source string
	Target string
	FSType string
	Log    []string // what the kernel said about it; often it says more in its own log (dmesg)
	Err    error
}

func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "mount %s on %s", e.Source, e.Target)
	if e.FSType != "" {
		fmt.Fprintf(&b, " (%s)", e.FSType)
	}
	fmt.Fprintf(&b, ": %s: %v", e.Op, e.Err)
	if len(e.Log) > 0 {
		fmt.Fprintf(&b, " (kernel: %s)", strings.Join(e.Log, "; "))
	}
	return b.String()
}

func (e *Error) Unwrap() error { return e.Err }

// ErrOtherDevice says that what the kernel mounted is not on the device that
// was meant.
var ErrOtherDevice = errors.New("mounted from another device than the one given")

// Device mounts the filesystem on a block device at a directory. source is the
// open device (O_PATH is enough) and its name is a path that leads to it;
// target is the directory, also O_PATH. The mount becomes visible at the target
// in one step, complete with its options, and only after it was proven to be on
// the source: the kernel looks the device up by path, and a btrfs with the same
// UUID as a mounted one could give the wrong disk.
//
// It does not look at what is mounted at the target and would stack a second
// mount over it: ask [IsDeviceMountedAt] first. Mounting may take long, when a
// journal is replayed, and cannot be interrupted; ctx is looked at before.
//
// A device that is busy is tried again for a second: whoever looks for a free
// loop device, or looks whether one is in use, claims it for a moment (O_EXCL).
func Device(ctx context.Context, source, target *os.File, fstype string, opts Options) error {
	for end := time.Now().Add(busyFor); ; {
		err := device(ctx, source, target, fstype, opts)
		if failed := (*Error)(nil); !errors.As(err, &failed) || failed.Op != opCreate ||
			!errors.Is(err, unix.EBUSY) || time.Now().After(end) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(busyStep):
		}
	}
}

// busyFor is how long another one's claim to a device is waited for, and
// busyStep how long between two tries.
const (
	busyFor  = time.Second
	busyStep = 10 * time.Millisecond
)

// opCreate is where the kernel claims the device.
const opCreate = "fsconfig create"

// device is one try: a filesystem context that failed cannot be used again.
func device(ctx context.Context, source, target *os.File, fstype string,
	opts Options) (retErr error) {
	op := ""
	var fs *os.File
	defer func() {
		if retErr != nil {
			retErr = &Error{
				Op:     op,
				Source: source.Name(),
				Target: target.Name(),
				FSType: fstype,
				Log:    kernelLog(fs),
				Err:    retErr,
			}
		}
		if fs != nil {
			fs.Close()
		}
	}()
	if err := ctx.Err(); err != nil {
		return err
	}
	dev, err := BlockDevice(source)
	if err != nil {
		return err
	}
	op = "fsopen"
	fd, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return err
	}
	fs = os.NewFile(uintptr(fd), "fscontext")
	if err := unix.FsconfigSetString(fd, "source", source.Name()); err != nil {
		op = "fsconfig source"
		return err
	}
	for _, p := range opts.super {
		op = "fsconfig " + p.String()
		if p.hasValue {
			err = unix.FsconfigSetString(fd, p.key, p.value)
		} else {
			err = unix.FsconfigSetFlag(fd, p.key)
		}
		if err != nil {
			return err
		}
	}
	op = opCreate
	if err := unix.FsconfigCreate(fd); err != nil {
		return err
	}
	op = "fsmount"
	mfd, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, int(opts.attr))
	if err != nil {
		return err
	}
	// Closed before move_mount, it takes the mount along.
	mnt := os.NewFile(uintptr(mfd), source.Name())
	defer mnt.Close()
	op = "verify"
	devs, err := DevicesOf(mnt)
	if err != nil {
		return err
	}
	if !slices.Equal(devs, []Dev{dev}) {
		return fmt.Errorf("%w: want %s, is %v", ErrOtherDevice, dev, devs)
	}
	op = "move_mount"
	return move(mnt, target)
}

// kernelLog reads what the kernel has logged into a filesystem context, one
// message for each read, the first letter being its severity (e, w or i).
func kernelLog(fs *os.File) []string {
	if fs == nil {
		return nil
	}
	var log []string
	buf := make([]byte, 1024)
	for len(log) < 16 {
		n, err := unix.Read(int(fs.Fd()), buf)
		if err != nil || n <= 0 { // ENODATA: no more
			break
		}
		message := strings.TrimSpace(string(buf[:n]))
		log = append(log, strings.TrimPrefix(strings.TrimPrefix(message, "e "), "w "))
	}
	return log
}

// BindOptions say what differs in a bind mount from the mount its source is in.
type BindOptions struct {
	ReadOnly bool // through this mount; elsewhere it may be written
	NoExec   bool

	attr, clear uint64 // further MOUNT_ATTR_*, from [BindFlags]
}

// Bind makes a file or directory visible at a second place. source is what is
// bound, whatever its name means by now; target is a directory for a
// directory, any file for a file or device node. Both may be O_PATH.
//
// Nothing is resolved by name, so nobody who can rename or symlink in either
// place can lead it elsewhere (Kubernetes CVE-2021-25741, issue 120853). Mounts
// below the source are not taken along. nosuid, nodev and the like are
// inherited from the source's mount. ReadOnly on a device node protects the
// node, not the device: a read-only device is attached so.
func Bind(ctx context.Context, source, target *os.File, opts BindOptions) (retErr error) {
	op := "open_tree"
	defer func() {
		if retErr != nil {
			retErr = &Error{
				Op:     op,
				Source: source.Name(),
				Target: target.Name(),
				FSType: "bind",
				Err:    retErr,
			}
		}
	}()
	if err := ctx.Err(); err != nil {
		return err
	}
	fd, err := unix.OpenTree(int(source.Fd()), "",
		unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return err
	}
	tree := os.NewFile(uintptr(fd), source.Name())
	defer tree.Close()
	// Private: otherwise the clone would be a peer of the source's mount, and
	// what is mounted inside the one would appear in the other.
	attr := unix.MountAttr{Propagation: unix.MS_PRIVATE, Attr_set: opts.attr, Attr_clr: opts.clear}
	if opts.ReadOnly {
		attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	if opts.NoExec {
		attr.Attr_set |= unix.MOUNT_ATTR_NOEXEC
	}
	op = "mount_setattr"
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return err
	}
	op = "move_mount"
	return move(tree, target)
}

// move attaches a detached mount at the target.
func move(mnt, target *os.File) error {
	return unix.MoveMount(int(mnt.Fd()), "", int(target.Fd()), "",
		unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
}

// Unmount removes every mount that is stacked at a path, and is content when
// there is none or the path does not exist. A symlink in the last component is
// not followed.
//
// A mount in use gives an error wrapping unix.EBUSY; [Table.OfDevice] names
// who uses it from other namespaces. It never unmounts lazily or by force.
func Unmount(ctx context.Context, name string) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		switch err := unix.Unmount(name, unix.UMOUNT_NOFOLLOW); err {
		case nil:
		case unix.EINVAL, unix.ENOENT: // not a mount point
			return nil
		default:
			return &os.PathError{Op: "unmount", Path: name, Err: err}
		}
	}
}

// UnmountAt is [Unmount] of an entry of a directory that is given by its
// descriptor, which does not keep the mount busy. name is one component.
func UnmountAt(ctx context.Context, dir *os.File, name string) error {
	if name == "" || name == "." || name == ".." || strings.ContainsRune(name, '/') {
		return fmt.Errorf("unmount %q in %s: not the name of an entry", name, dir.Name())
	}
	if err := Unmount(ctx, procFD(dir)+"/"+name); err != nil {
		return fmt.Errorf("in %s: %w", dir.Name(), err)
	}
	return nil
}
