package v1alpha1

// Reasons of a Volume's conditions. The agent sets them, the provisioner
// decides by them what becomes of the attempt, and people read them in `kubectl
// get volumes.quarry.storage`. They are part of the API: none is ever renamed.

// Reasons of ConditionReady with phase Refused: the agent will not make this
// volume and holds nothing of it. An agent writes its Pools' status before it
// refuses for want of room, so that whoever looks elsewhere next sees why.
const (
	// ReasonInsufficientCapacity: no pool that matches has room for the volume
	// now.
	ReasonInsufficientCapacity = "InsufficientCapacity"
	// ReasonGroupRefused: the volume would fit, but another claim of the same
	// pod does not (spec.admission).
	ReasonGroupRefused = "GroupRefused"
	// ReasonUnsupported: no pool of this node can enforce or make what the
	// class asks for; another node's might.
	ReasonUnsupported = "Unsupported"
	// ReasonPoolNotFound: the node has no pool of that name, or none whose
	// labels match.
	ReasonPoolNotFound = "PoolNotFound"
	// ReasonPoolOffline: the pool's disk is missing, is another one, is
	// read-only, or does not answer; the Pool's condition says which.
	ReasonPoolOffline = "PoolOffline"
	// ReasonCreateFailed: the volume failed to be made too often on this node;
	// the message is the last error. Another node is tried.
	ReasonCreateFailed = "CreateFailed"
	// ReasonTooSmall: the filesystem cannot be made that small; the message
	// names the minimum.
	ReasonTooSmall = "TooSmall"
	// ReasonInvalidOptions: mkfs or mount options, owner or mode that no node
	// would take.
	ReasonInvalidOptions = "InvalidOptions"
	// ReasonSourceNotFound: the volume or snapshot to start from is not on this
	// node.
	ReasonSourceNotFound = "SourceNotFound"
	// ReasonNotAdoptable: what is at the path of spec.adopt cannot become a
	// volume; the message says why. It was not touched.
	ReasonNotAdoptable = "NotAdoptable"
	// ReasonIDConflict: another volume is on disk under this record's name. It
	// was not touched.
	ReasonIDConflict = "IDConflict"
)

// Reasons of ConditionReady that say where the work stands.
const (
	// ReasonReady goes with True.
	ReasonReady = "Ready"
	// ReasonCreating: the agent has begun.
	ReasonCreating = "Creating"
	// ReasonWaitingForGroup: the other claims of the same pod have not arrived
	// yet.
	ReasonWaitingForGroup = "WaitingForGroup"
	// ReasonFailed: an operation failed in a way that may pass; the agent tries
	// again. The message is the error.
	ReasonFailed = "Failed"
	// ReasonMismatch: what is on disk does not match the record. It was not
	// touched.
	ReasonMismatch = "Mismatch"
	// ReasonReadOnly: the filesystem in the volume's image takes no writes any
	// more: the kernel made it read-only after an error, or somebody on the
	// node did. It is checked and mounted anew once nothing uses it; the
	// message says who does.
	ReasonReadOnly = "ReadOnly"
	// ReasonShutDown: the filesystem in the volume's image was shut down, by
	// the kernel after an error or by somebody on the node, and serves nothing.
	// It is checked and mounted anew once nothing uses it; the message says who
	// does.
	ReasonShutDown = "ShutDown"
	// ReasonNotResponding: the filesystem in the volume's image does not
	// answer: it is frozen, or the disk below it hangs.
	ReasonNotResponding = "NotResponding"
	// ReasonDamaged: the filesystem in the volume's image is damaged in a way
	// that is not repaired without a person.
	ReasonDamaged = "Damaged"
	// ReasonLost: the volume was ready once, and its pool is there without it.
	ReasonLost = "Lost"
	// ReasonRemoved: the volume was trashed or deleted, as its spec asks.
	ReasonRemoved = "Removed"
)

// Reasons of ConditionInUse.
const (
	// ReasonMounted: a mount of the volume exists in some mount namespace of
	// the node.
	ReasonMounted = "Mounted"
	// ReasonDeviceHeld: something holds the volume's loop device open.
	ReasonDeviceHeld = "DeviceHeld"
	// ReasonNotEmpty: the volume was given up as an attempt that nobody was
	// served from (annotation quarry.storage/given-up), and there is something
	// in it, or it is in the trash. To have that deleted set spec.published; to
	// keep it delete the Volume object: the data stays, as an orphan.
	ReasonNotEmpty = "NotEmpty"
	// ReasonUnused goes with False.
	ReasonUnused = "Unused"
)

// Reasons of ConditionEnforced.
const (
	// ReasonEnforced goes with True, after it was False.
	ReasonEnforced = "Enforced"
	// ReasonQuotaLost: the pool's filesystem does not enforce the volume's
	// limit any more; it was mounted without its quota.
	ReasonQuotaLost = "QuotaLost"
	// ReasonEscaped: a tenant had taken files, or subvolumes, out of the
	// volume's quota. The message says what became of them.
	ReasonEscaped = "Escaped"
	// ReasonUnchecked: part of the volume cannot be looked at for files that
	// are charged to another one. The message says why.
	ReasonUnchecked = "Unchecked"
	// ReasonUncounted: the quotas of the pool's filesystem were switched off
	// and on again, and what the volume held then is not counted any more. The
	// limit holds for what was written since.
	ReasonUncounted = "Uncounted"
)

// Reasons of ConditionResized.
const (
	// ReasonResized goes with True: status.capacity is spec.capacity.
	ReasonResized = "Resized"
	// ReasonResizing goes with False: the agent is at it, or will try again.
	ReasonResizing = "Resizing"
	// ReasonResizeInfeasible goes with False: the pool has no room for the
	// growth, or the volume cannot grow. Only a lower spec.capacity, or room
	// made in the pool, changes that. The volume is as it was.
	ReasonResizeInfeasible = "ResizeInfeasible"
)

// Reasons of errors that no agent's refusal causes: what a front door found out
// by itself. They are the reasons of events, the labels of metrics, and what
// package csi translates into a caller's code.
const (
	// ReasonInvalidParameter: a parameter of the StorageClass is unknown, not
	// allowed, or contradicts another one.
	ReasonInvalidParameter = "InvalidParameter"
	// ReasonUnsupportedClaim: the claim asks for something that is not given.
	ReasonUnsupportedClaim = "UnsupportedClaim"
	// ReasonAgentNotReady: nobody on the node would do the work now.
	ReasonAgentNotReady = "AgentNotReady"
	// ReasonNodeGone: the Node object does not exist (any more).
	ReasonNodeGone = "NodeGone"
	// ReasonNoSuitableNode: no node can take the volume.
	ReasonNoSuitableNode = "NoSuitableNode"
	// ReasonNoMatchingPool: the node has no pool that the claim's selector
	// matches.
	ReasonNoMatchingPool = "NoMatchingPool"
	// ReasonPending: the wish is recorded, and its outcome is not known yet.
	ReasonPending = "Pending"
	// ReasonVolumeUnavailable: the volume exists and cannot be used now; its
	// data is not touched.
	ReasonVolumeUnavailable = "VolumeUnavailable"
	// ReasonClaimGone: nobody waits for the volume any more.
	ReasonClaimGone = "ClaimGone"
	// ReasonNotOurs: something names a volume that is not its own. Nothing was
	// done.
	ReasonNotOurs = "NotOurs"
	// ReasonVolumeInUse: the volume is to go, and something still uses it.
	ReasonVolumeInUse = "VolumeInUse"
	// ReasonDeletePending: the wish to delete is recorded, and not confirmed
	// yet.
	ReasonDeletePending = "DeletePending"
	// ReasonAPIError: a call of the API server failed.
	ReasonAPIError = "APIError"
	// ReasonAlreadyExists: the volume exists with other properties than those
	// asked for now.
	ReasonAlreadyExists = "AlreadyExists"
	// ReasonVolumeNotFound: there is no such volume (here).
	ReasonVolumeNotFound = "VolumeNotFound"
)

// Reasons of errors of publishing a volume at a path of its node.
const (
	// ReasonNotActive: the volume is not up, so that what is in its place is
	// not proven to be it. Staging brings it up.
	ReasonNotActive = "NotActive"
	// ReasonInvalidTarget: the path cannot be published at: a symlink, a file
	// where a directory is due, no parent.
	ReasonInvalidTarget = "InvalidTarget"
	// ReasonTargetTaken: something else is mounted at the path. It was not
	// touched.
	ReasonTargetTaken = "TargetTaken"
	// ReasonTargetBusy: the path cannot be unmounted because something uses it.
	ReasonTargetBusy = "TargetBusy"
	// ReasonPublishedOtherwise: the volume is published at that very path with
	// other options.
	ReasonPublishedOtherwise = "PublishedOtherwise"
	// ReasonPublishedElsewhere: the volume is published at another path
	// already, and its access mode allows one.
	ReasonPublishedElsewhere = "PublishedElsewhere"
	// ReasonNotPublished: the volume is not published at that path.
	ReasonNotPublished = "NotPublished"
)
