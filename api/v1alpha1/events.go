package v1alpha1

// Reasons of the events that Quarry's controller emits, besides those of the
// kinds that Kubernetes' own parts emit (ProvisioningFailed, say, whose message
// holds what the agent or the front door answered).
const (
	// EventSizeNotEnforced, on a claim: its volume's size is not in force, by
	// its class or because a quota was lost.
	EventSizeNotEnforced = "SizeNotEnforced"
	// EventLabelsLeftOut, on a claim: it has more labels than are kept with its
	// volume (64, 16 KiB together).
	EventLabelsLeftOut = "LabelsLeftOut"
	// EventVolumeLost, on a claim: the pool is there without the volume.
	// Nothing was made in its place.
	EventVolumeLost = "VolumeLost"
	// EventVolumeUnavailable, on a claim: the volume cannot be used now, most
	// often because its disk is not there.
	EventVolumeUnavailable = "VolumeUnavailable"
	// EventResizing, on a claim: the node's agent has been asked to let the
	// volume grow.
	EventResizing = "Resizing"
	// EventVolumeResizeSuccessful, on a claim: the volume has its new size.
	EventVolumeResizeSuccessful = "VolumeResizeSuccessful"
	// EventVolumeResizeFailed, on a claim: the volume cannot grow that far. It
	// is as it was; ask for less, or make room.
	EventVolumeResizeFailed = "VolumeResizeFailed"
	// EventNoAttributes, on a claim: it was given a VolumeAttributesClass, and
	// volumes have no attributes that change.
	EventNoAttributes = "NoVolumeAttributes"
	// EventPathChanged, on a claim: its pool's path was changed, and its
	// PersistentVolume names the old one, where pods find nothing. `kubectl
	// quarry recover` writes the PersistentVolume again.
	EventPathChanged = "PathChanged"
	// EventPodBypassesScheduler, on a claim: a pod that uses it names its node
	// itself, so that nobody chooses the claim's.
	EventPodBypassesScheduler = "PodBypassesScheduler"
	// EventStartingOver, on a claim and its pods: their node is lost, and its
	// class wants them to start over elsewhere.
	EventStartingOver = "StartingOver"
	// EventNodeLost, on a PersistentVolume or a claim: the node of the data is
	// lost; the message says what was done.
	EventNodeLost = "NodeLost"
	// EventRecordRestored, on a PersistentVolume: its Volume object was gone,
	// and was written again.
	EventRecordRestored = "RecordRestored"
	// EventRecordLost, on a PersistentVolume: its Volume object is gone, and
	// cannot be written again.
	EventRecordLost = "RecordLost"
	// EventOrphaned, on a Volume: no PersistentVolume points at it any more. It
	// is kept until a person decides.
	EventOrphaned = "Orphaned"
	// EventOrphans, on a Pool: it holds volumes that no Volume object speaks
	// of.
	EventOrphans = "Orphans"
	// EventPoolOffline and EventPoolOnline, on a Pool: its disk went away or is
	// another one; it came back.
	EventPoolOffline = "PoolOffline"
	EventPoolOnline  = "PoolOnline"
)
