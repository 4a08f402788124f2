package v1alpha1

import (
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// PoolSpec says which pool of which node this is.
// +kubebuilder:validation:XValidation:rule="self.nodeName == oldSelf.nodeName && self.pool == oldSelf.pool",message="nodeName and pool are immutable"
type PoolSpec struct {
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	NodeName string `json:"nodeName"`
	// Pool is the pool's name on its node; it has no dot, so that
	// "<node>.<pool>" can be read only one way.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`
	Pool string `json:"pool"`
	// UID is the identity written on the pool's disk when the pool was made. A
	// disk with another identity is not this pool.
	// +optional
	UID string `json:"uid,omitempty"`
	// TakeOver is the identity of another cluster whose disk this is, once an
	// administrator decided that it now belongs to this one (`quarry recover`
	// sets it). A disk of any other cluster stays untouched.
	// +optional
	// +kubebuilder:validation:MaxLength=64
	TakeOver string `json:"takeOver,omitempty"`
}

// PoolFeatures is what was found by trying it, not by looking at versions.
type PoolFeatures struct {
	// ProjectQuota: project quotas (ext4, xfs) are in force on the pool's
	// filesystem.
	// +optional
	ProjectQuota bool `json:"projectQuota,omitempty"`
	// SimpleQuota: btrfs simple quotas are in force.
	// +optional
	SimpleQuota bool `json:"simpleQuota,omitempty"`
	// Reflink: files can share blocks (FICLONE).
	// +optional
	Reflink bool `json:"reflink,omitempty"`
	// DirectIO: loop devices over files of the pool bypass the page cache.
	// +optional
	DirectIO bool `json:"directIO,omitempty"`
	// QuotactlFD: quotactl_fd(2) is there.
	// +optional
	QuotactlFD bool `json:"quotactlFD,omitempty"`
}

// PoolStatus is what there is.
type PoolStatus struct {
	// Path is where the pool is on its node.
	// +optional
	Path string `json:"path,omitempty"`
	// MachineID is the machine whose pool this is (machine-id(5)), as last seen
	// with its disk in place. Another machine under the node's name, without
	// the disk, was rebuilt: the pool's volumes are lost there.
	// +optional
	MachineID string `json:"machineID,omitempty"`
	// Filesystem is the pool's filesystem type: ext4, xfs, btrfs, ...
	// +optional
	Filesystem string `json:"filesystem,omitempty"`
	// FilesystemID is the same for all pools of a node that share one
	// filesystem, and so its free space.
	// +optional
	FilesystemID string `json:"filesystemID,omitempty"`
	// +optional
	Features PoolFeatures `json:"features,omitempty"`
	// Capacity is what the pool may promise altogether, in bytes: the
	// filesystem's size less the reserve, times the overcommit ratio.
	// +optional
	Capacity *resource.Quantity `json:"capacity,omitempty"`
	// Promised is what volumes and trash were promised, in bytes, by all pools
	// of the filesystem.
	// +optional
	Promised *resource.Quantity `json:"promised,omitempty"`
	// Available is what can still be promised, in bytes.
	// +optional
	Available *resource.Quantity `json:"available,omitempty"`
	// MaximumVolumeSize is the largest volume that can be made now, in bytes.
	// +optional
	MaximumVolumeSize *resource.Quantity `json:"maximumVolumeSize,omitempty"`
	// Volumes is how many volumes the pool holds; Orphaned, how many of them no
	// Volume object speaks of.
	// +optional
	Volumes int32 `json:"volumes,omitempty"`
	// +optional
	Orphaned int32 `json:"orphaned,omitempty"`
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// Types of a Pool's conditions besides ConditionReady, which is True when
// volumes can be made and used.
const (
	// ConditionOrphans is True when the pool holds volumes that no Volume
	// object speaks of.
	ConditionOrphans = "Orphans"
	// ConditionSharedIdentity is True when another Pool object names the same
	// disk. Two nodes must never use one disk.
	ConditionSharedIdentity = "SharedIdentity"
)

// Pool is a directory of a node's filesystem that volumes are carved out of. It
// is named "<node>.<pool>".
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=qpool;qp,categories=quarry
// +kubebuilder:selectablefield:JSONPath=.spec.nodeName
// +kubebuilder:printcolumn:name="Node",type=string,JSONPath=`.spec.nodeName`
// +kubebuilder:printcolumn:name="Path",type=string,JSONPath=`.status.path`
// +kubebuilder:printcolumn:name="Filesystem",type=string,JSONPath=`.status.filesystem`
// +kubebuilder:printcolumn:name="Capacity",type=string,JSONPath=`.status.capacity`
// +kubebuilder:printcolumn:name="Available",type=string,JSONPath=`.status.available`
// +kubebuilder:printcolumn:name="Volumes",type=integer,JSONPath=`.status.volumes`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`
// +kubebuilder:printcolumn:name="Orphans",type=integer,JSONPath=`.status.orphaned`,priority=1
// +kubebuilder:printcolumn:name="ProjectQuota",type=boolean,JSONPath=`.status.features.projectQuota`,priority=1
// +kubebuilder:printcolumn:name="SimpleQuota",type=boolean,JSONPath=`.status.features.simpleQuota`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type Pool struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec PoolSpec `json:"spec"`
	// +optional
	Status PoolStatus `json:"status,omitempty"`
}

// PoolList is a list of pools.
// +kubebuilder:object:root=true
type PoolList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Pool `json:"items"`
}
