package mount

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/api/nearest"
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

// OptionError is an option that is not allowed, or that nobody knows.
type OptionError struct {
	FSType  string
	Option  string
	Reason  string // why not; empty when the option is unknown
	Nearest string // what may have been meant; can be empty
}

func (e *OptionError) Error() string {
	message := fmt.Sprintf("mount option %q is not allowed for %s", e.Option, e.FSType)
	if e.Reason != "" {
		return message + ": " + e.Reason
	}
	message += ": unknown"
	if e.Nearest != "" {
		message += fmt.Sprintf(", did you mean %q?", e.Nearest)
	}
	return message
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
// error is an [*OptionError].
func ParseOptions(fstype string, thick bool, options []string) (Options, error) {
	o := DefaultOptions()
	table, ok := allowed[fstype]
	if !ok {
		return Options{}, &OptionError{FSType: fstype, Option: strings.Join(options, ","),
			Reason: "volumes are ext4, xfs or btrfs"}
	}
	if fstype == "ext4" {
		// What its superblock says is up to whoever made it, and the kernel's
		// default is to go on.
		o.super = append(o.super, param{"errors", "remount-ro", true})
	}
	for _, element := range options {
		for _, word := range strings.Split(element, ",") {
			if err := o.add(fstype, table, thick, strings.TrimSpace(word)); err != nil {
				return Options{}, err
			}
		}
	}
	return o, nil
}

func (o *Options) add(fstype string, table map[string]check, thick bool, word string) error {
	if word == "" || word == "defaults" {
		return nil
	}
	refuse := func(reason string) error {
		return &OptionError{FSType: fstype, Option: word, Reason: reason}
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
		return &OptionError{FSType: fstype, Option: word, Nearest: nearest.Word(key, known)}
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

// check says what is wrong with an option's value, "" if nothing.
type check func(value string, hasValue bool) string

func flag(_ string, hasValue bool) string {
	if hasValue {
		return "it takes no value"
	}
	return ""
}

func number(least, most uint64) check {
	return func(value string, _ bool) string {
		if n, err := strconv.ParseUint(value, 10, 64); err != nil || n < least || n > most {
			return fmt.Sprintf("it wants a number from %d to %d", least, most)
		}
		return ""
	}
}

// size is a number of bytes with one of the suffixes k, m and g.
func size(value string, _ bool) string {
	digits := strings.TrimRight(strings.ToLower(value), "kmg")
	if _, err := strconv.ParseUint(digits, 10, 32); err != nil || len(value)-len(digits) > 1 {
		return "it wants a size such as 64k"
	}
	return ""
}

func oneOf(values ...string) check {
	return func(value string, _ bool) string {
		if !slices.Contains(values, value) {
			return "it wants one of " + strings.Join(values, ", ")
		}
		return ""
	}
}

// flagOr allows the word alone or with one of the values.
func flagOr(values ...string) check {
	return func(value string, hasValue bool) string {
		if !hasValue {
			return ""
		}
		return oneOf(values...)(value, true)
	}
}
