package loop

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Sizes in bytes in sysfs; see queue-sysfs in the kernel's documentation.
const (
	discardInForce  = "queue/discard_max_bytes"
	discardPossible = "queue/discard_max_hw_bytes"
)

// errStuck says that discards of a loop device cannot be switched on any more;
// see the package's traps.
var errStuck = errors.New("discards were switched off before, and the kernel does not switch " +
	"them on again")

// setDiscard switches discards of a device on or off, proven by reading back.
// Where the image's filesystem cannot punch holes they stay off, and that is no
// error, as it is not if they are wanted and errStuck: then it is returned.
func setDiscard(number int, on bool) error {
	most, err := readNumber(number, discardPossible)
	if err != nil {
		return err
	}
	now, err := readNumber(number, discardInForce)
	if err != nil {
		return err
	}
	if (now != 0) == on || on && most == 0 {
		return nil
	}
	want := uint64(0)
	if on {
		// It has to be a multiple of the granularity, which is at most a page.
		want = most &^ uint64(os.Getpagesize()-1)
	}
	err = os.WriteFile(sysfs(number, discardInForce), strconv.AppendUint(nil, want, 10), 0)
	if on && errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("loop%d: %w", number, errStuck)
	}
	if err != nil {
		return err
	}
	if now, err = readNumber(number, discardInForce); err == nil && (now != 0) != on {
		err = fmt.Errorf("%s is %d after %d was written", sysfs(number, discardInForce), now, want)
	}
	return err
}

// isStuck reports whether discards are possible on a device but switched off.
func isStuck(number int) bool { return errors.Is(setDiscard(number, true), errStuck) }

// remove takes a loop device without an image away, number and all, so that
// whoever needs one next gets it fresh. That is a courtesy: somebody else may
// have it by now (EBUSY), and then it stays.
func remove(number int) {
	control, err := openControl()
	if err != nil {
		return
	}
	defer control.Close()
	_ = unix.IoctlSetInt(int(control.Fd()), unix.LOOP_CTL_REMOVE, number)
}
