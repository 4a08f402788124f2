// Package v1alpha1 holds the words Quarry's parts speak to each other in:
// Volume, Snapshot and Pool, cluster-scoped custom resources of the group
// quarry.storage. It holds types and nothing else.
//
// The provisioner writes what is wanted (a Volume's spec), the agent of one
// node writes what is (a Volume's status, its own Pools). Who may write what is
// enforced by RBAC and by a ValidatingAdmissionPolicy of the Helm chart. What
// disk and API both say, the disk decides: every object here can be lost and
// rebuilt from the disks (quarry recover).
//
// +kubebuilder:object:generate=true
// +groupName=quarry.storage
package v1alpha1
