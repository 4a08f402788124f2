package filesystem

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/quarry-storage/quarry/api/nearest"
)

// OptionError is an option for mkfs that is not allowed, or that nobody knows.
type OptionError struct {
	Type    Type
	Option  string
	Reason  string // why not; empty when the option is unknown
	Nearest string // what may have been meant; can be empty
}

func (e *OptionError) Error() string {
	message := fmt.Sprintf("mkfs option %q is not allowed for %s", e.Option, e.Type)
	if e.Reason != "" {
		return message + ": " + e.Reason
	}
	message += ": unknown"
	if e.Nearest != "" {
		message += fmt.Sprintf(", did you mean %q?", e.Nearest)
	}
	return message
}

// ValidateMkfsOptions checks options for mkfs, as words: "-i", "8192", "-O",
// "fast_commit". What names another device or a file, forces, or contradicts
// what we guarantee is refused, with an [*OptionError]. The lists are at the
// end of this file.
func ValidateMkfsOptions(t Type, args []string) error {
	_, err := parseMkfsOptions(t, args)
	return err
}

// checkSectors refuses blocks and sectors smaller than those of the device that
// the filesystem will be mounted with, which mkfs would refuse if it wrote to
// that device: the kernel would not mount it.
func checkSectors(t Type, extra options, sectorSize uint32) error {
	for _, o := range extra {
		if !(t == Ext4 && o.flag == "-b" || t == XFS && (o.flag == "-b" || o.flag == "-s")) {
			continue
		}
		digits, thousands := strings.CutSuffix(o.value, "k")
		n, err := strconv.ParseUint(digits, 10, 32)
		if thousands {
			n *= 1024
		}
		if err == nil && n < uint64(sectorSize) {
			return &OptionError{Type: t, Option: o.flag + " " + o.value,
				Reason: fmt.Sprintf("the disk has sectors of %d bytes, and that is the least",
					sectorSize)}
		}
	}
	return nil
}

// options are arguments for mkfs taken apart, so that they can be merged.
type options []option

// option is "flag value" or, within a list, "flag key=value". In a list an
// element without "=" has an empty value, and its key is all of it.
type option struct{ flag, key, value string }

func (o *options) set(flag, key, value string) { *o = append(*o, option{flag, key, value}) }

// same reports whether two options are about the same thing: "^has_journal" and
// "has_journal", "agcount=4" and "agcount=8".
func (a option) same(b option) bool {
	return a.flag == b.flag && strings.TrimPrefix(a.key, "^") == strings.TrimPrefix(b.key, "^")
}

// merge returns the defaults with those of extra in place of them.
func merge(defaults, extra options) options {
	var out options
	for _, d := range defaults {
		if !slices.ContainsFunc(extra, func(e option) bool {
			return d.same(e) || supersedes(e, d)
		}) {
			out = append(out, d)
		}
	}
	return append(out, extra...)
}

// supersedes reports whether e says the same as d in other words: ways to give
// the number of inodes.
func supersedes(e, d option) bool {
	inodes := []string{"-i", "-N", "-T"}
	return e.key == "" && d.key == "" && slices.Contains(inodes, e.flag) &&
		slices.Contains(inodes, d.flag)
}

// args puts them together again, elements of one list behind one flag, as the
// tools look at the last (or first) such flag only.
func (o options) args(t Type) []string {
	lists := map[string][]string{}
	for _, e := range o {
		if e.key != "" {
			element := e.key
			if e.value != "" {
				element += "=" + e.value
			}
			lists[e.flag] = append(lists[e.flag], element)
		}
	}
	var args []string
	for _, e := range o {
		switch {
		case e.key != "":
			if list, ok := lists[e.flag]; ok {
				args = append(args, e.flag, strings.Join(list, ","))
				delete(lists, e.flag)
			}
		case e.value != "":
			args = append(args, e.flag, e.value)
		default:
			args = append(args, e.flag)
		}
	}
	return args
}

// rule is what may follow a flag: either one value, or a list of elements.
type rule struct {
	value func(string) string // what is wrong with the value, "" if nothing
	list  map[string]func(string) string
}

func parseMkfsOptions(t Type, args []string) (options, error) {
	rules, ok := mkfsRules[t]
	if !ok {
		return nil, &OptionError{Type: t, Reason: "no such filesystem"}
	}
	var out options
	for i := 0; i < len(args); i++ {
		flag := args[i]
		value, hasValue := "", false
		if strings.HasPrefix(flag, "--") {
			flag, value, hasValue = strings.Cut(flag, "=")
		}
		r, ok := rules[flag]
		if !ok {
			e := &OptionError{Type: t, Option: flag, Reason: mkfsRefused[t][flag]}
			if e.Reason == "" && !strings.HasPrefix(flag, "-") {
				e.Reason = "not an option; devices and files are not given here"
			}
			if e.Reason == "" {
				e.Nearest = nearest.Word(flag, slices.Sorted(maps.Keys(rules)))
			}
			return nil, e
		}
		if !hasValue {
			i++
			if i == len(args) {
				return nil, &OptionError{Type: t, Option: flag, Reason: "its value is missing"}
			}
			value = args[i]
		}
		if r.list == nil {
			if reason := r.value(value); reason != "" {
				return nil, &OptionError{Type: t, Option: flag + " " + value, Reason: reason}
			}
			out = append(out, option{flag: flag, value: value})
			continue
		}
		for _, element := range strings.Split(value, ",") {
			key, v, _ := strings.Cut(element, "=")
			check, ok := r.list[key]
			if !ok {
				e := &OptionError{Type: t, Option: flag + " " + element,
					Reason: mkfsRefused[t][flag+" "+key]}
				if e.Reason == "" {
					if near := nearest.Word(key, slices.Sorted(maps.Keys(r.list))); near != "" {
						e.Nearest = flag + " " + near
					}
				}
				return nil, e
			}
			if reason := check(v); reason != "" {
				return nil, &OptionError{Type: t, Option: flag + " " + element, Reason: reason}
			}
			out = append(out, option{flag, key, v})
		}
	}
	return out, nil
}

func nothing(v string) string {
	if v != "" {
		return "it takes no value"
	}
	return ""
}

func number(least, most uint64) func(string) string {
	return func(v string) string {
		if n, err := strconv.ParseUint(v, 10, 64); err != nil || n < least || n > most {
			return fmt.Sprintf("it wants a number from %d to %d", least, most)
		}
		return ""
	}
}

func oneOf(values ...string) func(string) string {
	return func(v string) string {
		if !slices.Contains(values, v) {
			return "it wants one of " + strings.Join(values, ", ")
		}
		return ""
	}
}

// size is a number with one of the units that mkfs.xfs and mkfs.btrfs know.
func size(v string) string {
	digits := strings.TrimRight(strings.ToLower(v), "bskmg")
	if _, err := strconv.ParseUint(digits, 10, 48); err != nil || len(v)-len(digits) > 1 {
		return "it wants a size such as 64m"
	}
	return ""
}

var bit = oneOf("0", "1")

const (
	setByUs     = "Quarry sets it itself"
	otherDevice = "it names another device or file"
	neverForced = "formatting is never forced"
	tooNew      = "the oldest kernel that Quarry supports (5.14) does not mount it"
	losesData   = "a crash would lose data"
	agentsQuota = "quotas are the agent's"
	mixedGroups = "mixed block groups are slow, and sizes that need them are refused"
)

// mkfsRules are the options that a StorageClass may give: what shapes the
// filesystem for its workload, see mke2fs(8), mkfs.xfs(8) and mkfs.btrfs(8).
var mkfsRules = map[Type]map[string]rule{
	Ext4: {
		"-b": {value: oneOf("1024", "2048", "4096")},
		"-i": {value: number(1024, 64<<20)}, // bytes for each inode
		"-I": {value: oneOf("256", "512", "1024", "2048", "4096")},
		"-N": {value: number(16, 1<<32-1)},
		"-m": {value: number(0, 50)},
		"-G": {value: number(1, 1<<16)},
		"-T": {value: oneOf("small", "news", "largefile", "largefile4", "default")},
		"-J": {list: map[string]func(string) string{"size": number(4, 4096)}}, // MiB
		"-E": {list: map[string]func(string) string{
			"stride":       number(0, 1<<20),
			"stripe_width": number(0, 1<<20), "stripe-width": number(0, 1<<20),
			"packed_meta_blocks": bit, "lazy_itable_init": bit, "lazy_journal_init": bit,
		}},
		"-O": {list: map[string]func(string) string{
			"has_journal": nothing, "fast_commit": nothing,
			"inline_data": nothing, "ea_inode": nothing,
			"large_dir": nothing, "verity": nothing, "encrypt": nothing, "casefold": nothing,
			"dir_index": nothing, "^dir_index": nothing, "metadata_csum": nothing,
		}},
	},
	XFS: {
		"-b": {list: map[string]func(string) string{
			"size": oneOf("1024", "2048", "4096", "1k", "2k", "4k"),
		}},
		"-d": {list: map[string]func(string) string{
			"agcount": number(1, 1<<20), "agsize": size, "su": size, "sw": number(0, 1<<16),
			"sunit": number(0, 1<<20), "swidth": number(0, 1<<20), "noalign": nothing,
		}},
		"-i": {list: map[string]func(string) string{
			"size": number(512, 2048), "maxpct": number(0, 100),
			"perblock": number(2, 128), "sparse": bit,
		}},
		"-l": {list: map[string]func(string) string{
			"size": size, "su": size, "sunit": number(0, 1<<20),
		}},
		"-m": {list: map[string]func(string) string{
			"finobt": bit, "rmapbt": bit, "reflink": bit, "bigtime": bit, "inobtcount": bit,
		}},
		"-n": {list: map[string]func(string) string{"size": size, "version": oneOf("2", "ci")}},
		"-s": {list: map[string]func(string) string{"size": oneOf("512", "4096", "4k")}},
	},
	Btrfs: {
		"-n": {value: nodeSizes}, "--nodesize": {value: nodeSizes},
		"--csum": {value: checksums}, "--checksum": {value: checksums},
		"-m": {value: profiles}, "--metadata": {value: profiles},
		"-d": {value: profiles}, "--data": {value: profiles},
		"-O": {list: map[string]func(string) string{"no-holes": nothing, "^no-holes": nothing}},
	},
}

var (
	checksums = oneOf("crc32c", "xxhash", "sha256", "blake2") // all since Linux 5.5
	profiles  = oneOf("single", "dup")                        // of one device
	nodeSizes = oneOf("4096", "8192", "16384", "32768", "65536",
		"4k", "8k", "16k", "32k", "64k")
)

// mkfsRefused are options that are known, with the reason why not. An element
// of a list is written "-d file".
var mkfsRefused = map[Type]map[string]string{
	Ext4: {
		"-F": neverForced, "-U": setByUs, "-L": setByUs,
		"-q": setByUs, "-v": setByUs, "-n": setByUs, "-M": setByUs,
		"-d": otherDevice, "-l": otherDevice, "-z": otherDevice,
		"-J device": otherDevice, "-J location": setByUs,
		"-c": "it reads or overwrites the whole device", "-S": neverForced,
		"-D": setByUs, "-o": setByUs, "-t": setByUs, "-V": setByUs,
		"-e":         "a damaged volume must neither be written to nor take the node down",
		"-E discard": "it would make a reserved image sparse", "-E nodiscard": setByUs,
		"-E assume_storage_prezeroed": setByUs, "-E offset": otherDevice,
		"-E root_owner": setByUs, "-E test_fs": neverForced,
		"-E quotatype": agentsQuota, "-O quota": agentsQuota, "-O project": agentsQuota,
		"-O orphan_file":        tooNew,
		"-O metadata_csum_seed": tooNew + ": only from some versions of its tools",
		"-O ^has_journal":       losesData, "-O ^metadata_csum": losesData,
		"-O journal_dev": otherDevice,
	},
	XFS: {
		"-f": neverForced, "-L": setByUs, "-q": setByUs,
		"-K": setByUs, "-N": setByUs, "-V": setByUs,
		"-c": otherDevice, "-p": otherDevice, "-r": otherDevice,
		"-d name": otherDevice, "-d file": otherDevice,
		"-d size": setByUs, "-d rtinherit": otherDevice,
		"-l logdev": otherDevice, "-l name": otherDevice, "-l internal": setByUs,
		"-m uuid": setByUs, "-m crc": setByUs,
		"-i nrext64": tooNew, "-i exchange": tooNew, "-n parent": tooNew,
		"-m metadir": tooNew, "-m autofsck": tooNew,
	},
	Btrfs: {
		"-f": neverForced, "--force": neverForced, "-U": setByUs,
		"--uuid": setByUs, "-L": setByUs, "--label": setByUs,
		"-K": setByUs, "--nodiscard": setByUs, "-q": setByUs,
		"--quiet": setByUs, "-b": setByUs, "--byte-count": setByUs,
		"-r": otherDevice, "--rootdir": otherDevice, "-M": mixedGroups, "--mixed": mixedGroups,
		"-s": setByUs, "--sectorsize": setByUs,
		"-O block-group-tree": tooNew, "-O raid-stripe-tree": tooNew, "-O zoned": otherDevice,
	},
}
