package disk

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/nodeagent/btrfs"
	"github.com/quarry-storage/quarry/nodeagent/quota"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// probeSize is how much is written to a file to try something, in bytes: a
// block of every filesystem that there is.
const probeSize = 4096

// fullAtProbe says why a quota is not known to be in force.
const fullAtProbe = "the disk was too full to try"

// Features is what a pool's filesystem was found to be able to do, by doing it.
type Features struct {
	Filesystem     string
	ProjectQuota   bool
	SimpleQuota    bool
	Reflink        bool
	DirectIO       bool
	QuotactlFD     bool
	NoQuotaBecause string // when neither quota is in force
	// Unreserved: preallocation takes no room of the disk, so that a thick
	// image is none.
	Unreserved bool
	// Unprobed: the disk was too full to try; what is not known counts as
	// missing.
	Unprobed bool
}

// names of filesystems by their magic number: statfs(2) and linux/magic.h.
var filesystemNames = map[int64]string{
	unix.EXT4_SUPER_MAGIC:      "ext4",
	unix.XFS_SUPER_MAGIC:       "xfs",
	unix.BTRFS_SUPER_MAGIC:     "btrfs",
	unix.TMPFS_MAGIC:           "tmpfs",
	unix.OVERLAYFS_SUPER_MAGIC: "overlay",
	unix.NFS_SUPER_MAGIC:       "nfs",
	unix.F2FS_SUPER_MAGIC:      "f2fs",
	0x2fc12fc1:                 "zfs",
	0xca451a4e:                 "bcachefs",
}

// LookAtFeatures is [Probe] for those who must not change anything.
func LookAtFeatures(r *Root) (Features, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(r.File().Fd()), &st); err != nil {
		return Features{}, fmt.Errorf("statfs %s: %w", r.Path(), err)
	}
	support, err := quota.Look(r.File())
	f := Features{
		Filesystem:     filesystemNames[int64(st.Type)],
		ProjectQuota:   support.Project,
		NoQuotaBecause: support.Reason,
	}
	if f.Filesystem == "" {
		f.Filesystem = fmt.Sprintf("0x%x", st.Type)
	}
	return f, err
}

// Probe tries what the pool's filesystem can do. It may be called at any time;
// what it makes is under tmp and gone afterwards.
func Probe(r *Root, enableQuota bool) (Features, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(r.File().Fd()), &st); err != nil {
		return Features{}, fmt.Errorf("statfs %s: %w", r.Path(), err)
	}
	f := Features{Filesystem: filesystemNames[int64(st.Type)]}
	if f.Filesystem == "" {
		f.Filesystem = fmt.Sprintf("0x%x", st.Type)
	}
	f.QuotactlFD = quota.HasQuotactlFD()
	switch f.Filesystem {
	case "ext4", "xfs":
		support, err := quota.Probe(r.File())
		if IsFull(err) {
			f.Unprobed, f.NoQuotaBecause = true, fullAtProbe
		} else if err != nil {
			return f, fmt.Errorf("probe project quota on %s: %w", r.Path(), err)
		} else {
			f.ProjectQuota, f.NoQuotaBecause = support.Project, support.Reason
		}
	case "btrfs":
		if err := f.probeBtrfs(r, enableQuota); err != nil {
			return f, err
		}
	default:
		f.NoQuotaBecause = "it has no quota that Quarry knows"
	}
	err := f.probeDirectIO(r)
	if err == nil {
		err = f.probeFiles(r)
	}
	if err == nil {
		err = f.probePreallocation(r)
	}
	if IsFull(err) {
		f.Unprobed, err = true, nil
	}
	return f, err
}

// Keep takes over from what was found before what a disk that was too full to
// try did not tell this time. The filesystem must be the same one.
func (f *Features) Keep(before *Features) {
	if !f.Unprobed || before.Filesystem != f.Filesystem {
		return
	}
	f.Reflink, f.Unreserved = before.Reflink, before.Unreserved
	if f.NoQuotaBecause != "" {
		f.ProjectQuota, f.SimpleQuota = before.ProjectQuota, before.SimpleQuota
		f.NoQuotaBecause = before.NoQuotaBecause
	}
}

func (f *Features) probeBtrfs(r *Root, enable bool) error {
	mode, err := btrfs.QuotaMode(r.File())
	if err != nil {
		return fmt.Errorf("probe qgroups on %s: %w", r.Path(), err)
	}
	if mode == btrfs.ModeOff && enable {
		if err := btrfs.EnableSimple(r.File()); err != nil {
			f.NoQuotaBecause = err.Error()
			return nil
		}
	}
	support, err := btrfs.Probe(r.File(), quota.ProbeID)
	if IsFull(err) {
		f.Unprobed, f.NoQuotaBecause = true, fullAtProbe
		return nil
	}
	if err != nil {
		return fmt.Errorf("probe qgroups on %s: %w", r.Path(), err)
	}
	f.SimpleQuota, f.NoQuotaBecause = support.Groups, support.Reason
	return nil
}

// probeFiles tries reflinks on two files. Their names begin with a dot, as no
// volume's does.
func (f *Features) probeFiles(r *Root) (err error) {
	const a, b = ".probe-a", ".probe-b"
	tmp, err := r.Sub(record.TmpDir)
	if err != nil {
		return err
	}
	defer tmp.Close()
	defer func() { err = errors.Join(err, tmp.Unlink(a), tmp.Unlink(b)) }()
	src, err := tmp.OpenFile(a, unix.O_RDWR|unix.O_CREAT|unix.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer src.Close()
	if _, err := src.Write(make([]byte, probeSize)); err != nil {
		return err
	}
	dst, err := tmp.OpenFile(b, unix.O_RDWR|unix.O_CREAT|unix.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer dst.Close()
	f.Reflink = unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())) == nil
	return nil
}

// probeDirectIO opens a file that is there: it needs no room.
func (f *Features) probeDirectIO(r *Root) error {
	direct, err := r.Meta.OpenFile(record.PoolFile, unix.O_RDONLY|unix.O_DIRECT, 0)
	if errors.Is(err, unix.EINVAL) {
		return nil
	}
	if err != nil {
		return err
	}
	f.DirectIO = true
	return direct.Close()
}

// probePreallocation preallocates a file. It is probed last: it needs most
// room.
func (f *Features) probePreallocation(r *Root) (err error) {
	const name, size = ".probe-c", 1 << 20
	tmp, err := r.Sub(record.TmpDir)
	if err != nil {
		return err
	}
	defer tmp.Close()
	defer func() { err = errors.Join(err, tmp.Unlink(name)) }()
	file, err := tmp.OpenFile(name, unix.O_RDWR|unix.O_CREAT|unix.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer file.Close()

	err = Allocate(file, size)
	if errors.Is(err, unix.EOPNOTSUPP) {
		f.Unreserved = true
		return nil
	}
	if err != nil {
		return err
	}
	taken, err := Reserves(file, size)
	f.Unreserved = err == nil && !taken
	return err
}
