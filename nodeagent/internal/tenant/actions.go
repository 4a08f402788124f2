package tenant

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Actions are the ways to fill a directory, each with a file's name and how
// much (bytes; for "files" a number) as arguments.
var Actions = map[string]Action{
	"write":     func(args []string) (int64, error) { return write(args, 0) },
	"direct":    func(args []string) (int64, error) { return write(args, unix.O_DIRECT) },
	"fallocate": fallocate,
	"files":     files,
	"remove":    func(args []string) (int64, error) { return 0, os.Remove(args[0]) },
	"mkdir":     func(args []string) (int64, error) { return 0, os.Mkdir(args[0], 0o777) },
	"rename":    func(args []string) (int64, error) { return 0, os.Rename(args[0], args[1]) },
	"link":      func(args []string) (int64, error) { return 0, os.Link(args[0], args[1]) },
}

// write appends to a file until it holds so much, and syncs it: a delayed
// allocation that does not fit fails then at the latest.
func write(args []string, flags int) (int64, error) {
	most, err := strconv.ParseInt(args[1], 10, 64)
	if err != nil {
		return 0, err
	}

	f, err := os.OpenFile(args[0], os.O_CREATE|os.O_WRONLY|os.O_APPEND|flags, 0o644)
	if err != nil {
		return 0, err
	}
	defer f.Close()

	const chunk = 256 << 10

	// O_DIRECT wants an aligned buffer.
	buf, err := unix.Mmap(-1, 0, chunk, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return 0, err
	}

	for i := range buf { // nothing that compresses
		buf[i] = byte(i*i>>8 ^ i)
	}

	var done int64
	for done < most {
		n, err := f.Write(buf[:min(chunk, most-done)])
		done += int64(n)
		if err != nil {
			return done, errors.Join(err, f.Sync())
		}
	}

	return done, f.Sync()
}

func fallocate(args []string) (int64, error) {
	bytes, err := strconv.ParseInt(args[1], 10, 64)
	if err != nil {
		return 0, err
	}

	f, err := os.OpenFile(args[0], os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return 0, err
	}
	defer f.Close()

	if err := unix.Fallocate(int(f.Fd()), 0, 0, bytes); err != nil {
		return 0, os.NewSyscallError("fallocate", err)
	}

	return bytes, nil
}

// files makes so many empty files whose names begin with the given.
func files(args []string) (int64, error) {
	most, err := strconv.ParseInt(args[1], 10, 64)
	if err != nil {
		return 0, err
	}

	for done := range most {
		f, err := os.OpenFile(fmt.Sprintf("%s%d", args[0], done), os.O_CREATE|os.O_EXCL, 0o644)
		if err != nil {
			return done, err
		}
		f.Close()
	}

	return most, nil
}

// Ioctl runs a request on a file or directory as it is named in an action.
func Ioctl(name string, request uintptr, arg unsafe.Pointer) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()

	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, f.Fd(), request,
		uintptr(arg)); errno != 0 {
		return errno
	}

	return nil
}
