package store

import (
	"context"

	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// sweepTmp clears away the unfinished volumes of a pool, except those that are
// being made at this moment. What cannot be cleared away yet (mkfs may have
// outlived the agent) is tried again later.
func (s *Store) sweepTmp(ctx context.Context, p *pool, r *disk.Root) error {
	names, err := disk.NamesIn(r.Meta, record.TmpDir)
	if err != nil {
		return err
	}

	for _, name := range names {
		if record.CheckID(name) != nil {
			continue
		}

		unlock, err := s.locks.TryLock(name)
		if err != nil {
			continue // it is being made
		}

		err = s.scrapTmpLocked(ctx, p, name)
		unlock()
		if err != nil {
			s.freer.sweepAgain.Store(true)
			s.log.WarnContext(ctx, "clear away an unfinished volume", "pool", p.name(), "volume",
				name, "error", err)
		}
	}

	return nil
}

// sweepLeftovers tries again to clear away what could not be before.
func (s *Store) sweepLeftovers(ctx context.Context) {
	if !s.freer.sweepAgain.Swap(false) {
		return
	}
	for _, space := range s.allSpaces() {
		s.sweepFilesystem(ctx, space)
	}
}

func (s *Store) sweepFilesystem(ctx context.Context, space *filesystemSpace) {
	for _, p := range s.pools {
		if !p.on(space) {
			continue
		}

		err := p.with(func(r *disk.Root) error {
			s.sweepClaims(ctx, p, r)
			return s.sweepTmp(ctx, p, r)
		})
		if err != nil {
			s.log.WarnContext(ctx, "clear away what was left", "pool", p.name(), "error", err)
		}
	}
}
