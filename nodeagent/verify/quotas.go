package verify

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/nodeagent/btrfs"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/quota"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// quotaFindings are the quota ids that the records of one filesystem name.
type quotaFindings struct {
	pools  []*pool
	owners map[uint64]string
	// unknown are directories whose record, and so whose quota id, cannot be
	// read.
	unknown []string
}

// own notes which id a volume has. Two volumes under one id share one limit
// (G2).
func (q *quotaFindings) own(v *verifier, p *pool, name string, rec *record.Volume) {
	if rec.QuotaKind == "" {
		return
	}
	if other, taken := q.owners[rec.QuotaID]; taken {
		v.find(SeverityError, p, name, "its quota id %d is that of %s too", rec.QuotaID, other)
		return
	}
	q.owners[rec.QuotaID] = p.key(name)
}

// leakedQuotas finds ids of ours that are in use and stand in no record. It
// only looks where all records could be read.
func (v *verifier) leakedQuotas(ctx context.Context) {
	if v.incomplete {
		return
	}
	for _, q := range v.quotas {
		if len(q.unknown) > 0 || len(q.pools) == 0 || ctx.Err() != nil {
			continue
		}
		p := q.pools[0]
		r, err := p.open()
		if err != nil {
			v.failed(p, "", err)
			continue
		}
		if err := q.leaks(v, p, r); err != nil {
			v.failed(p, "", err)
		}
		r.Close()
	}
}

func (q *quotaFindings) leaks(v *verifier, p *pool, r *disk.Root) error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(r.File().Fd()), &st); err != nil {
		return err
	}
	switch int64(st.Type) {
	case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC:
		for project, err := range quota.Projects(r.File()) {
			if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.ESRCH) ||
				errors.Is(err, unix.EINVAL) {
				return nil // quotas are off
			}
			if err != nil {
				return err
			}
			if quota.IsOurs(project.ID) && q.owners[uint64(project.ID)] == "" {
				q.leak(v, p, project)
			}
		}
	case unix.BTRFS_SUPER_MAGIC:
		groups, err := btrfs.Groups(r.File())
		if err != nil {
			return err
		}
		for _, g := range groups {
			if id := uint32(g.Number); uint64(id) == g.Number && quota.IsOurs(id) &&
				q.owners[g.Number] == "" && !v.acquired(p, id) {
				v.leak(Finding{Severity: SeverityWarning, Pool: p.name(),
					What:   fmt.Sprintf("qgroup 1/%d is no volume's", id),
					Repair: "remove it, if nothing is in it",
					apply: func(context.Context) error {
						return p.with(
							func(r *disk.Root) error { return btrfs.RemoveGroup(r.File(), id) })
					}})
			}
		}
	}
	return nil
}

func (q *quotaFindings) leak(v *verifier, p *pool, project quota.Project) {
	if v.acquired(p, project.ID) {
		return
	}
	f := Finding{Severity: SeverityWarning, Pool: p.name(),
		What: fmt.Sprintf("project %d is no volume's; it has a limit of %d bytes, and "+
			"%d bytes in %d files are charged to it",
			project.ID, project.Limits.Bytes, project.Usage.Bytes, project.Usage.Inodes)}
	// What is charged to it belongs to somebody: a tenant can charge its files
	// to any id.
	if project.Usage == (quota.Usage{}) {
		f.Repair = "clear its limit"
		f.apply = func(context.Context) error {
			return p.with(func(r *disk.Root) error { return quota.Clear(r.File(), project.ID) })
		}
	}
	v.leak(f)
}

// acquired reports whether a running store has given the id to a volume that is
// being made at this moment.
func (v *verifier) acquired(p *pool, id uint32) bool {
	return v.live && v.view.IsDrawn(p.name(), id)
}
