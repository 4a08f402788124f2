package mount

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Info is one line of mountinfo; see proc_pid_mountinfo(5).
type Info struct {
	ID     int
	Parent int
	Dev    Dev // of the superblock; anonymous (major 0) for btrfs, tmpfs, overlay

	// Root is the directory or file of the filesystem that is mounted here,
	// relative to the filesystem's root.
	Root string

	// Mountpoint is where, relative to the root directory of the process whose
	// mountinfo this is.
	Mountpoint string

	// Propagation are the peer groups that the mount is in, such as "shared:2
	// master:1". Empty: it is private, so that neither mounts nor unmounts of
	// others reach it.
	Propagation string

	FSType       string
	Source       string   // for people: it need not be true
	Options      []string // of this mount
	SuperOptions []string // of the filesystem, shared by all its mounts
}

// ReadOnly reports whether nothing can be written through this mount, be it the
// mount's own choice, the filesystem's, or what the kernel did after an error.
func (i Info) ReadOnly() bool {
	return slices.Contains(i.Options, "ro") || slices.Contains(i.SuperOptions, "ro") ||
		slices.Contains(i.SuperOptions, "emergency_ro")
}

// ShutDown reports whether the filesystem says that it was shut down, after
// which it serves nothing. ext4 says so since Linux 6.14, xfs does not: it
// answers statx(2) with EIO.
func (i Info) ShutDown() bool { return slices.Contains(i.SuperOptions, "shutdown") }

// ErrNotMountpoint says that something is not the root of a mount.
var ErrNotMountpoint = errors.New("not a mount point")

// Open opens a path with O_PATH, following no symlink in its last component,
// and ending up in the topmost mount if something is mounted there.
func Open(name string) (*os.File, error) {
	return os.OpenFile(name, unix.O_PATH|unix.O_NOFOLLOW, 0)
}

// At returns the mount that f is the root of: the topmost one at the place
// where f was opened. It returns an error wrapping [ErrNotMountpoint] when f is
// not the root of a mount. f may be opened with O_PATH, and must have been
// opened after the mount was made; see the package's traps.
func At(f *os.File) (Info, error) {
	st, err := statx(f)
	if errors.Is(err, unix.EIO) {
		return atDead(f)
	}
	if err != nil {
		return Info{}, err
	}
	if st.Attributes&unix.STATX_ATTR_MOUNT_ROOT == 0 {
		return Info{}, fmt.Errorf("%s: %w", f.Name(), ErrNotMountpoint)
	}
	return byID(f, st.Mnt_id)
}

// atDead is [At] in a filesystem that was shut down, which does not answer.
// What the kernel itself knows of the descriptor has to do: in which mount it
// is (proc_pid_fdinfo(5)), and by which path.
func atDead(f *os.File) (Info, error) {
	id, err := idOf(f)
	if err != nil {
		return Info{}, err
	}
	info, err := byID(f, id)
	if err != nil {
		return Info{}, err
	}
	name, err := os.Readlink(procFD(f))
	if err != nil {
		return Info{}, err
	}
	if name != info.Mountpoint {
		return Info{}, fmt.Errorf("%s: %w", f.Name(), ErrNotMountpoint)
	}
	return info, nil
}

// idOf is the id of the mount in which f lies, without a word to its
// filesystem.
func idOf(f *os.File) (uint64, error) {
	content, err := os.ReadFile("/proc/self/fdinfo/" + strconv.Itoa(int(f.Fd())))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(content)) {
		if value, ok := strings.CutPrefix(line, "mnt_id:"); ok {
			return strconv.ParseUint(strings.TrimSpace(value), 10, 64)
		}
	}
	return 0, fmt.Errorf("%s: the kernel does not tell its mount: %w",
		f.Name(), errors.ErrUnsupported)
}

// Own returns the mounts of our own mount namespace, in the order of mountinfo.
func Own() ([]Info, error) { return parse("/proc/thread-self/mountinfo") }

// Of returns the mount in which f lies.
func Of(f *os.File) (Info, error) {
	st, err := statx(f)
	if err != nil {
		return Info{}, err
	}
	return byID(f, st.Mnt_id)
}

// IsDeviceMountedAt reports whether f is the root of a mount of the block
// device dev, of the whole filesystem and not of one directory in it. See [At]
// for f.
func IsDeviceMountedAt(f *os.File, dev Dev) (bool, error) {
	info, err := At(f)
	if errors.Is(err, ErrNotMountpoint) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if info.FSType != "btrfs" {
		// Nothing is asked of the filesystem, which may be dead.
		return info.Root == "/" && info.Dev == dev, nil
	}
	devs, err := DevicesOf(f)
	if err != nil {
		return false, err
	}
	return info.Root == "/" && len(devs) == 1 && devs[0] == dev, nil
}

// Place is a file or directory within a filesystem, as mountinfo names it:
// the superblock's device number and the path from the filesystem's root.
type Place struct {
	Dev  Dev
	Path string
}

// PlaceOf returns the place of f. It is right for the moment only: f can be
// renamed.
func PlaceOf(f *os.File) (Place, error) {
	info, err := Of(f)
	if err != nil {
		return Place{}, err
	}
	name, err := os.Readlink(procFD(f))
	if err != nil {
		return Place{}, err
	}
	rel, ok := strings.CutPrefix(name, strings.TrimSuffix(info.Mountpoint, "/"))
	if !ok || rel != "" && rel[0] != '/' {
		return Place{}, fmt.Errorf("%s is not below its mount point %s", name, info.Mountpoint)
	}
	return Place{Dev: info.Dev, Path: path.Join("/", info.Root, rel)}, nil
}

func statx(f *os.File) (unix.Statx_t, error) {
	var st unix.Statx_t
	err := unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC,
		unix.STATX_TYPE|unix.STATX_MNT_ID, &st)
	if err != nil {
		return st, &os.PathError{Op: "statx", Path: f.Name(), Err: err}
	}
	if st.Mask&unix.STATX_MNT_ID == 0 || st.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT == 0 {
		return st, fmt.Errorf("statx %s: the kernel does not tell mounts (Linux 5.8 does): %w",
			f.Name(), errors.ErrUnsupported)
	}
	return st, nil
}

func byID(f *os.File, id uint64) (Info, error) {
	infos, err := parse("/proc/thread-self/mountinfo")
	if err != nil {
		return Info{}, err
	}
	for _, info := range infos {
		if uint64(info.ID) == id {
			return info, nil
		}
	}
	// Mounted in another namespace, or not attached any more.
	return Info{}, fmt.Errorf("%s lies in mount %d, which this mount namespace does not have: %w",
		f.Name(), id, unix.ENOENT)
}

// parse reads one mountinfo file. The whole file is read before anything of it
// is parsed: the less time between the kernel's reads, the less it can change.
func parse(name string) ([]Info, error) {
	content, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	infos, err := parseContent(content)
	if err != nil {
		return nil, fmt.Errorf("parse %s: %w", name, err)
	}
	return infos, nil
}

func parseContent(content []byte) ([]Info, error) {
	parsed, err := mountinfo.GetMountsFromReader(bytes.NewReader(content), nil)
	if err != nil {
		return nil, err
	}
	infos := make([]Info, len(parsed))
	for i, m := range parsed {
		infos[i] = Info{
			ID: m.ID, Parent: m.Parent, Dev: Dev{uint32(m.Major), uint32(m.Minor)},
			Root: m.Root, Mountpoint: m.Mountpoint,
			Propagation: m.Optional, FSType: m.FSType, Source: m.Source,
			Options: strings.Split(m.Options, ","), SuperOptions: strings.Split(m.VFSOptions, ","),
		}
	}
	return infos, nil
}
