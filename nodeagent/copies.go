package nodeagent

import (
	"context"
	"errors"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/store"
	"github.com/quarry-storage/quarry/nodeagent/translate"
)

// doubt returns why what was found of a volume may be a copy of it, or nil. The
// volume was made on another pool than this was found on, and that one's disk
// is away, or has it too: a backup, say, that was laid beside it. Somebody who
// moved the volume left nothing where it was.
func (a *Agent) doubt(ctx context.Context, v *v1alpha1.Volume, found *store.Volume) error {
	if v.Status.PoolUID == "" || found.PoolUID == v.Status.PoolUID {
		return nil
	}

	for _, p := range a.store.Pools() {
		if p.UID != v.Status.PoolUID && (p.UID != "" || p.Name != v.Status.Pool) {
			continue
		}
		if p.Offline != nil {
			return a.pools.offline(ctx, &p)
		}

		if p.Broken[v.Name] != nil {
			return &disk.MismatchError{ID: v.Name,
				Detail: "pools " + found.Pool + " and " + p.Name +
					" both have it, and it was made on " + p.Name +
					"; it is used again once only one of them has it"}
		}
	}

	return nil
}

// setDoubt says that a volume is not used, nor removed, as long as there is a
// doubt. The error has it looked at again; a disk that comes back does that
// too.
func setDoubt(status *v1alpha1.VolumeStatus, doubt error) error {
	if _, ok := errors.AsType[*disk.OfflineError](doubt); ok {
		setOffline(status, doubt)
		return nil
	}
	reason, _ := store.Reason(doubt)
	translate.SetReady(status, v1alpha1.VolumeUnavailable, reason, doubt.Error())
	return doubt
}

// wasMoved reports whether what a pool has of a volume, whose record names
// another pool, is the volume all the same, for it is wanted and the cluster
// knows more than the disk: that it is there (it was brought back from that
// very disk), or that it was made on a pool of this node that is there without
// it. Of a volume that is to be deleted a copy is never taken.
func (a *Agent) wasMoved(v *v1alpha1.Volume, copied *disk.CopyError) bool {
	if v.Status.PoolUID == copied.PoolUID {
		return true
	}
	if v.Status.PoolUID != copied.Of {
		return false
	}

	for _, p := range a.store.Pools() {
		if p.UID == copied.Of {
			return p.Offline == nil
		}
	}

	return false
}
