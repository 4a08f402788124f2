package mount

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Use is a mount as one mount namespace sees it.
type Use struct {
	Info
	// Inode number of the mount namespace, or another unique number if it may
	// not be read.
	Namespace uint64
	PID       int    // a process that is (or was) in it
	Command   string // what that process is called
	Pod       string // the UID of the Kubernetes pod that the process is of; empty: of none

	// hidden: the namespace has no process. It is kept alive by a mount of
	// itself, which PID sees.
	hidden bool
}

// String says it for people: "mounted at /mnt by pid 12 (postgres)".
func (u Use) String() string {
	if u.hidden {
		return fmt.Sprintf("mounted at %s in a mount namespace without processes (%s)",
			u.Mountpoint, u.Command)
	}
	text := fmt.Sprintf("mounted at %s in the mount namespace of pid %d (%s)",
		u.Mountpoint, u.PID, u.Command)
	if u.Pod != "" {
		text += " of the pod with UID " + u.Pod
	}
	return text
}

// Table holds the mounts of every mount namespace of the machine at one moment.
// One scan answers for all volumes.
type Table struct {
	// HostPID reports whether the processes of the whole machine were seen. A
	// container needs hostPID for it. Without it, mounts of other pods are
	// missing from the table and "nobody uses it" is not proven.
	HostPID bool

	// Namespace is the inode number of our own mount namespace.
	Namespace uint64

	// Hidden are the inode numbers of mount namespaces that are kept alive by
	// a bind mount of theirs although no process is in them, and that could not
	// be looked into. What they mount is not in the table.
	Hidden []uint64

	// Unreadable are processes that we may not look into (it takes
	// CAP_SYS_PTRACE), so that mounts of theirs may be missing.
	Unreadable []int

	byDev map[Dev][]Use
	btrfs []btrfsUse
	// who stands for each namespace: the first process that was met in it, and
	// a thread of the kernel only where there is no other.
	who map[uint64]process
}

type process struct {
	pid          int
	command, pod string
	kernel       bool
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

// seesMachine reports whether /proc shows the processes of the whole machine,
// or of the whole node where nodes are containers themselves. It does in the
// first pid namespace; and where process 1 lives in another mount namespace
// than we do: then it is not our own container's, since hostPID is how a
// container gets to see a process 1 that is not its own.
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
	t := &Table{byDev: map[Dev][]Use{}, who: map[uint64]process{}}
	t.HostPID = seesMachine()
	t.Namespace, _ = inode("/proc/thread-self/ns/mnt")
	processes, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("scan mounts: %w", err)
	}
	seen := map[uint64]bool{}
	var denied []thread
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
			if err := t.addNamespace(dir, pid, seen); errors.Is(err, os.ErrPermission) {
				denied = append(denied, thread{dir, pid})
			} else if err != nil && !gone(err) {
				return nil, fmt.Errorf("scan mounts of pid %d: %w", pid, err)
			}
		}
	}
	if err := t.addDenied(denied, seen); err != nil {
		return nil, err
	}
	t.name()
	t.findHidden(seen)
	return t, nil
}

// name says of each mount who is in its namespace.
func (t *Table) name() {
	fill := func(u *Use) {
		p := t.who[u.Namespace]
		u.PID, u.Command, u.Pod = p.pid, p.command, p.pod
	}
	for _, uses := range t.byDev {
		for i := range uses {
			fill(&uses[i])
		}
	}
	for i := range t.btrfs {
		fill(&t.btrfs[i].use)
	}
}

// describe reads who a process is.
func describe(task string, pid int) process {
	comm, _ := os.ReadFile(task + "/comm")
	return process{
		pid:     pid,
		command: strings.TrimSpace(string(comm)),
		pod:     PodOf(pid),
		kernel:  isKernelThread(pid),
	}
}

// isKernelThread goes by the flag PF_KTHREAD of linux/sched.h; see
// proc_pid_stat(5).
func isKernelThread(pid int) bool {
	const kthread, flagsAt = 0x00200000, 6 // after the name, which can have any characters in it
	stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return false
	}
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if len(fields) <= flagsAt {
		return false
	}
	flags, err := strconv.ParseUint(fields[flagsAt], 10, 64)
	return err == nil && flags&kthread != 0
}

// podUID is how kubelet names the control group of a pod: with dashes, or with
// underscores where systemd makes the group.
var podUID = regexp.MustCompile(
	`pod([0-9a-f]{8}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{12})`)

// PodOf returns the UID of the Kubernetes pod that a process is of, by its
// control group; empty where it is of none, or where that cannot be read.
func PodOf(pid int) string {
	groups, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cgroup"))
	if err != nil {
		return ""
	}
	return podIn(string(groups))
}

func podIn(groups string) string {
	found := podUID.FindStringSubmatch(groups)
	if found == nil {
		return ""
	}
	return strings.ReplaceAll(found[1], "_", "-")
}

// thread is one of a process.
type thread struct {
	dir string // in /proc
	pid int
}

// addDenied adds the mounts of namespaces whose number may not be read, after
// all others: mountinfo can be read by more people than the number. A mount is
// in one namespace only, so the first one tells whether the namespace is there
// already.
func (t *Table) addDenied(denied []thread, seen map[uint64]bool) error {
	for _, task := range denied {
		infos, err := parse(task.dir + "/mountinfo")
		switch {
		case errors.Is(err, os.ErrPermission):
			if !slices.Contains(t.Unreadable, task.pid) {
				t.Unreadable = append(t.Unreadable, task.pid)
			}
			continue
		case gone(err):
			continue
		case err != nil:
			return fmt.Errorf("scan mounts of pid %d: %w", task.pid, err)
		}
		if len(infos) == 0 || t.hasMount(infos[0]) {
			continue
		}
		ns := uint64(infos[0].ID)
		seen[ns] = true
		t.who[ns] = describe(task.dir, task.pid)
		t.add(ns, infos, false)
	}
	return nil
}

// addNamespace adds the mounts of the namespace that the task is in, unless
// they are there already. The error is os.ErrPermission where it may not be
// told which namespace that is.
func (t *Table) addNamespace(task string, pid int, seen map[uint64]bool) error {
	ns, err := inode(task + "/ns/mnt")
	if err != nil {
		return err
	}
	if seen[ns] {
		if t.who[ns].kernel {
			t.who[ns] = describe(task, pid)
		}
		return nil
	}
	infos, err := parse(task + "/mountinfo")
	if err != nil || len(infos) == 0 {
		return err
	}
	seen[ns] = true
	t.who[ns] = describe(task, pid)
	t.add(ns, infos, false)
	return nil
}

// add adds the mounts of one namespace.
func (t *Table) add(ns uint64, infos []Info, hidden bool) {
	for _, info := range infos {
		use := Use{Info: info, Namespace: ns, hidden: hidden}
		if p := t.who[ns]; hidden {
			use.PID, use.Command = p.pid, p.command
		}
		t.byDev[info.Dev] = append(t.byDev[info.Dev], use)
		if info.FSType == "btrfs" {
			var st unix.Stat_t
			if unix.Stat(info.Source, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK {
				t.btrfs = append(t.btrfs, btrfsUse{devOf(uint64(st.Rdev)), use})
			}
		}
	}
}

func (t *Table) hasMount(info Info) bool {
	return slices.ContainsFunc(t.byDev[info.Dev], func(u Use) bool { return u.ID == info.ID })
}

// findHidden looks for bind mounts of mount namespaces, a file of the
// filesystem nsfs whose root is "mnt:[4026532256]", and looks into those that
// no process is in (snapd and others keep such).
func (t *Table) findHidden(seen map[uint64]bool) {
	failed := map[uint64]bool{}
	for again := true; again; { // one may be mounted in another
		again = false
		for _, u := range t.namespaces() {
			number, _ := strings.CutPrefix(u.Root, "mnt:[")
			ns, err := strconv.ParseUint(strings.TrimSuffix(number, "]"), 10, 64)
			if err != nil || seen[ns] {
				continue
			}
			infos, err := within(u)
			if err != nil {
				failed[ns] = true // another mount of it may lead there
				continue
			}
			seen[ns] = true
			delete(failed, ns)
			t.who[ns] = process{pid: u.PID, command: "kept at " + u.Mountpoint}
			t.add(ns, infos, true)
			again = true
		}
	}
	t.Hidden = slices.Sorted(maps.Keys(failed))
}

// namespaces are the mounts of mount namespaces.
func (t *Table) namespaces() (found []Use) {
	for _, uses := range t.byDev {
		for _, u := range uses {
			if u.FSType == "nsfs" && strings.HasPrefix(u.Root, "mnt:[") {
				found = append(found, u)
			}
		}
	}
	return found
}

// within reads the mounts of the mount namespace that u is a mount of. A thread
// enters it, and ends: there is no way back for it.
func within(u Use) ([]Info, error) {
	if u.hidden {
		return nil, fmt.Errorf("%s is in a namespace without processes: %w",
			u.Mountpoint, errors.ErrUnsupported)
	}
	ns, err := os.Open(fmt.Sprintf("/proc/%d/root%s", u.PID, u.Mountpoint))
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	proc, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	defer proc.Close()
	type result struct {
		content []byte
		err     error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // for ever
		content, err := readWithin(ns, proc)
		done <- result{content, err}
	}()
	r := <-done
	if r.err != nil {
		return nil, fmt.Errorf("look into the mount namespace at %s: %w", u.Mountpoint, r.err)
	}
	return parseContent(r.content)
}

func readWithin(ns, proc *os.File) ([]byte, error) {
	// The working directory is a thread's own then, as entering a mount
	// namespace demands.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return nil, err
	}
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNS); err != nil {
		return nil, err
	}
	fd, err := unix.Openat(int(proc.Fd()), "thread-self/mountinfo", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "mountinfo")
	defer f.Close()
	return io.ReadAll(f)
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

// OfNode returns the bind mounts, in all namespaces, of a node of the block
// device, such as /dev/loop3: what kubelet and CSI drivers give to containers.
// name is the node's, by which candidates are found; that it is this device is
// proven by its number.
func (t *Table) OfNode(dev Dev, name string) []Use {
	var uses []Use
	for _, all := range t.byDev {
		for _, u := range all {
			if path.Base(u.Root) != name {
				continue
			}
			if u.hidden {
				// Nobody's root directory leads there.
				if u.FSType == "devtmpfs" {
					uses = append(uses, u)
				}
				continue
			}
			var st unix.Statx_t
			err := unix.Statx(unix.AT_FDCWD, fmt.Sprintf("/proc/%d/root%s", u.PID, u.Mountpoint),
				unix.AT_SYMLINK_NOFOLLOW|unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE, &st)
			if gone(err) {
				continue
			}
			node := st.Mode&unix.S_IFMT == unix.S_IFBLK &&
				Dev{Major: st.Rdev_major, Minor: st.Rdev_minor} == dev
			// What hides its mounts from us is a tenant with a mount namespace
			// of its own, who can neither make a device's node nor mount the
			// devtmpfs that has them all.
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

// Over returns the mounts, in all namespaces, whose mount point is a place
// within a filesystem or something below it: what hides a part of it there.
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
	for _, info := range slices.Backward(infos) {
		if m := info.Mountpoint; m == dir ||
			strings.HasPrefix(m, strings.TrimSuffix(dir, "/")+"/") {
			below = append(below, info)
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
