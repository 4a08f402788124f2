package mount

import (
	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/nodeagent/option"
)

// attributes are options of a mount, for all filesystems; see mount_setattr(2)
// and "FILESYSTEM-INDEPENDENT MOUNT OPTIONS" in mount(8). Of the atime ones
// exactly one is in force.
var attributes = map[string]struct {
	clear, set uint64
	super      string // of the filesystem too
}{
	"ro":            {set: unix.MOUNT_ATTR_RDONLY, super: "ro"},
	"rw":            {clear: unix.MOUNT_ATTR_RDONLY, super: "rw"},
	"nosuid":        {set: unix.MOUNT_ATTR_NOSUID},
	"suid":          {clear: unix.MOUNT_ATTR_NOSUID},
	"nodev":         {set: unix.MOUNT_ATTR_NODEV},
	"dev":           {clear: unix.MOUNT_ATTR_NODEV},
	"noexec":        {set: unix.MOUNT_ATTR_NOEXEC},
	"exec":          {clear: unix.MOUNT_ATTR_NOEXEC},
	"nosymfollow":   {set: unix.MOUNT_ATTR_NOSYMFOLLOW},
	"symfollow":     {clear: unix.MOUNT_ATTR_NOSYMFOLLOW},
	"relatime":      {clear: unix.MOUNT_ATTR__ATIME}, // the kernel's default
	"atime":         {clear: unix.MOUNT_ATTR__ATIME},
	"noatime":       {clear: unix.MOUNT_ATTR__ATIME, set: unix.MOUNT_ATTR_NOATIME},
	"strictatime":   {clear: unix.MOUNT_ATTR__ATIME, set: unix.MOUNT_ATTR_STRICTATIME},
	"nostrictatime": {clear: unix.MOUNT_ATTR__ATIME},
	"nodiratime":    {set: unix.MOUNT_ATTR_NODIRATIME},
	"diratime":      {clear: unix.MOUNT_ATTR_NODIRATIME},
}

// superFlags are options of the filesystem that the kernel knows for all of
// them (common_set_sb_flag and common_clear_sb_flag in fs/fs_context.c).
var superFlags = []string{"sync", "async", "dirsync", "lazytime", "nolazytime"}

const (
	fstabOnly = "it is a word for /etc/fstab, not for the kernel"
	notAMount = "it makes another kind of mount of it, and which mounts are made is the " +
		"agent's decision"
	otherDevice = "it names another device or place"
	ownQuota    = "quotas are the agent's; a volume on a device of its own needs none"
	label       = "SELinux labels are set by the container runtime"
	losesWrites = "it can lose or mix up what was written when power fails"
	hidesDamage = "it mounts a damaged filesystem instead of reporting it"
)

// refused are options known to do harm, with the reason. What is in no list is
// refused too, as unknown.
var refused = map[string]string{
	"bind": notAMount, "rbind": notAMount, "move": notAMount, "remount": notAMount,
	"loop": notAMount, "offset": notAMount, "sizelimit": notAMount,
	"shared": notAMount, "rshared": notAMount, "slave": notAMount,
	"rslave": notAMount, "private": notAMount, "rprivate": notAMount,
	"unbindable": notAMount, "runbindable": notAMount,

	"auto": fstabOnly, "noauto": fstabOnly, "user": fstabOnly, "users": fstabOnly,
	"nouser": fstabOnly, "owner": fstabOnly, "group": fstabOnly,
	"nofail": fstabOnly, "_netdev": fstabOnly,

	"context": label, "fscontext": label, "defcontext": label,
	"rootcontext": label, "seclabel": label,

	"subvol": otherDevice, "subvolid": otherDevice,
	"device": otherDevice, "logdev": otherDevice, "rtdev": otherDevice,
	"journal_dev": otherDevice, "journal_path": otherDevice, "sb": otherDevice,

	"quota": ownQuota, "noquota": ownQuota, "usrquota": ownQuota,
	"grpquota": ownQuota, "prjquota": ownQuota,
	"uquota": ownQuota, "gquota": ownQuota, "pquota": ownQuota,
	"uqnoenforce": ownQuota, "gqnoenforce": ownQuota, "pqnoenforce": ownQuota,
	"qnoenforce": ownQuota, "usrjquota": ownQuota, "grpjquota": ownQuota,
	"jqfmt": ownQuota, "offusrjquota": ownQuota, "offgrpjquota": ownQuota,

	"nobarrier": losesWrites, "barrier": losesWrites,
	"journal_async_commit": losesWrites, "notreelog": losesWrites,

	"noload": hidesDamage, "norecovery": hidesDamage,
	"nologreplay": hidesDamage, "degraded": hidesDamage, "rescue": hidesDamage,
	"usebackuproot": hidesDamage, "recovery": hidesDamage,
	"ignorebadroots": hidesDamage, "ignoredatacsums": hidesDamage, "abort": hidesDamage,

	"nouuid":       "two filesystems of one UUID are a copy that was not finished",
	"fatal_errors": "a damaged volume must not take the node down",
	"resuid":       "volumes have no reserved blocks", "resgid": "volumes have no reserved blocks",
	"debug": "it fills the node's log", "enospc_debug": "it fills the node's log",
}

// allowed are the options of each filesystem: those of ext4(5), xfs(5) and
// btrfs(5) that trade speed, latency and durability of the volume's own user's
// data, at most as far as fsync(2) still means what it says.
var allowed = map[string]map[string]option.Check{
	"ext4": {
		// "continue" goes on writing into a filesystem known to be damaged, and
		// "panic" takes the node down.
		"errors": option.OneOf("remount-ro"),
		// "writeback" can show what was in the blocks before, after a crash:
		// of a recycled volume that is another tenant's data.
		"data":             option.OneOf("ordered", "journal"),
		"commit":           option.Number(1, 300), // seconds
		"journal_checksum": option.Flag, "nojournal_checksum": option.Flag,
		"auto_da_alloc": option.Flag, "noauto_da_alloc": option.Flag,
		"delalloc": option.Flag, "nodelalloc": option.Flag,
		"dioread_nolock": option.Flag, "dioread_lock": option.Flag,
		"block_validity": option.Flag, "noblock_validity": option.Flag,
		"init_itable": option.Number(0, 100), "noinit_itable": option.Flag,
		"stripe": option.Number(0, 1<<20), "inode_readahead_blks": option.Number(0, 1<<16),
		// Microseconds.
		"max_batch_time": option.Number(0, 1000000), "min_batch_time": option.Number(0, 1000000),
		"max_dir_size_kb": option.Number(1, 1<<30),
		"acl":             option.Flag, "noacl": option.Flag, "user_xattr": option.Flag,
		"grpid": option.Flag, "bsdgroups": option.Flag,
		"nogrpid": option.Flag, "sysvgroups": option.Flag,
		"i_version": option.Flag,
		"discard":   option.Flag, "nodiscard": option.Flag,
	},
	"xfs": {
		"allocsize": size,
		"inode32":   option.Flag, "inode64": option.Flag,
		"largeio": option.Flag, "nolargeio": option.Flag,
		"logbufs": option.Number(2, 8), "logbsize": size,
		"noalign": option.Flag, "swalloc": option.Flag,
		"sunit": option.Number(0, 1<<20), "swidth": option.Number(0, 1<<20),
		"filestreams": option.Flag, "wsync": option.Flag,
		"discard": option.Flag, "nodiscard": option.Flag,
	},
	"btrfs": {
		"compress": compression, "compress-force": compression,
		"autodefrag": option.Flag, "noautodefrag": option.Flag,
		"ssd": option.Flag, "nossd": option.Flag,
		"ssd_spread": option.Flag, "nossd_spread": option.Flag,
		"space_cache": option.OneOf("v2"), // v1 is slow, and gone from newer kernels
		"commit":      option.Number(1, 300),
		"datacow":     option.Flag, "nodatacow": option.Flag,
		"datasum": option.Flag, "nodatasum": option.Flag,
		"flushoncommit": option.Flag, "noflushoncommit": option.Flag,
		"max_inline": size, "thread_pool": option.Number(1, 64),
		"acl": option.Flag, "noacl": option.Flag,
		"skip_balance": option.Flag,
		"discard":      option.OrAlone(option.OneOf("sync", "async")), "nodiscard": option.Flag,
	},
}

// size is a number of bytes.
var size = option.Size("kmg", 32, "64k")

// compression is an algorithm with an optional level: zstd:3.
var compression = option.OrAlone(option.OneOf("no", "none", "lzo",
	"zlib", "zlib:1", "zlib:2", "zlib:3", "zlib:4",
	"zlib:5", "zlib:6", "zlib:7", "zlib:8", "zlib:9",
	"zstd", "zstd:1", "zstd:2", "zstd:3", "zstd:4",
	"zstd:5", "zstd:6", "zstd:7", "zstd:8", "zstd:9",
	"zstd:10", "zstd:11", "zstd:12", "zstd:13", "zstd:14", "zstd:15"))
