package record

import (
	"encoding/json"
	"time"
)

// VolumeFile is the name of a volume's record in its directory.
const VolumeFile = "volume.json"

// FlagsFile is beside it for the moment in which a file in the volume is not
// immutable so that it can be charged to the volume.
const FlagsFile = "flags.json"

// Backends and filesystem modes as they stand in records. They are the words of
// the API, kept apart from it so that the format on disk does not change with
// an API version.
const (
	BackendDirectory = "directory"
	BackendLoop      = "loop"

	ModeFilesystem = "Filesystem"
	ModeBlock      = "Block"

	AllocationThick = "thick"
	AllocationThin  = "thin"

	EnforcementStrict = "strict"
	EnforcementQuota  = "quota"
	EnforcementNone   = "none"
)

// Quota kinds: what holds a directory volume's size.
const (
	QuotaProject = "project" // project id of ext4 and xfs
	QuotaBtrfs   = "btrfs"   // level-1 qgroup under simple quotas
)

// How far an adoption is. Each is written down before what it says is begun.
const (
	// AdoptionMoving: the data takes the place of a link in the volume's
	// directory. While the link is there nothing was moved.
	AdoptionMoving = "moving"
	// AdoptionRenaming: everything in an image's filesystem is in one
	// directory, which gets its last name.
	AdoptionRenaming = "renaming"
)

// Volume is everything about a volume that must outlive the cluster.
type Volume struct {
	ID        string    `json:"id"`
	CreatedAt time.Time `json:"createdAt"`
	// PoolUID is the identity of the pool that the volume is on: what names
	// another one is a copy. Versions before 0.2 wrote none.
	PoolUID string `json:"poolUID,omitempty"`

	// What was carved. SizeBytes is the size in force; GrowingTo, when not 0, a
	// size that is being gone to: after a crash the growth is carried on.
	Backend     string `json:"backend"`
	Enforcement string `json:"enforcement"`
	VolumeMode  string `json:"volumeMode"`
	SizeBytes   int64  `json:"sizeBytes"`
	GrowingTo   int64  `json:"growingTo,omitempty"`
	Inodes      int64  `json:"inodes,omitempty"`
	// InodesBySize: nobody asked for a number, and it grows with the size.
	InodesBySize bool `json:"inodesBySize,omitempty"`

	// Directory volumes: the quota that holds the size.
	QuotaKind string `json:"quotaKind,omitempty"`
	QuotaID   uint64 `json:"quotaID,omitempty"`

	// Loop volumes. The filesystem's UUID is chosen before it is made; the
	// logical block size is part of the data's format and must be the same at
	// every attach. EverRaw is set before the image is first handed out as a
	// block device: its content is then the tenant's, and it is never mounted
	// by us.
	Allocation       string   `json:"allocation,omitempty"`
	FSType           string   `json:"fsType,omitempty"`
	FSUUID           string   `json:"fsUUID,omitempty"`
	LogicalBlockSize uint32   `json:"logicalBlockSize,omitempty"`
	MkfsOptions      []string `json:"mkfsOptions,omitempty"`
	MountOptions     []string `json:"mountOptions,omitempty"`
	EverRaw          bool     `json:"everRaw,omitempty"`

	// The root directory's owner and permissions at creation.
	Owner int64  `json:"owner,omitempty"`
	Group int64  `json:"group,omitempty"`
	Mode  uint32 `json:"mode,omitempty"`

	// AdoptedFrom is where the volume's data was before it was a volume,
	// relative to the pool; a symbolic link is left there.
	AdoptedFrom string `json:"adoptedFrom,omitempty"`
	// Adopting is not empty while an adoption is not finished: AdoptionMoving
	// or AdoptionRenaming.
	Adopting string `json:"adopting,omitempty"`

	// Everything else that is needed to write the objects of the cluster again.
	Source *Source `json:"source,omitempty"`
	Origin Origin  `json:"origin"`
}

// Source is what a volume's first content was taken from.
type Source struct {
	Volume   string `json:"volume,omitempty"`
	Snapshot string `json:"snapshot,omitempty"`
}

// Origin is the cluster's view of a volume: no part of the disk depends on it.
type Origin struct {
	// Wish is a digest of the request the volume was made for: the same request
	// again is the same volume, another one is refused.
	Wish           string            `json:"wish,omitempty"`
	Node           string            `json:"node,omitempty"`
	PVName         string            `json:"pvName,omitempty"`
	Provisioner    string            `json:"provisioner,omitempty"`
	StorageClass   string            `json:"storageClass,omitempty"`
	ReclaimPolicy  string            `json:"reclaimPolicy,omitempty"`
	AccessModes    []string          `json:"accessModes,omitempty"`
	ClaimNamespace string            `json:"claimNamespace,omitempty"`
	ClaimName      string            `json:"claimName,omitempty"`
	ClaimUID       string            `json:"claimUID,omitempty"`
	ClaimLabels    map[string]string `json:"claimLabels,omitempty"`
	// ClaimLabelsLeftOut is how many labels of the claim are not in
	// ClaimLabels, since there were more than are kept (Bound).
	ClaimLabelsLeftOut int               `json:"claimLabelsLeftOut,omitempty"`
	RequestedBackend   string            `json:"requestedBackend,omitempty"`
	Deletion           Deletion          `json:"deletion"`
	Attributes         map[string]string `json:"attributes,omitempty"`
	// Parameters are the class's, for the PersistentVolume that is written
	// again.
	Parameters  map[string]string `json:"parameters,omitempty"`
	SpreadGroup string            `json:"spreadGroup,omitempty"`
}

// Follow returns o as it is once the cluster says next. Where next names
// nothing o stays: an object that was lost and written again (from a
// PersistentVolume, say, whose claimRef has no labels) knows less than the disk
// does. A claim that next does not name is let go all the same, since volumes
// do lose theirs, and with it what is the claim's: its UID and labels. Wish is
// never another.
func (o Origin) Follow(next Origin) Origin {
	sameClaim := next.ClaimName == o.ClaimName && next.ClaimNamespace == o.ClaimNamespace
	next.Wish = o.Wish
	if sameClaim {
		keep(&next.ClaimUID, o.ClaimUID)
		if len(next.ClaimLabels) == 0 && next.ClaimLabelsLeftOut == 0 {
			next.ClaimLabels, next.ClaimLabelsLeftOut = o.ClaimLabels, o.ClaimLabelsLeftOut
		}
	}
	keep(&next.Node, o.Node)
	keep(&next.PVName, o.PVName)
	keep(&next.Provisioner, o.Provisioner)
	keep(&next.StorageClass, o.StorageClass)
	keep(&next.ReclaimPolicy, o.ReclaimPolicy)
	keep(&next.RequestedBackend, o.RequestedBackend)
	keep(&next.SpreadGroup, o.SpreadGroup)
	if next.Deletion == (Deletion{}) {
		next.Deletion = o.Deletion
	}
	if len(next.AccessModes) == 0 {
		next.AccessModes = o.AccessModes
	}
	if len(next.Attributes) == 0 {
		next.Attributes = o.Attributes
	}
	if len(next.Parameters) == 0 {
		next.Parameters = o.Parameters
	}
	return next.Bound()
}

// keep puts the former value where nothing new is said.
func keep(now *string, former string) {
	if *now == "" {
		*now = former
	}
}

// Deletion is what deleting the volume is to mean, in the words of the API.
type Deletion struct {
	OnDelete         string `json:"onDelete,omitempty"`
	RetentionSeconds int64  `json:"retentionSeconds,omitempty"`
	Scrub            string `json:"scrub,omitempty"`
}

// Promise is the size that the volume has or is growing to, in bytes.
func (v *Volume) Promise() int64 { return max(v.SizeBytes, v.GrowingTo) }

// Owed is how many bytes of the pool are kept for the volume: its size, but
// nothing for a directory that nothing holds to its size. What is in such a one
// is not counted by anybody, so what was written could not be told from what is
// still owed, and would be taken off twice: once as promised, and once as not
// free any more.
func (v *Volume) Owed() int64 {
	if v.Backend == BackendDirectory && v.QuotaKind == "" {
		return 0
	}
	return v.Promise()
}

// EncodeVolume writes v in the format of VolumeFile. It returns a
// *TooLargeError for what would be larger than MaxSize.
func EncodeVolume(v *Volume) ([]byte, error) {
	data, err := sealVolume(v)
	return bounded(VolumeFile, data, err)
}

func sealVolume(v *Volume) ([]byte, error) {
	return seal(v, func(e *envelope) *json.RawMessage { return &e.Volume })
}

// DecodeVolume reads what EncodeVolume wrote, also a larger one of a version
// before 0.2, of whose labels it keeps no more than are written now. It returns
// an *UnreadableError for anything else.
func DecodeVolume(data []byte) (*Volume, error) {
	v := &Volume{}
	if err := unseal(data, v, func(e *envelope) *json.RawMessage { return &e.Volume }); err != nil {
		return nil, err
	}
	if CheckID(v.ID) != nil {
		return nil, &UnreadableError{Reason: "it names no volume"}
	}
	v.Origin = v.Origin.Bound()
	return v, nil
}
