package store

import (
	"errors"
	"io/fs"

	"github.com/quarry-storage/quarry/nodeagent/beneath"
	"github.com/quarry-storage/quarry/nodeagent/btrfs"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/quota"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// loosen prepares what a deleted volume left for its removal: a full qgroup
// refuses even that. A second call changes nothing.
func (f *freer) loosen(t *trashed, r *disk.Root, entry *beneath.Dir) error {
	if t.rec == nil || t.rec.QuotaKind != record.QuotaBtrfs {
		return nil
	}
	data, err := entry.OpenDir(record.DataDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // removed already: its group waits for nothing but the kernel
	}
	if err != nil {
		return err
	}
	defer data.Close()
	if is, err := btrfs.IsSubvolume(data.File()); err != nil || !is {
		return err
	}
	id, err := btrfs.ID(data.File())
	if err != nil {
		return err
	}
	if err := f.store.fault("free: loosen"); err != nil {
		return err
	}
	return btrfs.Loosen(r.File(), id, t.group())
}

// group is the qgroup of what a deleted volume left, NoGroup if it has none or
// its record names another's.
func (t *trashed) group() uint32 {
	id, space := uint32(t.rec.QuotaID), t.pool.books()
	if !quota.IsOurs(id) || space == nil || !space.owns(t.key(), t.rec) {
		return btrfs.NoGroup
	}
	return id
}
