package store

import (
	"context"
	"fmt"

	"k8s.io/apimachinery/pkg/api/equality"

	"github.com/quarry-storage/quarry/nodeagent/beneath"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// SetOrigin writes into the record on disk what the cluster says of the volume
// by now: another claim, another reclaim policy, another meaning of deletion. A
// lost cluster is written again from the disks, so they have to follow. The
// volume itself does not change, and nothing is written if nothing differs.
//
// What was settled when the volume was made stays where origin does not name
// it, since origin may come from an object that was written again by hand. Wish
// stays in any case.
func (s *Store) SetOrigin(ctx context.Context, id string, origin record.Origin) error {
	if v, err := s.Get(id); err == nil &&
		equality.Semantic.DeepEqual(v.Origin, v.Origin.Follow(origin)) {
		return nil
	}

	err := s.withVolume(ctx, id, func(v *volume, r *disk.Root, dir *beneath.Dir) error {
		next := v.next()
		next.Origin = v.rec.Origin.Follow(origin)
		if equality.Semantic.DeepEqual(v.rec.Origin, next.Origin) {
			return nil
		}

		// A record that was swapped since it was read must not be written over.
		if rec, err := disk.ReadEntry(r.Dir, id, id); err != nil {
			return err
		} else if !rec.CreatedAt.Equal(v.rec.CreatedAt) {
			return &disk.MismatchError{ID: id, Detail: "its record was replaced"}
		}

		moved := next.Origin.ClaimNamespace != v.rec.Origin.ClaimNamespace ||
			next.Origin.ClaimName != v.rec.Origin.ClaimName
		if moved {
			// Before the record is written: a link that a crash takes away
			// comes back at the next start, and one that it leaves behind would
			// stay.
			s.unindexClaim(ctx, r, v)
		}

		if err := s.fault("describe"); err != nil {
			return err
		}
		if err := disk.WriteVolume(dir, &next); err != nil {
			return err
		}

		s.setRecord(v, next)
		if moved {
			s.indexClaim(ctx, v, true)
		}

		return nil
	})
	if err != nil {
		return fmt.Errorf("set the origin of volume %s: %w", id, err)
	}

	return nil
}
