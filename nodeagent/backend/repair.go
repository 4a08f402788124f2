package backend

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/quarry-storage/quarry/nodeagent/beneath"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/filesystem"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// RepairsAllowed is how often a repair may begin without coming to its end: the
// first time it can be a power cut that ended it.
const RepairsAllowed = 2

// repairNote lies in a volume's directory while its filesystem is being
// repaired. One that is found there is of a repair that did not come to its
// end, since this process was ended with it: for want of memory, say, which
// would be the same each time.
type repairNote struct {
	Attempts int       `json:"attempts"`
	Began    time.Time `json:"began"`
}

func readRepairNote(dir *beneath.Dir) (*repairNote, error) {
	n := &repairNote{}
	content, err := dir.ReadFile(record.RepairFile, record.MaxSize)
	if errors.Is(err, fs.ErrNotExist) {
		return n, nil
	}
	if err != nil {
		return nil, err
	}
	if json.Unmarshal(content, n) != nil || n.Attempts < 0 {
		n.Attempts = RepairsAllowed // whoever wrote that, it is to be looked at by a person
	}

	return n, nil
}

// beginRepair writes down that a repair begins; after too many that did not end
// it is a *filesystem.DamagedError. A full disk keeps no repair from beginning.
func (b *Backends) beginRepair(ctx context.Context, id string, dir *beneath.Dir,
	n *repairNote) error {
	if n.Attempts >= RepairsAllowed {
		return &filesystem.DamagedError{Device: "volume " + id, Unfinished: true,
			Output: fmt.Sprintf(
				"%d repairs of it were cut off, the last one of %s; run e2fsck on it by hand, or "+
					"give the agent more memory and remove %s",
				n.Attempts, n.Began.Format(time.RFC3339), filepath.Join(dir.Path(),
					record.RepairFile))}
	}

	n.Attempts++
	n.Began = time.Now().UTC().Truncate(time.Second)
	content, err := json.Marshal(n)
	if err == nil {
		err = dir.WriteFile(record.RepairFile, content, 0o600)
	}

	if disk.IsFull(err) {
		err = nil
	}

	if err != nil {
		return fmt.Errorf("note that a repair begins: %w", err)
	}

	b.Log.WarnContext(ctx, "the filesystem of a volume has seen errors and is repaired",
		"volume", id)
	return b.Fault("repair")
}

// endRepair takes the note away.
func endRepair(dir *beneath.Dir) error {
	if err := dir.Unlink(record.RepairFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("take the note of a repair away: %w", err)
	}
	return dir.Sync()
}
