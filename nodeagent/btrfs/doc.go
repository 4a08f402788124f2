// Package btrfs enforces the size of directory volumes on btrfs: a volume is a
// subvolume in a level-1 qgroup of its own, with simple quotas.
//
//	ioctl.go      the ioctls and their structures
//	search.go     reading the filesystem's trees
//	subvolume.go  make, snapshot and describe subvolumes
//	delete.go     delete a subvolume with all that a tenant made inside
//	quota.go      which kind of quotas, and are they in force? Proven by doing
//	group.go      level-1 groups: the limit of a volume
//	stray.go      subvolumes that are charged to the wrong volume
//	charged.go    which subvolumes are charged to a volume, some at a time
//	forgotten.go  quotas that were switched off and on again
//	nocow.go      files that are overwritten in place
//
// # Why simple quotas and a level-1 group
//
// A limit on a subvolume's own (level-0) group is no limit for a tenant: any
// user can make another subvolume inside and write there. With simple quotas
// (Linux 6.7) a subvolume made inside another one joins the level-1 groups of
// the one it is made in, so that a limit on such a group holds for the volume
// and everything made in it (qgroup_auto_inherit in fs/btrfs/qgroup.c). Full
// qgroups do not do that, and cost a walk of the back references for each
// extent freed.
//
// Simple quotas charge an extent to the subvolume that wrote it first, for as
// long as anybody refers to it: a snapshot is free until it is written to, and
// keeps what it shares charged to its origin after that is deleted.
//
// # What it holds against
//
// Everybody who writes in the volume, root too, blocks and metadata alike:
// there is no limit on inodes, for they are charged as metadata. It does not
// hold against a tenant who means harm. Strays and Foreign find what is charged
// to nobody or to another volume, and PutBack and Expel give it back. The
// outcome of each attempt that a limit withstands is asserted in
// enforcement_test.go.
//
// # A full group
//
// A group that is full to the last block refuses everything but unlink(2) and
// chmod(2): also the removal of a subvolume, by root too. Loosen lifts the
// limit of a volume that is to be deleted.
//
// # Rewriting in place
//
// An extent is charged until nothing refers to any byte of it, so that a file
// whose pages are rewritten one by one is charged for much more than it holds.
// SetNoCOW has files overwritten in place.
//
// Everything works on descriptors of the filesystem, never on path strings, and
// on subvolume ids: a path inside a volume is its user's to change.
package btrfs
