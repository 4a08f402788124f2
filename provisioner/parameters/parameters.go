package parameters

import (
	"fmt"
	"sort"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

// sidecarPrefix is the prefix of parameters that belong to the CSI sidecars;
// they pass by. One of them we honour: fsTypeKey, because charts and tools
// write it for every driver.
const (
	sidecarPrefix = "csi.storage.k8s.io/"
	fsTypeKey     = sidecarPrefix + "fstype"
)

// Set is what the parameters of one StorageClass say. Parse fills in the
// defaults, so the zero value means nothing. The table says what each of them
// means and which values are allowed.
type Set struct {
	Backend     v1alpha1.Backend
	Enforcement v1alpha1.Enforcement
	Allocation  v1alpha1.Allocation

	// Pool is a pool's name; empty: the agent picks.
	Pool string
	// PoolSelector is nil where the class gives none.
	PoolSelector *metav1.LabelSelector

	// FSType is empty for the pool's default.
	FSType      string
	MkfsOptions []string

	// Owner and Group are nil for root; Mode is empty for the default.
	Owner, Group *int64
	Mode         string
	// Inodes is 0 where the class says nothing, which is in proportion to the
	// size, and UnlimitedInodes for no limit of its own.
	Inodes int64

	OnDelete v1alpha1.OnDelete
	// TrashRetention is zero unless OnDelete is trash.
	TrashRetention time.Duration
	Scrub          v1alpha1.Scrub

	OnNodeLoss OnNodeLoss
	// NodeLossDelay is zero unless OnNodeLoss is afterDelay.
	NodeLossDelay time.Duration

	// PoolSpread says how the agent chooses among the pools that will do.
	PoolSpread PoolSpread

	// raw is what the class said, without the sidecars' own keys.
	raw map[string]string
}

// UnlimitedInodes is Parameters.Inodes, and a Volume's spec.inodes, without a
// limit of the volume's own.
const UnlimitedInodes = -1

// unlimited is the word for it.
const unlimited = "unlimited"

// OnNodeLoss says what becomes of a claim whose node is gone for good.
type OnNodeLoss string

const (
	// NodeLossNever leaves the claim bound to the lost node until a person
	// decides. The default.
	NodeLossNever OnNodeLoss = "never"
	// NodeLossAfterDelay lets the claim start over elsewhere once the node was
	// not ready, or gone, for nodeLossDelay.
	NodeLossAfterDelay OnNodeLoss = "afterDelay"
	// NodeLossOutOfServiceTaint lets it start over once an administrator set
	// node.kubernetes.io/out-of-service.
	NodeLossOutOfServiceTaint OnNodeLoss = "outOfServiceTaint"
)

// DefaultNodeLossDelay is how long a node has to be lost, in classes with
// onNodeLoss: afterDelay that do not say.
const DefaultNodeLossDelay = 15 * time.Minute

// PoolSpread says how a pool is chosen among those of a node that will do.
type PoolSpread string

const (
	// SpreadMostFree takes the pool with the most room. The default.
	SpreadMostFree PoolSpread = "mostFree"
	// SpreadApart takes another pool than the other volumes of the same
	// StatefulSet, as far as there are enough.
	SpreadApart PoolSpread = "apart"
)

// DefaultTrashRetention is how long a class with onDelete: trash keeps volumes
// where it does not say.
const DefaultTrashRetention = 72 * time.Hour

// Parse reads a StorageClass's parameters. The error is a *Error: an unknown
// parameter, a value that is not allowed, or parameters that contradict each
// other.
func Parse(class map[string]string) (Set, error) {
	p := Set{
		Backend:     v1alpha1.BackendAuto,
		Enforcement: v1alpha1.EnforcementQuota,
		Allocation:  v1alpha1.AllocationThick,
		OnDelete:    v1alpha1.OnDeletePurge,
		Scrub:       v1alpha1.ScrubNone,
		OnNodeLoss:  NodeLossNever,
		PoolSpread:  SpreadMostFree,
		raw:         map[string]string{},
	}
	keys := make([]string, 0, len(class))
	for key := range class {
		keys = append(keys, key)
	}

	sort.Strings(keys) // the same error every time, so that events of it are counted, not repeated
	for _, key := range keys {
		value := class[key]
		if strings.HasPrefix(key, sidecarPrefix) {
			if key != fsTypeKey || value == "" {
				continue
			}
			if own, both := class["fsType"]; both && own != value {
				return Set{}, &Error{"fsType", fmt.Sprintf(
					"is %s, but %s is %s; give one of them", quote(own), fsTypeKey, quote(value))}
			}
			key = "fsType"
		}

		def, ok := parameterNamed(key)
		if !ok {
			return Set{}, unknownParameter(key, false)
		}
		if err := def.check(value); err != nil {
			return Set{}, err
		}
		if err := def.set(&p, value); err != nil {
			return Set{}, &Error{key, fmt.Sprintf(
				"value %s: %v; allowed: %s", quote(value), err, def.Allowed())}
		}

		p.raw[key] = value
	}

	if p.OnDelete == v1alpha1.OnDeleteTrash && p.TrashRetention == 0 {
		p.TrashRetention = DefaultTrashRetention
	}
	if p.OnNodeLoss == NodeLossAfterDelay && p.NodeLossDelay == 0 {
		p.NodeLossDelay = DefaultNodeLossDelay
	}
	if p.OnDelete == v1alpha1.OnDeleteRecycle && !p.given("scrub") {
		p.Scrub = v1alpha1.ScrubZero // somebody else gets the space next
	}
	if err := p.contradiction(); err != nil {
		return Set{}, err
	}

	return p, nil
}

// given reports whether the class itself said something about the parameter.
func (p Set) given(name string) bool { _, ok := p.raw[name]; return ok }

// contradiction finds parameters that cannot all be had, whatever the claim and
// the node.
func (p Set) contradiction() error {
	directory := p.Backend == v1alpha1.BackendDirectory
	none := p.Enforcement == v1alpha1.EnforcementNone
	switch {
	case directory && p.Enforcement == v1alpha1.EnforcementStrict:
		return &Error{"backend", "directory cannot hold a size against a hostile tenant " +
			"(enforcement: strict): " +
			"a file's owner may change its project id; use backend: loop, or enforcement: quota"}
	case p.Backend == v1alpha1.BackendLoop && none:
		return &Error{"enforcement", "none means a plain directory, but backend: loop always has " +
			"the image's size; leave one out"}
	case directory && p.given("allocation"):
		return &Error{"allocation", "is for images; a directory's blocks are taken as files are " +
			"written (backend: directory)"}
	case none && p.given("allocation"):
		return &Error{"allocation", "is for images; enforcement: none makes plain directories"}
	case (directory || none) && p.FSType != "":
		return &Error{"fsType", "is for images; a directory is on the pool's own filesystem"}
	case len(p.MkfsOptions) > 0 && p.FSType == "":
		return &Error{"mkfsOptions", "needs fsType: options differ from one filesystem to the next"}
	case none && p.Inodes > 0:
		return &Error{"inodes", "cannot be held with enforcement: none"}
	case p.given("trashRetention") && p.OnDelete != v1alpha1.OnDeleteTrash:
		return &Error{"trashRetention", "needs onDelete: trash"}
	case p.OnDelete == v1alpha1.OnDeleteRecycle && p.Scrub == v1alpha1.ScrubNone:
		return &Error{"scrub", "none would leave a deleted volume's blocks as they are to " +
			"whoever gets them next (onDelete: recycle); use zero or discard"}
	case p.given("nodeLossDelay") && p.OnNodeLoss != NodeLossAfterDelay:
		return &Error{"nodeLossDelay", "needs onNodeLoss: afterDelay"}
	case p.Pool != "" && p.PoolSpread == SpreadApart:
		return &Error{"poolSpread", "apart chooses among several pools, and pool names one; use " +
			"poolSelector, or leave one out"}
	case p.Pool != "" && p.PoolSelector != nil:
		return &Error{"poolSelector", "chooses a pool by label, and pool by name; give one of them"}
	}

	return nil
}

// CheckMode finds what a claim's volumeMode makes impossible. The error is a
// *Error.
func (p Set) CheckMode(mode corev1.PersistentVolumeMode) error {
	if mode != corev1.PersistentVolumeBlock {
		return nil
	}
	switch {
	case p.Backend == v1alpha1.BackendDirectory:
		return &Error{"backend", "directory cannot give a block device (volumeMode: Block); use " +
			"auto or loop"}
	case p.Enforcement == v1alpha1.EnforcementNone:
		return &Error{"enforcement", "none makes a plain directory, not a block device " +
			"(volumeMode: Block)"}
	}
	return nil
}
