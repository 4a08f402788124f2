package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"unsafe"

	"github.com/quarry-storage/quarry/test/machine/wire"
)

// tempDir is the TMPDIR of the command. It is not /tmp, because a command that
// was built into /tmp on the host (go test does) has to be seen there.
const tempDir = "/run/tmp"

// modulesList names, in load order, the modules that the initramfs carries.
const modulesList = "/modules/order"

// openPort mounts what is needed to find the port, loads the initramfs's
// modules and opens the port.
func openPort() (*lockedFile, error) {
	for _, m := range []struct{ fstype, target string }{
		{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"},
	} {
		if err := mount(m.fstype, m.target, m.fstype, 0, ""); err != nil && !errors.Is(err, syscall.EBUSY) {
			return nil, err
		}
	}
	order, err := os.ReadFile(modulesList)
	if err != nil {
		return nil, err
	}
	for path := range strings.FieldsSeq(string(order)) {
		if err := loadModule(filepath.Join(filepath.Dir(modulesList), path)); err != nil {
			return nil, err
		}
	}
	var dev string
	err = poll("the virtio-serial port "+wire.Port, func() bool {
		names, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
		for _, n := range names {
			if b, err := os.ReadFile(n); err == nil && strings.TrimSpace(string(b)) == wire.Port {
				dev = filepath.Join("/dev", filepath.Base(filepath.Dir(n)))
				_, err := os.Stat(dev)
				return err == nil
			}
		}
		return false
	})
	if err != nil {
		return nil, err
	}
	fd, err := syscall.Open(dev, syscall.O_RDWR|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", dev, err)
	}
	return &lockedFile{fd: fd}, nil
}

// loadModule loads one module file; the kernel decompresses it where needed.
func loadModule(path string) error {
	const compressed = 4 // MODULE_INIT_COMPRESSED_FILE, linux/module.h
	flags := 0
	if !strings.HasSuffix(path, ".ko") {
		flags = compressed
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	var none [1]byte
	const sysFinitModule = 313 // amd64; the syscall package lacks it
	_, _, errno := syscall.Syscall(sysFinitModule, f.Fd(), uintptr(unsafe.Pointer(&none[0])), uintptr(flags))
	if errno != 0 && errno != syscall.EEXIST {
		return fmt.Errorf("load module %s: %w", path, errno)
	}
	return nil
}

// enterHostRoot makes the host's root the root of this and every later
// process: 9p below, memory above, so that the host never sees a write.
func enterHostRoot(spec wire.Spec) error {
	const (
		lower = "/host"
		mem   = "/overlay"
		root  = "/root"
	)
	const options9p = "trans=virtio,version=9p2000.L,msize=512000"
	if err := mount(wire.HostTag, lower, "9p", syscall.MS_RDONLY, options9p+",cache=loose"); err != nil {
		return err
	}
	if err := mount("tmpfs", mem, "tmpfs", 0, "mode=755,size=75%"); err != nil {
		return err
	}
	for _, d := range []string{"upper", "work"} {
		if err := os.Mkdir(filepath.Join(mem, d), 0o755); err != nil {
			return err
		}
	}
	if err := mount("overlay", root, "overlay", 0,
		fmt.Sprintf("lowerdir=%s,upperdir=%s/upper,workdir=%s/work", lower, mem, mem)); err != nil {
		return err
	}
	for _, m := range []struct {
		source, target, fstype string
		flags                  uintptr
		data                   string
	}{
		{"proc", "/proc", "proc", syscall.MS_NOSUID | syscall.MS_NODEV | syscall.MS_NOEXEC, ""},
		{"sysfs", "/sys", "sysfs", syscall.MS_NOSUID | syscall.MS_NODEV | syscall.MS_NOEXEC, ""},
		{"cgroup2", "/sys/fs/cgroup", "cgroup2", 0, ""},
		{"devtmpfs", "/dev", "devtmpfs", syscall.MS_NOSUID, "mode=755"},
		{"devpts", "/dev/pts", "devpts", 0, "gid=5,mode=620,ptmxmode=666"},
		{"tmpfs", "/dev/shm", "tmpfs", syscall.MS_NOSUID | syscall.MS_NODEV, ""},
		{"tmpfs", "/run", "tmpfs", syscall.MS_NOSUID | syscall.MS_NODEV, "mode=755"},
		{"tmpfs", tempDir, "tmpfs", 0, "mode=1777"},
	} {
		if err := mount(m.source, filepath.Join(root, m.target), m.fstype, m.flags, m.data); err != nil {
			return err
		}
	}
	for i, dir := range spec.Shares {
		if err := mount(wire.ShareTag(i), filepath.Join(root, dir), "9p", 0, options9p+",access=any"); err != nil {
			return err
		}
	}
	// modprobe, and the kernel when it autoloads, look in /lib/modules.
	modules, err := filepath.EvalSymlinks(filepath.Join(root, "lib"))
	if err != nil {
		modules = filepath.Join(root, "lib")
	}
	if err := mount(filepath.Join(lower, spec.ModuleTree, "lib/modules"), filepath.Join(modules, "modules"), "",
		syscall.MS_BIND, ""); err != nil {
		return err
	}
	// The initramfs cannot be unmounted or pivoted away: switch_root(8).
	if err := syscall.Chdir(root); err != nil {
		return err
	}
	if err := syscall.Mount(".", "/", "", syscall.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move the root: %w", err)
	}
	if err := syscall.Chroot("."); err != nil {
		return fmt.Errorf("chroot: %w", err)
	}
	if err := syscall.Chdir("/"); err != nil {
		return err
	}
	// Mount propagation as systemd would set it, and as kubelet needs it.
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_SHARED, ""); err != nil {
		return fmt.Errorf("make / shared: %w", err)
	}
	for link, target := range map[string]string{
		"/dev/fd": "/proc/self/fd", "/dev/stdin": "fd/0", "/dev/stdout": "fd/1", "/dev/stderr": "fd/2",
	} {
		if err := os.Symlink(target, link); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	return syscall.Sethostname([]byte("machine"))
}

// waitForDisks returns the device paths of the disks, in the host's order.
func waitForDisks(n int) ([]string, error) {
	disks := make([]string, n)
	for i := range disks {
		err := poll("disk "+wire.DiskSerial(i), func() bool {
			serials, _ := filepath.Glob("/sys/block/vd*/serial")
			for _, s := range serials {
				if b, err := os.ReadFile(s); err == nil && strings.TrimSpace(string(b)) == wire.DiskSerial(i) {
					disks[i] = filepath.Join("/dev", filepath.Base(filepath.Dir(s)))
					return true
				}
			}
			return false
		})
		if err != nil {
			return nil, err
		}
	}
	return disks, nil
}

// settleDisks unmounts every filesystem that is on a block device, innermost
// first, and writes everything back. What is still busy is left to its journal.
func settleDisks() {
	_ = syscall.Chdir("/")
	mounts, _ := os.ReadFile("/proc/self/mounts")
	lines := bytes.Split(bytes.TrimSpace(mounts), []byte("\n"))
	for _, line := range slices.Backward(lines) {
		f := strings.Fields(string(line))
		if len(f) > 1 && strings.HasPrefix(f[0], "/dev/") {
			_ = syscall.Unmount(unescape(f[1]), 0)
		}
	}
	syscall.Sync()
}

// unescape undoes the octal escapes of proc(5)'s mount tables.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// mount makes the mount point if there is none and mounts.
func mount(source, target, fstype string, flags uintptr, data string) error {
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	if err := syscall.Mount(source, target, fstype, flags, data); err != nil {
		return fmt.Errorf("mount %s at %s (type %q, %q): %w", source, target, fstype, data, err)
	}
	return nil
}
