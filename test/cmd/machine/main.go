// Command machine runs a command of this host on another kernel, in QEMU. See
// the package machine for what the command finds there.
//
//	machine run [flags] -- CMD ARGS...   exits with CMD's status, 125 when the
//	                                     machine failed, 124 when power was cut
//	machine setup [-kernel 6.12] [-update]
//	machine kernels
//
// `go test -exec "machine run --" ./...` runs tests in machines.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/quarry-storage/quarry/test/machine"
)

// Exit statuses that are not the command's.
const (
	statusCut     = 124
	statusFailure = 125
	statusUsage   = 2
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	status, err := dispatch(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(status)
}

func dispatch(ctx context.Context, args []string) (status int, err error) {
	if len(args) == 0 {
		args = []string{""}
	}
	switch args[0] {
	case "run":
		return run(ctx, args[1:])
	case "setup":
		flags := flag.NewFlagSet("machine setup", flag.ExitOnError)
		series := flags.String("kernel", machine.DefaultKernel, "kernel `series`, for instance 6.12")
		update := flags.Bool("update", false, "ask apt for a newer package of the series")
		_ = flags.Parse(args[1:]) // ExitOnError
		return failed(machine.Setup(ctx, *series, *update))
	case "kernels":
		series, err := machine.Kernels(ctx)
		for _, s := range series {
			fmt.Println(s)
		}
		return failed(err)
	}
	return statusUsage, errors.New("usage: machine run [flags] -- CMD ARGS... | machine setup [flags] | " +
		"machine kernels")
}

func failed(err error) (int, error) {
	if err != nil {
		return statusFailure, err
	}
	return 0, nil
}

func run(ctx context.Context, args []string) (status int, err error) {
	flags := flag.NewFlagSet("machine run", flag.ExitOnError)
	cfg := machine.Config{Env: os.Environ(), Stdout: os.Stdout, Stderr: os.Stderr}
	flags.StringVar(&cfg.Kernel, "kernel", machine.DefaultKernel, "kernel `series`, for instance 6.12")
	flags.IntVar(&cfg.Memory, "memory", machine.DefaultMemory, "memory in `MiB`")
	flags.StringVar(&cfg.Dir, "dir", "", "working `directory` (default: this one)")
	flags.DurationVar(&cfg.Timeout, "timeout", machine.DefaultTimeout, "kill the machine after this `time`")
	flags.Func("disk", "attach the raw image `PATH[:SIZE]`, made when missing; may be repeated", func(s string) error {
		return addDisk(&cfg, s, false)
	})
	flags.Func("volatile-disk", "like -disk, with a write cache that a cut loses: `PATH[:SIZE]`", func(s string) error {
		return addDisk(&cfg, s, true)
	})
	flags.Func("share", "make the host's `directory` writable; may be repeated", func(s string) error {
		cfg.Shares = append(cfg.Shares, s)
		return nil
	})
	flags.Func("env", "set `NAME=VALUE` for the command; may be repeated", func(s string) error {
		cfg.Env = append(cfg.Env, s)
		return nil
	})
	flags.Func("scratch", "put TMPDIR on a temporary ext4 disk of this `SIZE`", func(s string) (err error) {
		cfg.Scratch, err = parseSize(s)
		return err
	})
	flags.StringVar(&cfg.Cut.On, "cut-on", "", "cut the power when a line of standard output contains this `text`")
	flags.DurationVar(&cfg.Cut.After, "cut-after", 0, "cut the power this `time` after the command started")
	flags.IntVar(&cfg.Cut.Writes, "cut-writes", 0,
		"cut the power at the `N`th write to a volatile disk, counted from -cut-on or the start")
	flags.Uint64Var(&cfg.Cut.Seed, "cut-seed", 0, "keep unflushed sectors at random by this `seed` (0: lose them all)")
	console := flags.Bool("console", false, "show the kernel's console on standard error")
	_ = flags.Parse(args) // ExitOnError

	if cfg.Command = flags.Args(); len(cfg.Command) == 0 {
		return statusUsage, errors.New("machine run: no command")
	}
	if *console {
		cfg.Console = os.Stderr
	}
	began := time.Now()
	status, err = machine.Run(ctx, cfg)
	switch {
	case errors.Is(err, machine.ErrCut):
		return statusCut, fmt.Errorf("%w after %v", err, time.Since(began).Round(time.Millisecond))
	case err != nil:
		return statusFailure, err
	}
	return status, nil
}

func addDisk(cfg *machine.Config, s string, volatile bool) error {
	d := machine.Disk{Path: s, Volatile: volatile}
	if path, size, found := strings.Cut(s, ":"); found {
		n, err := parseSize(size)
		if err != nil {
			return err
		}
		d.Path, d.Size = path, n
	}
	cfg.Disks = append(cfg.Disks, d)
	return nil
}

// parseSize reads a number of bytes with an optional binary suffix K, M, G.
func parseSize(s string) (int64, error) {
	shift := 0
	digits := s
	if i := strings.IndexByte("KMG", (" " + s)[len(s)]); i >= 0 {
		shift, digits = 10*(i+1), s[:len(s)-1]
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n < 0 || n > 1<<62>>shift {
		return 0, fmt.Errorf("size %q is not a number with K, M or G", s)
	}
	return n << shift, nil
}
