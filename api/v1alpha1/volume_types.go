package v1alpha1

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// DesiredState is what the controller wants of a volume's data. It is the only
// thing that makes an agent remove data.
// +kubebuilder:validation:Enum=Present;Trashed;Deleted
type DesiredState string

const (
	// DesiredPresent: the volume is to be there. The default.
	DesiredPresent DesiredState = "Present"
	// DesiredTrashed: the volume was deleted but is kept for its retention;
	// Present brings it back.
	DesiredTrashed DesiredState = "Trashed"
	// DesiredDeleted: the volume's data is to be removed. There is no way back.
	DesiredDeleted DesiredState = "Deleted"
)

// Backend is how a volume is carved out of a pool.
// +kubebuilder:validation:Enum=auto;directory;loop
type Backend string

const (
	// BackendAuto takes a directory where the pool can enforce its size as the
	// class asks, else a loop image.
	BackendAuto Backend = "auto"
	// BackendDirectory is a directory of the pool's filesystem, its size
	// enforced by project quota or qgroup.
	BackendDirectory Backend = "directory"
	// BackendLoop is an image file on a loop device, its size enforced by the
	// image's size.
	BackendLoop Backend = "loop"
)

// Enforcement says against whom a volume's size has to hold.
// +kubebuilder:validation:Enum=strict;quota;none
type Enforcement string

const (
	// EnforcementStrict holds against a hostile tenant. Always a loop image.
	EnforcementStrict Enforcement = "strict"
	// EnforcementQuota holds against ordinary writers. The default.
	EnforcementQuota Enforcement = "quota"
	// EnforcementNone: a plain directory with no limit.
	EnforcementNone Enforcement = "none"
)

// Allocation says when an image's blocks are taken from the pool.
// +kubebuilder:validation:Enum=thick;thin
type Allocation string

const (
	// AllocationThick takes all blocks at creation, and keeps them. The
	// default.
	AllocationThick Allocation = "thick"
	// AllocationThin takes blocks as they are written and gives them back when
	// they are discarded.
	AllocationThin Allocation = "thin"
)

// OnDelete says what deleting a volume means.
// +kubebuilder:validation:Enum=purge;trash;recycle
type OnDelete string

const (
	// OnDeletePurge frees the space as soon as the volume is deleted. The
	// default.
	OnDeletePurge OnDelete = "purge"
	// OnDeleteTrash keeps the volume for its retention; it can be restored
	// until then.
	OnDeleteTrash OnDelete = "trash"
	// OnDeleteRecycle scrubs the volume before its space is promised to
	// anybody.
	OnDeleteRecycle OnDelete = "recycle"
)

// Scrub says how the blocks of a deleted volume are freed.
// +kubebuilder:validation:Enum=none;zero;discard
type Scrub string

const (
	// ScrubNone unlinks. The default.
	ScrubNone Scrub = "none"
	// ScrubZero overwrites every allocated block with zeros before it is freed.
	ScrubZero Scrub = "zero"
	// ScrubDiscard punches the blocks out, so that the filesystem discards them
	// on the disk where it is mounted to do so.
	ScrubDiscard Scrub = "discard"
)

// VolumeSpec is what is wanted of one volume on one node. All of it but
// desiredState, published, capacity, claim, admission, reclaimPolicy, deletion
// and attributes is fixed at creation.
//
// +kubebuilder:validation:XValidation:rule="self.nodeName == oldSelf.nodeName",message="nodeName is immutable"
// +kubebuilder:validation:XValidation:rule="has(self.pool) == has(oldSelf.pool) && (!has(self.pool) || self.pool == oldSelf.pool)",message="pool is immutable"
// +kubebuilder:validation:XValidation:rule="has(self.poolSelector) == has(oldSelf.poolSelector) && (!has(self.poolSelector) || self.poolSelector == oldSelf.poolSelector)",message="poolSelector is immutable"
// +kubebuilder:validation:XValidation:rule="self.backend == oldSelf.backend && self.enforcement == oldSelf.enforcement && self.allocation == oldSelf.allocation",message="backend, enforcement and allocation are immutable"
// +kubebuilder:validation:XValidation:rule="self.volumeMode == oldSelf.volumeMode",message="volumeMode is immutable"
// +kubebuilder:validation:XValidation:rule="has(self.fsType) == has(oldSelf.fsType) && (!has(self.fsType) || self.fsType == oldSelf.fsType)",message="fsType is immutable"
// +kubebuilder:validation:XValidation:rule="has(self.source) == has(oldSelf.source) && (!has(self.source) || self.source == oldSelf.source)",message="source is immutable"
// +kubebuilder:validation:XValidation:rule="has(self.adopt) == has(oldSelf.adopt) && (!has(self.adopt) || self.adopt == oldSelf.adopt)",message="adopt is immutable"
// +kubebuilder:validation:XValidation:rule="!has(self.adopt) || !has(self.source)",message="a volume is adopted or made from a source, not both"
// +kubebuilder:validation:XValidation:rule="oldSelf.desiredState != 'Deleted' || self.desiredState == 'Deleted'",message="a volume that is to be deleted cannot be brought back"
// +kubebuilder:validation:XValidation:rule="!oldSelf.published || self.published",message="published cannot be taken back"
type VolumeSpec struct {
	// NodeName is the node whose disk holds the volume.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	NodeName string `json:"nodeName"`

	// Pool is the name of the pool on that node; empty lets the agent pick the
	// one with the most room among those that match poolSelector.
	// +optional
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`
	Pool string `json:"pool,omitempty"`

	// PoolSelector chooses among the node's pools by their labels.
	// +optional
	PoolSelector *metav1.LabelSelector `json:"poolSelector,omitempty"`

	// DesiredState is the only thing that makes an agent remove data.
	// +kubebuilder:default=Present
	DesiredState DesiredState `json:"desiredState"`

	// Published says that somebody was given the volume: a PersistentVolume
	// leads to it, or did. It is set once, with whatever else is written of a
	// volume in use, or some minutes after its PersistentVolume was made; a
	// volume that is Ready may be in use without it. A volume that was
	// published is never swept.
	// +kubebuilder:default=false
	Published bool `json:"published"`

	// Backend is how the volume is carved; auto is resolved by the agent
	// (status.backend).
	// +kubebuilder:default=auto
	Backend Backend `json:"backend"`

	// Enforcement says against whom the size has to hold.
	// +kubebuilder:default=quota
	Enforcement Enforcement `json:"enforcement"`

	// VolumeMode is Filesystem or Block, as in the claim.
	// +kubebuilder:default=Filesystem
	// +kubebuilder:validation:Enum=Filesystem;Block
	VolumeMode corev1.PersistentVolumeMode `json:"volumeMode"`

	// AccessModes are the claim's.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=4
	AccessModes []corev1.PersistentVolumeAccessMode `json:"accessModes,omitempty"`

	// Capacity is the size asked for, in bytes. Raising it grows the volume;
	// lowering it takes back a growth that was not possible.
	Capacity resource.Quantity `json:"capacity"`

	// FSType is the filesystem made in a loop image: ext4, xfs or btrfs. Empty:
	// the pool's default.
	// +optional
	// +kubebuilder:validation:Enum="";ext4;xfs;btrfs
	FSType string `json:"fsType,omitempty"`

	// MkfsOptions are further arguments of mkfs, from an allowed list for each
	// filesystem.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=32
	MkfsOptions []string `json:"mkfsOptions,omitempty"`

	// MountOptions are applied where the agent mounts the volume's filesystem.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=64
	MountOptions []string `json:"mountOptions,omitempty"`

	// Allocation says when a loop image's blocks are taken from the pool.
	// +kubebuilder:default=thick
	Allocation Allocation `json:"allocation"`

	// Owner and Group are the numeric owner of the volume's root directory.
	// Unset: root.
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=4294967294
	Owner *int64 `json:"owner,omitempty"`
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=4294967294
	Group *int64 `json:"group,omitempty"`
	// Mode is the permissions of the volume's root directory, in octal
	// ("0770"). Unset: 0777, as kubelet's own local volumes and most peers have
	// it.
	// +optional
	// +kubebuilder:validation:Pattern=`^0?[0-7]{3,4}$`
	Mode string `json:"mode,omitempty"`

	// Inodes limits how many files a directory volume may hold, or is how many
	// a filesystem is made with. 0: in proportion to the size where a project
	// quota holds it, and as many as is usual for a filesystem. -1: no limit of
	// its own.
	// +optional
	// +kubebuilder:validation:Minimum=-1
	Inodes int64 `json:"inodes,omitempty"`

	// Source is what the volume's first content is taken from. Unset: empty.
	// +optional
	Source *VolumeSource `json:"source,omitempty"`

	// Adopt makes the volume out of what is at a path of its node already,
	// instead of making it empty.
	// +optional
	Adopt *Adoption `json:"adopt,omitempty"`

	// SpreadGroup names the volumes that are put into different pools of their
	// node as far as there are enough pools: those of one StatefulSet. Empty:
	// the pool with the most room is taken.
	// +optional
	// +kubebuilder:validation:MaxLength=512
	SpreadGroup string `json:"spreadGroup,omitempty"`

	// Claim is the PersistentVolumeClaim the volume is made for.
	// +optional
	Claim *ClaimReference `json:"claim,omitempty"`

	// StorageClassName and ReclaimPolicy are recorded so that the
	// PersistentVolume can be written again from disk alone.
	// +optional
	StorageClassName string `json:"storageClassName,omitempty"`
	// +optional
	// +kubebuilder:validation:Enum="";Retain;Delete
	ReclaimPolicy corev1.PersistentVolumeReclaimPolicy `json:"reclaimPolicy,omitempty"`

	// Provisioner is the door the volume came in by: local.quarry.storage or
	// csi.quarry.storage.
	// +optional
	Provisioner string `json:"provisioner,omitempty"`

	// Parameters are the class's, as the volume was made with them, so that the
	// PersistentVolume can be written again as it was. What they mean is in the
	// fields above; agents only keep them.
	// +optional
	Parameters map[string]string `json:"parameters,omitempty"`

	// Admission names the volumes that are admitted together with this one, or
	// not at all: the claims of one pod.
	// +optional
	Admission *AdmissionGroup `json:"admission,omitempty"`

	// Deletion is what deleting the volume means.
	// +kubebuilder:default={}
	Deletion DeletionPolicy `json:"deletion,omitempty"`

	// Attributes may change while the volume is in use (VolumeAttributesClass).
	// +optional
	Attributes map[string]string `json:"attributes,omitempty"`
}

// VolumeSource names another volume or a snapshot on the same node.
// +kubebuilder:validation:XValidation:rule="has(self.volume) != has(self.snapshot)",message="exactly one of volume and snapshot"
type VolumeSource struct {
	// +optional
	Volume string `json:"volume,omitempty"`
	// +optional
	Snapshot string `json:"snapshot,omitempty"`
}

// AdoptionType says what is at the path of an adopted volume, in the words of
// hostPath volumes.
// +kubebuilder:validation:Enum=Directory;DirectoryOrCreate;File;FileOrCreate
type AdoptionType string

const (
	// AdoptDirectory: a directory has to be there. It becomes a directory
	// volume.
	AdoptDirectory AdoptionType = "Directory"
	// AdoptDirectoryOrCreate: a directory, or nothing; then the volume is made
	// empty.
	AdoptDirectoryOrCreate AdoptionType = "DirectoryOrCreate"
	// AdoptFile: an image file has to be there. It becomes a loop volume.
	AdoptFile AdoptionType = "File"
	// AdoptFileOrCreate: an image file, or nothing; then the image is made.
	AdoptFileOrCreate AdoptionType = "FileOrCreate"
)

// Adoption is data that was on a node before Quarry knew of it.
type Adoption struct {
	// Path is where it is: below the directory of one of the node's pools, and
	// on the same filesystem. It is renamed into the volume, and a symbolic
	// link is left in its place, so that PersistentVolumes that were made by
	// hand go on working.
	// +kubebuilder:validation:MinLength=2
	// +kubebuilder:validation:MaxLength=1024
	// +kubebuilder:validation:Pattern=`^/`
	Path string `json:"path"`
	// +kubebuilder:default=Directory
	// +optional
	Type AdoptionType `json:"type,omitempty"`
}

// ClaimReference is a PersistentVolumeClaim.
type ClaimReference struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	// +optional
	UID types.UID `json:"uid,omitempty"`
	// Labels are the claim's at the time it was provisioned, kept to rebuild
	// it: the first 64 by name, and no more than 16 KiB of them.
	// +optional
	Labels map[string]string `json:"labels,omitempty"`
	// LabelsLeftOut is how many labels the claim has that are not kept.
	// +optional
	LabelsLeftOut int32 `json:"labelsLeftOut,omitempty"`
}

// How many labels of a claim are kept with its volume, and how many bytes of
// names and values together. Each is kept in an object, in caches and on disk.
const (
	MaxClaimLabels     = 64
	MaxClaimLabelBytes = 16 << 10
)

// AdmissionGroup is one transaction of the node's allocator.
type AdmissionGroup struct {
	// Name is the pod's UID.
	Name string `json:"name"`
	// Claims are the UIDs of all claims that are to be admitted together, this
	// volume's included.
	// +listType=set
	// +kubebuilder:validation:MaxItems=128
	Claims []types.UID `json:"claims"`
}

// DeletionPolicy is what deleting a volume means.
type DeletionPolicy struct {
	// +kubebuilder:default=purge
	// +optional
	OnDelete OnDelete `json:"onDelete,omitempty"`
	// TrashRetention is how long a trashed volume is kept.
	// +optional
	TrashRetention *metav1.Duration `json:"trashRetention,omitempty"`
	// +kubebuilder:default=none
	// +optional
	Scrub Scrub `json:"scrub,omitempty"`
}

// VolumePhase is a summary of a volume's state, for people. Programs read
// desiredState and the conditions.
type VolumePhase string

const (
	// VolumePending: the agent has not begun; it holds nothing on disk for the
	// volume.
	VolumePending VolumePhase = "Pending"
	// VolumeReady: the volume is whole, on disk, and can be used.
	VolumeReady VolumePhase = "Ready"
	// VolumeRefused: the agent will not make it, and holds nothing on disk for
	// it. Final for this attempt.
	VolumeRefused VolumePhase = "Refused"
	// VolumeTrashed: renamed into the pool's trash.
	VolumeTrashed VolumePhase = "Trashed"
	// VolumeDeleted: the agent confirms that nothing of it can be reached any
	// more. Final.
	VolumeDeleted VolumePhase = "Deleted"
	// VolumeUnavailable: the volume is known but its pool is offline or it does
	// not match its record; its data was not touched.
	VolumeUnavailable VolumePhase = "Unavailable"
	// VolumeLost: it was ready once, and its pool is there without it.
	VolumeLost VolumePhase = "Lost"
)

// Types of a Volume's conditions.
const (
	// ConditionReady is True when the volume can be used. Its reason and
	// message say why it cannot.
	ConditionReady = "Ready"
	// ConditionInUse is True when the volume is wanted gone and something still
	// uses it.
	ConditionInUse = "InUse"
	// ConditionEnforced is False when the size asked for is not in force any
	// more.
	ConditionEnforced = "Enforced"
	// ConditionResized is False when spec.capacity could not be reached; the
	// reason says whether it is worth waiting.
	ConditionResized = "Resized"
)

// VolumeStatus is what there is.
type VolumeStatus struct {
	// ObservedGeneration is the generation of the spec the status answers.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// +optional
	Phase VolumePhase `json:"phase,omitempty"`
	// Pool and PoolUID are where the volume is.
	// +optional
	Pool string `json:"pool,omitempty"`
	// +optional
	PoolUID string `json:"poolUID,omitempty"`
	// Backend is the resolved backend.
	// +optional
	Backend Backend `json:"backend,omitempty"`
	// FSType is the filesystem the user's files are on.
	// +optional
	FSType string `json:"fsType,omitempty"`
	// Path is what a local PersistentVolume has to point at: a directory, or
	// for Block a link to the device.
	// +optional
	Path string `json:"path,omitempty"`
	// Capacity is the size in force, in bytes.
	// +optional
	Capacity *resource.Quantity `json:"capacity,omitempty"`
	// ExpiresAt is when a trashed volume's space is freed.
	// +optional
	ExpiresAt *metav1.Time `json:"expiresAt,omitempty"`
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// Volume is one attempt to have one volume on one node, and the volume itself
// once the attempt succeeded. Its name is the volume's id: in the path on disk
// and in the CSI volume handle.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=qvol;qv,categories=quarry
// +kubebuilder:selectablefield:JSONPath=.spec.nodeName
// +kubebuilder:printcolumn:name="Node",type=string,JSONPath=`.spec.nodeName`
// +kubebuilder:printcolumn:name="Pool",type=string,JSONPath=`.status.pool`
// +kubebuilder:printcolumn:name="Backend",type=string,JSONPath=`.status.backend`
// +kubebuilder:printcolumn:name="Capacity",type=string,JSONPath=`.status.capacity`
// +kubebuilder:printcolumn:name="Phase",type=string,JSONPath=`.status.phase`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`
// +kubebuilder:printcolumn:name="Namespace",type=string,JSONPath=`.spec.claim.namespace`
// +kubebuilder:printcolumn:name="Claim",type=string,JSONPath=`.spec.claim.name`
// +kubebuilder:printcolumn:name="Wanted",type=string,JSONPath=`.spec.desiredState`,priority=1
// +kubebuilder:printcolumn:name="Path",type=string,JSONPath=`.status.path`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type Volume struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec VolumeSpec `json:"spec"`
	// +optional
	Status VolumeStatus `json:"status,omitempty"`
}

// VolumeList is a list of volumes.
// +kubebuilder:object:root=true
type VolumeList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Volume `json:"items"`
}
