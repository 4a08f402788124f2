// Package loop attaches image files to loop devices and finds every loop device
// that stands on a set of images.
//
// Loop devices belong to the machine, not to a namespace: when a node of the
// testbed dies, the kernel drops its mounts and processes, but a loop device
// that somebody in the node attached stays. On a real machine a power cut takes
// all of them along, and Release does the same here, without touching any other
// loop device.
//
// Everything is matched by device and inode numbers (ioctl_loop(4),
// LOOP_GET_STATUS64). The names in sysfs are relative to the mount namespace
// that attached the device and may read the same for two different files.
package loop

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Device is one attached loop device. The numbers are those of stat(2): st_dev,
// st_ino and st_rdev.
type Device struct {
	Path   string // "/dev/loop7"
	Number uint64 // its own st_rdev

	BackingDevice uint64 // st_dev of the backing file: the filesystem it lies on
	BackingInode  uint64 // st_ino of the backing file
	BackingNumber uint64 // st_rdev of the backing file, if that is itself a block device; else 0
}

// Attach puts image on a free loop device, with direct I/O so that nothing is
// cached twice, and returns the open device. The device lets go of the image by
// itself when its last user is gone (LO_FLAGS_AUTOCLEAR): mount it before
// closing the returned file, and it lives as long as the mount.
func Attach(image string) (*os.File, error) {
	backing, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("attach a loop device: %w", err)
	}
	defer backing.Close()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("attach a loop device to %s: %w", image, err)
	}
	defer control.Close()

	// Between asking for a free device and taking it, somebody else may take
	// it: EBUSY, and the next one is asked for. It can be the same one for a
	// while: who makes a volume holds a device until the filesystem is made.
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		number, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("find a free loop device for %s: %w", image, err)
		}
		device, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", number), os.O_RDWR, 0)
		if err != nil {
			return nil, fmt.Errorf("attach a loop device to %s: %w", image, err)
		}
		config := unix.LoopConfig{Fd: uint32(backing.Fd())}
		config.Info.Flags = unix.LO_FLAGS_AUTOCLEAR | unix.LO_FLAGS_DIRECT_IO
		copy(config.Info.File_name[:unix.LO_NAME_SIZE-1], image)
		err = unix.IoctlLoopConfigure(int(device.Fd()), &config)
		if err == nil {
			return device, nil
		}
		device.Close()
		if !errors.Is(err, unix.EBUSY) {
			return nil, fmt.Errorf("attach %s to %s: %w", device.Name(), image, err)
		}
	}
	return nil, fmt.Errorf("attach a loop device to %s: every free one was taken by somebody else", image)
}

// List returns every attached loop device of the machine.
func List() ([]Device, error) {
	attached, err := filepath.Glob("/sys/block/loop*/loop") // the directory exists only while something is attached
	if err != nil {
		return nil, err
	}
	var devices []Device
	for _, entry := range attached {
		path := "/dev/" + strings.Split(entry, "/")[3]
		device, err := status(path)
		if errors.Is(err, unix.ENXIO) || errors.Is(err, os.ErrNotExist) {
			continue // detached since the listing
		}
		if err != nil {
			return nil, fmt.Errorf("ask %s for its backing file: %w", path, err)
		}
		devices = append(devices, device)
	}
	return devices, nil
}

func status(path string) (Device, error) {
	file, err := os.Open(path)
	if err != nil {
		return Device{}, err
	}
	defer file.Close()
	var own unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &own); err != nil {
		return Device{}, err
	}
	info, err := unix.IoctlLoopGetStatus64(int(file.Fd()))
	if err != nil {
		return Device{}, err
	}
	return Device{
		Path: path, Number: own.Rdev,
		BackingDevice: info.Device, BackingInode: info.Inode, BackingNumber: info.Rdevice,
	}, nil
}

// On returns every loop device that stands on one of the images: attached to
// it, to a file on a filesystem that is in it, or to such a loop device. What
// stands on another one comes before it. Images that do not exist count as
// having none.
func On(images []string) ([]Device, error) {
	type file struct{ device, inode uint64 }
	files := map[file]bool{}
	for _, image := range images {
		var stat unix.Stat_t
		if err := unix.Stat(image, &stat); err == nil {
			files[file{stat.Dev, stat.Ino}] = true
		} else if !errors.Is(err, unix.ENOENT) {
			return nil, fmt.Errorf("stat %s: %w", image, err)
		}
	}
	rest, err := List()
	if err != nil {
		return nil, err
	}
	var found []Device
	numbers, filesystems := map[uint64]bool{}, map[uint64]bool{}
	for grown := true; grown; {
		grown = false
		rest = slices.DeleteFunc(rest, func(d Device) bool {
			ours := files[file{d.BackingDevice, d.BackingInode}] || filesystems[d.BackingDevice] ||
				d.BackingNumber != 0 && numbers[d.BackingNumber]
			if !ours {
				return false
			}
			numbers[d.Number] = true
			for _, number := range filesystemNumbers(d) {
				filesystems[number] = true
			}
			found = slices.Insert(found, 0, d)
			grown = true
			return true
		})
	}
	return found, nil
}

// Detach lets go of the device's backing file; one that is still in use goes
// when its last user does. Detaching a free device is no error.
func Detach(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("detach: %w", err)
	}
	defer file.Close()
	if err := unix.IoctlSetInt(int(file.Fd()), unix.LOOP_CLR_FD, 0); err != nil && !errors.Is(err, unix.ENXIO) {
		return fmt.Errorf("detach %s: %w", path, err)
	}
	return nil
}

// Release detaches every loop device that stands on one of the images and
// returns when none is left, or with an error that names them when ctx ends.
// Whatever used them must be dead: the kernel drops the mounts of a dead
// namespace in the background, which is what there is to wait for.
//
// The devices' numbers are given back as new: settings of a queue (no discards,
// say) outlive the image, and would be met by whoever gets the number next.
func Release(ctx context.Context, images []string) error {
	released := map[string]bool{}
	for {
		devices, err := On(images)
		if err != nil {
			return err
		}
		if len(devices) == 0 {
			return forget(released)
		}
		for _, d := range devices {
			released[d.Path] = true
			if err := Detach(d.Path); err != nil && !errors.Is(err, unix.EBUSY) {
				return err
			}
		}
		select {
		case <-ctx.Done():
			var names []string
			for _, d := range devices {
				names = append(names, d.Path)
			}
			return fmt.Errorf("loop devices %s are still in use: %w", strings.Join(names, ", "), context.Cause(ctx))
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// forget has the kernel remove free loop devices. One that somebody else has
// taken meanwhile is theirs (EBUSY).
func forget(devices map[string]bool) error {
	if len(devices) == 0 {
		return nil
	}
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("give loop devices back: %w", err)
	}
	defer control.Close()
	for path := range devices {
		var number int
		if _, err := fmt.Sscanf(path, "/dev/loop%d", &number); err != nil {
			return fmt.Errorf("give %s back: %w", path, err)
		}
		err := unix.IoctlSetInt(int(control.Fd()), unix.LOOP_CTL_REMOVE, number)
		if err != nil && !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("give %s back: %w", path, err)
		}
	}
	return nil
}
