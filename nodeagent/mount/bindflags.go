package mount

import "golang.org/x/sys/unix"

// BindFlags reads words of mount(8) for a bind mount. Those that belong to one mount, such as ro, noexec and noatime, take
// effect; others belong to the filesystem that is bound, where they are in force or not, and are returned as they are.
// suid and dev are among those: a bind mount never has more than the mount that it is made of.
func BindFlags(words []string) (opts BindOptions, others []string) {
	for _, word := range words {
		a, known := attributes[word]
		switch {
		case word == "defaults":
		case !known || word == "suid" || word == "dev" || word == "symfollow":
			others = append(others, word)
		default:
			if a.set&unix.MOUNT_ATTR_RDONLY != 0 || a.clear&unix.MOUNT_ATTR_RDONLY != 0 {
				opts.ReadOnly = a.set&unix.MOUNT_ATTR_RDONLY != 0
				continue
			}
			opts.attr = opts.attr&^a.clear | a.set
			// Clearing the atime bits is how mount_setattr(2) wants them replaced, and nothing else is cleared: what the
			// source's mount forbids stays forbidden.
			opts.clear |= a.clear & unix.MOUNT_ATTR__ATIME
		}
	}
	return opts, others
}
