// Package store keeps the volumes of one node on its disks. It is the truth about them: it works without a cluster, and

// everything it knows it can read again from the disks.
//
// # Pools and volumes
//
// A pool is a directory of some filesystem. A volume is one directory in it, named by the volume's id:
//
//	<pool>/.quarry/pool.json          the pool's identity
//	<pool>/.quarry/tmp/<id>/          a volume that is being built
//	<pool>/.quarry/trash/<id>@<time>/ a volume that was deleted; ".freeing" is added once there is no way back
//	<pool>/<id>/volume.json           a volume: package record
//	<pool>/<id>/data/                 directory backend: what the user sees
//	<pool>/<id>/image                 loop backend
//	<pool>/<id>/mount/data/           loop backend: what the user sees; there only while the filesystem is mounted
//
// # Crash-only
//
// Rename is the commit. A volume is built under tmp, synced and renamed into place; it is deleted by being renamed into the
// trash. So at any instant a volume is there whole or not at all, and what a crash left is in tmp or trash, where the sweep at
// start finds it. There is no other recovery: the same code runs after a crash, a reboot and a clean stop. Every operation can
// be called again, and a second call finishes or confirms the first.
//
// # Who waits for whom
//
// Operations on one volume exclude each other (one lock per volume, which a context ends the wait for); operations on
// different volumes do not. Heavy work (mkfs, preallocation) is bounded by a semaphore. Space is promised by one ledger per
// filesystem, in memory, rebuilt from the records: several pools may share a filesystem and so its free space. No mutex
// that an operation waits for is held while the disk is at work.
//
// # Files
//
//	store.go          Store: opening, finding and listing volumes
//	pool.go           a pool: identity, online and offline
//	probe.go          what a pool's filesystem can do
//	space.go          free space and quota ids that pools of one filesystem share
//	ledger.go         what is promised to whom
//	request.go        what a caller may ask for, and how it is carved
//	admit.go          promising space, to all of a group or to none
//	makeroom.go       trash that goes before its time, for what asks for room
//	create.go         building and committing
//	adopt.go          making a volume of what is on the node already: the move
//	adopt_request.go  what a caller may ask to be adopted
//	adopt_examine.go  what can be adopted
//	adopt_finish.go   what is left to do after the move
//	adopt_link.go     the link at the old path, and the one in the volume before the move
//	adopt_check.go    a look without adopting
//	directory.go      the directory backend
//	loop.go           the loop backend
//	device.go         the loop device and the mount over an image: what is there, and taking it away
//	activate.go       bringing volumes up after a reboot, taking them down
//	publish.go        what a volume's user is given, proven to be the volume
//	users.go          who uses a volume, in any mount namespace
//	grow.go           growing
//	recheck.go   is the size still in force?
//	remove.go         deleting
//	discard.go        the way into the trash: of a deleted volume, and of one that was never committed
//	trash.go          what was deleted, and restoring it
//	free.go           freeing the trash's space in the background
//	freetree.go       freeing what a tenant left
//	load.go           reading a pool whose disk came, bringing its volumes up
//	sweep.go          what a crash left
//	claims.go         links by claim, for people
//	verify.go         does everything hold? Pools, records, trash, leaks
//	verify_backend.go does everything hold? Quotas, images, devices, mounts
//	verify_adopt.go   does everything hold? Adoptions
//	findings.go       what does not hold, and its repair
//	entry.go          what is read and written of one directory: a volume, an entry of the trash
//	inspect.go        a pool read from its disk without touching anything
//	errors.go         what can go wrong
package store
