package loop

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// BusyError says that a loop device was left as it is because it is in use.
type BusyError struct {
	Device  Device
	Holders []Holder // who; may be empty when they cannot be seen
}

func (e *BusyError) Error() string {
	if len(e.Holders) == 0 {
		return e.Device.Path + " is in use"
	}
	var who []string
	for _, h := range e.Holders {
		who = append(who, h.String())
	}
	return fmt.Sprintf("%s is in use: %s", e.Device.Path, strings.Join(who, "; "))
}

// Is makes errors.Is(err, unix.EBUSY) true.
func (e *BusyError) Is(target error) bool { return target == unix.EBUSY }

// Detach takes a loop device off its image and returns when the device is
// free. dev must be over the image still: a device that by now has another
// image, or none, is left alone, and that is no error, for the image is not
// attached to it any more. image may be opened with O_PATH.
//
// A device in use stays, and the error is a [*BusyError]. Descriptors count,
// also those of this process.
func Detach(ctx context.Context, dev Device, image *os.File) error {
	backing, err := BackingOf(image)
	if err != nil {
		return err
	}
	unlock, err := lock(ctx, image)
	if err != nil {
		return fmt.Errorf("detach %s from %s: %w", dev.Path, image.Name(), err)
	}
	defer unlock()
	dev.Backing = backing
	if err := detach(ctx, dev); err != nil {
		return fmt.Errorf("detach %s from %s: %w", dev.Path, image.Name(), err)
	}
	return nil
}

// DetachBacking is [Detach] for an image that cannot be opened, as it was
// deleted, given as [List] reported it.
func DetachBacking(ctx context.Context, dev Device) error {
	if err := detach(ctx, dev); err != nil {
		return fmt.Errorf("detach %s from %s: %w", dev.Path, dev.Backing, err)
	}
	return nil
}

func detach(ctx context.Context, dev Device) (err error) {
	if Unpin(dev.Number) {
		defer func() {
			if err != nil {
				// It stays, so it is kept as before; that it is over another
				// image by now is no fault of ours.
				_ = Pin(dev)
			}
		}()
	}
	// Somebody who lists loop devices has each open for an instant (so do we,
	// in other goroutines, and udev): only who stays is a user.
	const tries = 25
	for try := 1; ; try++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		state, err := clear(dev)
		switch {
		case err != nil:
			return err
		case state == notOurs:
			return nil
		case state == cleared:
			if err := waitDetached(ctx, dev); err != nil {
				return err
			}
			if !dev.Discard {
				remove(dev.Number)
			}
			return nil
		case state == claimed, try == tries:
			return busy(dev)
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(try) * time.Millisecond):
		}
	}
}

// outcome is what came of an attempt to detach.
type outcome int

const (
	notOurs outcome = iota // over another image, or none
	cleared                // detached, at the latest in a moment
	claimed                // mounted, or taken by swap, md or dm
	opened                 // somebody has it open; attached as before
)

// clear tries to detach a device. Where the kernel only marks it, because
// somebody else has it open, the mark is taken back.
func clear(dev Device) (outcome, error) {
	// O_EXCL fails when it is mounted, in whatever namespace, or taken by swap,
	// md or dm, and keeps all of them out until it is closed. Reading is
	// enough, and works on a read-only device.
	f, err := openNode(dev.Number, unix.O_RDONLY|unix.O_EXCL)
	if errors.Is(err, unix.EBUSY) {
		// Somebody has the device, but is it still over our image?
		now, err := inspect(dev.Number)
		if errors.Is(err, errUnbound) || err == nil && now.Backing != dev.Backing {
			return notOurs, nil
		}
		return claimed, err
	}
	if errors.Is(err, errUnbound) {
		return notOurs, nil
	}
	if err != nil {
		return notOurs, err
	}
	defer f.Close()
	info, err := status(f)
	if errors.Is(err, errUnbound) || err == nil && backingOf(info) != dev.Backing {
		return notOurs, nil
	}
	if err != nil {
		return notOurs, err
	}
	marked := info.Flags&unix.LO_FLAGS_AUTOCLEAR != 0 // whoever attached it wanted that
	if _, err := unix.IoctlRetInt(int(f.Fd()), unix.LOOP_CLR_FD); err != nil &&
		!errors.Is(err, unix.ENXIO) {
		return notOurs, fmt.Errorf("clear %s: %w", dev.Path, err)
	}
	info, err = status(f)
	if errors.Is(err, errUnbound) {
		return cleared, nil // or about to be when we close it
	}
	if err != nil {
		return notOurs, err
	}
	// It has a status, so somebody has it open. We have too: the mark is gone
	// before it can take effect.
	if marked {
		return opened, nil
	}
	if err := takeOffAutoclear(f, dev.Number, info); err != nil {
		return notOurs, fmt.Errorf("%s is in use, and will now detach itself when its last user "+
			"closes it: %w", dev.Path, err)
	}
	return opened, nil
}

// waitDetached waits until the kernel has let go of the image, which it does at
// the last close, and on some versions some time after. Uevents tell it, but
// not in every network namespace, so it is looked up in ever longer intervals.
func waitDetached(ctx context.Context, dev Device) error {
	for interval := time.Millisecond; ; interval = min(2*interval, 100*time.Millisecond) {
		now, err := inspect(dev.Number)
		if errors.Is(err, errUnbound) || err == nil && now.Backing != dev.Backing {
			return nil
		}
		if err != nil {
			return err
		}
		if !now.Autoclear {
			// Attached again, by somebody who does not use our lock.
			return fmt.Errorf("attached again meanwhile: %w", &BusyError{Device: now})
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the kernel to let go of the image: %w", ctx.Err())
		case <-time.After(interval):
		}
	}
}

// busy makes the error that names who uses a device.
func busy(dev Device) error {
	holders, err := Holders(dev, HolderOptions{IncludeSelf: true})
	return errors.Join(&BusyError{Device: dev, Holders: holders}, err)
}

// IsClaimed reports whether a mount, in whatever mount namespace, or swap, md
// or dm has the device. Descriptors do not count.
func IsClaimed(d Device) (bool, error) {
	f, err := openNode(d.Number, unix.O_RDONLY|unix.O_EXCL)
	if errors.Is(err, unix.EBUSY) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	return false, f.Close()
}

// isInUse reports whether anybody but us has the device open or mounted, by
// trying: see the package's traps. It leaves the device as it is.
func isInUse(d Device) (bool, error) {
	f, err := openNode(d.Number, unix.O_RDONLY|unix.O_EXCL)
	if errors.Is(err, unix.EBUSY) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	f.Close()
	holders, err := Holders(d, HolderOptions{IncludeSelf: true, descriptorsOnly: true})
	return len(holders) > 0, err
}
