// Package mount attaches filesystems and directories to places, takes them
// away again, and tells who uses what, in every mount namespace of the machine.
//
// It talks to the kernel through the mount API of Linux 5.2 to 5.12 (fsopen,
// fsmount, open_tree, mount_setattr, move_mount) and never runs mount(8).
// Source and target are descriptors: what was checked is what is mounted, and
// a symlink swapped in between leads nowhere.
//
// # Traps this package knows
//
//   - "Is something mounted there?" is the wrong question. A different volume
//     could be. Ask [IsDeviceMountedAt], which compares devices.
//   - A descriptor that was opened before a mount was made at its directory
//     stays beneath that mount. To look at a mount, open the path anew ([Open]).
//   - A descriptor within a mount, O_PATH too, keeps it busy: close it before
//     [Unmount].
//   - btrfs has no device number of its own in mountinfo, only an anonymous one
//     ("0:45"), and stat(2) returns yet another for each subvolume. [DevicesOf]
//     asks the filesystem.
//   - mountinfo's field root is relative to the filesystem's root, so on btrfs
//     it begins with the subvolume's path. [PlaceOf] computes the same for a
//     descriptor, so that the two can be compared.
//   - A mount in another namespace is not in our mountinfo, but it keeps the
//     device busy all the same. [Scan] reads all of them, which takes the
//     host's process ids (hostPID in Kubernetes). A namespace that no process
//     is in, and a mount that is attached nowhere (fsmount), cannot be seen by
//     anybody: for devices, open(2) with O_EXCL tells that somebody has them
//     (package loop does that).
//   - Lazy unmounting (MNT_DETACH) and MNT_FORCE make a mount invisible while it
//     is still written to. They are not used here.
package mount
