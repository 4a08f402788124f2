package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log"
	"maps"
	"net"
	"os"
	"os/signal"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// The descriptors that Start hands over, after the three standard ones.
const (
	bootDescriptor   = 3
	answerDescriptor = 4
)

// runInit is the main function of PID 1. It never returns.
func runInit() {
	log.SetFlags(log.LstdFlags | log.Lmicroseconds)
	answer := os.NewFile(answerDescriptor, "answer")
	processes, listener, err := boot(os.NewFile(bootDescriptor, "boot"))
	if err != nil {
		log.Printf("boot failed: %v", err)
		answer.WriteString(err.Error()) //nolint:errcheck // it is in the log
		os.Exit(1)
	}
	answer.WriteString(answerReady) //nolint:errcheck // whoever started us may be gone: no reason to die
	answer.Close()
	log.Print("booted")
	// Only SIGKILL ends a node. Caught and dropped, not ignored: programs would
	// inherit that.
	signal.Notify(make(chan os.Signal, 1), unix.SIGHUP, unix.SIGINT, unix.SIGTERM)
	go processes.serve(listener)
	processes.reap()
}

// boot reads what to do and does it, up to where programs can be started.
func boot(from *os.File) (*processes, net.Listener, error) {
	// Before anything is mounted: nothing here may propagate to the machine.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return nil, nil, fmt.Errorf("make mounts private: %w", err)
	}
	var b Boot
	if err := json.NewDecoder(from).Decode(&b); err != nil {
		return nil, nil, fmt.Errorf("read what to do: %w", err) // EOF: whoever started us died
	}
	from.Close()
	n := Node{Name: b.Hostname, Dir: b.Dir}
	// What lies on the machine is opened while it can be seen.
	listener, err := net.Listen("unix", n.socket())
	if err != nil {
		return nil, nil, fmt.Errorf("listen for orders: %w", err)
	}
	logs, err := os.OpenRoot(filepath.Join(n.Dir, "log"))
	if err != nil {
		return nil, nil, err
	}
	if err := unix.Sethostname([]byte(b.Hostname)); err != nil {
		return nil, nil, fmt.Errorf("set the host name: %w", err)
	}
	if err := makeTree(filepath.Join(n.Dir, "mnt"), b); err != nil {
		return nil, nil, err
	}
	if err := os.Setenv("PATH", b.Path); err != nil { // where programs are looked up
		return nil, nil, err
	}
	return newProcesses(logs, environment(b.Path)), listener, nil
}

// makeTree mounts the node's file tree at root and makes it the root. When it
// returns, the machine's tree is not to be seen any more, and mounts propagate
// to whoever asks for it: containers.
func makeTree(root string, b Boot) error {
	if err := b.System.mountAt(root); err != nil {
		return err
	}
	steps := []func(string, Boot) error{
		wipe, shareSystemFiles, overlayEtc, mountKernelFilesystems, bindDirectories, writeFiles, enter,
		hideSettings, mountDisks,
	}
	for _, step := range steps {
		if err := step(root, b); err != nil {
			return err
		}
	}
	// Last, so that each mount made above is a peer group of its own.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("make mounts shared: %w", err)
	}
	return nil
}

func wipe(root string, b Boot) error {
	for _, directory := range b.Wipe {
		if err := os.RemoveAll(filepath.Join(root, directory)); err != nil {
			return fmt.Errorf("wipe %s: %w", directory, err)
		}
	}
	return nil
}

// shareSystemFiles gives the node the machine's /usr, read-only, and what
// points into it from the root: /bin, /lib and so on, which are links where
// /usr is merged and directories where it is not.
func shareSystemFiles(root string, _ Boot) error {
	if err := bindReadOnly("/usr", filepath.Join(root, "usr")); err != nil {
		return err
	}
	for _, name := range []string{"bin", "sbin", "lib", "lib32", "lib64", "libx32"} {
		info, err := os.Lstat("/" + name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
			return err
		case info.IsDir():
			err = bindReadOnly("/"+name, filepath.Join(root, name))
		default:
			err = copyLink("/"+name, filepath.Join(root, name))
		}
		if err != nil {
			return fmt.Errorf("share /%s: %w", name, err)
		}
	}
	return nil
}

func copyLink(from, to string) error {
	target, err := os.Readlink(from)
	if err != nil {
		return err
	}
	if err := os.Remove(to); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.Symlink(target, to)
}

// overlayEtc shows the machine's /etc (alternatives, mke2fs.conf, protocols
// ...) with the node's own files over it.
func overlayEtc(root string, _ Boot) error {
	upper, work, etc := filepath.Join(root, ".etc/upper"), filepath.Join(root, ".etc/work"), filepath.Join(root, "etc")
	for _, directory := range []string{upper, work, etc} {
		if err := os.MkdirAll(directory, 0o755); err != nil {
			return err
		}
	}
	options := fmt.Sprintf("lowerdir=/etc,upperdir=%s,workdir=%s", upper, work)
	if err := unix.Mount("overlay", etc, "overlay", 0, options); err != nil {
		return fmt.Errorf("mount an overlay over /etc: %w", err)
	}
	return nil
}

func mountKernelFilesystems(root string, _ Boot) error {
	mounts := []struct {
		path, source, kind string
		flags              uintptr
		options            string
	}{
		{"proc", "proc", "proc", 0, ""},
		{"sys", "sysfs", "sysfs", 0, ""}, // mounted in the node's network namespace, it shows the node's links
		{"sys/fs/cgroup", "/sys/fs/cgroup", "", unix.MS_BIND | unix.MS_REC, ""},
		{"dev", "/dev", "", unix.MS_BIND | unix.MS_REC, ""},
		{"dev/shm", "tmpfs", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
		{"run", "tmpfs", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=755"},
		{"run/lock", "tmpfs", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
		{"tmp", "tmpfs", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
	}
	for _, m := range mounts {
		target := filepath.Join(root, m.path)
		if err := os.MkdirAll(target, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.source, target, m.kind, m.flags, m.options); err != nil {
			return fmt.Errorf("mount /%s: %w", m.path, err)
		}
	}
	// The usual places of a machine, and links of old that programs still use.
	for _, directory := range []string{"root", "home", "mnt", "opt", "srv", "media", "var/lib", "var/log", "var/tmp",
		"var/cache"} {
		if err := os.MkdirAll(filepath.Join(root, directory), 0o755); err != nil {
			return err
		}
	}
	for link, target := range map[string]string{"var/run": "/run", "var/lock": "/run/lock"} {
		if err := os.Symlink(target, filepath.Join(root, link)); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil
}

func bindDirectories(root string, b Boot) error {
	for _, bind := range b.Binds {
		if err := bindReadOnly(bind.Source, filepath.Join(root, bind.Target)); err != nil {
			return err
		}
	}
	return nil
}

func writeFiles(root string, b Boot) error {
	for _, file := range b.Files {
		path := filepath.Join(root, file.Path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		// Removed first: through the overlay it could be a link that leads
		// elsewhere.
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := os.WriteFile(path, file.Content, file.Mode); err != nil {
			return err
		}
	}
	return nil
}

// enter makes the tree the root and lets the machine's go. With both arguments
// ".", the old root ends up mounted over the new one, where it is taken off at
// once: pivot_root(2), NOTES.
func enter(root string, _ Boot) error {
	if err := os.Chdir(root); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("let the machine's tree go: %w", err)
	}
	return os.Chdir("/")
}

// settings of the kernel that kubelet insists on, with the values it wants to
// read (all others it would write).
var settings = map[string]string{
	"vm/overcommit_memory":      "1",
	"vm/panic_on_oom":           "0",
	"kernel/panic":              "10",
	"kernel/panic_on_oops":      "1",
	"kernel/keys/root_maxkeys":  "1000000",
	"kernel/keys/root_maxbytes": "25000000",
}

// hideSettings puts plain files of the node over settings that are the
// machine's, so that those stay as they are; and a boot id of the node's own,
// so that kubelet and everybody else notices a reboot.
func hideSettings(_ string, b Boot) error {
	directory := "/run/testbed/sys"
	values := map[string]string{"kernel/random/boot_id": b.ID}
	maps.Copy(values, settings)
	for name, value := range values {
		target := filepath.Join("/proc/sys", name)
		if _, err := os.Stat(target); errors.Is(err, fs.ErrNotExist) {
			continue // not in this kernel
		}
		file := filepath.Join(directory, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(file, []byte(value+"\n"), 0o644); err != nil {
			return err
		}
		if err := unix.Mount(file, target, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("hide %s: %w", target, err)
		}
	}
	// The node's own: it is of its network namespace.
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644); err != nil {
		return fmt.Errorf("let the node route for its pods: %w", err)
	}
	return nil
}

func mountDisks(_ string, b Boot) error {
	for _, disk := range b.Disks {
		if err := disk.mountAt(disk.Path); err != nil {
			return err
		}
	}
	return nil
}

func (d Disk) mountAt(target string) error {
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(d.Device, target, d.Filesystem, 0, d.Options); err != nil {
		return fmt.Errorf("mount the %s on %s at %s: %w", d.Filesystem, d.Device, target, err)
	}
	return nil
}

func bindReadOnly(source, target string) error {
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	err := unix.Mount(source, target, "", unix.MS_BIND, "")
	if err == nil { // a bind takes no other flags at first: mount(2)
		err = unix.Mount("", target, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")
	}
	if err != nil {
		return fmt.Errorf("bind %s to %s: %w", source, target, err)
	}
	return nil
}
