// Package store keeps the volumes of one node on its disks. It is the truth
// about them: it works without a cluster, and everything it knows it can read
// again from the disks.
//
// # Below and above
//
// Package disk knows one pool as its disk tells it, package backend the data of
// one volume, and package ledger what is promised to whom. Neither knows of the
// others' maps: what they share is here. Package verify looks at all of it from
// outside.
//
// # Pools and volumes
//
// A pool is a directory of some filesystem. A volume is one directory in it,
// named by the volume's id:
//
//	<pool>/.quarry/pool.json          the pool's identity
//	<pool>/.quarry/tmp/<id>/          a volume that is being built
//	<pool>/.quarry/trash/<id>@<time>/ a volume that was deleted; ".freeing" is
//	                                  added once there is no way back
//	<pool>/<id>/volume.json           a volume: package record
//	<pool>/<id>/data/                 directory backend: what the user sees
//	<pool>/<id>/image                 loop backend
//	<pool>/<id>/mount/data/           loop backend: what the user sees; there
//	                                  only while the filesystem is mounted
//
// # Crash-only
//
// Rename is the commit. A volume is built under tmp, synced and renamed into
// place; it is deleted by being renamed into the trash. So at any instant a
// volume is there whole or not at all, and what a crash left is in tmp or trash,
// where the sweep at start finds it. There is no other recovery: the same code
// runs after a crash, a reboot and a clean stop. Every operation can be called
// again, and a second call finishes or confirms the first.
//
// # Who waits for whom
//
// Operations on one volume exclude each other (one lock per volume, which a
// context ends the wait for); operations on different volumes do not. Heavy work
// (mkfs, preallocation) is bounded by a semaphore. Space is promised by one
// ledger per filesystem, in memory, rebuilt from the records: several pools may
// share a filesystem and so its free space. No mutex that an operation waits for
// is held while the disk is at work.
//
// # The order of locks
//
// A goroutine that holds a lock takes only those that stand below it in this
// table. Those on one line, and those below the dash, are never held together.
//
//	watcher.looking                     looks at the volumes
//	filesystemSpace.one                 an entry of the trash is freed
//	Store.locks, by volume id           an operation on a volume; never two of them
//	filesystemSpace.heavy, adopting     semaphores, waited for with a volume's lock held
//	filesystemSpace.probing             what a filesystem can do is tried
//	Store.admission                     pools are chosen and their space is promised
//	Store.mu                            the maps, what is in a volume and an entry of the trash
//	pool.mu                             what is known of a pool
//	filesystemSpace.mu, ledger.Ledger    measurements; promises and quota ids
//	-
//	Store.refreshing, Store.holding, watcher.mu, underWay.mu, inquiry.mu, and below
//	that hanging.mu; of package backend links.mu, Questions.mu, MountScans
//
// A pool's disk is waited for under the locks down to probing, and under none of
// the others. A look waits for volumes' locks, so nothing that holds one waits for
// a look. A function whose name ends in Locked expects a lock, which its comment
// names.
//
// # Files
//
// What it is:
//
//	store.go          Store: opening one, what it holds, listing it
//	describe.go       describing pools
//	errors.go         what can go wrong
//	feed.go           telling followers what changed
//	room.go           telling them that a pool's room moved
//
// A pool:
//
//	pool.go           a pool: online and offline (package disk: what its disk tells)
//	refresh.go        looking at all pools, taking in what came
//	hold.go           keeping a pool to one process
//	health.go         a look at one pool, and what it takes in
//	hang.go           disks that do not answer
//	patience.go       how long a disk is waited for, and what is done then
//
// Space:
//
//	space.go          what pools of one filesystem share: its free space, its books
//	promise.go        promises of pools that come and go
//	request.go        what a caller may ask for, and how it is carved
//	admit.go          promising space, to all of a group or to none
//	poolchoice.go     which pool a volume goes to
//	makeroom.go       trash that goes before its time, for what asks for room
//	freeing.go        waiting for room that is being freed
//
// Making a volume:
//
//	create.go         building and committing
//	abandon.go        giving up one whose disk does not answer
//	adopt_request.go  what a caller may ask to be adopted
//	adopt_examine.go  what can be adopted
//	adopt_check.go    a look without adopting
//	adopt.go          making a volume of what is on the node already: the move
//	adopt_link.go     the link at the old path
//	adopt_finish.go   what is left to do after the move
//	adopt_image.go    bringing up an adopted image
//
// Keeping it up:
//
//	load.go           reading a pool whose disk came, bringing its volumes up
//	sweep.go          what a crash left
//	seek.go           looking for volumes that came without us
//	broken.go         directories that cannot be read as volumes
//	copy.go           telling copies from volumes
//	takecopy.go       making the volume of a copy
//	activate.go       bringing a volume up when somebody asks
//	bringup.go        bringing a volume up
//	standing.go       what a volume stands on, and stood on before
//	links.go          letting go of devices of volumes that are not ours
//	asking.go         asking the filesystems of all volumes in a look, none behind one that hangs
//	look.go           looking at every volume that is up, mending what can be mended
//	watcher.go        what is noted of one look for the next
//	recheck.go        is the size still in force?
//	keep.go           rechecking all in turn
//	followclaim.go    the record follows the claim
//	claims.go         links by claim, for people
//
// Using, growing and ending it:
//
//	publish.go        what a volume's user is given: the device, the usage, a descriptor
//	users.go          who uses a volume
//	grow.go           growing
//	remove.go         deleting
//	untouched.go      is there anything in it?
//	discard.go        the way into the trash, also of what was never committed
//	trash.go          what was deleted: listing, purging, restoring it
//	trashed.go        an entry of the trash, and its note
//	free_run.go       freeing the trash's space in the background, in turns
//	turn.go           the turn of one entry
//	free.go           freeing one entry
//	freer.go          waking who frees
//	freetree.go       freeing what a tenant left
//	qgroup.go         freeing what a volume had on btrfs
//
// Does everything hold:
//
//	view.go           what package verify sees of a store
package store
