package csi

import (
	"context"

	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

// The interfaces below use the API's words, so that their implementations need
// no word of CSI. An error that knows its reason (Reason() string, a
// v1alpha1.Reason*) gets the code of that reason; any other becomes INTERNAL.

// Volumes makes and changes volumes for the controller service. Every method
// may be called again at any time, by another replica as well, and then
// finishes or confirms what the first call began.
type Volumes interface {
	// Ensure makes the volume called name, ready to be used and recorded as
	// published, and returns it. A second call returns the volume that is
	// there; whether its capacity fits the caller's range is the caller's to
	// compare. If it was made for another wish it is an error with
	// ReasonAlreadyExists. name is of the grammar of volume ids, at most MaxKey
	// bytes; the volume's own name may differ. nodes are those that will do,
	// the best first; empty: any. wish.nodeName is not set.
	Ensure(
		ctx context.Context,
		name string,
		wish v1alpha1.VolumeSpec,
		nodes []string,
	) (*v1alpha1.Volume, error)

	// Delete takes the volume away as its deletion policy says. One that does
	// not exist is no error; one in use is an error with ReasonVolumeInUse, and
	// a second call tries again.
	Delete(ctx context.Context, id string) error

	// Expand makes the volume at least that many bytes large, online, and
	// returns it once it is. A volume that is larger already is returned as it
	// is. No room is an error with ReasonResizeInfeasible, and the volume is as
	// it was.
	Expand(ctx context.Context, id string, bytes int64) (*v1alpha1.Volume, error)
}

// Catalogue answers the controller service's questions. It changes nothing.
type Catalogue interface {
	// Get returns the volume, or an error with ReasonVolumeNotFound.
	Get(ctx context.Context, id string) (*v1alpha1.Volume, error)

	// List returns all volumes that can be used, in no particular order.
	List(ctx context.Context) ([]v1alpha1.Volume, error)

	// Room returns how many bytes can still be promised to volumes such as wish
	// on the node (empty: on all), and the size of the largest single volume,
	// which lies on one pool.
	Room(
		ctx context.Context,
		node string,
		wish v1alpha1.VolumeSpec,
	) (available, largest int64, err error)
}

// Parameters writes a StorageClass's parameters into the spec of a volume,
// whose volumeMode is set already, and returns them in the form a
// PersistentVolume remembers them in. The error has ReasonInvalidParameter and
// names the parameter.
type Parameters func(class map[string]string,
	spec *v1alpha1.VolumeSpec) (canonical string, err error)

// NodeVolumes offers this node's volumes to its pods. Every method may be
// called again, and then confirms the first call.
type NodeVolumes interface {
	// Stage brings the volume up, proves that it is what its record says, and
	// returns it.
	Stage(ctx context.Context, id string) (*v1alpha1.Volume, error)

	// Publish makes the volume's data visible at target: a directory that it
	// makes in an existing one, or for a Block volume a device node. It binds
	// only what it has proven to be this volume. flags are words of mount(8);
	// "ro" is among them for a read-only publish. With alone set, a volume that
	// is published elsewhere is an error with ReasonPublishedElsewhere. The
	// same again is no error; with other flags it is one with
	// ReasonPublishedOtherwise.
	Publish(ctx context.Context, id, target string, flags []string, alone bool) error

	// Unpublish takes the volume away from target and removes target. Nothing
	// there is no error; something else's mount is one with ReasonTargetTaken,
	// and stays.
	Unpublish(ctx context.Context, id, target string) error

	// Statfs reports how full the volume is, as statfs(2) would of a filesystem
	// of its size. Files is 0 where nothing counts inodes. Of a Block volume
	// only the size is known, and Type is 0. path is where it is published;
	// elsewhere the error has ReasonNotPublished.
	Statfs(ctx context.Context, id, path string) (unix.Statfs_t, error)

	// Expand is Volumes.Expand for a volume of this node.
	Expand(ctx context.Context, id string, bytes int64) (*v1alpha1.Volume, error)
}

// InlineVolumes are volumes that live and die with one pod: "ephemeral inline
// volumes".
type InlineVolumes interface {
	// Make makes the volume on this node, or confirms the one that is there;
	// one there that is not inline is an error with ReasonAlreadyExists.
	Make(ctx context.Context, id string, spec v1alpha1.VolumeSpec) error

	// Remove deletes the volume if it is an inline one; any other, or none, is
	// left alone, and that is no error.
	Remove(ctx context.Context, id string) error
}
