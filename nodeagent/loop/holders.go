package loop

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/nodeagent/mount"
)

// Holder is somebody who uses a loop device.
type Holder struct {
	Kind Kind
	// For mounts: a process in that mount namespace; for descriptors: whose it
	// is; else 0.
	PID    int
	Detail string // for people: where it is mounted, which process, which device
}

// Kind is how a device is used.
type Kind string

// The kinds of holders.
const (
	KindMount      Kind = "mount"      // mounted, in some mount namespace
	KindDevice     Kind = "device"     // beneath a dm or md device
	KindLoop       Kind = "loop"       // beneath another loop device
	KindBtrfs      Kind = "btrfs"      // part of a mounted btrfs
	KindSwap       Kind = "swap"       //
	KindDescriptor Kind = "descriptor" // open in a process
	KindUnknown    Kind = "unknown"    // claimed by something that cannot be seen from here
)

func (h Holder) String() string { return string(h.Kind) + ": " + h.Detail }

// HolderOptions say how holders are looked for.
type HolderOptions struct {
	// Table are the mounts to look in; nil scans them.
	Table *mount.Table

	// IncludeSelf counts this process's own descriptors too.
	IncludeSelf bool

	// descriptorsOnly leaves out what O_EXCL has told already.
	descriptorsOnly bool
}

// Holders returns everybody who uses a loop device: mounts in every mount
// namespace, device mapper and md, other loop devices, swap, and descriptors of
// other processes. It needs the host's process ids (hostPID); what cannot be
// seen but has claimed the device shows as [KindUnknown]. Descriptors of
// processes that we may not look into (CAP_SYS_PTRACE) are missing.
//
// An empty answer is true for a moment only. [Detach] does not depend on it.
func Holders(dev Device, opts HolderOptions) ([]Holder, error) {
	var holders []Holder
	if !opts.descriptorsOnly {
		claimed, err := claims(dev, opts.Table)
		if err != nil {
			return nil, fmt.Errorf("holders of %s: %w", dev.Path, err)
		}
		holders = claimed
	}
	stacked, err := stackedLoops(dev)
	if err != nil {
		return nil, fmt.Errorf("holders of %s: %w", dev.Path, err)
	}
	open, err := descriptors(dev, opts.IncludeSelf)
	if err != nil {
		return nil, fmt.Errorf("holders of %s: %w", dev.Path, err)
	}
	return append(append(holders, stacked...), open...), nil
}

// claims returns the holders that have the device exclusively.
func claims(dev Device, table *mount.Table) ([]Holder, error) {
	var holders []Holder
	if table == nil {
		scanned, err := mount.Scan()
		if err != nil {
			return nil, err
		}
		table = scanned
	}
	for _, u := range table.OfDevice(dev.Dev) {
		holders = append(holders, Holder{Kind: KindMount, PID: u.PID, Detail: u.String()})
	}
	above, err := os.ReadDir(sysfs(dev.Number, "holders"))
	if err != nil && !vanished(err) {
		return nil, err
	}
	for _, e := range above {
		holders = append(holders, Holder{Kind: KindDevice, Detail: e.Name()})
	}
	name := "loop" + strconv.Itoa(dev.Number)
	if len(holders) == 0 { // a btrfs shows as its mounts, unless they cannot be seen
		filesystems, _ := filepath.Glob("/sys/fs/btrfs/*/devices/" + name)
		for _, path := range filesystems {
			holders = append(holders, Holder{Kind: KindBtrfs, Detail: "btrfs " +
				filepath.Base(filepath.Dir(filepath.Dir(path)))})
		}
	}
	swaps, err := os.ReadFile("/proc/swaps")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	for line := range strings.Lines(string(swaps)) {
		fields := strings.Fields(line)
		if len(fields) < 2 || fields[1] != "partition" {
			continue
		}
		var st unix.Stat_t
		if filepath.Base(fields[0]) == name || unix.Stat(fields[0], &st) == nil &&
			isNode(&st, dev) {
			holders = append(holders, Holder{Kind: KindSwap, Detail: "swap"})
		}
	}
	if len(holders) > 0 {
		return holders, nil
	}
	// Nobody in sight: ask the kernel.
	f, err := openNode(dev.Number, unix.O_RDONLY|unix.O_EXCL)
	switch {
	case errors.Is(err, unix.EBUSY):
		return []Holder{{Kind: KindUnknown, Detail: "claimed by a mount, swap or device that " +
			"cannot be seen from here"}}, nil
	case errors.Is(err, errUnbound):
		return nil, nil
	case err != nil:
		return nil, err
	}
	return nil, f.Close()
}

// stackedLoops returns the loop devices whose backing file is a node of this
// device.
func stackedLoops(dev Device) ([]Holder, error) {
	rdev := unix.Mkdev(dev.Dev.Major, dev.Dev.Minor)
	above, err := find(
		func(is identity) bool { return is.rdevice == rdev },
		func(info *unix.LoopInfo64) bool { return info.Rdevice == rdev },
	)
	if err != nil {
		return nil, err
	}
	var holders []Holder
	for _, d := range above {
		holders = append(holders, Holder{Kind: KindLoop, Detail: "beneath " + d.Path})
	}
	return holders, nil
}

// descriptors returns the processes that have the device open.
func descriptors(dev Device, self bool) ([]Holder, error) {
	processes, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var holders []Holder
	pinned := pinnedAt(dev.Number)
	for _, p := range processes {
		pid, err := strconv.Atoi(p.Name())
		if err != nil || !self && pid == os.Getpid() {
			continue
		}
		dir := filepath.Join("/proc", p.Name(), "fd")
		fds, err := os.ReadDir(dir)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) ||
			errors.Is(err, os.ErrPermission) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, fd := range fds {
			if pid == os.Getpid() && fd.Name() == pinned {
				continue
			}
			if isOpen(filepath.Join(dir, fd.Name()), dev) {
				comm, _ := os.ReadFile(filepath.Join("/proc", p.Name(), "comm"))
				detail := fmt.Sprintf("open in pid %d (%s)", pid, strings.TrimSpace(string(comm)))
				if pod := mount.PodOf(pid); pod != "" {
					detail += " of the pod with UID " + pod
				}
				holders = append(holders, Holder{Kind: KindDescriptor, PID: pid, Detail: detail})
				break
			}
		}
	}
	return holders, nil
}

// isOpen reports whether a link in /proc/<pid>/fd leads to the device. It does
// not wait for a network filesystem that does not answer.
func isOpen(link string, dev Device) bool {
	name, err := os.Readlink(link)
	if err != nil || !strings.HasPrefix(name, "/") { // socket:[1], pipe:[2], anon_inode:...
		return false
	}
	var st unix.Statx_t
	err = unix.Statx(unix.AT_FDCWD, link, unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE, &st)
	return err == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK &&
		mount.Dev{Major: st.Rdev_major, Minor: st.Rdev_minor} == dev.Dev
}

func isNode(st *unix.Stat_t, dev Device) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFBLK && unix.Major(st.Rdev) == dev.Dev.Major &&
		unix.Minor(st.Rdev) == dev.Dev.Minor
}
