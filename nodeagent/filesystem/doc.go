// Package filesystem makes the filesystems of volumes, recognises them, checks
// and grows them: ext4, xfs and btrfs, on loop devices or directly in images.
//
// # Traps this package knows
//
//   - "blkid found nothing" can mean that the device could not be read, or that
//     what is on it is unknown to blkid, and formatting then destroys data. So
//     superblocks are read here, an unreadable device is an error, and [Make]
//     formats only what reads as zeros at both ends (see [CheckBlank]).
//   - What a new mkfs makes an old kernel may not mount, and the kernel of the
//     node is not chosen by us: features are spelled out, as far as Linux 5.14
//     knows them, whatever the installed mkfs and its configuration files think.
//   - mkfs discards the device first, which would make a reserved image sparse:
//     always switched off. A new image has nothing to discard anyway.
//   - Options for mkfs come from a StorageClass and reach a tool that runs as
//     root: only known ones with checked values are passed, never through a
//     shell, and none that names a second device or a file
//     ([ValidateMkfsOptions]).
//   - mkfs.ext4 takes the last -O and the last -E, and mkfs.xfs refuses a
//     suboption that is given twice: options are merged here, a StorageClass's
//     taking the place of ours.
//   - A journal is replayed by the kernel at mount. fsck before mount is for an
//     ext4 that has seen errors, and for nothing else ([Check]).
package filesystem
