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
	seen    map[int]identity // by number; belongs to who is running
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
	for _, e := range entries {
		number, err := strconv.Atoi(strings.TrimPrefix(e.Name(), "loop"))
		if err != nil || !strings.HasPrefix(e.Name(), "loop") {
			continue
		}
		is, err := identify(number, s.seen[number])
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

// deadBeneath tells a device whose image cannot be looked at any more: its
// filesystem shut down, or its server is gone. It is not the image that our
// caller has just looked at, and must not keep it from being found.
func deadBeneath(err error) bool {
	return errors.Is(err, unix.EIO) || errors.Is(err, unix.ESTALE) || errors.Is(err, unix.ENOTCONN)
}

// identify tells what lies beneath a device, which was last seen with the
// identity before. There is no other way to learn the inode than to open the
// device. That there is no image is not remembered: the kernel gives out the
// new number first and attaches the image after that.
func identify(number int, before identity) (identity, error) {
	sequence, err := sequenceOf(number)
	if err != nil && !vanished(err) {
		return identity{}, err
	}
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

func sequenceOf(number int) (uint64, error) {
	if p := pinned(number); p != nil {
		if sequence, err := p.sequence(); err == nil {
			return sequence, nil
		}
	}
	return readNumber(number, "diskseq")
}
