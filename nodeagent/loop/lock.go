package loop

import (
	"context"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// lock locks an image against everybody else who attaches or detaches it with
// this package, in this process or another. The kernel frees the lock when the
// process dies. image may be opened with O_PATH.
func lock(ctx context.Context, image *os.File) (unlock func(), err error) {
	// flock(2) locks belong to the open file description, so a new one is
	// needed; the magic link opens the same file whatever its name is now.
	f, err := os.Open("/proc/self/fd/" + strconv.Itoa(int(image.Fd())))
	if err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
		return func() { f.Close() }, nil
	}
	// flock(2) cannot be interrupted by a context: when the context ends first,
	// the goroutine stays until it is its turn, and gives it up at once.
	locked := make(chan error, 1)
	go func() {
		for {
			err := unix.Flock(int(f.Fd()), unix.LOCK_EX)
			if err != unix.EINTR {
				locked <- err
				break
			}
		}
		if ctx.Err() != nil {
			f.Close()
		}
	}()
	select {
	case err := <-locked:
		if err == nil && ctx.Err() == nil {
			return func() { f.Close() }, nil
		}
		f.Close()
		return nil, fmt.Errorf("lock: %w", firstError(err, ctx.Err()))
	case <-ctx.Done():
		return nil, fmt.Errorf("lock: %w", ctx.Err())
	}
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
