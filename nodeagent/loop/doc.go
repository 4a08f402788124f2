// Package loop puts block devices over image files, by ioctl(2) on loop
// devices (drivers/block/loop.c, loop(4)), and takes them away again.
//
// A device is known by the file beneath it: device and inode number, as
// LOOP_GET_STATUS64 returns them. Never by its number, which another image can
// have after a reboot or a second later, and never by a file name, which can be
// renamed away and given to another file.
//
// # Traps this package knows
//
//   - LOOP_CTL_GET_FREE reserves nothing: somebody else may configure the number
//     first, then LOOP_CONFIGURE says EBUSY and another number is tried.
//   - LOOP_CLR_FD on a device that somebody has open succeeds, and only sets a
//     flag (autoclear) that detaches it when the last one closes it. [Detach]
//     notices and takes the flag back.
//   - Direct I/O that the file does not allow is switched off without a word.
//     [Device.DirectIO] says what is in force.
//   - A discard on the device punches a hole into the image, which makes a
//     reserved image a sparse one: one fstrim gives all its space away. So
//     discards are off, by the queue's discard_max_bytes, unless asked for.
//     With that at 0 the driver refuses fallocate(FALLOC_FL_PUNCH_HOLE) on the
//     device too.
//   - Since Linux 6.8 that setting outlives the image, and it is a trapdoor:
//     discard_granularity then reads 0, and the kernel compares each new value
//     with that and refuses all. The next image on the same number, whoever's
//     it is, would have no discards. So [Detach] removes the device after it
//     (LOOP_CTL_REMOVE), and [Attach] does so when it meets such a one; the
//     number comes back fresh when it is needed.
//   - Before Linux 6.8 it is the opposite: each LOOP_SET_STATUS64, if only to
//     change a flag, switches discards on again, also under a mounted
//     filesystem. So they are set after it, each time.
//   - A block device opened with O_EXCL can be neither mounted, nor used for
//     swap, nor taken by md or dm, nor configured with another image, and such
//     a device cannot be opened so. This is the only way to be told of users in
//     mount namespaces that nobody can look into. [Attach] and [Detach] hold
//     the device like this while they work, so nothing gets in between.
//   - /dev of a container need not be devtmpfs: a device that the kernel has
//     just made has no node there until somebody calls mknod(2).
//   - What changes the queue of a device freezes it, and that waits for an RCU
//     grace period, 15 ms and more: LOOP_SET_STATUS64, LOOP_SET_DIRECT_IO and, with
//     newer kernels, discard_max_bytes. So LOOP_CONFIGURE sets all that it can,
//     and discards are switched off before, on a device without an image, which
//     [Prepare] does while others make the image. Since Linux 6.8 there is then no
//     moment at which discards reach a reserved image.
//   - There is no way from an image to the device over it but to ask all devices.
//     [Find] remembers what it saw, by the device's sequence number (diskseq), and
//     callers at the same time share one look.
//
// # What a crash leaves
//
// A process that dies in [Attach] leaves a device over the image or none, and
// one that dies after [Prepare] a device without an image and without discards.
// A device over the image may still have discards on (before Linux 6.8, where
// they are switched off last) and is used by nobody: the next [Attach] adopts
// it, and [Detach] takes it away, whoever made it. On an error nothing is left.
//
// A process that dies in [Detach] leaves the device attached or not; calling it
// again is fine.
//
// While they work both lock the image with flock(2), so that two processes, or
// two goroutines, never put two devices over one image.
package loop
