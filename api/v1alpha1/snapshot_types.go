package v1alpha1

import (
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// SnapshotSpec is what is wanted of one snapshot.
// +kubebuilder:validation:XValidation:rule="self.nodeName == oldSelf.nodeName && self.volume == oldSelf.volume",message="nodeName and volume are immutable"
// +kubebuilder:validation:XValidation:rule="oldSelf.desiredState != 'Deleted' || self.desiredState == 'Deleted'",message="a snapshot that is to be deleted cannot be brought back"
type SnapshotSpec struct {
	// NodeName is the node of the volume, and so of the snapshot.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	NodeName string `json:"nodeName"`
	// Volume is the name of the Volume that is snapshotted.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Volume string `json:"volume"`
	// DesiredState is the only thing that makes an agent remove the snapshot.
	// +kubebuilder:default=Present
	DesiredState DesiredState `json:"desiredState"`
}

// SnapshotStatus is what there is.
type SnapshotStatus struct {
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// Ready is true once volumes can be made from the snapshot.
	// +optional
	Ready bool `json:"ready,omitempty"`
	// Size is the least size, in bytes, of a volume made from it.
	// +optional
	Size *resource.Quantity `json:"size,omitempty"`
	// Time is the moment of the volume's life the snapshot holds.
	// +optional
	Time *metav1.Time `json:"time,omitempty"`
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// Snapshot is a volume's content at one moment, on the volume's own node.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=qsnap;qs,categories=quarry
// +kubebuilder:selectablefield:JSONPath=.spec.nodeName
// +kubebuilder:printcolumn:name="Node",type=string,JSONPath=`.spec.nodeName`
// +kubebuilder:printcolumn:name="Volume",type=string,JSONPath=`.spec.volume`
// +kubebuilder:printcolumn:name="Ready",type=boolean,JSONPath=`.status.ready`
// +kubebuilder:printcolumn:name="Size",type=string,JSONPath=`.status.size`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type Snapshot struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec SnapshotSpec `json:"spec"`
	// +optional
	Status SnapshotStatus `json:"status,omitempty"`
}

// SnapshotList is a list of snapshots.
// +kubebuilder:object:root=true
type SnapshotList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Snapshot `json:"items"`
}
