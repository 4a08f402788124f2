package quota

import (
	"errors"
	"fmt"
	"iter"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Limits is the most a project may hold. Zero means no limit.
type Limits struct {
	Bytes  uint64 // space, metadata blocks of its files included
	Inodes uint64 // files of every kind; the volume's own directory is one
}

// Usage is what a project holds.
type Usage struct {
	Bytes  uint64
	Inodes uint64
}

// Project is one entry of a filesystem's quota.
type Project struct {
	ID     uint32
	Limits Limits
	Usage  Usage
}

// InUse reports whether anything is charged to the project or limits it.
func (p Project) InUse() bool { return p.Limits != Limits{} || p.Usage != Usage{} }

// ErrNotInForce says that a limit was set without an error, and that the
// filesystem does not have it: G2 would be a lie.
type ErrNotInForce struct {
	ID        uint32
	Want, Got Limits
}

func (e *ErrNotInForce) Error() string {
	return fmt.Sprintf("project %d: limit not in force: want %d bytes and %d inodes, read "+
		"back %d and %d",
		e.ID, e.Want.Bytes, e.Want.Inodes, e.Got.Bytes, e.Got.Inodes)
}

// SetLimits sets the hard limits of project id on the filesystem dir is on,
// and reads them back. Bytes are rounded up to whole filesystem blocks. The
// limits may grow and shrink at any time; below what is used already, nothing
// is lost and nothing more can be written.
//
// Soft limits are set to zero, none: they would start a grace period at whose
// end writes fail below the hard limit, and a size that changes with time is
// not what was asked for.
//
// It returns *ErrNotInForce if what is read back is not what was set. A second
// call changes nothing.
func SetLimits(dir *os.File, id uint32, want Limits) error {
	size, err := blockSize(dir)
	if err != nil {
		return err
	}
	blocks, err := toBasicBlocks(want.Bytes, size)
	if err != nil {
		return fmt.Errorf("project %d: %w", id, err)
	}
	q := diskQuota{
		Version:   diskQuotaVersion,
		Flags:     projectQuota,
		FieldMask: maskBlockHard | maskBlockSoft | maskInodeHard | maskInodeSoft,
		ID:        id,
		BlockHard: blocks,
		InodeHard: want.Inodes,
	}
	if err := quotactl(dir, qXSetLimit, id, unsafe.Pointer(&q)); err != nil {
		return fmt.Errorf("set limits of project %d: %w", id, err)
	}
	read, err := get(dir, id)
	if err != nil {
		return err
	}
	want.Bytes = fromBasicBlocks(blocks)
	got := read.project().Limits
	if got != want || read.BlockSoft != 0 || read.InodeSoft != 0 {
		return &ErrNotInForce{ID: id, Want: want, Got: got}
	}
	return nil
}

// Rounded is the limit that is in force on the filesystem dir is on where one
// of so many bytes is set: whole blocks.
func Rounded(dir *os.File, bytes uint64) (uint64, error) {
	size, err := blockSize(dir)
	if err != nil {
		return 0, err
	}
	blocks, err := toBasicBlocks(bytes, size)
	return fromBasicBlocks(blocks), err
}

// GetLimits returns the limits and the usage of project id on the filesystem
// dir is on; zeroes for an id the filesystem has never seen.
//
// Usage may lag: xfs frees the space of removed files in the background.
func GetLimits(dir *os.File, id uint32) (Limits, Usage, error) {
	q, err := get(dir, id)
	if err != nil {
		return Limits{}, Usage{}, err
	}
	p := q.project()
	return p.Limits, p.Usage, nil
}

// Clear takes all limits off project id. A second call changes nothing.
func Clear(dir *os.File, id uint32) error { return SetLimits(dir, id, Limits{}) }

// Free reports whether nothing is charged to project id on the filesystem dir
// is on and nothing limits it.
func Free(dir *os.File, id uint32) (bool, error) {
	q, err := get(dir, id)
	return err == nil && !q.project().InUse(), err
}

// Projects yields every project of the filesystem dir is on that has a limit
// or holds something, in the order of their ids, project 0 (all that belongs
// to none) left out. It ends at the first error.
func Projects(dir *os.File) iter.Seq2[Project, error] {
	return func(yield func(Project, error) bool) {
		for next := uint32(1); next != 0; {
			var q diskQuota
			err := quotactl(dir, qXGetNextQuota, next, unsafe.Pointer(&q))
			// ENOENT from both filesystems is the end of the list.
			if errors.Is(err, unix.ENOENT) {
				return
			}
			if err != nil {
				yield(Project{}, fmt.Errorf("list projects from %d: %w", next, err))
				return
			}
			if p := q.project(); p.InUse() && !yield(p, nil) {
				return
			}
			next = q.ID + 1 // wraps to 0 after the last id there can be
		}
	}
}

func get(dir *os.File, id uint32) (diskQuota, error) {
	var q diskQuota
	err := quotactl(dir, qXGetQuota, id, unsafe.Pointer(&q))
	// xfs has no entry for an id that was never used; ext4 returns zeroes.
	if errors.Is(err, unix.ENOENT) {
		return diskQuota{ID: id}, nil
	}
	if err != nil {
		return q, fmt.Errorf("get quota of project %d: %w", id, err)
	}
	return q, nil
}

func (q diskQuota) project() Project {
	return Project{
		ID:     q.ID,
		Limits: Limits{Bytes: fromBasicBlocks(q.BlockHard), Inodes: q.InodeHard},
		Usage:  Usage{Bytes: fromBasicBlocks(q.BlockCount), Inodes: q.InodeCount},
	}
}
