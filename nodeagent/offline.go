package nodeagent

import (
	"context"
	"errors"
	"fmt"

	"k8s.io/apimachinery/pkg/api/meta"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/store"
)

// The store says why a disk cannot be used. What only the cluster knows of it
// is added here: that another machine had the pool, and what an administrator
// can do.

// foreignDisk is what was found on a disk of another cluster. It does not
// change while nobody here touches it.
type foreignDisk struct {
	offline string // the store's words, by which another disk is noticed
	found   string
}

// isForeign reports whether a disk of another cluster is in the pool's place,
// or was when that was last written down.
func isForeign(pool *store.Pool, object *v1alpha1.Pool) bool {
	if pool.Offline == nil {
		return false
	}
	if pool.Offline.Reason == disk.OfflineForeign {
		return true
	}
	if object == nil {
		return false
	}

	ready := meta.FindStatusCondition(object.Status.Conditions, v1alpha1.ConditionReady)
	return ready != nil && ready.Reason == disk.OfflineForeign
}

// offline says why a pool is offline. A pool whose disk is missing on another
// machine than the one that last had it is Rebuilt: the node's name is the
// same, and nothing else. Its volumes are not there for the disk to come back
// by itself.
func (p *poolReporter) offline(ctx context.Context, pool *store.Pool) *disk.OfflineError {
	off, machine := pool.Offline, p.agent.opts.MachineID
	if machine == "" || off.Reason != disk.OfflineMissing &&
		off.Reason != disk.OfflineNoMountpoint {
		return off
	}

	object := &v1alpha1.Pool{}
	if err := p.agent.client.Get(ctx, client.ObjectKey{Name: p.name(pool.Name)},
		object); err != nil {
		return off
	}
	if object.Spec.UID == "" || object.Status.MachineID == "" ||
		object.Status.MachineID == machine {
		return off
	}

	return &disk.OfflineError{Pool: off.Pool, Reason: disk.OfflineRebuilt, Err: fmt.Errorf(
		"the node was rebuilt (this is another machine under the same name), and the disk with "+
			"pool %s is not here: %w; nothing was made in its place; "+
			"mount the disk if it still exists, else delete the Pool object %s and a "+
			"new pool is made", object.Spec.UID, off.Err, object.Name)}
}

// foreignOffline adds what is on a disk of another cluster, and what can be
// done. It is called with mu held.
func (p *poolReporter) foreignOffline(pool *store.Pool,
	off *disk.OfflineError) *disk.OfflineError {
	there, foreign := p.foreign[pool.Name]
	switch {
	case !foreign:
		return off
	case off.Reason == disk.OfflineUninitialized || off.Reason == disk.OfflineMissing:
		return &disk.OfflineError{Pool: off.Pool, Reason: disk.OfflineForeign, Err: fmt.Errorf(
			"the disk of another cluster that was at %s is gone; nothing was made in its place; "+
				"mount it again, or delete the Pool object %s and a new pool is made", pool.Path,
			p.name(pool.Name))}
	case off.Reason != disk.OfflineForeign:
		return off
	}

	if text := off.Err.Error(); there.offline != text {
		there = foreignDisk{offline: text, found: found(pool.Path)}
		p.foreign[pool.Name] = there
	}

	return &disk.OfflineError{Pool: off.Pool, Reason: off.Reason,
		Err: fmt.Errorf("%w, %s; it is not touched; `quarry recover` takes it over",
			off.Err, there.found)}
}

// found says what is on a disk.
func found(path string) string {
	in, err := disk.Inspect(path)
	_, offline := errors.AsType[*disk.OfflineError](err)
	switch {
	case offline:
		return "which cannot be read"
	case err != nil:
		return fmt.Sprintf("not all of which can be read (%v)", err)
	}

	return fmt.Sprintf("with %d volumes and %d in the trash", len(in.Volumes), len(in.Trash))
}
