package filesystem

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// MakeOptions say what filesystem to make.
type MakeOptions struct {
	Type Type

	// UUID is the filesystem's, lower case with hyphens. It is given and not
	// found out afterwards, so that it can be recorded before the act.
	UUID string

	// Label is optional: at most 16 bytes for ext4, 12 for xfs, 255 for btrfs.
	Label string

	// Inodes is how many files there shall be room for, 0 for the usual number.
	// Only ext4 decides it when it is made; the others take no notice.
	Inodes uint64

	// Zeroed says that all of the device reads as zeros, as a new image does.
	// Then nothing has to be zeroed, neither now nor in the background after
	// the first mount.
	Zeroed bool

	// SectorSize is the logical block size, in bytes, of the device that an
	// image will be mounted with. The filesystem's own blocks and sectors must
	// not be smaller, and mkfs cannot ask an image. 0: what device says.
	SectorSize uint32

	// ExtraArgs are options for mkfs, checked with [ValidateMkfsOptions].
	ExtraArgs []string
}

// MakeError is mkfs that failed.
type MakeError struct {
	Tool   string
	Device string
	Output string // the last lines that it wrote
	Err    error
}

func (e *MakeError) Error() string {
	message := fmt.Sprintf("%s %s: %v", e.Tool, e.Device, e.Err)
	if e.Output != "" {
		message += ": " + e.Output
	}
	return message
}

func (e *MakeError) Unwrap() error { return e.Err }

// TooSmallError says that a filesystem does not fit.
type TooSmallError struct {
	Type          Type
	Size, Minimum int64 // bytes
}

func (e *TooSmallError) Error() string {
	return fmt.Sprintf("%d bytes are too small for %s, which takes %d (%d MiB) at least",
		e.Size, e.Type, e.Minimum, e.Minimum>>20)
}

// MinimumSize is the least number of bytes with which a device makes a usable
// filesystem of the type.
//   - ext4: below 16 MiB the journal takes more than half.
//   - xfs: mkfs.xfs refuses less than 300 MiB since xfsprogs 5.19.
//   - btrfs: the kernel resizes to nothing below 256 MiB, so that a smaller one
//     could not grow in small steps; and below 200 MiB its chunks leave next to
//     no room for data.
func MinimumSize(t Type) int64 {
	switch t {
	case XFS:
		return 300 << 20
	case Btrfs:
		return 256 << 20
	default:
		return 16 << 20
	}
}

var uuidPattern = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

// Make makes a filesystem on an open block device or image. The device must be
// blank ([CheckBlank]): whatever has a filesystem is never formatted again, and
// the error is an [*AlreadyFormattedError]. So a second call fails, and whoever
// was interrupted begins anew with a blank device.
//
// device must be open for reading and writing, without O_EXCL, since mkfs wants
// that for itself. When ctx ends, mkfs is killed. What it wrote is on the disk
// when this returns.
func Make(ctx context.Context, device *os.File, opts MakeOptions) error {
	if !opts.Type.Valid() {
		return fmt.Errorf("make filesystem: no type %q", opts.Type)
	}
	if !uuidPattern.MatchString(opts.UUID) {
		return fmt.Errorf("make filesystem: not a UUID: %q", opts.UUID)
	}
	if limit := map[Type]int{Ext4: 16, XFS: 12, Btrfs: 255}[opts.Type]; len(opts.Label) > limit ||
		strings.HasPrefix(opts.Label, "-") {
		return fmt.Errorf("make filesystem: label %q: want at most %d bytes, and no "+
			"hyphen in front", opts.Label, limit)
	}
	size, err := device.Seek(0, io.SeekEnd)
	if err != nil {
		return fmt.Errorf("make filesystem: %w", err)
	}
	if least := MinimumSize(opts.Type); size < least {
		return &TooSmallError{opts.Type, size, least}
	}
	extra, err := parseMkfsOptions(opts.Type, opts.ExtraArgs)
	if err != nil {
		return err
	}
	if err := checkSectors(opts.Type, extra, opts.SectorSize); err != nil {
		return err
	}
	defaults, err := defaultOptions(opts, size)
	if err != nil {
		return err
	}
	if err := CheckBlank(device); err != nil {
		return err
	}
	tool := "mkfs." + string(opts.Type)
	// The child looks up no name: its descriptor 3 is our device.
	args := append(merge(defaults, extra).args(), "/proc/self/fd/3")
	cmd := exec.CommandContext(ctx, tool, args...)
	cmd.ExtraFiles = []*os.File{device}
	if out, err := run(cmd); err != nil {
		return &MakeError{
			Tool:   tool,
			Device: device.Name(),
			Output: out,
			Err:    errors.Join(err, ctx.Err()),
		}
	}
	if err := device.Sync(); err != nil {
		return fmt.Errorf("make filesystem: %w", err)
	}
	info, err := identifyUncached(device)
	if err != nil {
		return fmt.Errorf("%s %s succeeded, but: %w", tool, device.Name(), err)
	}
	if info.Type != opts.Type || info.UUID != opts.UUID {
		return fmt.Errorf("%s %s succeeded, but made %s with UUID %s instead of %s",
			tool, device.Name(), info.Type, info.UUID, opts.UUID)
	}
	return nil
}

// identifyUncached reads past what our page cache may have from before a tool
// wrote with O_DIRECT.
func identifyUncached(device *os.File) (Info, error) {
	// Advice: it may fail where nothing is cached.
	_ = unix.Fadvise(int(device.Fd()), 0, headBytes, unix.FADV_DONTNEED)
	return Identify(device)
}

// run runs a tool and returns the last lines that it wrote. The environment is
// fixed, so that neither language nor configuration by variables changes what
// it does.
func run(cmd *exec.Cmd) (string, error) { return runWithin(cmd, 0) }

// runWithin is run with a limit to the tool's memory, in bytes; 0: none.
func runWithin(cmd *exec.Cmd, memory uint64) (string, error) {
	var out bytes.Buffer
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C"}
	cmd.Stdout, cmd.Stderr = &out, &out
	var err error
	if memory == 0 {
		err = cmd.Start()
	} else if err = startWithLittleStack(cmd); err == nil {
		err = limitMemory(cmd.Process.Pid, memory)
	}
	if err == nil {
		err = cmd.Wait()
	} else if cmd.Process != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	return strings.Join(lines[max(0, len(lines)-4):], "; "), err
}

// defaultOptions are those that we give. Features are those of Linux 5.14.
func defaultOptions(opts MakeOptions, size int64) (options, error) {
	switch opts.Type {
	case Ext4:
		return ext4Defaults(opts, size)
	case XFS:
		return xfsDefaults(opts)
	default:
		return btrfsDefaults(opts)
	}
}

func ext4Defaults(opts MakeOptions, size int64) (options, error) {
	var o options
	o.set("-q", "", "")
	// Images are not block devices, which it would ask about; blankness was
	// checked.
	o.set("-F", "", "")
	o.set("-U", "", opts.UUID)
	if opts.Label != "" {
		o.set("-L", "", opts.Label)
	}
	// Mkfs' own default goes on writing into a filesystem known to be damaged.
	o.set("-e", "", "remount-ro")
	o.set("-m", "", "0") // the 5% for root are of no use in a volume
	o.set("-b", "", "4096")
	o.set("-I", "", "256")
	if opts.Inodes > 0 {
		o.set("-N", "", strconv.FormatUint(opts.Inodes, 10))
	} else if size < 512<<20 { // as mke2fs.conf has it, for small ones
		o.set("-i", "", "4096")
	} else {
		o.set("-i", "", "16384")
	}
	// All that is in force, beginning from none: what a newer mkfs or a
	// mke2fs.conf adds (orphan_file, metadata_csum_seed) old kernels refuse.
	o.set("-O", "none", "")
	for _, feature := range []string{
		"has_journal", "ext_attr", "resize_inode",
		"dir_index", "filetype", "extent", "64bit", "flex_bg",
		"sparse_super", "large_file", "huge_file", "dir_nlink", "extra_isize", "metadata_csum",
	} {
		o.set("-O", feature, "")
	}
	o.set("-E", "nodiscard", "")
	known, err := ext4KnowsPrezeroed()
	if err != nil {
		return o, err
	}
	switch {
	case opts.Zeroed && known:
		// Inode tables and journal are zeros already and marked so: mkfs
		// writes next to nothing, and no thread writes zeros after the mount.
		o.set("-E", "assume_storage_prezeroed", "1")
	case opts.Zeroed:
		o.set("-E", "lazy_itable_init", "1")
		o.set("-E", "lazy_journal_init", "1")
	default:
		// Inode tables are zeroed by the kernel after the first mount: a
		// terabyte has 16 GiB of them. The journal is zeroed now, since what
		// was there before could look like a journal.
		o.set("-E", "lazy_itable_init", "1")
		o.set("-E", "lazy_journal_init", "0")
	}
	return o, nil
}

func xfsDefaults(opts MakeOptions) (options, error) {
	var o options
	o.set("-q", "", "")
	o.set("-K", "", "") // no discard
	if opts.Label != "" {
		o.set("-L", "", opts.Label)
	}
	o.set("-m", "uuid", opts.UUID)
	o.set("-m", "crc", "1")
	o.set("-m", "finobt", "1")
	o.set("-m", "rmapbt", "0")
	o.set("-m", "reflink", "1")
	o.set("-i", "sparse", "1")
	if opts.SectorSize != 0 {
		o.set("-s", "size", strconv.FormatUint(uint64(opts.SectorSize), 10))
	}
	usage, err := xfsUsage()
	if err != nil {
		return o, err
	}
	for _, f := range []struct{ flag, key, value string }{
		{"-m", "bigtime", "1"}, {"-m", "inobtcount", "1"}, // Linux 5.10
		{"-m", "metadir", "0"}, {"-m", "autofsck", "0"}, // Linux 6.13
		{"-i", "nrext64", "0"},  // Linux 5.19
		{"-i", "exchange", "0"}, // Linux 6.10
		{"-n", "parent", "0"},   // Linux 6.10
	} {
		if strings.Contains(usage, f.key+"=0|1") {
			o.set(f.flag, f.key, f.value)
		}
	}
	return o, nil
}

func btrfsDefaults(opts MakeOptions) (options, error) {
	var o options
	o.set("-q", "", "")
	o.set("-K", "", "") // no discard
	o.set("-U", "", opts.UUID)
	if opts.Label != "" {
		o.set("-L", "", opts.Label)
	}
	o.set("--sectorsize", "", "4096")
	o.set("-d", "", "single")
	o.set("-m", "", "dup")
	// What is default in btrfs-progs 5.15 (no-holes, free-space-tree) is known
	// since Linux 4.5. What became default later is taken off.
	features, err := btrfsFeatures()
	if err != nil {
		return o, err
	}
	for _, f := range []struct{ name, choice string }{
		{"block-group-tree", "^block-group-tree"}, // Linux 6.1
		{"raid-stripe-tree", "^raid-stripe-tree"}, // Linux 6.7
	} {
		if strings.Contains(features, "\n"+f.name+" ") {
			o.set("-O", f.choice, "")
		}
	}
	return o, nil
}

// What the installed tools know, found out once.
var (
	ext4KnowsPrezeroed = sync.OnceValues(func() (bool, error) {
		// A dry run on a file of its own; there is no list of these to ask for.
		f, err := os.CreateTemp("", "quarry-mkfs-")
		if err != nil {
			return false, err
		}
		defer f.Close()
		defer os.Remove(f.Name())
		if err := f.Truncate(16 << 20); err != nil {
			return false, err
		}
		err = exec.Command("mkfs.ext4", "-n", "-q", "-F", "-E", "assume_storage_prezeroed=1",
			f.Name()).Run()
		if _, ok := errors.AsType[*exec.ExitError](err); ok {
			return false, nil
		}
		return err == nil, err
	})
	xfsUsage      = sync.OnceValues(func() (string, error) { return output("mkfs.xfs") })
	btrfsFeatures = sync.OnceValues(func() (string, error) {
		out, err := output("mkfs.btrfs", "-O", "list-all")
		return "\n" + out, err
	})
)

// output returns all that a tool writes when asked what it knows; that it exits
// with an error then is usual.
func output(name string, args ...string) (string, error) {
	out, err := exec.Command(name, args...).CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return "", err
	}
	return string(out), nil
}
