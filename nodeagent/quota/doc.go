// Package quota enforces the size of directory volumes on ext4 and xfs with
// project quotas.
//
// A project quota limits the inodes that carry one project id, wherever they
// are on the filesystem. A volume's directory gets an id of its own and the
// inherit flag, so that everything made inside carries the id too, and the
// limit set on that id is the volume's size.
//
//	kernel.go   quotactl_fd(2): commands, structures, units
//	limits.go   set, read back, clear and list the limits of a filesystem
//	project.go  the project id of one inode (FS_IOC_FSSETXATTR)
//	probe.go    is it in force here? Proven by doing
//	ids.go      one id per volume, proven free before use
//	walk.go     a walk in a hostile tree with one descriptor
//	assign.go   give a tree that exists already its id; find what left it
//	flags.go    files that may not be changed, for the moment they are
//
// Everything works on descriptors, never on path strings: a path may lead to
// another mount, another mount namespace's idea of it, or through a tenant's
// symbolic link. quotactl_fd(2) exists since Linux 5.14 and takes any
// descriptor on the filesystem, O_PATH included.
//
// # Units
//
// Sizes are bytes everywhere in the API. The kernel counts quota in 512-byte
// basic blocks at this interface (struct fs_disk_quota) and xfs keeps it in
// filesystem blocks; a limit is rounded up to whole filesystem blocks, so what
// is read back is never less than what was asked for.
//
// # What it holds against
//
// An ordinary writer gets EDQUOT (inodes and blocks alike, buffered, direct or
// fallocate). These limits of the mechanism are the kernel's, not ours:
//
//   - ext4 does not bind a process with CAP_SYS_RESOURCE in the initial user
//     namespace (ignore_hardlimit in fs/quota/dquot.c); xfs binds root too.
//   - It does not bind a tenant who means harm, unless the pod has a user
//     namespace of its own. Check finds inodes that are not charged to their
//     volume, and Return gives them back.
//
// The outcome of each attempt is asserted in enforcement_test.go.
package quota
