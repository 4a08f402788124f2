package btrfs

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Forgotten reports whether simple quotas were switched on after the subvolume
// id was made, as they are when somebody switches them off and on again. What
// was written to it before that moment is charged to nobody, and never will be:
// the limit holds for what is written since. It is read from the filesystem
// itself, and so is true after a restart as well.
func Forgotten(fs *os.File, id uint64) (bool, error) {
	// struct btrfs_qgroup_status_item: version, generation, flags, rescan and,
	// with simple quotas, the generation at which they were switched on.
	const enabledAt = 4
	// struct btrfs_root_item: the transaction that made the subvolume.
	const madeAt = 303
	var enabled, made uint64
	err := search(fs, quotaTree, qgroupStatusItem, one(0), one(0), func(it item) bool {
		enabled = le64(it.Data, enabledAt)
		return false
	})
	if errors.Is(err, unix.ENOENT) { // quotas are off
		return true, nil
	}
	if err != nil {
		return false, err
	}
	err = search(fs, rootTree, rootItem, one(id), anyNumber, func(it item) bool {
		if len(it.Data) > madeAt {
			made = le64(it.Data[madeAt:], 0)
		}
		return false
	})
	if err == nil && made == 0 {
		err = fmt.Errorf("subvolume %d: %w", id, unix.ENOENT)
	}
	return err == nil && made < enabled, err
}
