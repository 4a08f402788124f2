package backend

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"

	"github.com/quarry-storage/quarry/nodeagent/beneath"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/quota"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// flagNotes is the quota.Journal of a volume: a file beside its record. The
// filesystem's own journal keeps the order: once the file is gone for good the
// flags are back for good.
type flagNotes struct {
	fault func(step string) error
	dir   *beneath.Dir
}

// NewFlagNotes is the journal of the volume whose directory is open.
func NewFlagNotes(fault func(step string) error, dir *beneath.Dir) quota.Journal {
	return &flagNotes{fault, dir}
}

// Note implements quota.Journal.
func (n *flagNotes) Note(b quota.Bare) error {
	if err := n.fault("recheck: note flags"); err != nil {
		return err
	}
	data, err := json.Marshal(b)
	if err != nil {
		return err
	}
	return n.dir.WriteFile(record.FlagsFile, data, 0o600)
}

// Off implements quota.Journal.
func (n *flagNotes) Off() error { return n.fault("recheck: flags off") }

// Forget implements quota.Journal.
func (n *flagNotes) Forget() error {
	if err := n.fault("recheck: forget flags"); err != nil {
		return err
	}
	return forgetFlags(n.dir)
}

func forgetFlags(dir *beneath.Dir) error {
	err := dir.Unlink(record.FlagsFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// putBackFlags gives the inode whose flags were off when a process ended its
// flags again. With no note it is one system call; a second call changes
// nothing.
func putBackFlags(r *disk.Root, dir *beneath.Dir) error {
	data, err := dir.ReadFile(record.FlagsFile, record.MaxSize)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}

	var b quota.Bare
	if err == nil {
		err = json.Unmarshal(data, &b)
	}

	if err == nil {
		err = quota.PutBack(r.File(), b)
	}

	if err != nil {
		return fmt.Errorf("put back what %s says: %w", record.FlagsFile, err)
	}

	return forgetFlags(dir)
}
