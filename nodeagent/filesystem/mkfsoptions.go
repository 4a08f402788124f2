package filesystem

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/quarry-storage/quarry/api/nearest"
	"github.com/quarry-storage/quarry/nodeagent/option"
)

// ValidateMkfsOptions checks options for mkfs, as words: "-i", "8192", "-O",
// "fast_commit". What names another device or a file, forces, or contradicts
// what we guarantee is refused, with an [*option.Error]. The lists are at the
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
			return mkfsError(t, o.flag+" "+o.value,
				fmt.Sprintf("the disk has sectors of %d bytes, and that is the least",
					sectorSize))
		}
	}
	return nil
}

// options are arguments for mkfs taken apart, so that they can be merged.
type options []setting

// setting is "flag value" or, within a list, "flag key=value". In a list an
// element without "=" has an empty value, and its key is all of it.
type setting struct{ flag, key, value string }

func (o *options) set(flag, key, value string) { *o = append(*o, setting{flag, key, value}) }

// same reports whether two settings are of the same thing: "^has_journal" and
// "has_journal", "agcount=4" and "agcount=8".
func (a setting) same(b setting) bool {
	return a.flag == b.flag && strings.TrimPrefix(a.key, "^") == strings.TrimPrefix(b.key, "^")
}

// merge returns the defaults with those of extra in place of them.
func merge(defaults, extra options) options {
	var out options
	for _, d := range defaults {
		if !slices.ContainsFunc(extra, func(e setting) bool {
			return d.same(e) || supersedes(e, d)
		}) {
			out = append(out, d)
		}
	}
	return append(out, extra...)
}

// supersedes reports whether e says the same as d in other words: ways to give
// the number of inodes.
func supersedes(e, d setting) bool {
	inodes := []string{"-i", "-N", "-T"}
	return e.key == "" && d.key == "" && slices.Contains(inodes, e.flag) &&
		slices.Contains(inodes, d.flag)
}

// args puts them together again, elements of one list behind one flag, as the
// tools look at the last (or first) such flag only.
func (o options) args() []string {
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

func mkfsError(t Type, what, reason string) *option.Error {
	return &option.Error{Of: "mkfs", Filesystem: string(t), Option: what, Reason: reason}
}

// rule is what may follow a flag: either one value, or a list of elements.
type rule struct {
	value option.Check
	list  map[string]option.Check
}

func parseMkfsOptions(t Type, args []string) (options, error) {
	rules, ok := mkfsRules[t]
	if !ok {
		return nil, mkfsError(t, "", "no such filesystem")
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
			e := mkfsError(t, flag, mkfsRefused[t][flag])
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
				return nil, mkfsError(t, flag, "its value is missing")
			}
			value = args[i]
		}
		if r.list == nil {
			if reason := r.value(value, true); reason != "" {
				return nil, mkfsError(t, flag+" "+value, reason)
			}
			out = append(out, setting{flag: flag, value: value})
			continue
		}
		for element := range strings.SplitSeq(value, ",") {
			key, v, _ := strings.Cut(element, "=")
			check, ok := r.list[key]
			if !ok {
				e := mkfsError(t, flag+" "+element, mkfsRefused[t][flag+" "+key])
				if e.Reason == "" {
					if near := nearest.Word(key, slices.Sorted(maps.Keys(r.list))); near != "" {
						e.Nearest = flag + " " + near
					}
				}
				return nil, e
			}
			if reason := check(v, v != ""); reason != "" {
				return nil, mkfsError(t, flag+" "+element, reason)
			}
			out = append(out, setting{flag, key, v})
		}
	}
	return out, nil
}

// size is a number with one of the units that mkfs.xfs and mkfs.btrfs know.
var size = option.Size("bskmg", 48, "64m")

var bit = option.OneOf("0", "1")

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
		"-b": {value: option.OneOf("1024", "2048", "4096")},
		"-i": {value: option.Number(1024, 64<<20)}, // bytes for each inode
		"-I": {value: option.OneOf("256", "512", "1024", "2048", "4096")},
		"-N": {value: option.Number(16, 1<<32-1)},
		"-m": {value: option.Number(0, 50)},
		"-G": {value: option.Number(1, 1<<16)},
		"-T": {value: option.OneOf("small", "news", "largefile", "largefile4", "default")},
		"-J": {list: map[string]option.Check{"size": option.Number(4, 4096)}}, // MiB
		"-E": {list: map[string]option.Check{
			"stride":       option.Number(0, 1<<20),
			"stripe_width": option.Number(0, 1<<20), "stripe-width": option.Number(0, 1<<20),
			"packed_meta_blocks": bit, "lazy_itable_init": bit, "lazy_journal_init": bit,
		}},
		"-O": {list: map[string]option.Check{
			"has_journal": option.Flag, "fast_commit": option.Flag,
			"inline_data": option.Flag, "ea_inode": option.Flag,
			"large_dir": option.Flag, "verity": option.Flag,
			"encrypt": option.Flag, "casefold": option.Flag,
			"dir_index": option.Flag, "^dir_index": option.Flag, "metadata_csum": option.Flag,
		}},
	},
	XFS: {
		"-b": {list: map[string]option.Check{
			"size": option.OneOf("1024", "2048", "4096", "1k", "2k", "4k"),
		}},
		"-d": {list: map[string]option.Check{
			"agcount": option.Number(1, 1<<20), "agsize": size,
			"su": size, "sw": option.Number(0, 1<<16),
			"sunit":  option.Number(0, 1<<20),
			"swidth": option.Number(0, 1<<20), "noalign": option.Flag,
		}},
		"-i": {list: map[string]option.Check{
			"size": option.Number(512, 2048), "maxpct": option.Number(0, 100),
			"perblock": option.Number(2, 128), "sparse": bit,
		}},
		"-l": {list: map[string]option.Check{
			"size": size, "su": size, "sunit": option.Number(0, 1<<20),
		}},
		"-m": {list: map[string]option.Check{
			"finobt": bit, "rmapbt": bit, "reflink": bit, "bigtime": bit, "inobtcount": bit,
		}},
		"-n": {list: map[string]option.Check{"size": size, "version": option.OneOf("2", "ci")}},
		"-s": {list: map[string]option.Check{"size": option.OneOf("512", "4096", "4k")}},
	},
	Btrfs: {
		"-n": {value: nodeSizes}, "--nodesize": {value: nodeSizes},
		"--csum": {value: checksums}, "--checksum": {value: checksums},
		"-m": {value: profiles}, "--metadata": {value: profiles},
		"-d": {value: profiles}, "--data": {value: profiles},
		"-O": {list: map[string]option.Check{"no-holes": option.Flag, "^no-holes": option.Flag}},
	},
}

var (
	checksums = option.OneOf("crc32c", "xxhash", "sha256", "blake2") // all since Linux 5.5
	profiles  = option.OneOf("single", "dup")                        // of one device
	nodeSizes = option.OneOf("4096", "8192", "16384", "32768", "65536",
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
