package disk

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/nodeagent/record"
)

// Reasons a pool is offline for: of the Pool object's condition Ready.
const (
	// OfflineMissing: its directory or disk is not there.
	OfflineMissing = "Missing"
	// OfflineSwapped: another pool's disk is there.
	OfflineSwapped = "Swapped"
	// OfflineForeign: the disk belongs to another cluster.
	OfflineForeign = "Foreign"
	// OfflineNoMountpoint: requireMountpoint is set, and there is none.
	OfflineNoMountpoint = "NoMountpoint"
	// OfflineUninitialized: nothing is there yet, and it is not known whether
	// there should be.
	OfflineUninitialized = "Uninitialized"
	// OfflineUnreadable: pool.json cannot be read.
	OfflineUnreadable = "Unreadable"
	// OfflineInUse: another process of this machine has it.
	OfflineInUse = "InUse"
	// OfflineInUseElsewhere: another node, or another machine, had it last, and
	// may have it still.
	OfflineInUseElsewhere = "InUseElsewhere"
	// OfflineDuplicate: another pool of the configuration is the same
	// directory.
	OfflineDuplicate = "Duplicate"
	// OfflineNetworkFilesystem: other machines may use its filesystem too, and
	// it is not configured to be there.
	OfflineNetworkFilesystem = "NetworkFilesystem"
	// OfflineReadOnly: its filesystem takes no writes. It was mounted so, or
	// the kernel made it so after an error.
	OfflineReadOnly = "ReadOnly"
	// OfflineHung: its disk does not answer.
	OfflineHung = "Hung"
	// OfflineFrozen: its filesystem is frozen, by a backup of the machine, say,
	// and who writes waits.
	OfflineFrozen = "Frozen"
	// OfflineFailed: the disk answers with errors.
	OfflineFailed = "Failed"
	// OfflineRebuilt: Missing, on another machine than the one that had it. The
	// agent, which knows machines, says so.
	OfflineRebuilt = "Rebuilt"
	// OfflineLoading: its disk is there, and what is on it is being read.
	OfflineLoading = "Loading"
	// OfflineNotConfigured: the agent's configuration does not name it any
	// more. The agent, which knows Pool objects, says so.
	OfflineNotConfigured = "NotConfigured"
)

// OfflineError says that a pool's disk is not there, or is not the pool's.
type OfflineError struct {
	Pool   string
	Reason string // of the Pool's condition Ready
	Err    error
	// UID and Holder are the pool's that is InUseElsewhere: what is known of
	// who had it last.
	UID    string
	Holder record.PoolHolder
}

func (e *OfflineError) Error() string {
	return fmt.Sprintf("pool %s is offline: %v", e.Pool, e.Err)
}

func (e *OfflineError) Unwrap() error { return e.Err }

// IsElsewhere reports whether the disk is somewhere else: nothing of it is held
// here.
func (e *OfflineError) IsElsewhere() bool {
	switch e.Reason {
	case OfflineMissing, OfflineSwapped, OfflineNoMountpoint, OfflineForeign, OfflineInUseElsewhere:
		return true
	}
	return false
}

// IsBarred reports whether nothing may be done on the pool, however it looks:
// who goes to a disk that hangs does not come back, and what another process
// has, or another name of it, is not ours. A look alone ends that.
func (e *OfflineError) IsBarred() bool {
	return e.IsSilent() || e.Reason == OfflineInUse || e.Reason == OfflineDuplicate
}

// IsSilent reports whether the pool does not answer, or not who writes to it.
func (e *OfflineError) IsSilent() bool {
	return e.Reason == OfflineHung || e.Reason == OfflineFrozen
}

// OfflineFor says what an error of a pool's disk makes of the pool. An error
// that is an *OfflineError already stays what it is.
func OfflineFor(pool string, err error) *OfflineError {
	var offline *OfflineError
	switch {
	case errors.As(err, &offline):
		return offline
	case errors.Is(err, unix.EROFS):
		return &OfflineError{Pool: pool, Reason: OfflineReadOnly, Err: err}
	default:
		return &OfflineError{Pool: pool, Reason: OfflineFailed, Err: err}
	}
}
