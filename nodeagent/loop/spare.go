package loop

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Spare is a loop device without an image that is made ready for one.
//
// What takes long about an attach is to switch discards off: newer kernels
// freeze the device's queue for that, and wait for an RCU grace period, 15 ms
// on a quiet machine. It can be done before there is an image, and so while
// mkfs works on the image.
type Spare struct {
	opts  Options // those that matter to a device without an image
	done  chan struct{}
	mu    sync.Mutex
	taken bool

	// Written before done is closed.
	node   *os.File // held with O_EXCL: nobody else can configure it
	number int
	err    error
}

// spareOptions leaves of the options what matters before there is an image.
func spareOptions(opts Options) Options {
	return Options{ReadOnly: opts.ReadOnly, Discard: opts.Discard}
}

// suits reports whether an image that is attached with these options can have
// the device.
func (s *Spare) suits(opts Options) bool {
	return s.opts.ReadOnly == opts.ReadOnly && s.opts.Discard == opts.Discard
}

// Prepare begins to make a device ready, in the background, for an image that
// will be attached with these options. It cannot fail: what goes wrong is said
// by [Spare.Attach]. Whoever calls it calls [Spare.Release] in the end.
//
// A process that dies in between leaves a device without an image, with
// discards off, as one that dies in [Detach] does.
func Prepare(ctx context.Context, opts Options) *Spare {
	s := &Spare{opts: spareOptions(opts), done: make(chan struct{})}
	go func() {
		defer close(s.done)
		s.node, s.number, s.err = prepare(ctx, s.opts)
	}()
	return s
}

// Attach is [Attach], with this device if the image needs a new one. It works
// once for a Spare; a second image gets another device.
func (s *Spare) Attach(ctx context.Context, image *os.File, opts Options) (Device, error) {
	return attachWith(ctx, s, image, opts)
}

// Release gives the device back, if it was not attached.
func (s *Spare) Release() {
	node, number, err := s.take()
	if err != nil {
		return
	}
	letGo(node, number)
	if !s.opts.Discard {
		remove(number)
	}
}

var errUsed = errors.New("the spare loop device was used already")

// take waits until the device is ready, and hands it over.
func (s *Spare) take() (node *os.File, number int, err error) {
	<-s.done
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return nil, 0, s.err
	}
	if s.taken {
		return nil, 0, errUsed
	}
	s.taken = true
	return s.node, s.number, nil
}

// prepare finds a device without an image, holds it and switches its discards
// off if they are not wanted.
func prepare(ctx context.Context, opts Options) (node *os.File, number int, err error) {
	control, err := openControl()
	if err != nil {
		return nil, 0, err
	}
	defer control.Close()
	for try := 0; ; try++ {
		number, err := freeNumber(control, try)
		if err != nil {
			return nil, 0, err
		}
		node, err := makeReady(number, opts)
		if err == nil {
			return node, number, nil
		}
		if !errors.Is(err, unix.EBUSY) && !errors.Is(err, errUnbound) {
			return nil, 0, err // else somebody was faster, or removed the device
		}
		if err := pause(ctx, try, err); err != nil {
			return nil, 0, err
		}
	}
}

// freeNumber asks for a loop device without an image. The kernel gives the
// lowest, also to others who ask at the same time, and also if somebody just
// holds that one open: who did not get it makes a new one.
func freeNumber(control *os.File, try int) (int, error) {
	if try%2 == 1 {
		if n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_ADD); err == nil {
			return n, nil
		}
	}
	n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
	if err != nil {
		return 0, fmt.Errorf("find a free loop device: %w", err)
	}
	return n, nil
}

// makeReady holds a device and switches its discards off if they are not
// wanted.
func makeReady(number int, opts Options) (*os.File, error) {
	f, err := hold(number, opts)
	if err != nil || opts.Discard {
		return f, err
	}
	// Held, its number cannot get to another device. Before Linux 6.8 this does
	// not outlive LOOP_CONFIGURE, after which it is looked at again.
	if err := os.WriteFile(sysfs(number, discardInForce), []byte("0"), 0); err != nil {
		letGo(f, number)
		return nil, fmt.Errorf("switch discards of %s off: %w", f.Name(), err)
	}
	return f, nil
}

// ours are the numbers of devices that this process is holding to give them an
// image.
var ours struct {
	sync.Mutex
	numbers map[int]bool
}

// hold opens a device with O_EXCL, so that nobody mounts it or gives it an
// image, and proves that it has none.
//
// In this process it never touches one that somebody else holds or has just
// configured. Else whoever was told of a free device just before that could
// hold it for an instant when it is to be mounted, and the mount would fail.
func hold(number int, opts Options) (*os.File, error) {
	ours.Lock()
	defer ours.Unlock()
	if ours.numbers[number] {
		return nil, unix.EBUSY
	}
	// Nobody else in this process gives it an image from here on.
	if _, err := os.Stat(sysfs(number, "loop/backing_file")); err == nil {
		return nil, unix.EBUSY
	}
	f, err := openUnbound(number, accessOf(opts)|unix.O_EXCL)
	if err != nil {
		return nil, err
	}
	if ours.numbers == nil {
		ours.numbers = map[int]bool{}
	}
	ours.numbers[number] = true
	return f, nil
}

// letGo closes a device that was held.
func letGo(f *os.File, number int) {
	f.Close()
	ours.Lock()
	defer ours.Unlock()
	delete(ours.numbers, number)
}

// openUnbound opens a device that has no image.
func openUnbound(number, flags int) (*os.File, error) {
	f, err := openNode(number, flags)
	if err != nil {
		return nil, err
	}
	_, err = status(f)
	if errors.Is(err, errUnbound) {
		return f, nil
	}
	f.Close()
	if err == nil {
		err = fmt.Errorf("%s has an image by now: %w", f.Name(), unix.EBUSY)
	}
	return nil, err
}

// pause waits a little before the next try. cause is why there has to be one.
func pause(ctx context.Context, try int, cause error) error {
	select {
	case <-ctx.Done():
		return fmt.Errorf("no free loop device after %d tries: %w",
			try+1, errors.Join(ctx.Err(), cause))
	case <-time.After(time.Duration(rand.Int64N(int64(min(try+1, 20) * int(time.Millisecond))))):
		return nil
	}
}
