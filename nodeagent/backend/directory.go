package backend

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/btrfs"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/quota"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// directory is the backend whose volumes are directories under a limit that the
// pool's filesystem keeps: a project quota, or a qgroup of btrfs. With
// enforcement none there is no limit.
type directory struct{ *Backends }

// Make implements Backend.
func (d directory) Make(_ context.Context, m *Making) error {
	m.backends = d.Backends
	if err := m.directory(); err != nil {
		return err
	}
	return m.writeRecord()
}

// Up implements Backend. What is lost of a limit is put back.
func (d directory) Up(_ context.Context, v *Volume, _ func() (bool, error)) (*Standing, error) {
	return nil, Enforce(v.Root, v.Rec, false)
}

// Grow implements Backend: the kernel does it online, and the limit is in its
// books when it returns.
func (d directory) Grow(_ context.Context, v *Volume, size int64,
	_ func(context.Context) error) error {
	return SetLimit(v.Root, v.Rec, size)
}

// Reached implements Backend: a limit can be lowered again.
func (d directory) Reached(*Volume) (int64, error) { return 0, nil }

// Open implements Backend.
func (d directory) Open(v *Volume) (*os.File, error) { return openData(v.Rec, v.Dir) }

// Usage implements Backend: it asks the quota that holds the volume.
func (d directory) Usage(r *disk.Root, rec *record.Volume) (Usage, error) {
	return directoryUsage(r, rec)
}

// Taken implements Backend. It is 0 where nothing counts it.
func (d directory) Taken(r *disk.Root, rec *record.Volume, _ string) (int64, error) {
	u, err := directoryUsage(r, rec)
	return u.Bytes, err
}

// IsEmpty implements Backend.
func (d directory) IsEmpty(v *Volume) (bool, error) { return isEmpty(v.Dir, record.DataDir) }

// directory builds a directory volume: a directory under a project quota, a
// btrfs subvolume under a qgroup, or with enforcement none a plain directory.
// The limit is in force, and read back, before anything can be written.
func (m *Making) directory() (err error) {
	switch m.QuotaKind {
	case record.QuotaBtrfs:
		err = m.subvolume()
	case record.QuotaProject:
		err = m.project()
	default:
		if err = m.backends.Fault("mkdir data"); err == nil {
			err = m.Dir.Mkdir(record.DataDir, 0o700)
		}
	}
	if err != nil {
		return err
	}
	data, err := m.Dir.OpenDir(record.DataDir)
	if err != nil {
		return err
	}
	defer data.Close()
	if err := m.backends.Fault("chown"); err != nil {
		return err
	}
	if err := chownRoot(data.File(), m.Rec); err != nil {
		return err
	}
	return data.Sync()
}

func (m *Making) project() error {
	id, err := m.DrawID(func(id uint32) (bool, error) { return quota.Free(m.Root.File(), id) })
	if err != nil {
		return err
	}
	m.Rec.QuotaKind, m.Rec.QuotaID = record.QuotaProject, uint64(id)
	if err := m.intent(); err != nil {
		return err
	}
	if err := m.backends.Fault("mkdir data"); err != nil {
		return err
	}
	if err := m.Dir.Mkdir(record.DataDir, 0o700); err != nil {
		return err
	}
	data, err := m.Dir.OpenDir(record.DataDir)
	if err != nil {
		return err
	}
	defer data.Close()
	if err := m.backends.Fault("set limit"); err != nil {
		return err
	}
	// The limit first: what carries the id is limited from the first byte.
	if err := SetLimit(m.Root, m.Rec, m.Rec.SizeBytes); err != nil {
		return err
	}
	if err := m.backends.Fault("set project"); err != nil {
		return err
	}
	return quota.SetProject(data.File(), id, true)
}

// intent notes the quota id in the volume's directory, durably, before anything
// is done with it, so that whoever clears the attempt away gives the id back
// too.
func (m *Making) intent() error {
	if err := m.backends.Fault("note quota id"); err != nil {
		return err
	}
	return disk.WriteVolume(m.Dir, m.Rec)
}

func (m *Making) subvolume() (err error) {
	fs := m.Root.File()
	group, err := m.DrawID(func(id uint32) (bool, error) { return btrfs.GroupFree(fs, id) })
	if err != nil {
		return err
	}
	m.Rec.QuotaKind, m.Rec.QuotaID = record.QuotaBtrfs, uint64(group)
	if err := m.intent(); err != nil {
		return err
	}
	if err := m.backends.Fault("create qgroup"); err != nil {
		return err
	}
	if err := btrfs.CreateGroup(fs, group); err != nil {
		return err
	}
	if err := m.backends.Fault("set limit"); err != nil {
		return err
	}
	if err := btrfs.SetLimit(fs, group, uint64(m.Rec.SizeBytes)); err != nil {
		return err
	}
	if err := m.backends.Fault("create subvolume"); err != nil {
		return err
	}
	if err := btrfs.CreateSubvolume(m.Dir.File(), record.DataDir, group); err != nil {
		return err
	}
	data, err := m.Dir.OpenDir(record.DataDir)
	if err != nil {
		return err
	}
	defer data.Close()
	if err := m.backends.Fault("switch copy-on-write off"); err != nil {
		return err
	}
	// Before the first file: it is inherited. See docs/decisions/0009.
	return btrfs.SetNoCOW(data.File())
}

// SetLimit puts a directory volume's limit in force at size bytes; the kernel
// does it online.
func SetLimit(r *disk.Root, rec *record.Volume, size int64) error {
	switch rec.QuotaKind {
	case record.QuotaProject:
		return quota.SetLimits(r.File(), uint32(rec.QuotaID),
			quota.Limits{Bytes: uint64(size), Inodes: uint64(InodesAt(rec, size))})
	case record.QuotaBtrfs:
		return btrfs.SetLimit(r.File(), uint32(rec.QuotaID), uint64(size))
	}
	return nil
}

// Usage is what a volume holds, in bytes and inodes. Known is false where
// nothing counts it.
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

// CheckLimit proves that a directory volume's limit is in force: the id is on
// its root and the limit on the id. What was lost is put back first (after a
// restore of the filesystem, say); repaired says that it had to be.
func CheckLimit(r *disk.Root, rec *record.Volume) (repaired bool, err error) {
	dir, err := r.OpenDir(rec.ID)
	if err != nil {
		return false, err
	}
	defer dir.Close()
	data, err := dir.OpenDir(record.DataDir)
	if err != nil {
		return false, &disk.MismatchError{ID: rec.ID,
			Detail: fmt.Sprintf("its data directory: %v", err)}
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
		if have.Bytes < uint64(rec.SizeBytes) || have.Bytes == 0 || have.Bytes > most ||
			!InodesHold(rec, have.Inodes) {
			return true, SetLimit(r, rec, rec.SizeBytes)
		}
	case record.QuotaBtrfs:
		return checkGroup(r, data.File(), rec)
	}
	return repaired, nil
}

// LimitHolds reports whether a limit in force is the record's. Filesystems round
// up to whole blocks, of 64 KiB at the most.
func LimitHolds(rec *record.Volume, limit uint64) bool {
	const block = 64 << 10
	return limit >= uint64(rec.SizeBytes) && limit < uint64(rec.Promise())+block
}

// Enforce proves that the limit is in force, putting back what was lost. Where
// it cannot be had it is an *EnforcementError, and with tell also where it had
// to be put back.
func Enforce(r *disk.Root, rec *record.Volume, tell bool) error {
	repaired, err := CheckLimit(r, rec)
	var mismatch *disk.MismatchError
	var lost *EnforcementError
	switch {
	case errors.As(err, &mismatch), errors.As(err, &lost):
		return err
	case err != nil:
		return &EnforcementError{ID: rec.ID, Reason: v1alpha1.ReasonQuotaLost, Detail: err.Error()}
	case repaired && tell:
		return &EnforcementError{ID: rec.ID, Reason: v1alpha1.ReasonQuotaLost,
			Detail: "its limit had been changed or lifted; it was put back"}
	}
	return nil
}

// IsHeldByQuota reports whether a volume's size is a limit on a directory.
func IsHeldByQuota(rec *record.Volume) bool {
	return rec.Backend == record.BackendDirectory && rec.QuotaKind != ""
}

// IsInForce reports whether the filesystem has the volume's limit. It asks
// once, and walks through nothing.
func IsInForce(r *disk.Root, rec *record.Volume) bool {
	switch id := uint32(rec.QuotaID); rec.QuotaKind {
	case record.QuotaProject:
		limits, _, err := quota.GetLimits(r.File(), id)
		return err == nil && LimitHolds(rec, limits.Bytes)
	case record.QuotaBtrfs:
		group, there, err := btrfs.GetGroup(r.File(), id)
		return err == nil && there && LimitHolds(rec, group.Limit)
	}

	return true
}
