package loop

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Resize makes a device as large as its image is now, and returns the size in
// bytes, as the device reports it. It works while the device is in use, is
// idempotent, and refuses a device that is not over the image.
func Resize(dev Device, image *os.File) (int64, error) {
	size, err := resize(dev, image)
	if err != nil {
		return 0, fmt.Errorf("resize %s to %s: %w", dev.Path, image.Name(), err)
	}
	return size, nil
}

func resize(dev Device, image *os.File) (int64, error) {
	backing, err := BackingOf(image)
	if err != nil {
		return 0, err
	}
	st, err := image.Stat()
	if err != nil {
		return 0, err
	}
	f, err := openNode(dev.Number, unix.O_RDONLY)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	// Nobody can change what is beneath a device that we have open.
	info, err := status(f)
	if err != nil {
		return 0, err
	}
	if backingOf(info) != backing {
		return 0, fmt.Errorf("it is over another file, not %s", backing)
	}
	if err := unix.IoctlSetInt(int(f.Fd()), unix.LOOP_SET_CAPACITY, 0); err != nil {
		return 0, fmt.Errorf("set capacity: %w", err)
	}
	size, err := sizeOf(f)
	if err != nil {
		return 0, err
	}
	// Devices count in sectors.
	if want := st.Size() - int64(info.Offset); info.Sizelimit == 0 && size != want&^511 {
		return size, fmt.Errorf("it has %d bytes, the image %d", size, want)
	}
	return size, nil
}

// sizeOf is BLKGETSIZE64: the size of a block device in bytes.
func sizeOf(f *os.File) (int64, error) {
	var size uint64
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.BLKGETSIZE64,
		uintptr(unsafe.Pointer(&size))); errno != 0 {
		return 0, &os.PathError{Op: "get the size of", Path: f.Name(), Err: errno}
	}
	return int64(size), nil
}
