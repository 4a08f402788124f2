package store

import (
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// settle writes into a volume's record that it is on this pool now.
func (s *Store) settle(r *disk.Root, rec *record.Volume) error {
	dir, err := r.OpenDir(rec.ID)
	if err != nil {
		return err
	}
	defer dir.Close()

	if err := s.fault("settle"); err != nil {
		return err
	}

	next := *rec
	next.PoolUID = r.UID
	if err := disk.WriteVolume(dir, &next); err != nil {
		return err
	}

	*rec = next
	return nil
}

// next is the record of a volume as it is to be written next.
func (v *volume) next() record.Volume {
	rec := v.rec
	if v.poolUID != "" {
		rec.PoolUID = v.poolUID
	}
	return rec
}

// wasMoved reports whether a directory whose record names another pool is the
// volume known as v: somebody moved it since it was seen there.
func (s *Store) wasMoved(v *volume, rec *record.Volume) bool {
	return v != nil && v.poolUID == rec.PoolUID && v.rec.CreatedAt.Equal(rec.CreatedAt) &&
		s.isMissing(v)
}

// mayBeOn reports whether the pool with identity uid may be one of those that
// could not be looked at.
func (s *Store) mayBeOn(uid string, unseen []*disk.OfflineError) bool {
	for _, off := range unseen {
		for _, p := range s.pools {
			p.mu.Lock()
			known := p.expect.UID
			p.mu.Unlock()

			if p.name() == off.Pool && off.Reason != disk.OfflineDuplicate &&
				(known == "" || known == uid) {
				return true
			}
		}
	}

	return false
}
