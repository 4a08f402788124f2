package store

import (
	"errors"
	"io/fs"

	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// ensureLink makes the link at an adopted volume's old path where nothing is.
// What else may be there is left alone; Verify tells of it.
func (s *Store) ensureLink(r *disk.Root, rec *record.Volume) error {
	if rec.AdoptedFrom == "" {
		return nil
	}

	return disk.AtOldPath(r, rec, func(old *disk.OldPath, state disk.LinkState) error {
		if state != disk.LinkMissing {
			return nil
		}
		if err := s.fault("adopt: make link"); err != nil {
			return err
		}
		if err := old.Parent.Symlink(disk.LinkTarget(rec), old.Name); err != nil &&
			!errors.Is(err, fs.ErrExist) {
			return err
		}

		return old.Parent.Sync()
	})
}

// removeLink removes the link at an adopted volume's old path if it still is
// that link.
func (s *Store) removeLink(r *disk.Root, rec *record.Volume) error {
	if rec.AdoptedFrom == "" {
		return nil
	}

	return disk.AtOldPath(r, rec, func(old *disk.OldPath, state disk.LinkState) error {
		if state != disk.LinkOurs {
			return nil
		}
		if err := s.fault("adopt: remove link"); err != nil {
			return err
		}
		if err := old.Parent.Unlink(old.Name); err != nil {
			return err
		}

		return old.Parent.Sync()
	})
}
