package filesystem

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"
)

// DamagedError says that a filesystem has damage that cannot be repaired
// without the risk of losing data. A person has to look at it.
type DamagedError struct {
	Device string
	Output string // the last lines of fsck
	// Unfinished: a repair was cut off, and would be again.
	Unfinished bool
}

func (e *DamagedError) Error() string {
	return fmt.Sprintf("the filesystem on %s is damaged, and repairing it by itself "+
		"is not safe: %s", e.Device, e.Output)
}

// CheckOptions are how a filesystem is checked.
type CheckOptions struct {
	// Before is called when a repair is about to begin, for the caller to
	// remember that; an error keeps it from beginning.
	Before func() error
	// Memory is what a repair may take, in bytes; 0: what the process has left.
	Memory uint64
}

// Check makes a filesystem fit to be mounted, and reports whether something was
// repaired. The device must not be in use, and is open for reading and writing,
// without O_EXCL.
//
// Nothing is done in the usual case, also after a power cut: a journal is
// replayed by the mount. An ext4 whose superblock says that errors were seen
// gets `e2fsck -p`, which repairs what it can without asking; what it cannot is
// a [*DamagedError], as is a superblock that is itself damaged. xfs and btrfs
// are not checked before a mount, as fsck.xfs(8) and btrfs-check(8) say; they
// refuse to be mounted if that is not safe.
//
// What a repair of ext4 takes of memory goes by the damage, so one runs at a
// time, and is not given more than the process has left: e2fsck is refused what
// is over that, instead of the kernel's ending this process and all of its
// volumes' service. Then, and when something ends it, the error is a
// [*DamagedError] too: it would end the same way each time.
//
// Each of the options can be left out.
func Check(ctx context.Context, device *os.File, opts CheckOptions) (repaired bool, err error) {
	info, err := Identify(device)
	if _, ok := errors.AsType[*CorruptError](err); ok {
		return false, &DamagedError{Device: device.Name(), Output: err.Error()}
	}
	if err != nil {
		return false, fmt.Errorf("check %s: %w", device.Name(), err)
	}
	if info.Type != Ext4 || info.Clean {
		return false, nil
	}
	if err := repairing.Acquire(ctx, 1); err != nil {
		return false, fmt.Errorf("check %s: wait for the repair of another: %w", device.Name(), err)
	}
	defer repairing.Release(1)
	if opts.Before != nil {
		if err := opts.Before(); err != nil {
			return false, fmt.Errorf("check %s: %w", device.Name(), err)
		}
	}
	cmd := exec.CommandContext(ctx, "e2fsck", "-p", "/proc/self/fd/3")
	cmd.ExtraFiles = []*os.File{device}
	var exit *exec.ExitError
	room := opts.Memory
	if room == 0 {
		room = memoryForRepair()
	}
	out, err := runWithin(cmd, room)
	if err != nil && !errors.As(err, &exit) {
		return false, fmt.Errorf("check %s: %w", device.Name(), errors.Join(err, ctx.Err()))
	}
	// Exit status of e2fsck(8), a sum of bits.
	const corrected, reboot, uncorrected, operational = 1, 2, 4, 8
	const notLoaded = 127 // of the C library, before it begins
	switch code := cmd.ProcessState.ExitCode(); {
	case code == 0:
		return false, nil
	case code > 0 && code&^(corrected|reboot) == 0:
		_ = unix.Fadvise(int(device.Fd()), 0, headBytes, unix.FADV_DONTNEED)
		return true, nil
	case ctx.Err() == nil && (code < 0 || code == notLoaded ||
		code&operational != 0 && isOutOfMemory(out)):
		return false, &DamagedError{Device: device.Name(),
			Output: fmt.Sprintf("e2fsck did not come to its end within %d MiB of memory (%v: %s); "+
				"give the agent more, or run it by hand", room>>20, err, out), Unfinished: true}
	case code > 0 && code&uncorrected != 0:
		return false, &DamagedError{Device: device.Name(), Output: out}
	default:
		return false, fmt.Errorf("check %s: e2fsck: %w: %s",
			device.Name(), errors.Join(err, ctx.Err()), out)
	}
}
