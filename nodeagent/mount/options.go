package mount

import (
	"maps"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/api/nearest"
	"github.com/quarry-storage/quarry/nodeagent/option"
)

// Options are mount options that were checked. Get them from [DefaultOptions]
// or [ParseOptions]: the zero value lacks nosuid and nodev.
type Options struct {
	attr  uint64  // MOUNT_ATTR_*, of the mount
	super []param // of the filesystem, for fsconfig(2), in order
}

type param struct {
	key, value string
	hasValue   bool
}

func (p param) String() string {
	if p.hasValue {
		return p.key + "=" + p.value
	}
	return p.key
}

// DefaultOptions are nosuid and nodev: a volume's content is its user's, and
// must not become a way to be root on the node or to reach its devices.
func DefaultOptions() Options {
	return Options{attr: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV}
}

// ReadOnly returns the options with the filesystem and the mount made
// read-only.
func (o Options) ReadOnly() Options {
	o.attr |= unix.MOUNT_ATTR_RDONLY
	o.super = append(slices.Clip(o.super), param{key: "ro"})
	return o
}

// Strings returns the options as mount(8) would take them.
func (o Options) Strings() []string {
	var out []string
	for _, word := range slices.Sorted(maps.Keys(attributes)) {
		if a := attributes[word]; a.set != 0 && o.attr&a.set == a.set {
			out = append(out, word)
		}
	}
	for _, p := range o.super {
		if !slices.Contains(out, p.String()) {
			out = append(out, p.String())
		}
	}
	return out
}

// ParseOptions checks mount options of a volume whose filesystem is ext4, xfs
// or btrfs, each element being one option or several with commas between them.
// They come from a StorageClass, or in future from a claim, so only what can
// harm neither the node nor the volume is let through: see the lists in
// allowed.go, with their reasons. thick says that the volume's space is
// reserved and must not be given back by discards.
//
// Of options that contradict each other the last one wins, as with mount(8).
// nosuid and nodev are set unless suid or dev say otherwise, and ext4 takes no
// more writes once it found itself damaged, as xfs and btrfs do unasked. The
// error is an [*option.Error].
func ParseOptions(fstype string, thick bool, options []string) (Options, error) {
	o := DefaultOptions()
	table, ok := allowed[fstype]
	if !ok {
		return Options{}, &option.Error{Of: "mount", Filesystem: fstype,
			Option: strings.Join(options, ","), Reason: "volumes are ext4, xfs or btrfs"}
	}
	if fstype == "ext4" {
		// What its superblock says is up to whoever made it, and the kernel's
		// default is to go on.
		o.super = append(o.super, param{"errors", "remount-ro", true})
	}
	for _, element := range options {
		for word := range strings.SplitSeq(element, ",") {
			if err := o.add(fstype, table, thick, strings.TrimSpace(word)); err != nil {
				return Options{}, err
			}
		}
	}
	return o, nil
}

func (o *Options) add(fstype string, table map[string]option.Check, thick bool, word string) error {
	if word == "" || word == "defaults" {
		return nil
	}
	refuse := func(reason string) error {
		return &option.Error{Of: "mount", Filesystem: fstype, Option: word, Reason: reason}
	}
	key, value, hasValue := strings.Cut(word, "=")
	if a, ok := attributes[word]; ok {
		o.attr = o.attr&^a.clear | a.set
		if a.super != "" {
			o.super = append(o.super, param{key: a.super})
		}
		return nil
	}
	if slices.Contains(superFlags, word) {
		o.super = append(o.super, param{key: word})
		return nil
	}
	if reason, ok := refused[key]; ok {
		return refuse(reason)
	}
	valid, ok := table[key]
	if !ok {
		known := slices.Concat(slices.Collect(maps.Keys(attributes)), superFlags,
			slices.Collect(maps.Keys(table)))
		slices.Sort(known) // the same word each time
		return &option.Error{Of: "mount", Filesystem: fstype, Option: word,
			Nearest: nearest.Word(key, known)}
	}
	if key == "discard" && thick {
		return refuse("the volume's space is reserved (allocation: thick), and discarding " +
			"would give it away")
	}
	if reason := valid(value, hasValue); reason != "" {
		return refuse(reason)
	}
	o.super = append(o.super, param{key, value, hasValue})
	return nil
}
