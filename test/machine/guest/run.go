package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"github.com/quarry-storage/quarry/test/machine/wire"
)

// pollLimit is how long a device may take to appear before init gives up.
const pollLimit = 20 * time.Second

// lingerLimit is how long output of processes that the command left behind is
// still forwarded after the command itself has ended.
const lingerLimit = 500 * time.Millisecond

// lockedFile is the port: many writers, each write whole.
type lockedFile struct {
	mu sync.Mutex
	fd int
}

func (f *lockedFile) Read(p []byte) (int, error) {
	for {
		n, err := syscall.Read(f.fd, p)
		switch {
		case err == syscall.EINTR:
			continue
		case err != nil:
			return 0, err
		case n > 0:
			return n, nil
		}
		// The port's name is known a moment before its host end counts as
		// connected; till then the driver answers with an end of file.
		time.Sleep(2 * time.Millisecond)
	}
}

func (f *lockedFile) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	done := 0
	for done < len(p) {
		n, err := syscall.Write(f.fd, p[done:])
		if err == syscall.EINTR || err == syscall.EAGAIN {
			continue
		}
		if err != nil {
			return done, err
		}
		done += n
	}
	return done, nil
}

// run starts the command and reaps every process until it has ended.
func run(spec wire.Spec, disks []string, port *lockedFile) (exitCode int, err error) {
	env := append(spec.Env,
		"TMPDIR="+tempDir,
		// There is no udevd: libdevmapper must not wait for it.
		"DM_DISABLE_UDEV=1",
		"QUARRY_MACHINE_KERNEL="+spec.KernelName,
		"QUARRY_MACHINE_DISKS="+strings.Join(disks, ":"))
	path, err := lookPath(spec.Argv[0], env, spec.Dir)
	if err != nil {
		return 0, err
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 0, err
	}
	defer null.Close()

	var copying sync.WaitGroup
	forward := func(kind wire.Kind) (*os.File, error) {
		r, w, err := os.Pipe()
		if err != nil {
			return nil, err
		}
		copying.Go(func() {
			buf := make([]byte, 32<<10)
			for {
				n, err := r.Read(buf)
				if n > 0 && wire.Write(port, kind, buf[:n]) != nil {
					return
				}
				if err != nil {
					return
				}
			}
		})
		return w, nil
	}
	stdout, err := forward(wire.KindStdout)
	if err != nil {
		return 0, err
	}
	stderr, err := forward(wire.KindStderr)
	if err != nil {
		return 0, err
	}

	// Before the start, so that it cannot come after the first output.
	if err := wire.Write(port, wire.KindStarted, nil); err != nil {
		return 0, err
	}
	pid, err := syscall.ForkExec(path, spec.Argv, &syscall.ProcAttr{
		Dir:   spec.Dir,
		Env:   env,
		Files: []uintptr{null.Fd(), stdout.Fd(), stderr.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	stdout.Close()
	stderr.Close()
	if err != nil {
		return 0, fmt.Errorf("start %s in %s: %w", path, spec.Dir, err)
	}
	status, err := reapUntil(pid)
	if err != nil {
		return 0, err
	}
	drained := make(chan struct{})
	go func() { copying.Wait(); close(drained) }()
	select {
	case <-drained:
	case <-time.After(lingerLimit):
	}
	if status.Signaled() {
		return 128 + int(status.Signal()), nil
	}
	return status.ExitStatus(), nil
}

// reapUntil does init's duty: it waits for all children, orphans included,
// until pid is among them.
func reapUntil(pid int) (syscall.WaitStatus, error) {
	for {
		var status syscall.WaitStatus
		got, err := syscall.Wait4(-1, &status, 0, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("wait for the command: %w", err)
		}
		if got == pid {
			return status, nil
		}
	}
}

// lookPath finds the command as a shell in dir with that environment would.
func lookPath(name string, env []string, dir string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil // relative to dir: ForkExec changes to it first
	}
	path := ""
	for _, kv := range env {
		if v, ok := strings.CutPrefix(kv, "PATH="); ok {
			path = v
		}
	}
	// Tools of the system are needed also when the caller is no root shell.
	path += ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	for _, d := range filepath.SplitList(path) {
		if d == "" {
			d = dir
		}
		full := filepath.Join(d, name)
		if st, err := os.Stat(full); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return full, nil
		}
	}
	return "", fmt.Errorf("%s: command not found in %s", name, path)
}

// loadFromHost loads modules, with what they depend on, from the kernel's
// tree on the host, by the host's modprobe.
func loadFromHost(modules []string) error {
	if len(modules) == 0 {
		return nil
	}
	out, err := exec.Command("/sbin/modprobe", append([]string{"-a"}, modules...)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("modprobe %s: %w: %s", strings.Join(modules, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// loopbackUp brings up the interface lo; see netdevice(7).
func loopbackUp() error {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("lo up: %w", err)
	}
	defer syscall.Close(fd)
	req := struct {
		name  [syscall.IFNAMSIZ]byte
		flags uint16
		_     [22]byte
	}{flags: syscall.IFF_UP | syscall.IFF_RUNNING}
	copy(req.name[:], "lo")
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), syscall.SIOCSIFFLAGS,
		uintptr(unsafe.Pointer(&req))); errno != 0 {
		return fmt.Errorf("lo up: %w", errno)
	}
	return nil
}

// poll waits for a device to be there. Without udev nobody tells.
func poll(what string, there func() bool) error {
	for end := time.Now().Add(pollLimit); !there(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			return fmt.Errorf("%s has not appeared in %v", what, pollLimit)
		}
	}
	return nil
}
