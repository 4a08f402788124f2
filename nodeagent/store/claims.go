package store

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"

	"github.com/quarry-storage/quarry/nodeagent/beneath"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// The index by claim is for people who look at a disk:
// .quarry/by-claim/<namespace>/<claim> is a link to a volume. Nothing here
// reads it but to tidy it up, and what goes wrong with it is logged only.

// indexClaim links the volume by its claim, in the place of another volume's
// link if replace. A second call changes nothing.
func (s *Store) indexClaim(ctx context.Context, v *volume, replace bool) {
	ns, claim := v.rec.Origin.ClaimNamespace, v.rec.Origin.ClaimName
	if !s.opts.ByClaimIndex || beneath.CheckName(ns) != nil || beneath.CheckName(claim) != nil {
		return
	}

	err := v.pool.with(func(r *disk.Root) error {
		index, err := r.Sub(record.ByClaimDir)
		if err != nil {
			return err
		}
		defer index.Close()

		dir, err := index.EnsureDir(ns, 0o755)
		if err != nil {
			return err
		}
		defer dir.Close()

		target := filepath.Join("../../..", v.rec.ID)
		if to, err := dir.Readlink(claim); err == nil && (to == target || !replace) {
			return nil
		}
		if err := s.fault("index claim"); err != nil {
			return err
		}
		if err := dir.Unlink(claim); err != nil {
			return err
		}
		if err := s.fault("link claim"); err != nil {
			return err
		}

		return dir.Symlink(target, claim)
	})
	if err != nil && !errors.Is(err, fs.ErrExist) {
		s.log.WarnContext(ctx, "index by claim", "volume", v.rec.ID, "error", err)
	}
}

// unindexClaim takes the link away if it still is this volume's.
func (s *Store) unindexClaim(ctx context.Context, r *disk.Root, v *volume) {
	ns, claim := v.rec.Origin.ClaimNamespace, v.rec.Origin.ClaimName
	if beneath.CheckName(ns) != nil || beneath.CheckName(claim) != nil {
		return
	}

	err := s.fault("unindex claim")
	if err == nil {
		err = disk.RemoveClaim(r, ns, claim, func(id string) bool { return id == v.rec.ID })
	}

	if err != nil {
		s.freer.sweepAgain.Store(true)
		s.log.WarnContext(ctx, "take a volume out of the index by claim", "volume", v.rec.ID,
			"error", err)
	}
}

// sweepClaims removes the links that a crash left, or that could not be removed
// when a volume went or got another claim.
func (s *Store) sweepClaims(ctx context.Context, p *pool, r *disk.Root) {
	leads := func(id, namespace, claim string) bool {
		v, err := s.Get(id)
		return err == nil && v.Pool == p.name() && v.Origin.ClaimNamespace == namespace &&
			v.Origin.ClaimName == claim
	}
	err := disk.DanglingClaims(r, leads, func(_ *beneath.Dir, namespace, claim string) error {
		return disk.RemoveClaim(r, namespace, claim, func(id string) bool {
			return !leads(id, namespace, claim)
		})
	})
	if err != nil {
		s.log.WarnContext(ctx, "tidy up the index by claim", "pool", p.name(), "error", err)
	}
}
