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

// List returns every loop device of the machine that has an image beneath it.
func List() ([]Device, error) {
	return find(
		func(identity) bool { return true },
		func(*unix.LoopInfo64) bool { return true },
	)
}

// Find returns every loop device over an image, whatever its offset or name:
// none, if the image is not attached. image may be opened with O_PATH.
func Find(image *os.File) ([]Device, error) {
	backing, err := BackingOf(image)
	if err != nil {
		return nil, err
	}
	return find(
		func(is identity) bool { return is.backing == backing },
		func(info *unix.LoopInfo64) bool { return backingOf(info) == backing },
	)
}

// FindOf is [Find] for an image that is opened for it: where nobody has the
// image, it is found out without a look at all devices. open must open the
// image anew, for reading: an open file that a device was given is the device's
// as well.
func FindOf(open func() (*os.File, error)) ([]Device, error) {
	image, err := open()
	if err != nil {
		return nil, err
	}
	defer image.Close()
	if isAlone(image) {
		return nil, nil
	}
	return Find(image)
}

// isAlone reports whether image is the only open file that leads to its inode,
// wherever on the machine: then no device has it, for a device keeps the open
// file that it was given. The kernel grants a write lease to the only one alone
// (fcntl(2)), so asking for one costs the same with one device and with a
// thousand. It is given back at once; who opens the image in between waits for
// that. False may also mean that it cannot be told: by O_PATH, or where the
// filesystem has no leases.
func isAlone(image *os.File) bool {
	fd := image.Fd()
	if _, err := unix.FcntlInt(fd, unix.F_SETLEASE, unix.F_WRLCK); err != nil {
		return false
	}
	_, err := unix.FcntlInt(fd, unix.F_SETLEASE, unix.F_UNLCK)
	return err == nil
}

// find returns the devices that a scan found to be candidates and whose status,
// asked for anew, matches.
func find(candidate func(identity) bool, match func(*unix.LoopInfo64) bool) ([]Device, error) {
	scanned, err := theScans.scan()
	if err != nil {
		return nil, fmt.Errorf("list loop devices: %w", err)
	}
	var devices []Device
	for _, is := range scanned {
		if !candidate(is) {
			continue
		}
		dev, ok, err := inspectIf(is.number, match)
		if err != nil && !errors.Is(err, errUnbound) && !deadBeneath(err) {
			return nil, fmt.Errorf("list loop devices: %w", err)
		}
		if ok && err == nil {
			devices = append(devices, dev)
		}
	}
	return devices, nil
}

// inspectIf reads the state of a device that matches. Opening it, for however
// short, makes somebody else's LOOP_CLR_FD a mere mark.
func inspectIf(number int, match func(*unix.LoopInfo64) bool) (Device, bool, error) {
	f, err := openNode(number, unix.O_RDONLY)
	if err != nil {
		return Device{}, false, err
	}
	defer f.Close()
	info, err := status(f)
	if err != nil || !match(info) {
		return Device{}, false, err
	}
	dev, err := inspectOpen(number, f)
	return dev, err == nil, err
}

// inspect reads a device's state.
func inspect(number int) (Device, error) {
	dev, _, err := inspectIf(number, func(*unix.LoopInfo64) bool { return true })
	return dev, err
}

// identity is what lies beneath a device. The kernel gives a device a new
// sequence number (/sys/block/loopN/diskseq, since Linux 5.15) before it gives
// it another image, so as long as that is the same, so is this.
type identity struct {
	number   int
	sequence uint64 // 0: the kernel has none
	backing  Backing
	rdevice  uint64 // if the image is a device itself: which
}

// scans looks through the machine's loop devices, for all who need that at the
// same time together: who asks is never served by a scan that began before. It
// opens only devices that it has not seen yet, so that bringing up thousands of
// volumes takes a file read in sysfs for each pair of them, and no more.
type scans struct {
	mu      sync.Mutex
	next    *scan // not begun yet
	running sync.Mutex
	// What belongs to who is running, by number. A file of sysfs that is open
	// already is read for a fraction of what opening it costs.
	seen      map[int]identity
	sequences map[int]*os.File
}

type scan struct {
	done  chan struct{}
	found []identity
	err   error
}

var theScans scans

func (s *scans) scan() ([]identity, error) {
	s.mu.Lock()
	if next := s.next; next != nil {
		s.mu.Unlock()
		<-next.done
		return next.found, next.err
	}
	mine := &scan{done: make(chan struct{})}
	s.next = mine
	s.mu.Unlock()

	s.running.Lock()
	defer s.running.Unlock()
	defer close(mine.done)
	s.mu.Lock()
	s.next = nil // from here on it has begun
	s.mu.Unlock()
	mine.found, mine.err = s.run()
	return mine.found, mine.err
}

func (s *scans) run() ([]identity, error) {
	entries, err := os.ReadDir(sysBlock)
	if err != nil {
		return nil, err
	}
	var found []identity
	seen := make(map[int]identity, len(s.seen))
	defer s.closeUnseen()
	for _, e := range entries {
		number, err := strconv.Atoi(strings.TrimPrefix(e.Name(), "loop"))
		if err != nil || !strings.HasPrefix(e.Name(), "loop") {
			continue
		}
		is, err := identify(number, s.sequence(number), s.seen[number])
		if errors.Is(err, errUnbound) || deadBeneath(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		seen[number] = is
		found = append(found, is)
	}
	s.seen = seen
	return found, nil
}

// sequence returns the device's sequence number; 0: the kernel has none, or it
// cannot be read.
func (s *scans) sequence(number int) uint64 {
	for range 2 {
		f := s.sequences[number]
		if f == nil {
			var err error
			if f, err = os.Open(sysfs(number, "diskseq")); err != nil {
				return 0
			}
			if s.sequences == nil {
				s.sequences = map[int]*os.File{}
			}
			s.sequences[number] = f
		}

		var text [24]byte
		n, err := unix.Pread(int(f.Fd()), text[:], 0)
		if err == nil {
			sequence, _ := strconv.ParseUint(strings.TrimSpace(string(text[:n])), 10, 64)
			return sequence
		}

		// ENODEV: the device was removed; one of that number may be there again.
		f.Close()
		delete(s.sequences, number)
	}
	return 0
}

// closeUnseen closes the files of devices that have no image any more.
func (s *scans) closeUnseen() {
	for number, f := range s.sequences {
		if _, bound := s.seen[number]; !bound {
			f.Close()
			delete(s.sequences, number)
		}
	}
}

// deadBeneath tells a device whose image cannot be looked at any more: its
// filesystem shut down, or its server is gone. It is not the image that our
// caller has just looked at, and must not keep it from being found.
func deadBeneath(err error) bool {
	return errors.Is(err, unix.EIO) || errors.Is(err, unix.ESTALE) || errors.Is(err, unix.ENOTCONN)
}

// identify tells what lies beneath a device with a sequence number, which was
// last seen with the identity before. There is no other way to learn the inode than to open the
// device. That there is no image is not remembered: the kernel gives out the
// new number first and attaches the image after that.
func identify(number int, sequence uint64, before identity) (identity, error) {
	if sequence != 0 && sequence == before.sequence {
		return before, nil
	}
	// Spares us from opening devices that have no image.
	if _, err := os.Stat(sysfs(number, backingFile)); err != nil {
		return identity{}, errUnbound
	}
	f, err := openNode(number, unix.O_RDONLY)
	if err != nil {
		return identity{}, err
	}
	defer f.Close()
	info, err := status(f)
	if err != nil {
		return identity{}, err
	}
	return identity{
		number:   number,
		sequence: sequence,
		backing:  backingOf(info),
		rdevice:  info.Rdevice,
	}, nil
}
