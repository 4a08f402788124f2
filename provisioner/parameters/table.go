package parameters

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

// Parameter is one row of the reference of StorageClass parameters.
type Parameter struct {
	Name string
	// Values are all that are allowed; where there are too many to list, Form
	// describes them.
	Values []string
	Form   string
	// Default is what a class that leaves it out gets, in words where it is not
	// a value.
	Default string
	Meaning string
	// ClusterOnly is set where nothing would follow from it without a cluster.
	ClusterOnly bool

	set func(*Set, string) error
}

// Allowed is the allowed values as a person reads them.
func (d Parameter) Allowed() string {
	if len(d.Values) > 0 {
		return strings.Join(d.Values, ", ")
	}
	return d.Form
}

// check refuses a value that is not one of Values.
func (d Parameter) check(value string) error {
	if len(d.Values) == 0 {
		return nil
	}
	if slices.Contains(d.Values, value) {
		return nil
	}
	return &Error{
		d.Name,
		fmt.Sprintf(
			"value %s is not known%s; allowed: %s",
			quote(value),
			didYouMean(value, d.Values),
			d.Allowed(),
		),
	}
}

// MaxMkfsOptions is the API's limit on the number of words in mkfsOptions.
const MaxMkfsOptions = 32

var (
	poolName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)
	fileMode = regexp.MustCompile(`^0?[0-7]{3,4}$`)
)

// parameterTable is every parameter a StorageClass of Quarry may have. Parsing
// and documentation both come from it.
var parameterTable = []Parameter{
	{
		Name:    "backend",
		Values:  []string{"auto", "directory", "loop"},
		Default: "auto",
		Meaning: "How a volume is carved out of a pool: a `directory` with a quota, or a `loop` " +
			"image with a filesystem in it. `auto` takes a directory where the pool can enforce " +
			"its size as `enforcement` asks, else an image.",
		set: func(p *Set, v string) error { p.Backend = v1alpha1.Backend(v); return nil },
	},
	{
		Name:    "enforcement",
		Values:  []string{"strict", "quota", "none"},
		Default: "quota",
		Meaning: "Against whom the size holds: `strict` against a hostile tenant (always an " +
			"image), `quota` against ordinary writers, `none` against nobody (a plain directory).",
		set: func(p *Set, v string) error { p.Enforcement = v1alpha1.Enforcement(v); return nil },
	},
	{
		Name:    "allocation",
		Values:  []string{"thick", "thin"},
		Default: "thick",
		Meaning: "When an image's blocks are taken from the pool: all at creation, or as they " +
			"are written.",
		set: func(p *Set, v string) error { p.Allocation = v1alpha1.Allocation(v); return nil },
	},
	{
		Name:    "pool",
		Form:    "a pool's name: lower-case letters, digits and `-`, at most 63",
		Default: "the pool with the most room",
		Meaning: "The pool on the node that volumes are made in.",
		set:     setPool,
	},
	{
		Name:    "poolSelector",
		Form:    "a label selector, such as `disk=ssd,tier!=cold`",
		Default: "every pool",
		Meaning: "Chooses among a node's pools by their labels.",
		// Without a cluster pools have none.
		ClusterOnly: true,
		set:         setPoolSelector,
	},
	{
		Name:    "fsType",
		Values:  []string{"ext4", "xfs", "btrfs"},
		Default: "the pool's default",
		Meaning: "The filesystem made in an image. `csi.storage.k8s.io/fstype` means the same.",
		set:     func(p *Set, v string) error { p.FSType = v; return nil },
	},
	{
		Name:    "mkfsOptions",
		Form:    "words separated by spaces, at most 32, from the allowed list of the filesystem",
		Default: "none",
		Meaning: "Further arguments of mkfs; needs `fsType`.",
		set:     setMkfsOptions,
	},
	{
		Name:    "owner",
		Form:    "a numeric user id, 0 to 4294967294",
		Default: "0",
		Meaning: "The owner of the volume's root directory.",
		set:     func(p *Set, v string) (err error) { p.Owner, err = numericID(v); return err },
	},
	{
		Name:    "group",
		Form:    "a numeric group id, 0 to 4294967294",
		Default: "0",
		Meaning: "The group of the volume's root directory.",
		set:     func(p *Set, v string) (err error) { p.Group, err = numericID(v); return err },
	},
	{
		Name:    "mode",
		Form:    "an octal number of 3 or 4 digits, such as `0770`",
		Default: "0777",
		Meaning: "The permissions of the volume's root directory.",
		set:     setMode,
	},
	{
		Name:    "inodes",
		Form:    "a whole number above 0, or `unlimited` (or `0`, which is the same)",
		Default: "in proportion to the size",
		Meaning: "How many files and directories a directory volume on ext4 or xfs may hold, or " +
			"how many an image's filesystem is made with. Where the class says nothing a " +
			"directory gets one for each 16 KiB of its size, a small one up to 32768 of them at " +
			"one for each 4 KiB, and none fewer than 1024; more when it grows. `unlimited`: no " +
			"limit of its own, so that one volume can take all inodes of the pool's filesystem. " +
			"On btrfs files are charged as space: with a number `backend: auto` takes an image " +
			"there, and `directory` is refused.",
		set: setInodes,
	},
	{
		Name:    "onDelete",
		Values:  []string{"purge", "trash", "recycle"},
		Default: "purge",
		Meaning: "What deleting a volume means, where the reclaim policy is Delete: free its " +
			"space at once, keep it in the pool's trash for `trashRetention`, or scrub its space " +
			"before it is promised to anybody (`recycle`: as `purge`, with `scrub: zero` where " +
			"the class says nothing of it).",
		set: func(p *Set, v string) error { p.OnDelete = v1alpha1.OnDelete(v); return nil },
	},
	{
		Name:    "trashRetention",
		Form:    "a duration above 0, such as `72h` or `90m`",
		Default: "72h with `onDelete: trash`",
		Meaning: "How long a trashed volume can be taken back.",
		set:     setTrashRetention,
	},
	{
		Name:    "scrub",
		Values:  []string{"none", "zero", "discard"},
		Default: "none; `zero` with `onDelete: recycle`",
		Meaning: "How the blocks of a deleted volume are freed: just unlinked, overwritten with " +
			"zeros first, or punched out so that the disk discards them.",
		set: func(p *Set, v string) error { p.Scrub = v1alpha1.Scrub(v); return nil },
	},
	{
		Name:    "onNodeLoss",
		Values:  []string{"never", "afterDelay", "outOfServiceTaint"},
		Default: "never",
		Meaning: "Whether a claim may start over, empty, on another node when its node is lost: " +
			"never; once the node was not ready or gone for `nodeLossDelay`; or once an " +
			"administrator set the taint `node.kubernetes.io/out-of-service`. The old volume is " +
			"kept. Needs `nodeLoss.enabled` in the chart's values.",
		ClusterOnly: true,
		set:         func(p *Set, v string) error { p.OnNodeLoss = OnNodeLoss(v); return nil },
	},
	{
		Name:    "nodeLossDelay",
		Form:    "a duration above 0, such as `30m`",
		Default: "15m with `onNodeLoss: afterDelay`",
		Meaning: "How long a node has to be lost before its claims start over.",

		ClusterOnly: true,
		set:         setNodeLossDelay,
	},
	{
		Name:    "poolSpread",
		Values:  []string{"mostFree", "apart"},
		Default: "mostFree",
		Meaning: "Which of a node's pools is taken where several will do: the one with the most " +
			"room, or another one than the other volumes of the same StatefulSet.",
		ClusterOnly: true,
		set:         func(p *Set, v string) error { p.PoolSpread = PoolSpread(v); return nil },
	},
}

// Table returns every parameter, in the order of the reference.
func Table() []Parameter { return append([]Parameter(nil), parameterTable...) }

func parameterNamed(name string) (Parameter, bool) {
	for _, d := range parameterTable {
		if d.Name == name {
			return d, true
		}
	}
	return Parameter{}, false
}

// unknownParameter is the error for a name that is in no row; alone is set
// where there is no cluster.
func unknownParameter(name string, alone bool) *Error {
	var names []string
	for _, d := range parameterTable {
		if !alone || !d.ClusterOnly {
			names = append(names, d.Name)
		}
	}
	return &Error{shorten(name), fmt.Sprintf(
		"is not known%s; known: %s", didYouMean(name, names), strings.Join(names, ", "))}
}

func setPool(p *Set, v string) error {
	if !poolName.MatchString(v) {
		return fmt.Errorf("not a pool's name")
	}
	p.Pool = v
	return nil
}

func setPoolSelector(p *Set, v string) error {
	selector, err := metav1.ParseToLabelSelector(v)
	if err != nil {
		return fmt.Errorf("not a label selector")
	}

	invalid := validation.ValidateLabelSelector(selector,
		validation.LabelSelectorValidationOptions{}, field.NewPath("poolSelector"))
	if len(invalid) > 0 {
		return fmt.Errorf("not a label selector")
	}

	p.PoolSelector = selector
	return nil
}

func setMkfsOptions(p *Set, v string) error {
	p.MkfsOptions = strings.Fields(v)
	if len(p.MkfsOptions) > MaxMkfsOptions {
		return fmt.Errorf("%d words", len(p.MkfsOptions))
	}
	return nil
}

// numericID reads a user or group id. The highest 32-bit value means "leave
// unchanged" in chown(2), so it is no id.
func numericID(v string) (*int64, error) {
	id, err := strconv.ParseUint(v, 10, 32)
	if err != nil || id == 1<<32-1 {
		return nil, fmt.Errorf("not a numeric id")
	}
	n := int64(id)
	return &n, nil
}

func setMode(p *Set, v string) error {
	if !fileMode.MatchString(v) {
		return fmt.Errorf("not an octal mode")
	}
	p.Mode = v
	return nil
}

func setInodes(p *Set, v string) error {
	if v == unlimited || v == "0" {
		p.Inodes = UnlimitedInodes
		return nil
	}

	n, err := strconv.ParseInt(v, 10, 64)
	if err != nil || n < 0 {
		return fmt.Errorf("not such a number")
	}

	p.Inodes = n
	return nil
}

func setTrashRetention(p *Set, v string) (err error) {
	p.TrashRetention, err = duration(v)
	return err
}

func setNodeLossDelay(p *Set, v string) (err error) {
	p.NodeLossDelay, err = duration(v)
	return err
}

func duration(v string) (time.Duration, error) {
	d, err := time.ParseDuration(v)
	if err != nil || d <= 0 {
		return 0, fmt.Errorf("not such a duration")
	}
	return d, nil
}
