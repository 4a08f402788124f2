package loop

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/nodeagent/mount"
)

// Backing identifies the file beneath a loop device, as stat(2) does.
type Backing struct {
	Dev   uint64 // st_dev
	Inode uint64 // st_ino
}

func (b Backing) String() string {
	return fmt.Sprintf("inode %d on device %d:%d", b.Inode, unix.Major(b.Dev), unix.Minor(b.Dev))
}

// BackingOf returns the identity of an open file.
func BackingOf(image *os.File) (Backing, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(image.Fd()), &st); err != nil {
		return Backing{}, &os.PathError{Op: "stat", Path: image.Name(), Err: err}
	}
	return Backing{Dev: st.Dev, Inode: st.Ino}, nil
}

func backingOf(info *unix.LoopInfo64) Backing {
	return Backing{Dev: info.Device, Inode: info.Inode}
}

// Device is a loop device with an image beneath it.
type Device struct {
	Path    string // "/dev/loop3"
	Number  int    // 3
	Dev     mount.Dev
	Backing Backing

	Name        string // what was given as Options.Name; losetup and others put a path here
	BackingPath string // the path of the image, as the kernel knows it now
	Deleted     bool   // no path leads to the image any more

	BlockSize uint32 // logical block size, bytes
	SizeBytes int64  // size of the device
	Offset    uint64 // where in the image it begins, bytes
	SizeLimit uint64 // bytes; 0: to the end of the image

	DirectIO  bool // in force, not just asked for
	ReadOnly  bool
	Autoclear bool // it will detach itself when the last user closes it
	Discard   bool // discards reach the image and free its space
}

const (
	sysBlock = "/sys/block"
	// Files of a device's directory there.
	backingFile, autoclear = "loop/backing_file", "loop/autoclear"
	// Fixed numbers, Documentation/admin-guide/devices.txt.
	controlMajor, controlMinor = 10, 237
)

// errUnbound says that a loop device has no image, or not any more.
var errUnbound = errors.New("no image attached")

func inspectOpen(number int, f *os.File) (Device, error) {
	info, err := status(f)
	if err != nil {
		return Device{}, err
	}
	rdev, err := mount.BlockDevice(f)
	if err != nil {
		return Device{}, err
	}
	blockSize, err := unix.IoctlGetInt(int(f.Fd()), unix.BLKSSZGET)
	if err != nil {
		return Device{}, &os.PathError{Op: "get the block size of", Path: f.Name(), Err: err}
	}
	size, err := sizeOf(f)
	if err != nil {
		return Device{}, err
	}
	discard, err := readNumber(number, discardInForce)
	if err != nil {
		return Device{}, err
	}
	d := Device{
		Path: f.Name(), Number: number, Dev: rdev,
		Backing:   backingOf(info),
		Name:      unix.ByteSliceToString(info.File_name[:]),
		BlockSize: uint32(blockSize), SizeBytes: size,
		Offset: info.Offset, SizeLimit: info.Sizelimit,
		DirectIO:  info.Flags&unix.LO_FLAGS_DIRECT_IO != 0,
		ReadOnly:  info.Flags&unix.LO_FLAGS_READ_ONLY != 0,
		Autoclear: info.Flags&unix.LO_FLAGS_AUTOCLEAR != 0,
		Discard:   discard != 0,
	}
	if path, err := os.ReadFile(sysfs(number, backingFile)); err == nil {
		d.BackingPath = strings.TrimSuffix(string(path), "\n")
		d.Deleted = isDeleted(d.BackingPath, d.Backing)
	}
	return d, nil
}

// isDeleted reports whether a path as the kernel prints it says that the file
// is gone; a file can also be called "x (deleted)".
func isDeleted(path string, b Backing) bool {
	if !strings.HasSuffix(path, " (deleted)") {
		return false
	}
	var st unix.Stat_t
	return unix.Lstat(path, &st) != nil || (Backing{Dev: st.Dev, Inode: st.Ino}) != b
}

// status is LOOP_GET_STATUS64; the error is errUnbound when nothing is
// attached.
func status(f *os.File) (*unix.LoopInfo64, error) {
	info, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
	if errors.Is(err, unix.ENXIO) {
		return nil, fmt.Errorf("%s: %w", f.Name(), errUnbound)
	}
	if err != nil {
		return nil, &os.PathError{Op: "get the loop status of", Path: f.Name(), Err: err}
	}
	return info, nil
}

// openNode opens /dev/loopN, makes the node when it is missing, and proves that
// it is the device with this number.
func openNode(number int, flags int) (*os.File, error) {
	path := "/dev/loop" + strconv.Itoa(number)
	// With the module's parameter max_part the minor number is not the loop
	// number: sysfs knows.
	content, err := os.ReadFile(sysfs(number, "dev"))
	if vanished(err) {
		return nil, fmt.Errorf("%s: %w", path, errUnbound)
	}
	if err != nil {
		return nil, err
	}
	var want mount.Dev
	if _, err := fmt.Sscanf(string(content), "%d:%d", &want.Major, &want.Minor); err != nil {
		return nil, fmt.Errorf("device number of %s: %w", path, err)
	}
	f, err := openOrMake(path, flags, unix.S_IFBLK|0o660, want)
	// Being detached or removed at this moment.
	if errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENODEV) {
		return nil, fmt.Errorf("%s: %w", path, errUnbound)
	}
	if err != nil {
		return nil, err
	}
	if dev, err := mount.BlockDevice(f); err != nil || dev != want {
		f.Close()
		return nil, fmt.Errorf("%s is not the loop device %s: %v, %w",
			path, want, dev, errors.Join(err, unix.ENODEV))
	}
	return f, nil
}

// vanished reports whether reading something of a device's in sysfs failed
// because the device was removed (LOOP_CTL_REMOVE): its directory is gone
// (ENOENT), or was removed under the open file (ENODEV).
func vanished(err error) bool {
	return errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV)
}

// openOrMake opens a device node and makes it first if there is none.
func openOrMake(path string, flags int, mode uint32, dev mount.Dev) (*os.File, error) {
	f, err := os.OpenFile(path, flags, 0)
	if !errors.Is(err, os.ErrNotExist) {
		return f, err
	}
	err = unix.Mknod(path, mode, int(unix.Mkdev(dev.Major, dev.Minor)))
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, &os.PathError{Op: "mknod", Path: path, Err: err}
	}
	return os.OpenFile(path, flags, 0)
}

func openControl() (*os.File, error) {
	return openOrMake("/dev/loop-control", unix.O_RDWR, unix.S_IFCHR|0o660,
		mount.Dev{Major: controlMajor, Minor: controlMinor})
}

func sysfs(number int, name string) string {
	return filepath.Join(sysBlock, "loop"+strconv.Itoa(number), name)
}

// readNumber reads a file in sysfs that holds one number.
func readNumber(number int, name string) (uint64, error) {
	text, err := readText(sysfs(number, name))
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(text, 10, 64)
}
