package v1alpha1

import "regexp"

// MaxVolumeIDLength is the greatest length of a volume's id, in bytes. With the
// time of its deletion behind it, as in the trash, it still is one element of a
// path.
const MaxVolumeIDLength = 128

// volumeID is the grammar of ids. A letter or digit in front keeps ids apart
// from a pool's .quarry and from options; without a dot or a plus sign they are
// no temporary file and not lost+found.
var volumeID = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`)

// IsVolumeID reports whether a name may be the id of a volume: lower-case
// letters, digits and inner dashes. Nothing else ever reaches a path.
func IsVolumeID(id string) bool {
	return len(id) <= MaxVolumeIDLength && volumeID.MatchString(id)
}

// PoolObjectName returns the name of the Pool object for a node's pool.
func PoolObjectName(node, pool string) string { return node + "." + pool }
