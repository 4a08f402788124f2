// Package backend makes, brings up, grows and looks at the data of one volume: a
// directory under a limit of the pool's filesystem, or an image file with a loop
// device over it and, unless the volume is Block, a filesystem in it. Both are a
// [Backend], whose comment is the contract. Which one a volume has is decided
// when it is planned (package store) and stands in its record; [Backends.Of]
// asks the record, and what holds for one of them only is here.
//
// It knows one volume at a time and keeps no books: what is promised to whom,
// which volumes there are, and whose turn it is, is package store's, which calls
// what changes a volume with its lock held; an entry of the trash is taken down by
// who frees it. What it needs of the process around it is handed in ([Backends],
// [Making]).
//
// # What a crash leaves
//
// Of a volume that was being made: a directory under tmp, and over the image in
// it perhaps a mount and a device, which [Backends.Release] takes down; a quota
// id that stands in the record before it is used. Of one that was growing: a
// record that says so, and an image that is larger than its filesystem, a limit
// that is one or the other; Grow goes on. Of a repair: a note of how often one
// began. Of a look through its files: a note of flags that are off (flags.go).
//
// # Traps this package knows
//
//   - A limit is set before anything carries its id, so that no byte is written
//     without one.
//   - A frozen filesystem answers every question but a write, and holds who
//     writes, in the kernel. Each filesystem is asked one thing at a time, and no
//     longer than a disk may take ([Questions]).
//   - A filesystem stays frozen when it is unmounted.
//   - A loop device's number is given out again when nobody keeps it open. Links
//     to devices are there only while this process does (links.go).
//   - lsblk, udev and a child between fork and exec hold a device or a mount for
//     a moment: only who stays counts as a user.
//   - A container that was started with the host's mounts has a copy of a mount
//     that ours does not take away.
//   - ext4 keeps what it could allocate of a file that did not fit, down to the
//     last block of the disk.
//
// # Files
//
//	backend.go    the interface, and what both need
//	errors.go     what can be wrong with a volume
//	directory.go  directories, and their limits
//	group.go      a directory's group on btrfs
//	inodes.go     how many files a directory may hold
//	flags.go      notes of files that are not immutable for a moment
//	image.go      making and growing images
//	bringup.go    bringing up an image
//	device.go     the device and the mount over an image: what is there
//	takedown.go   unmounting and detaching it
//	links.go      links to the devices of Block volumes
//	repair.go     how often a filesystem was repaired
//	questions.go  does a filesystem answer, and take writes?
//	open.go       what a volume's user is given, proven to be the volume; is it empty?
//	users.go      who uses a volume, in any mount namespace
package backend
