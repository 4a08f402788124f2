package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/beneath"
	"github.com/quarry-storage/quarry/nodeagent/config"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// What a filesystem says of itself is tried, or looked at, before anything is
// promised by it.

// shared are filesystems that more machines than one may see, or a server of
// the administrator's makes, by their magic number (statfs(2), linux/magic.h
// and the filesystems' own sources).
var shared = map[int64]string{
	0x6969:     "nfs",
	0x517b:     "smb",
	0xff534d42: "cifs",
	0xfe534d42: "smb2",
	0x00c36400: "ceph",
	0x01021997: "9p",
	0x65735546: "fuse",
	0x01161970: "gfs2",
	0x7461636f: "ocfs2",
	0x0bd00bd0: "lustre",
	0x47504653: "gpfs",
	0x5346414f: "afs",
	0x6b414653: "afs",
	0x73757245: "coda",
	0x20030528: "orangefs",
	0x19830326: "beegfs",
	0xaad7aaea: "panfs",
	0x786f4256: "vboxsf",
	0xbacbacbc: "vmhgfs",
}

// checkFilesystem returns an *OfflineError for a pool on a filesystem that
// other machines may see as well, unless it is configured to be there.
func (p *pool) checkFilesystem(dir *os.File) error {
	if p.cfg.AllowNetworkFilesystem {
		return nil
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(dir.Fd()), &st); err != nil {
		return fmt.Errorf("statfs %s: %w", p.cfg.Path, err)
	}
	if name := sharedBy(&st); name != "" {
		return &OfflineError{Pool: p.name(), Reason: OfflineNetworkFilesystem, Err: fmt.Errorf(
			"%s is on %s, which other machines may use too; allowNetworkFilesystem: true takes it all the same, where no other node has a pool in the same directory",
			p.cfg.Path, name)}
	}
	return nil
}

// sharedBy is the name of a filesystem that other machines may see as well, ""
// of others.
func sharedBy(st *unix.Statfs_t) string {
	return shared[int64(uint32(st.Type))] // the number has 32 bits, which some machines sign
}

// reserves reports whether preallocated room is taken from the disk: some
// filesystems (OpenZFS, and servers over it) say so and take none.
func reserves(file *os.File, size int64) (bool, error) {
	if err := file.Sync(); err != nil {
		return false, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &st); err != nil {
		return false, err
	}
	return st.Blocks*512 >= size, nil // st_blocks is in units of 512 bytes (stat(2))
}

// probePreallocation preallocates a file. It is probed last: it needs most
// room.
func (f *Features) probePreallocation(r *root) (err error) {
	const name, size = ".probe-c", 1 << 20
	tmp, err := r.sub(record.TmpDir)
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

	err = fallocate(int(file.Fd()), size)
	if errors.Is(err, unix.EOPNOTSUPP) {
		f.Unreserved = true
		return nil
	}
	if err != nil {
		return err
	}
	taken, err := reserves(file, size)
	f.Unreserved = err == nil && !taken
	return err
}

// checkReserved refuses a thick image whose room was not taken.
func (b *building) checkReserved(image *os.File) error {
	if b.rec.Allocation != record.AllocationThick {
		return nil
	}
	if err := b.store.fault("look at blocks"); err != nil {
		return err
	}
	taken, err := reserves(image, b.rec.SizeBytes)
	if err == nil && !taken {
		return refuseUnreserved()
	}
	return err
}

func refuseUnreserved() error {
	return refuse(v1alpha1.ReasonUnsupported,
		"the pool's filesystem does not take the room that is preallocated (as ZFS does not), so a thick image would be a promise only; use allocation thin")
}

// checkGrown is checkReserved for an image that grew.
func checkGrown(pool string, image *os.File, size int64) error {
	taken, err := reserves(image, size)
	if err == nil && !taken {
		return fmt.Errorf("%w: the pool's filesystem does not take the room that is preallocated", &CapacityError{Pool: pool, Need: size})
	}
	return err
}

// reserveOf is what of the pool's filesystem is never promised. kubelet evicts
// pods and removes images when less than 10% or 15% of its own filesystem is
// free, so a pool beside it leaves more where nobody said how much.
func (s *Store) reserveOf(p *pool, dir *beneath.Dir) (reserve config.Reserve, why string) {
	if !p.cfg.Reserve.IsDefault() {
		return p.cfg.Reserve, "configured"
	}
	own, err := isMountpoint(p.cfg.Path, dir.File())
	if err != nil { // the machine's first process cannot be asked: what this one sees
		own, err = isMountpointIn("/", p.cfg.Path, dir.File())
	}
	if err == nil && !own {
		return config.SharedReserve(), "the pool's directory is no mount point: the filesystem is the system's too"
	}
	if s.opts.KubeletDir != "" && sharedWithKubelet(hostRoots, s.opts.KubeletDir, dir.File()) {
		return config.SharedReserve(), "kubelet's directory is on the same filesystem"
	}
	return p.cfg.Reserve, "the pool has a filesystem of its own"
}

// hostRoots are where the machine's directories are looked for: as its first
// process sees them, for a container has kubelet's directory only where it has
// to publish there, and as this process does.
var hostRoots = []string{"/proc/1/root", "/"}

// sharedWithKubelet reports whether the pool's directory is on the filesystem of
// kubelet's. Where that cannot be found it is not.
func sharedWithKubelet(roots []string, kubeletDir string, pool *os.File) bool {
	ours, err := filesystemKey(pool)
	if err != nil {
		return false
	}
	for _, root := range roots {
		kubelet, err := os.Open(filepath.Join(root, kubeletDir))
		if err != nil {
			continue
		}
		theirs, err := filesystemKey(kubelet)
		kubelet.Close()
		if err == nil && theirs == ours {
			return true
		}
	}
	return false
}

// allocateGrown gives a thick image its new size, all of it.
func allocateGrown(pool string, image *os.File, size int64) error {
	if err := fallocate(int(image.Fd()), size); err != nil {
		return err
	}
	return checkGrown(pool, image, size)
}
