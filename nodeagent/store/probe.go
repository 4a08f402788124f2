package store

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/nodeagent/btrfs"
	"github.com/quarry-storage/quarry/nodeagent/quota"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

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
	// Unreserved: preallocation takes no room of the disk, so that a thick image is none.
	Unreserved bool
	// Unprobed: the disk was too full to try; what is not known counts as missing.
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

// probe tries what the pool's filesystem can do. It may be called at any time; what it makes is under tmp and gone afterwards.
func probe(r *root, enableQuota bool) (Features, error) {
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
		if isFull(err) {
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
	if isFull(err) {
		f.Unprobed, err = true, nil
	}
	return f, err
}

// probe tries what the pool's filesystem can do. Where the disk is too full to
// try, what was found the last time counts.
func (p *pool) probe(r *root) (Features, error) {
	found, err := probe(r, p.cfg.EnableQuota)
	p.mu.Lock()
	defer p.mu.Unlock()
	before := p.features
	if err == nil && found.Unprobed && before.Filesystem == found.Filesystem {
		found.Reflink, found.Unreserved = before.Reflink, before.Unreserved
		if found.NoQuotaBecause != "" {
			found.ProjectQuota, found.SimpleQuota, found.NoQuotaBecause = before.ProjectQuota, before.SimpleQuota, before.NoQuotaBecause
		}
	}
	return found, err
}

func (f *Features) probeBtrfs(r *root, enable bool) error {
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
	if isFull(err) {
		f.Unprobed, f.NoQuotaBecause = true, fullAtProbe
		return nil
	}
	if err != nil {
		return fmt.Errorf("probe qgroups on %s: %w", r.Path(), err)
	}
	f.SimpleQuota, f.NoQuotaBecause = support.Groups, support.Reason
	return nil
}

// probeFiles tries reflinks on two files. Their names begin with a dot, as no volume's does.
func (f *Features) probeFiles(r *root) (err error) {
	const a, b = ".probe-a", ".probe-b"
	tmp, err := r.sub(record.TmpDir)
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
	if _, err := src.Write(make([]byte, blockAlign)); err != nil {
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
func (f *Features) probeDirectIO(r *root) error {
	direct, err := r.meta.OpenFile(record.PoolFile, unix.O_RDONLY|unix.O_DIRECT, 0)
	if errors.Is(err, unix.EINVAL) {
		return nil
	}
	if err != nil {
		return err
	}
	f.DirectIO = true
	return direct.Close()
}
