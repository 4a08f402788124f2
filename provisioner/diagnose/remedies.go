package diagnose

import (
	"github.com/quarry-storage/quarry/api/v1alpha1"
)

// remedy is what to do about a reason, and the chapter that says more.
type remedy struct{ do, runbook string }

// chapter is where a chapter of the runbook is.
func chapter(name string) string { return "docs/runbook.md#" + name }

// Reasons of this package, where neither Quarry nor Kubernetes has a word.
const (
	ReasonNoController  = "NoController"
	ReasonNoAgent       = "NoAgent"
	ReasonNodeNotReady  = "NodeNotReady"
	ReasonNoPool        = "NoPool"
	ReasonNearlyFull    = "NearlyFull"
	ReasonNotWatched    = "NotWatched"
	ReasonOrphaned      = "Orphaned"
	ReasonObjectMissing = "ObjectMissing"
	ReasonPathChanged   = "PathChanged"
	ReasonNoClass       = "NoStorageClass"
	ReasonNoPod         = "WaitForFirstConsumer"
	ReasonInProgress    = "InProgress"
	ReasonNoAnswer      = "NoAnswer"
	ReasonUnschedulable = "FailedScheduling"
	ReasonClaimLost     = "ClaimLost"
	ReasonDeleting      = "Deleting"
)

// ofPools are the remedies for a Pool whose condition Ready is False.
var ofPools = map[string]remedy{
	"Missing": {"mount the disk at the pool's path; the agent notices by itself. If it is gone " +
		"for good, so are its volumes", chapter("a-disk-was-replaced")},
	"Swapped": {"mount the pool's own disk at its path. If this one is to stay, delete the Pool " +
		"object once nothing of the old disk is needed", chapter("a-disk-was-replaced")},
	"Rebuilt": {"mount the old disk at its path if it still exists; else delete the node's Pool " +
		"objects, and the agent makes new pools", chapter("a-node-is-lost")},
	"NoMountpoint": {"mount the disk at the pool's path; requireMountpoint keeps the root disk " +
		"from being taken for it", chapter("a-disk-was-replaced")},
	"Foreign": {"`kubectl quarry recover` shows what is on the disk; only take it over from a " +
		"cluster that is no more", chapter("the-cluster-was-rebuilt")},
	"Uninitialized": {"it is made as soon as the agent hears from the API server that there " +
		"should be none; the agent's log says what it waits for", chapter("a-pool-is-offline")},
	"Unreadable": {"put .quarry/pool.json back from a backup of the disk; `quarry verify` on the " +
		"node says what is damaged", chapter("a-pool-is-offline")},
	"InUse": {"end the process that the message names, or wait for it",
		chapter("a-pool-is-offline")},
	"InUseElsewhere": {"make sure that the other machine is off or has let go of the disk; then " +
		"delete its Node object", chapter("a-pool-is-offline")},
	"Duplicate": {"take one of the two pools out of the agents' configuration: both are one " +
		"directory", chapter("a-pool-is-offline")},
	"NetworkFilesystem": {"use a local disk, or allow it for this pool (docs/guides/pools.md)",
		chapter("a-pool-is-offline")},
	"ReadOnly": {"look into the node's kernel log (dmesg), check the filesystem while it is " +
		"unmounted, and mount it writable", chapter("a-pool-is-offline")},
	"Hung": {"look at the disk and its cabling (dmesg); the pool is used again as soon as it " +
		"answers", chapter("a-pool-is-offline")},
	"Frozen": {"end the backup that froze its filesystem, or fsfreeze --unfreeze it; it goes on " +
		"by itself", chapter("a-pool-is-offline")},
	"Failed": {"the disk answers with errors: look into the node's kernel log (dmesg), and " +
		"replace it", chapter("a-pool-is-offline")},
	"Loading": {"wait: what is on the disk is being read", chapter("a-pool-is-offline")},
	"NotConfigured": {"put the pool back into the agents' configuration, or delete the Pool " +
		"object once its volumes are not needed", chapter("a-pool-is-offline")},
}

// ofVolumes are the remedies for a Volume that was Ready once and is not.
var ofVolumes = map[string]remedy{
	v1alpha1.ReasonPoolOffline: {"bring its pool back (kubectl quarry pools)",
		chapter("a-pool-is-offline")},
	v1alpha1.ReasonReadOnly: {"on a full disk make room first; then end the pods that use it, " +
		"and it is checked and mounted within seconds", chapter("a-filesystem-went-read-only")},
	v1alpha1.ReasonShutDown: {"on a full disk make room first; then end the pods that use it, " +
		"and it is checked and mounted within seconds", chapter("a-filesystem-went-read-only")},
	v1alpha1.ReasonNotResponding: {"end the backup that froze it (fsfreeze --unfreeze), or look " +
		"at the disk; it goes on by itself", chapter("a-filesystem-went-read-only")},
	v1alpha1.ReasonDamaged: {"repair it by hand on the node (e2fsck, xfs_repair)",
		chapter("a-filesystem-went-read-only")},
	v1alpha1.ReasonLost: {"if the disk or directory still exists, put it back; else treat the " +
		"claim as for a lost node", chapter("a-volumes-directory-or-record-was-damaged")},
	v1alpha1.ReasonMismatch: {
		"`quarry verify` on the node says what does not match; the data was not touched", chapter(
			"a-volumes-directory-or-record-was-damaged")},
	v1alpha1.ReasonFailed: {"the agent tries again; its log says more", chapter("where-to-look")},
	v1alpha1.ReasonIDConflict: {"`quarry verify` on the node shows what is there",
		chapter("where-to-look")},
}

// ofLimits are the remedies for a Volume whose size is not in force.
var ofLimits = map[string]remedy{
	v1alpha1.ReasonQuotaLost: {"mount the pool's filesystem with its quota " +
		"(prjquota; btrfs quota " +
		"enable --simple); the limit is put back at the next look",
		chapter("a-size-is-not-enforced")},
	v1alpha1.ReasonEscaped: {"it was put back; find out who moved files out of the quota, and " +
		"give that tenant enforcement: strict", chapter("a-size-is-not-enforced")},
	v1alpha1.ReasonUnchecked: {"ask who made directories thousands of levels deep",
		chapter("a-size-is-not-enforced")},
	v1alpha1.ReasonUncounted: {"copy it into a new volume; until then it can hold that much more " +
		"than its size", chapter("a-size-is-not-enforced")},
}

// ofDeletions are the remedies for a Volume that is to go and does not.
var ofDeletions = map[string]remedy{
	v1alpha1.ReasonMounted: {"end what the message names; the deletion goes on by itself",
		chapter("held-by-a-device-or-a-mount")},
	v1alpha1.ReasonDeviceHeld: {"end what the message names; the deletion goes on by itself",
		chapter("held-by-a-device-or-a-mount")},
	v1alpha1.ReasonNotEmpty: {"something is in it: delete the Volume object to keep the data as " +
		"an orphan, or set its spec.published to have it deleted",
		chapter("a-volume-was-deleted-by-mistake")},
}

// known returns the remedy for a reason, or the one for those that this version
// has never heard of.
func known(of map[string]remedy, reason string, other remedy) remedy {
	if r, ok := of[reason]; ok {
		return r
	}
	return other
}
