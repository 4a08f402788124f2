package record

import (
	"encoding/json"
	"time"
)

// Names in a pool's root. Nothing of Quarry's own is outside MetaDir but the
// volumes' directories.
const (
	MetaDir    = ".quarry"
	PoolFile   = "pool.json" // in MetaDir
	TmpDir     = "tmp"       // in MetaDir: volumes being built
	TrashDir   = "trash"     // in MetaDir: deleted volumes
	ByClaimDir = "by-claim"  // in MetaDir: links for people
	// In a volume, and in a loop volume's filesystem: the root of what its user
	// sees.
	DataDir   = "data"
	ImageFile = "image" // in a loop volume
	MountDir  = "mount" // in a loop volume: where its filesystem is mounted
	// In a loop volume: a repair of its filesystem has begun, and not come to
	// its end.
	RepairFile  = "repair.json"
	TrashedFile = "trash.json"
)

// Pool is the identity of a pool.
type Pool struct {
	UID       string    `json:"uid"`
	CreatedAt time.Time `json:"createdAt"`
	// ClusterID is the UID of the cluster's kube-system namespace, so that a
	// disk of another cluster is recognised. Empty: made without a cluster.
	ClusterID string `json:"clusterID,omitempty"`
	// Node and Name are where the pool was made, for people who find the disk
	// in a drawer.
	Node string `json:"node,omitempty"`
	Name string `json:"name,omitempty"`
	// Holder is who brought the pool up last. Nil: nobody since it was made, on
	// Node, or a version that did not write it.
	Holder *PoolHolder `json:"holder,omitempty"`
}

// PoolHolder is the node that has a pool, and its machine (machine-id(5)) where
// that is known.
type PoolHolder struct {
	Node      string `json:"node"`
	MachineID string `json:"machineID,omitempty"`
}

// String names the node, and the machine where it is known.
func (h PoolHolder) String() string {
	if h.MachineID == "" {
		return h.Node
	}
	return h.Node + " (machine " + h.MachineID + ")"
}

// EncodePool writes p in the format of PoolFile. It returns a *TooLargeError
// for what would be larger than MaxSize.
func EncodePool(p *Pool) ([]byte, error) {
	data, err := seal(p, func(e *envelope) *json.RawMessage { return &e.Pool })
	return bounded(PoolFile, data, err)
}

// DecodePool reads what EncodePool wrote. It returns an *UnreadableError for
// anything else.
func DecodePool(data []byte) (*Pool, error) {
	p := &Pool{}
	if err := unseal(data, p, func(e *envelope) *json.RawMessage { return &e.Pool }); err != nil {
		return nil, err
	}
	if p.UID == "" {
		return nil, &UnreadableError{Reason: "the pool has no identity"}
	}
	return p, nil
}

// Trash says that a volume was deleted on purpose, and when its space is to be
// freed.
type Trash struct {
	DeletedAt time.Time `json:"deletedAt"`
	Deletion  Deletion  `json:"deletion"`
	// ElapsedSeconds of the retention were seen to pass by an agent whose clock
	// was synchronised.
	ElapsedSeconds int64 `json:"elapsedSeconds,omitempty"`
	// Purge: free it now, whatever is left of the retention.
	Purge bool `json:"purge,omitempty"`
}

// EncodeTrash writes t in the format of TrashedFile. It returns a
// *TooLargeError for what would be larger than MaxSize.
func EncodeTrash(t *Trash) ([]byte, error) {
	data, err := seal(t, func(e *envelope) *json.RawMessage { return &e.Trash })
	return bounded(TrashedFile, data, err)
}

// DecodeTrash reads what EncodeTrash wrote. It returns an *UnreadableError for
// anything else.
func DecodeTrash(data []byte) (*Trash, error) {
	t := &Trash{}
	err := unseal(data, t, func(e *envelope) *json.RawMessage { return &e.Trash })
	if err != nil {
		return nil, err
	}
	return t, nil
}
