package loop

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// pins are the devices that this process keeps open, by number. There is one
// set for the process and not one for each caller, since a device is open or it
// is not: who detaches a device has to let go of it, whoever had it kept.
var pins struct {
	sync.Mutex
	kept map[int]*pin
}

// pin is one device, with the files of sysfs that every [Look] reads of it. A
// file that is open already is read for a quarter of what opening it costs, and
// costs a descriptor and a page of the kernel's; what it says is made at each
// read, and once the device is removed it says ENODEV.
type pin struct {
	device *os.File
	// mu keeps the descriptors from being somebody else's while they are read.
	mu            sync.RWMutex
	backing, mark int // of loop/backing_file and loop/autoclear; -1: not open
}

func keep(number int, device *os.File) *pin {
	open := func(name string) int {
		fd, err := unix.Open(sysfs(number, name), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return -1 // it is read as any other's
		}
		return fd
	}
	return &pin{device: device, backing: open(backingFile), mark: open(autoclear)}
}

func (p *pin) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.device.Close()
	for _, fd := range []int{p.backing, p.mark} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
	p.device, p.backing, p.mark = nil, -1, -1
}

// read reads one of its files.
func (p *pin) read(name string) (string, error) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	fd := p.backing
	if name == autoclear {
		fd = p.mark
	}
	var content [4096]byte
	n, err := unix.Pread(fd, content[:], 0)
	if err != nil {
		return "", err
	}
	return strings.TrimSuffix(string(content[:n]), "\n"), nil
}

// pinned returns what is kept of a device, or nil.
func pinned(number int) *pin {
	pins.Lock()
	defer pins.Unlock()
	return pins.kept[number]
}

// Pin keeps a device open until this process ends or detaches it. Its number
// can then not come to mean another image: whoever clears the device (losetup
// --detach) only marks it, and the mark is taken off, here and by [TakeBack]. A
// pin is no use of the device: [Attach] and [Detach] of this process see past
// it.
//
// dev must be over its image still. A second call confirms it.
func Pin(dev Device) error {
	return PinIf(dev.Number, func(d Device) bool { return d.Backing == dev.Backing })
}

// PinIf is [Pin] of the device with that number if ours, which is told what is
// there while it is open, agrees. Otherwise, and when nothing is there, nothing
// is kept, and the error says so.
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
	if pins.kept == nil {
		pins.kept = map[int]*pin{}
	}
	if pins.kept[number] != nil {
		return f.Close()
	}
	pins.kept[number] = keep(number, f)
	return nil
}

// IsPinned reports whether this process keeps the device open. It then is over
// the image it was over when [Pin] was called.
func IsPinned(number int) bool { return pinned(number) != nil }

// TakeBack takes off the mark that makes a device detach itself at its last
// close, if the device is over its image still and somebody has set the mark.
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
	p := pins.kept[number]
	if p == nil {
		return false
	}
	delete(pins.kept, number)
	p.close()
	return true
}

// pinnedAt is the name in /proc/self/fd of the descriptor that keeps a device
// open; empty: none does.
func pinnedAt(number int) string {
	pins.Lock()
	defer pins.Unlock()
	if p := pins.kept[number]; p != nil {
		return strconv.Itoa(int(p.device.Fd()))
	}
	return ""
}
