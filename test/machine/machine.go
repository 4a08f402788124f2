// Package machine runs commands of this host on another kernel.
//
// It boots Debian's kernel in QEMU (emulated: no hardware virtualisation is
// needed) with this host's root filesystem as the read-only lower layer of an
// overlay, so that every program and file of the host is there and nothing of
// the host can be written. The kernel has what a host's own may lack: project
// quotas on ext4 and xfs, device-mapper, loop, btrfs with simple quotas (6.12).
//
// It also cuts the power: a Disk that is Volatile has a write cache of which
// a cut leaves only what the guest had flushed (see Disk and Cut), and the
// image can be inspected in a second boot.
//
// The package sets up what it needs by itself; see Setup. It needs Debian on
// amd64, a Go toolchain and, to see all files of the host, root.
package machine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Defaults of Config.
const (
	DefaultMemory  = 2048 // MiB
	DefaultTimeout = 10 * time.Minute
)

// Config says what to run and in what machine.
type Config struct {
	Command []string // the program and its arguments; required
	Env     []string // its environment; nil is this process's own
	Dir     string   // its working directory; "" is this process's own

	Stdout, Stderr io.Writer // where its output goes; nil discards it
	Console        io.Writer // what kernel and init say; nil keeps it for errors only

	Kernel  string // kernel series, for instance "6.12"; "" is DefaultKernel
	Memory  int    // MiB; 0 is DefaultMemory. Files written outside Disks live in it.
	Scratch int64  // bytes of a temporary ext4 disk for TMPDIR; 0 keeps TMPDIR in memory

	Disks  []Disk   // attached in this order; see QUARRY_MACHINE_DISKS below
	Shares []string // host directories that are writable, at the same path

	Timeout time.Duration // of the whole run after setup; 0 is DefaultTimeout
	Cut     Cut           // when to cut the power; the zero value never does
}

// The command finds these in its environment, besides TMPDIR, which is a
// directory in memory or, with Config.Scratch, on a disk.
const (
	// EnvKernel is the kernel series. That it is set tells a test that it
	// runs inside a machine.
	EnvKernel = "QUARRY_MACHINE_KERNEL"
	// EnvDisks lists the device paths of Config.Disks, in order, with a colon
	// between.
	EnvDisks = "QUARRY_MACHINE_DISKS"
)

// Disk is a raw disk image.
type Disk struct {
	Path       string // a file (or a block device) of the host
	Size       int64  // bytes; the file is made, or made larger, when it is smaller
	SectorSize int    // logical and physical block size in bytes; 0 is 512

	// Volatile gives the disk a write cache that does not survive a cut: only
	// what the guest flushed is sure to be in the image afterwards. Without it
	// a write is in the image when the guest sees it completed, and a cut loses
	// no more than the guest's own page cache.
	Volatile bool
}

// Cut says when the power goes. On and After start when the command starts;
// the first condition to hold cuts. Run then returns ErrCut.
type Cut struct {
	On    string        // when a line of the command's standard output contains this
	After time.Duration // after this time
	// Writes cuts at the Nth write that reaches a volatile disk after the
	// command started or, if On is set too, after On appeared: the way to step
	// through an operation write by write.
	Writes int
	// Seed decides what becomes of the writes that were not flushed. 0 loses
	// them all. Any other seed keeps each 512-byte sector of each of them or
	// not, at random but the same for the same seed and the same writes: a disk
	// reorders and tears what it has not been told to flush.
	Seed uint64
}

// ErrCut is returned when the run ended because of Config.Cut or Machine.Cut.
var ErrCut = errors.New("machine: power was cut")

// Failure is returned when the machine, and not the command, failed: it did
// not boot, its kernel crashed, or time was up.
type Failure struct {
	Reason  error
	Console []string // the last lines that kernel and init wrote
}

func (f *Failure) Error() string {
	if len(f.Console) == 0 {
		return fmt.Sprintf("machine: %v; the console is empty", f.Reason)
	}
	return fmt.Sprintf("machine: %v; last lines of the console:\n  %s", f.Reason, strings.Join(f.Console, "\n  "))
}

// Unwrap makes context.DeadlineExceeded and context.Canceled visible.
func (f *Failure) Unwrap() error { return f.Reason }

// Run boots, runs the command and returns its exit status: 128+N when signal N
// ended it, 0 with an error when it has none. The error is nil whenever the
// command ran to its end, whatever its status. When ctx ends, QEMU is killed.
// At a regular end the filesystems on disks are unmounted and written back.
func Run(ctx context.Context, cfg Config) (exitCode int, err error) {
	m, err := Start(ctx, cfg)
	if err != nil {
		return 0, err
	}
	return m.Wait()
}

// Start is Run without the waiting. Wait must be called to release what the
// machine holds, also after Cut.
func Start(ctx context.Context, cfg Config) (*Machine, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	k, initramfs, err := setup(ctx, cfg.Kernel, false)
	if err != nil {
		return nil, err
	}
	return boot(ctx, cfg, k, initramfs)
}

// complete checks the configuration and fills in its defaults.
func (c *Config) complete() error {
	if len(c.Command) == 0 || c.Command[0] == "" {
		return errors.New("machine: no command")
	}
	if c.Env == nil {
		c.Env = os.Environ()
	}
	if c.Dir == "" {
		dir, err := os.Getwd()
		if err != nil {
			return fmt.Errorf("machine: working directory: %w", err)
		}
		c.Dir = dir
	}
	if c.Memory == 0 {
		c.Memory = DefaultMemory
	}
	if c.Timeout == 0 {
		c.Timeout = DefaultTimeout
	}
	for _, w := range []*io.Writer{&c.Stdout, &c.Stderr, &c.Console} {
		if *w == nil {
			*w = io.Discard
		}
	}
	volatile := false
	for i, d := range c.Disks {
		switch d.SectorSize {
		case 0, 512, 1024, 2048, 4096:
		default:
			return fmt.Errorf("machine: disk %s: sector size %d", d.Path, d.SectorSize)
		}
		if d.Path == "" || d.Size < 0 || d.Size%4096 != 0 {
			return fmt.Errorf("machine: disk %d: path %q, size %d: a path and a multiple of 4096 bytes are needed",
				i, d.Path, d.Size)
		}
		volatile = volatile || d.Volatile
	}
	if (c.Cut.Writes > 0 || c.Cut.Seed != 0) && !volatile {
		return errors.New("machine: Cut.Writes and Cut.Seed need a volatile disk")
	}
	for i, dir := range c.Shares {
		abs, err := filepath.Abs(dir)
		if err != nil {
			return err
		}
		if st, err := os.Stat(abs); err != nil || !st.IsDir() {
			return fmt.Errorf("machine: share %s is not a directory: %v", abs, err)
		}
		c.Shares[i] = abs
	}
	return nil
}

// prepare makes the image as large as it has to be and returns its size.
func (d Disk) prepare() (int64, error) {
	f, err := os.OpenFile(d.Path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return 0, fmt.Errorf("machine: disk: %w", err)
	}
	defer f.Close()
	// Seeking also tells the size of a block device.
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, fmt.Errorf("machine: disk: %w", err)
	}
	if size < d.Size {
		if err := f.Truncate(d.Size); err != nil {
			return 0, fmt.Errorf("machine: disk: %w", err)
		}
		size = d.Size
	}
	if size == 0 {
		return 0, fmt.Errorf("machine: disk %s is empty and no size is given", d.Path)
	}
	return size, nil
}
