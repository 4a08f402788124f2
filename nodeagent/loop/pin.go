package loop

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// pins are the devices that this process keeps open, by number. There is one set for the process and not one for each
// caller, since a device is open or it is not: who detaches a device has to let go of it, whoever had it kept.
var pins struct {
	sync.Mutex
	files map[int]*os.File
}

// Pin keeps a device open until this process ends or detaches it. Its number can then not come to mean another image: whoever
// clears the device (losetup --detach) only marks it, and the mark is taken off, here and by [TakeBack]. A pin is no use of the
// device: [Attach] and [Detach] of this process see past it.
//
// dev must be over its image still. A second call confirms it.
func Pin(dev Device) error {
	return PinIf(dev.Number, func(d Device) bool { return d.Backing == dev.Backing })
}

// PinIf is [Pin] of the device with that number if ours, which is told what is there while it is open, agrees. Otherwise, and
// when nothing is there, nothing is kept, and the error says so.
func PinIf(number int, ours func(Device) bool) error {
	pins.Lock()
	defer pins.Unlock()
	f, err := openNode(number, unix.O_RDONLY)
	if err != nil {
		return fmt.Errorf("keep loop%d open: %w", number, err)
	}
	d, err := inspectOpen(number, f)
	if err == nil && !ours(d) {
		err = fmt.Errorf("it is over another file: %s", d.Backing)
	}
	if err == nil && d.Autoclear {
		err = takeBack(number, f)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("keep loop%d open: %w", number, err), f.Close())
	}
	if pins.files == nil {
		pins.files = map[int]*os.File{}
	}
	if pins.files[number] != nil {
		return f.Close()
	}
	pins.files[number] = f
	return nil
}

// IsPinned reports whether this process keeps the device open. It then is over the image it was over when [Pin] was called.
func IsPinned(number int) bool {
	pins.Lock()
	defer pins.Unlock()
	return pins.files[number] != nil
}

// TakeBack takes off the mark that makes a device detach itself at its last close, if the device is over its image still and
// somebody has set the mark.
func TakeBack(dev Device) error {
	f, err := openNode(dev.Number, unix.O_RDONLY)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := status(f)
	if err != nil {
		return err
	}
	if backingOf(info) != dev.Backing {
		return fmt.Errorf("%s is over another file by now, not %s", dev.Path, dev.Backing)
	}
	return takeBack(dev.Number, f)
}

func takeBack(number int, f *os.File) error {
	info, err := status(f)
	if err != nil || info.Flags&unix.LO_FLAGS_AUTOCLEAR == 0 {
		return err
	}
	return takeOffAutoclear(f, number, info)
}

// Unpin lets go of a device, and reports whether it was kept.
func Unpin(number int) bool {
	pins.Lock()
	defer pins.Unlock()
	f := pins.files[number]
	if f == nil {
		return false
	}
	delete(pins.files, number)
	f.Close()
	return true
}

// pinnedAt is the name in /proc/self/fd of the descriptor that keeps a device open; empty: none does.
func pinnedAt(number int) string {
	pins.Lock()
	defer pins.Unlock()
	if f := pins.files[number]; f != nil {
		return strconv.Itoa(int(f.Fd()))
	}
	return ""
}
