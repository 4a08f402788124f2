package mount

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Use is a mount as one mount namespace sees it.
type Use struct {
	Info
	Namespace uint64 // inode number of the mount namespace, or another unique number if it may not be read
	PID       int    // a process that is (or was) in it
	Command   string // what that process is called
}

// String says it for people: "mounted at /mnt by pid 12 (postgres)".
func (u Use) String() string {
	return fmt.Sprintf("mounted at %s in the mount namespace of pid %d (%s)", u.Mountpoint, u.PID, u.Command)
}

// Table holds the mounts of every mount namespace of the machine at one moment.
// One scan answers for all volumes.
type Table struct {
	// HostPID tells whether the processes of the whole machine were seen. A
	// container needs hostPID for it. Without it, mounts of other pods are
	// missing from the table and "nobody uses it" is not proven.
	HostPID bool

	// Hidden are the inode numbers of mount namespaces that are kept alive by
	// a bind mount of theirs although no process is in them. What they mount
	// is not in the table.
	Hidden []uint64

	// Unreadable are processes that we may not look into (it takes
	// CAP_SYS_PTRACE), so that mounts of theirs may be missing.
	Unreadable []int

	byDev map[Dev][]Use
	btrfs []btrfsUse
}

// btrfsUse is a mount of a btrfs with what its source resolves to, since its
// device number is anonymous.
type btrfsUse struct {
	source Dev
	use    Use
}

// initPIDNamespace is the inode number of the first pid namespace, fixed in
// the kernel (PROC_PID_INIT_INO in linux/proc_ns.h).
const initPIDNamespace = 0xEFFFFFFC

// seesMachine tells whether /proc shows the processes of the whole machine, or of
// the whole node where nodes are containers themselves. It does in the first pid
// namespace; and where process 1 lives in another mount namespace than we do:
// then it is not our own container's, since hostPID is how a container gets to
// see a process 1 that is not its own.
func seesMachine() bool {
	if ino, err := inode("/proc/self/ns/pid"); err == nil && ino == initPIDNamespace {
		return true
	}
	own, err := inode("/proc/self/ns/mnt")
	if err != nil {
		return false
	}
	first, err := inode("/proc/1/ns/mnt")
	return err == nil && first != own
}

// Scan reads the mounts of every mount namespace that a process is in.
//
// Threads count: one can have a mount namespace of its own (containerd and
// runc do that). What ends while it is looked at is left out.
func Scan() (*Table, error) {
	t := &Table{byDev: map[Dev][]Use{}}
	t.HostPID = seesMachine()
	processes, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("scan mounts: %w", err)
	}
	seen := map[uint64]bool{}
	for _, p := range processes {
		pid, err := strconv.Atoi(p.Name())
		if err != nil {
			continue
		}
		tasks, err := os.ReadDir(filepath.Join("/proc", p.Name(), "task"))
		if gone(err) {
			continue
		} else if err != nil {
			return nil, fmt.Errorf("scan mounts: %w", err)
		}
		for _, task := range tasks {
			dir := filepath.Join("/proc", p.Name(), "task", task.Name())
			err := t.addNamespace(dir, pid, seen)
			if errors.Is(err, os.ErrPermission) {
				t.Unreadable = append(t.Unreadable, pid)
				break
			}
			if err != nil && !gone(err) {
				return nil, fmt.Errorf("scan mounts of pid %d: %w", pid, err)
			}
		}
	}
	t.findHidden(seen)
	return t, nil
}

// addNamespace adds the mounts of the namespace that the task is in, unless
// they are there already.
func (t *Table) addNamespace(task string, pid int, seen map[uint64]bool) error {
	ns, err := inode(task + "/ns/mnt")
	if err != nil && !errors.Is(err, os.ErrPermission) || seen[ns] {
		return err
	}
	infos, err := parse(task + "/mountinfo")
	if err != nil || len(infos) == 0 {
		return err
	}
	if ns == 0 {
		// mountinfo can be read by more people than the namespace's number. A
		// mount is in one namespace only, so the first tells them apart.
		ns = uint64(infos[0].ID)
		if seen[ns] || t.hasMount(infos[0]) {
			return nil
		}
	}
	seen[ns] = true
	comm, _ := os.ReadFile(task + "/comm")
	for _, info := range infos {
		use := Use{Info: info, Namespace: ns, PID: pid, Command: strings.TrimSpace(string(comm))}
		t.byDev[info.Dev] = append(t.byDev[info.Dev], use)
		if info.FSType == "btrfs" {
			var st unix.Stat_t
			if unix.Stat(info.Source, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK {
				t.btrfs = append(t.btrfs, btrfsUse{devOf(uint64(st.Rdev)), use})
			}
		}
	}
	return nil
}

func (t *Table) hasMount(info Info) bool {
	return slices.ContainsFunc(t.byDev[info.Dev], func(u Use) bool { return u.ID == info.ID })
}

// findHidden looks for bind mounts of mount namespaces: a file of the
// filesystem nsfs whose root is "mnt:[4026532256]".
func (t *Table) findHidden(seen map[uint64]bool) {
	for _, uses := range t.byDev {
		for _, u := range uses {
			number, ok := strings.CutPrefix(u.Root, "mnt:[")
			if u.FSType != "nsfs" || !ok {
				continue
			}
			ns, err := strconv.ParseUint(strings.TrimSuffix(number, "]"), 10, 64)
			if err == nil && !seen[ns] {
				seen[ns] = true
				t.Hidden = append(t.Hidden, ns)
			}
		}
	}
}

// OfDevice returns the mounts of the filesystem on a block device, in all
// namespaces. For btrfs it goes by the mount's source.
func (t *Table) OfDevice(dev Dev) []Use {
	uses := append([]Use(nil), t.byDev[dev]...)
	for _, b := range t.btrfs {
		if b.source == dev {
			uses = append(uses, b.use)
		}
	}
	return uses
}

// OfNode returns the bind mounts, in all namespaces, of a node of the block device, such as /dev/loop3: what kubelet and CSI
// drivers give to containers. name is the node's, by which candidates are found; that it is this device is proven by its
// number.
func (t *Table) OfNode(dev Dev, name string) []Use {
	var uses []Use
	for _, all := range t.byDev {
		for _, u := range all {
			if path.Base(u.Root) != name {
				continue
			}
			var st unix.Statx_t
			err := unix.Statx(unix.AT_FDCWD, fmt.Sprintf("/proc/%d/root%s", u.PID, u.Mountpoint), unix.AT_SYMLINK_NOFOLLOW|unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE, &st)
			if gone(err) {
				continue
			}
			node := st.Mode&unix.S_IFMT == unix.S_IFBLK && Dev{Major: st.Rdev_major, Minor: st.Rdev_minor} == dev
			// What hides its mounts from us is a tenant with a mount namespace of its own, who can neither make a device's node nor
			// mount the devtmpfs that has them all.
			if node || err != nil && u.FSType == "devtmpfs" {
				uses = append(uses, u)
			}
		}
	}
	return uses
}

// Under returns the mounts, in all namespaces, of a place within a filesystem
// or of anything below it: bind mounts of a volume's directory, or of a file in
// it.
func (t *Table) Under(p Place) []Use {
	var uses []Use
	for _, u := range t.byDev[p.Dev] {
		// A directory that was removed while mounted shows as "/path//deleted".
		if u.Root == p.Path || p.Path == "/" || strings.HasPrefix(u.Root, p.Path+"/") {
			uses = append(uses, u)
		}
	}
	return uses
}

// Over returns the mounts, in all namespaces, whose mount point is a place within a filesystem or something below it: what
// hides a part of it there.
func (t *Table) Over(p Place) []Use {
	type mount struct {
		namespace uint64
		id        int
	}
	below := map[mount]Use{} // what the place can be seen through
	for _, u := range t.byDev[p.Dev] {
		below[mount{u.Namespace, u.ID}] = u
	}
	var over []Use
	for _, uses := range t.byDev {
		for _, u := range uses {
			parent, ok := below[mount{u.Namespace, u.Parent}]
			if !ok {
				continue
			}
			rel, ok := strings.CutPrefix(u.Mountpoint, strings.TrimSuffix(parent.Mountpoint, "/"))
			if !ok || rel != "" && rel[0] != '/' {
				continue
			}
			at := path.Join("/", parent.Root, rel)
			if at == p.Path || strings.HasPrefix(at, strings.TrimSuffix(p.Path, "/")+"/") {
				over = append(over, u)
			}
		}
	}
	return over
}

// MountedBelow returns the mounts of our own namespace whose mount point is the
// path or something below it, deepest first: the order in which they can be
// unmounted.
func MountedBelow(dir string) ([]Info, error) {
	infos, err := parse("/proc/thread-self/mountinfo")
	if err != nil {
		return nil, err
	}
	var below []Info
	// mountinfo has a mount before everything that is mounted in or on it,
	// except after a move; the kernel refuses a wrong order with EBUSY.
	for i := len(infos) - 1; i >= 0; i-- {
		if m := infos[i].Mountpoint; m == dir || strings.HasPrefix(m, strings.TrimSuffix(dir, "/")+"/") {
			below = append(below, infos[i])
		}
	}
	return below, nil
}

func inode(name string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(name, &st); err != nil {
		return 0, &os.PathError{Op: "stat", Path: name, Err: err}
	}
	return st.Ino, nil
}

// gone tells that a process ended while it was looked at. A zombie's mountinfo
// is EINVAL.
func gone(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL)
}
