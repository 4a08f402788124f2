package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/btrfs"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/quota"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// directory builds a directory volume: a directory under a project quota, a btrfs subvolume under a qgroup, or with
// enforcement none a plain directory. The limit is in force, and read back, before anything can be written.
func (b *building) directory(ctx context.Context) (err error) {
	switch b.adm.plan.quotaKind {
	case record.QuotaBtrfs:
		err = b.subvolume()
	case record.QuotaProject:
		err = b.project()
	default:
		if err = b.store.fault("mkdir data"); err == nil {
			err = b.dir.Mkdir(record.DataDir, 0o700)
		}
	}
	if err != nil {
		return err
	}
	data, err := b.dir.OpenDir(record.DataDir)
	if err != nil {
		return err
	}
	defer data.Close()
	if err := b.store.fault("chown"); err != nil {
		return err
	}
	if err := chownRoot(data.File(), b.rec); err != nil {
		return err
	}
	return data.Sync()
}

func (b *building) project() error {
	id, err := b.adm.space.ledger.Draw(tmpKey(b.adm.pool, b.rec.ID), func(id uint32) (bool, error) { return quota.Free(b.root.File(), id) })
	if err != nil {
		return err
	}
	b.rec.QuotaKind, b.rec.QuotaID = record.QuotaProject, uint64(id)
	if err := b.intent(); err != nil {
		return err
	}
	if err := b.store.fault("mkdir data"); err != nil {
		return err
	}
	if err := b.dir.Mkdir(record.DataDir, 0o700); err != nil {
		return err
	}
	data, err := b.dir.OpenDir(record.DataDir)
	if err != nil {
		return err
	}
	defer data.Close()
	if err := b.store.fault("set limit"); err != nil {
		return err
	}
	// The limit first: what carries the id is limited from the first byte.
	if err := setDirectoryLimit(b.root, b.rec, b.rec.SizeBytes); err != nil {
		return err
	}
	if err := b.store.fault("set project"); err != nil {
		return err
	}
	return quota.SetProject(data.File(), id, true)
}

// intent notes the quota id in the volume's directory, durably, before anything is done with it, so that whoever clears the
// attempt away gives the id back too.
func (b *building) intent() error {
	if err := b.store.fault("note quota id"); err != nil {
		return err
	}
	return disk.WriteVolume(b.dir, b.rec)
}

func (b *building) subvolume() (err error) {
	fs := b.root.File()
	group, err := b.adm.space.ledger.Draw(tmpKey(b.adm.pool, b.rec.ID), func(id uint32) (bool, error) { return btrfs.GroupFree(fs, id) })
	if err != nil {
		return err
	}
	b.rec.QuotaKind, b.rec.QuotaID = record.QuotaBtrfs, uint64(group)
	if err := b.intent(); err != nil {
		return err
	}
	if err := b.store.fault("create qgroup"); err != nil {
		return err
	}
	if err := btrfs.CreateGroup(fs, group); err != nil {
		return err
	}
	if err := b.store.fault("set limit"); err != nil {
		return err
	}
	if err := btrfs.SetLimit(fs, group, uint64(b.rec.SizeBytes)); err != nil {
		return err
	}
	if err := b.store.fault("create subvolume"); err != nil {
		return err
	}
	if err := btrfs.CreateSubvolume(b.dir.File(), record.DataDir, group); err != nil {
		return err
	}
	data, err := b.dir.OpenDir(record.DataDir)
	if err != nil {
		return err
	}
	defer data.Close()
	if err := b.store.fault("switch copy-on-write off"); err != nil {
		return err
	}
	// Before the first file: it is inherited. See docs/decisions/0009.
	return btrfs.SetNoCOW(data.File())
}

// setDirectoryLimit puts a directory volume's limit in force at size bytes; the kernel does it online.
func setDirectoryLimit(r *disk.Root, rec *record.Volume, size int64) error {
	switch rec.QuotaKind {
	case record.QuotaProject:
		return quota.SetLimits(r.File(), uint32(rec.QuotaID), quota.Limits{Bytes: uint64(size), Inodes: uint64(inodesAt(rec, size))})
	case record.QuotaBtrfs:
		return btrfs.SetLimit(r.File(), uint32(rec.QuotaID), uint64(size))
	}
	return nil
}

// Usage is what a volume holds, in bytes and inodes. Known is false where nothing counts it.
type Usage struct {
	Known  bool
	Bytes  int64
	Inodes int64
}

// directoryUsage asks the quota that holds the volume.
func directoryUsage(r *disk.Root, rec *record.Volume) (Usage, error) {
	switch rec.QuotaKind {
	case record.QuotaProject:
		_, u, err := quota.GetLimits(r.File(), uint32(rec.QuotaID))
		return Usage{Known: true, Bytes: int64(u.Bytes), Inodes: int64(u.Inodes)}, err
	case record.QuotaBtrfs:
		g, _, err := btrfs.GetGroup(r.File(), uint32(rec.QuotaID))
		return Usage{Known: true, Bytes: int64(g.Usage)}, err
	}
	return Usage{}, nil
}

// checkDirectory proves that a directory volume's limit is in force: the id is on its root and the limit on the id.
// What was lost is put back first (after a restore of the filesystem, say); repaired says that it had to be.
func checkDirectory(r *disk.Root, rec *record.Volume) (repaired bool, err error) {
	dir, err := r.OpenDir(rec.ID)
	if err != nil {
		return false, err
	}
	defer dir.Close()
	data, err := dir.OpenDir(record.DataDir)
	if err != nil {
		return false, &disk.MismatchError{ID: rec.ID, Detail: fmt.Sprintf("its data directory: %v", err)}
	}
	defer data.Close()
	switch rec.QuotaKind {
	case record.QuotaProject:
		if err := putBackFlags(r, dir); err != nil {
			return false, err
		}
		id, inherit, err := quota.GetProject(data.File())
		if err != nil {
			return false, err
		}
		if id != uint32(rec.QuotaID) || !inherit {
			if err := quota.SetProject(data.File(), uint32(rec.QuotaID), true); err != nil {
				return false, err
			}
			repaired = true
		}
		have, _, err := quota.GetLimits(r.File(), uint32(rec.QuotaID))
		if err != nil {
			return false, err
		}
		most, err := quota.Rounded(r.File(), uint64(rec.Promise()))
		if err != nil {
			return false, err
		}
		if have.Bytes < uint64(rec.SizeBytes) || have.Bytes == 0 || have.Bytes > most || !inodesHold(rec, have.Inodes) {
			return true, setDirectoryLimit(r, rec, rec.SizeBytes)
		}
	case record.QuotaBtrfs:
		return checkGroup(r, data.File(), rec)
	}
	return repaired, nil
}

// limitHolds tells whether a limit in force is the record's. Filesystems round up to whole blocks, of 64 KiB at the most.
func limitHolds(rec *record.Volume, limit uint64) bool {
	const block = 64 << 10
	return limit >= uint64(rec.SizeBytes) && limit < uint64(rec.Promise())+block
}

// enforced proves that the limit is in force, putting back what was lost. Where it can not be had it is an *EnforcementError,
// and with tell also where it had to be put back.
func enforced(r *disk.Root, rec *record.Volume, tell bool) error {
	repaired, err := checkDirectory(r, rec)
	var mismatch *disk.MismatchError
	var lost *EnforcementError
	switch {
	case errors.As(err, &mismatch), errors.As(err, &lost):
		return err
	case err != nil:
		return &EnforcementError{ID: rec.ID, Reason: v1alpha1.ReasonQuotaLost, Detail: err.Error()}
	case repaired && tell:
		return &EnforcementError{ID: rec.ID, Reason: v1alpha1.ReasonQuotaLost, Detail: "its limit had been changed or lifted; it was put back"}
	}
	return nil
}

// isHeldByQuota reports whether a volume's size is a limit on a directory.
func isHeldByQuota(rec *record.Volume) bool {
	return rec.Backend == record.BackendDirectory && rec.QuotaKind != ""
}
