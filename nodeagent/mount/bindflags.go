package mount

import "golang.org/x/sys/unix"

// Confine has a bind mount honour neither set-user-ID bits nor device nodes, as
// every filesystem of a volume is mounted (see [DefaultOptions]): what is bound
// may lie on a filesystem that is somebody else's and mounted otherwise. The
// words suid and dev take each back, as far as the source's mount allows it.
func (o BindOptions) Confine(words []string) BindOptions {
	suid, dev := false, false
	for _, word := range words { // the last one counts
		switch word {
		case "suid", "nosuid":
			suid = word == "suid"
		case "dev", "nodev":
			dev = word == "dev"
		}
	}
	o.attr &^= unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV
	if !suid {
		o.attr |= unix.MOUNT_ATTR_NOSUID
	}
	if !dev {
		o.attr |= unix.MOUNT_ATTR_NODEV
	}
	return o
}

// BindFlags reads words of mount(8) for a bind mount. Those that belong to one
// mount, such as ro, noexec and noatime, take effect; others belong to the
// filesystem that is bound, where they are in force or not, and are returned as
// they are. suid and dev are among those: a bind mount never has more than the
// mount that it is made of.
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
			// Clearing the atime bits is how mount_setattr(2) wants them
			// replaced, and nothing else is cleared: what the source's mount
			// forbids stays forbidden.
			opts.clear |= a.clear & unix.MOUNT_ATTR__ATIME
		}
	}
	return opts, others
}
