package mount

import (
	"context"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// settle is how long mounts must be quiet before somebody is told: a pod's
// start changes several at once. On a node where they are never quiet it is
// told after atMost.
const (
	settle = 50 * time.Millisecond
	atMost = time.Second
)

// Watch tells when a mount of this process's mount namespace was made, moved or
// taken away: a disk that appeared or went, a pod that let go of its volume.
// The kernel marks /proc/self/mountinfo with an exceptional condition then
// (proc_pid_mountinfo(5) and poll(2): POLLERR and POLLPRI). The channel is
// closed when ctx ends.
func Watch(ctx context.Context) (<-chan struct{}, error) {
	// Not an os.File: Go's own poller would have it in its epoll set, and
	// whoever looks first takes the condition away (mounts_poll in
	// fs/namespace.c keeps what was told with the open file, not with the
	// caller).
	f, err := unix.Open("/proc/self/mountinfo", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: "/proc/self/mountinfo", Err: err}
	}
	stop, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		unix.Close(f)
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	changed := make(chan struct{}, 1)
	done := make(chan struct{})
	go func() {
		<-ctx.Done()
		unix.Write(stop, []byte{1, 0, 0, 0, 0, 0, 0, 0})
		<-done
		unix.Close(stop)
	}()
	go func() {
		defer unix.Close(f)
		defer close(done)
		defer close(changed)
		for {
			fds := []unix.PollFd{{Fd: int32(f), Events: unix.POLLPRI},
				{Fd: int32(stop), Events: unix.POLLIN}}
			timeout := -1
			var first time.Time
			for quiet := false; !quiet; {
				n, err := unix.Poll(fds, timeout)
				switch {
				case err == unix.EINTR:
				case err != nil, fds[1].Revents != 0:
					return
				case n == 0:
					quiet = true
				case first.IsZero():
					first, timeout = time.Now(), int(settle.Milliseconds())
				default:
					quiet = time.Since(first) > atMost
				}
			}
			select {
			case changed <- struct{}{}:
			default: // it has been told and has not looked yet
			}
		}
	}()
	return changed, nil
}
