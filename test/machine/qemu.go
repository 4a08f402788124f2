package machine

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/quarry-storage/quarry/test/debian"
	"github.com/quarry-storage/quarry/test/machine/wire"
)

const qemu = "qemu-system-x86_64"

// consoleLines is how many lines of the console a Failure shows.
const consoleLines = 40

// Machine is a running machine.
type Machine struct {
	cfg     Config
	ctx     context.Context // ends with the caller's, the timeout, or Wait
	cancel  context.CancelFunc
	process *os.Process
	ended   chan error // how QEMU ended

	port    *os.File
	disks   []*volatileDisk
	scratch string // file to remove
	cut     sync.Once
	cutDone chan struct{}

	console    console
	consoleIn  *os.File
	consoleEnd chan struct{} // closed when all of the console has been read
}

// Cut cuts the power now: QEMU is killed and volatile disks lose what was not
// flushed. It may be called at any time and more than once.
func (m *Machine) Cut() {
	m.cut.Do(func() {
		// Disks first: from here on nothing reaches an image.
		for _, d := range m.disks {
			d.cut()
		}
		_ = m.process.Kill()
		close(m.cutDone)
	})
}

// boot starts QEMU.
func boot(ctx context.Context, cfg Config, k kernel, initramfs string) (_ *Machine, err error) {
	program, err := debian.Find(qemu)
	if err != nil {
		return nil, err
	}
	m := &Machine{cfg: cfg, cutDone: make(chan struct{}), ended: make(chan error, 1), consoleEnd: make(chan struct{})}
	var theirs []*os.File // descriptors for QEMU, 3 and up
	defer func() {
		for _, f := range theirs {
			f.Close()
		}
		if err != nil {
			m.release()
		}
	}()
	// inherit makes a socket pair and returns our end and the other's number.
	inherit := func(name string) (*os.File, int, error) {
		ours, other, err := socketPair(name)
		if err != nil {
			return nil, 0, err
		}
		theirs = append(theirs, other)
		return ours, 2 + len(theirs), nil
	}

	spec := wire.Spec{
		Argv: cfg.Command, Env: cfg.Env, Dir: cfg.Dir,
		KernelName: k.series, ModuleTree: k.dir, Modules: hostModules,
		Disks: len(cfg.Disks), Scratch: -1, Shares: cfg.Shares,
	}
	args := []string{
		"-accel", "tcg,thread=multi", "-cpu", "max", "-machine", "q35", "-smp", "2",
		"-m", fmt.Sprint(cfg.Memory), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-kernel", k.image(), "-initrd", initramfs,
		// A kernel bug must end the run, not linger in it. Without
		// no_timer_check the kernel counts ticks for some milliseconds at its
		// start and panics where there were none: an emulated processor may not
		// have run meanwhile.
		"-append", "no_timer_check console=ttyS0 loglevel=4 panic=-1 oops=panic loop.max_loop=64 mitigations=off",
		"-device", "virtio-serial-pci",
		"-device", "virtserialport,chardev=port,name=" + wire.Port,
		"-fsdev", "local,id=" + wire.HostTag + ",path=/,security_model=none,readonly=on,multidevs=remap",
		"-device", "virtio-9p-pci,fsdev=" + wire.HostTag + ",mount_tag=" + wire.HostTag,
	}
	for i, dir := range cfg.Shares {
		tag := wire.ShareTag(i)
		args = append(args,
			"-fsdev", "local,id="+tag+",path="+escape(dir)+",security_model=none,multidevs=remap",
			"-device", "virtio-9p-pci,fsdev="+tag+",mount_tag="+tag)
	}
	var fd int
	if m.port, fd, err = inherit("port"); err != nil {
		return nil, err
	}
	args = append(args, "-chardev", fmt.Sprintf("socket,id=port,fd=%d", fd))
	if m.consoleIn, fd, err = inherit("console"); err != nil {
		return nil, err
	}
	args = append(args, "-chardev", fmt.Sprintf("socket,id=console,fd=%d", fd), "-serial", "chardev:console")

	disks := cfg.Disks
	if cfg.Scratch > 0 {
		if m.scratch, err = makeScratch(ctx, cfg.Scratch); err != nil {
			return nil, err
		}
		spec.Scratch, spec.Disks = len(disks), len(disks)+1
		disks = append(disks[:len(disks):len(disks)], Disk{Path: m.scratch})
	}
	for i, d := range disks {
		size, err := d.prepare()
		if err != nil {
			return nil, err
		}
		backend := "driver=file,cache.direct=off,cache.no-flush=off,discard=unmap,filename=" + escape(d.Path)
		if d.Volatile {
			ours, fd, err := inherit("disk")
			if err != nil {
				return nil, err
			}
			v, err := newVolatileDisk(d.Path, size, ours, cfg.Cut.Seed+uint64(i), cfg.Cut.Seed != 0)
			if err != nil {
				ours.Close()
				return nil, err
			}
			m.disks = append(m.disks, v)
			backend = fmt.Sprintf("driver=nbd,discard=unmap,server.type=fd,server.str=%d", fd)
		}
		sector := max(d.SectorSize, 512)
		args = append(args,
			"-blockdev", fmt.Sprintf("node-name=disk%d,%s", i, backend),
			"-device", fmt.Sprintf(
				"virtio-blk-pci,drive=disk%d,serial=%s,write-cache=on,logical_block_size=%d,physical_block_size=%d",
				i, wire.DiskSerial(i), sector, sector))
	}

	cmd := exec.Command(program, args...)
	cmd.ExtraFiles = theirs
	cmd.Stdout, cmd.Stderr = &m.console, &m.console
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setpgid:   true, // Ctrl-C reaches it through us only
		Pdeathsig: syscall.SIGKILL,
	}
	m.console.also = cfg.Console
	if err := m.spawn(cmd); err != nil {
		return nil, err
	}
	m.ctx, m.cancel = context.WithTimeoutCause(ctx, cfg.Timeout,
		fmt.Errorf("the command has not ended in %v: %w", cfg.Timeout, context.DeadlineExceeded))
	go func() {
		defer close(m.consoleEnd)
		_, _ = io.Copy(&m.console, m.consoleIn) // ends when QEMU does
	}()
	for _, d := range m.disks {
		go d.serve()
	}
	go func() {
		payload, _ := json.Marshal(spec)
		// Should this fail, the guest will say what it missed.
		_ = wire.Write(m.port, wire.KindSpec, payload)
	}()
	return m, nil
}

// spawn starts QEMU from a thread that lives as long as QEMU does: the death
// signal is tied to the parent thread, not to the process; see prctl(2).
func (m *Machine) spawn(cmd *exec.Cmd) error {
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		m.process = cmd.Process
		started <- err
		if err == nil {
			m.ended <- cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("machine: start QEMU: %w", err)
	}
	return nil
}

// Wait returns when the command has ended or the machine is no more; see Run.
func (m *Machine) Wait() (exitCode int, err error) {
	defer m.release()
	stop := context.AfterFunc(m.ctx, func() { _ = m.process.Kill() })
	defer stop()

	exit, err := m.follow()
	_ = m.process.Kill()
	ended := <-m.ended
	<-m.consoleEnd
	for _, d := range m.disks {
		if diskErr := d.close(); diskErr != nil {
			return 0, &Failure{Reason: diskErr, Console: m.console.last()}
		}
	}
	select {
	case <-m.cutDone:
		return 0, ErrCut
	default:
	}
	switch {
	case m.ctx.Err() != nil:
		return 0, &Failure{Reason: context.Cause(m.ctx), Console: m.console.last()}
	case err != nil:
		return 0, &Failure{Reason: fmt.Errorf("%w (QEMU: %v)", err, ended), Console: m.console.last()}
	case exit.Error != "":
		return 0, &Failure{Reason: errors.New(exit.Error), Console: m.console.last()}
	}
	return exit.Code, nil
}

// follow forwards output until the exit frame and sees to the cut.
func (m *Machine) follow() (wire.Exit, error) {
	cut := m.cfg.Cut
	watch := lineWatcher{pattern: cut.On, found: func() {
		if cut.Writes > 0 {
			m.armWrites()
		} else {
			m.Cut()
		}
	}}
	in := bufio.NewReaderSize(m.port, 64<<10)
	for {
		kind, payload, err := wire.Read(in)
		if err != nil {
			return wire.Exit{}, fmt.Errorf("the machine stopped before the command had ended: %w", err)
		}
		switch kind {
		case wire.KindStarted:
			if cut.After > 0 {
				defer time.AfterFunc(cut.After, m.Cut).Stop()
			}
			if cut.Writes > 0 && cut.On == "" {
				m.armWrites()
			}
		case wire.KindStdout:
			// A cut must not wait for a slow reader of the output.
			watch.see(payload)
			if _, err := m.cfg.Stdout.Write(payload); err != nil {
				return wire.Exit{}, fmt.Errorf("forward standard output: %w", err)
			}
		case wire.KindStderr:
			if _, err := m.cfg.Stderr.Write(payload); err != nil {
				return wire.Exit{}, fmt.Errorf("forward standard error: %w", err)
			}
		case wire.KindExit:
			var exit wire.Exit
			err := json.Unmarshal(payload, &exit)
			return exit, err
		default:
			return wire.Exit{}, fmt.Errorf("unknown frame %q from the guest", kind)
		}
	}
}

// armWrites cuts at the Nth write from now, whichever disk it reaches.
func (m *Machine) armWrites() {
	left := newCountdown(m.cfg.Cut.Writes, m.Cut)
	for _, d := range m.disks {
		d.arm(left)
	}
}

// release gives back what boot took; QEMU has ended or never started.
func (m *Machine) release() {
	if m.cancel != nil {
		m.cancel()
	}
	for _, f := range []*os.File{m.port, m.consoleIn} {
		if f != nil {
			f.Close()
		}
	}
	for _, d := range m.disks {
		_ = d.close()
	}
	if m.scratch != "" {
		os.Remove(m.scratch)
	}
}

// makeScratch makes a temporary disk image with an empty ext4 on it. The
// features are the common ones, so that any kernel mounts it.
func makeScratch(ctx context.Context, size int64) (string, error) {
	f, err := os.CreateTemp("", "machine-scratch-")
	if err != nil {
		return "", err
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		os.Remove(f.Name())
		return "", err
	}
	mkfs, err := debian.Find("mkfs.ext4")
	if err == nil {
		_, err = command(ctx, "", mkfs, "-q", "-F", "-m", "0", "-O", "^has_journal", "-E",
			"lazy_itable_init=1", f.Name())
	}
	if err != nil {
		os.Remove(f.Name())
		return "", fmt.Errorf("machine: scratch disk: %w", err)
	}
	return f.Name(), nil
}

// socketPair returns two connected sockets. Ours is pollable, so that closing
// it ends a Read.
func socketPair(name string) (ours, theirs *os.File, err error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("machine: socket pair: %w", err)
	}
	if err := syscall.SetNonblock(fds[0], true); err != nil {
		return nil, nil, fmt.Errorf("machine: socket pair: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), name), os.NewFile(uintptr(fds[1]), name), nil
}

// escape writes a value for QEMU's comma-separated options.
func escape(s string) string { return strings.ReplaceAll(s, ",", ",,") }
