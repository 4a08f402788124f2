// Package disk knows a pool as its disk tells it: which pool it is and who has
// it, whether it is well, what its filesystem can do, and what is written there.
// It remembers nothing. Package store, above it, keeps the books of a node's
// pools; `quarry ls` and whoever only looks need no more than this one.
//
// # Whose disk it is
//
// [Open] is the only way in. It compares what is at a pool's path with what is
// known of it from elsewhere ([Expectation]), so that a disk that is not
// mounted, was swapped, or is another cluster's is an [*OfflineError] before
// anything is read or written. What was opened is reached beneath its descriptor
// alone (package beneath). A [Root] is held for one operation, for a pool's disk
// must be free to be unmounted between two of them.
//
// # What a crash leaves
//
// A pool is made by writing one file, which is the commit; what [Probe] and
// [TryToWrite] make has names that begin with a dot, is taken away again, and is
// made anew by the next call. Everything else here, but for the pool's identity
// and the index by claim, is written by who holds the volume's lock: see package
// store.
//
// # Traps this package knows
//
//   - A directory is a mount point where it lies on another filesystem than its
//     parent. st_dev does not say so: each subvolume of a btrfs has its own. And
//     in a container every hostPath is one, so the machine's first process is
//     asked.
//   - A filesystem can say that it preallocated, and take no room (OpenZFS).
//   - A disk that is full fails a probe, and is well: [Features] say what is not
//     known ([Features.Keep]).
//   - A kernel that stopped a filesystem after an error does not always say so
//     in statfs(2): mountinfo has the rest.
//
// # Files
//
//	open.go       opening a pool, proven to be the one that is expected; making one
//	holder.go     keeping a pool to one process of one machine
//	offline.go    why a pool is offline
//	mountpoint.go is it a filesystem of its own, and which?
//	probe.go      what its filesystem can do
//	trust.go      which filesystems are trusted with what
//	health.go     is the disk well?
//	room.go       a full disk, preallocation, no room for what was asked
//	layout.go     where a volume's data is
//	entry.go      what is read and written of one directory: a volume, an entry of the trash
//	mismatch.go   directories that are not what their record says, copies of a volume among them
//	oldpath.go    where an adopted volume's data was before
//	claimindex.go links by claim, for people
//	inspect.go    a pool read without touching anything
package disk
