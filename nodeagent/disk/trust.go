package disk

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/nodeagent/config"
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
func checkFilesystem(cfg *config.Pool, dir *os.File) error {
	if cfg.AllowNetworkFilesystem {
		return nil
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(dir.Fd()), &st); err != nil {
		return fmt.Errorf("statfs %s: %w", cfg.Path, err)
	}
	if name := sharedBy(&st); name != "" {
		return &OfflineError{Pool: cfg.Name, Reason: OfflineNetworkFilesystem, Err: fmt.Errorf(
			"%s is on %s, which other machines may use too; allowNetworkFilesystem: true takes it "+
				"all the same, where no other node has a pool in the same directory",
			cfg.Path, name)}
	}
	return nil
}

// sharedBy is the name of a filesystem that other machines may see as well, ""
// of others.
func sharedBy(st *unix.Statfs_t) string {
	return shared[int64(uint32(st.Type))] // the number has 32 bits, which some machines sign
}
