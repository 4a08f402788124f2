package backend

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/quarry-storage/quarry/nodeagent/beneath"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/record"
)

// Backend is how the data of a volume lies in its directory, and how its size is
// enforced. There are two: [Backends.Of] says which one a record means, and
// nothing above this package has to ask again.
//
// Who calls a method holds the volume's lock, so that of one volume there is one
// call at a time, but for Taken, which a measurement asks at any time; calls for
// different volumes run at once. Every method may be
// ended by kill -9 between any two of its steps (Backends.Fault has their
// names), and each can be called again after that.
//
//	method   a second call           durable when it returns      while it is in use
//	Make     none: Dir is new        all, but for the rename      it is not
//	Up       changes nothing         what had to be put right     yes
//	Grow     finishes or confirms    the size                     yes
//	Open     opens it again          changes nothing              yes
//	Usage    asks again              changes nothing              yes
//	Taken    asks again              changes nothing              yes
//	Reached  asks again              changes nothing              yes
//	IsEmpty  asks again              what had to be flushed       says little
//
// Taking a volume down is the same for both: [Backends.TakeDown].
type Backend interface {
	// Make makes the data of a new volume under tmp, completes its record and
	// writes it. The size is in force before anything can be written. An image
	// is up when it returns, and stays so while its directory is renamed. After
	// an error, what is there is for [Backends.Release] and the trash. Without
	// room it is a *disk.CapacityError; [ErrUnreserved] where a thick image
	// would be none.
	Make(ctx context.Context, m *Making) error

	// Up makes the volume usable at its path, or proves that it is, and puts
	// right what is not as it was made. Nothing of it is taken from under a
	// user. directIO is asked, if it matters, whether the pool's filesystem has
	// that. It returns what a look compares with later: nil for what has no
	// device. An *EnforcementError says that the volume is up and its size is
	// not in force; with any other error it is not up.
	Up(ctx context.Context, v *Volume, directIO func() (bool, error)) (*Standing, error)

	// Grow puts a larger size in force, in bytes. The record says already where
	// it grows to. up brings the volume up, which an image needs for it.
	// Without room it is a *disk.CapacityError; what an image has taken by then
	// it gives back, down to what it had.
	Grow(ctx context.Context, v *Volume, size int64, up func(context.Context) error) error

	// Reached is how large, in bytes, a growth has made what cannot be made
	// smaller again; 0 where nothing is of that kind.
	Reached(v *Volume) (int64, error)

	// Open opens what the volume's user is to see, proven to be this volume: a
	// directory (O_PATH), or the device of a Block volume, which cannot become
	// another's while it is open. What is not up is an *InactiveError.
	Open(v *Volume) (*os.File, error)

	// Usage is what is counted of the volume. The pool is open; the volume's
	// directory need not be.
	Usage(r *disk.Root, rec *record.Volume) (Usage, error)

	// Taken is how many bytes of the pool's filesystem the volume takes. image
	// is where its image would be, below the pool: also in tmp or in the trash.
	Taken(r *disk.Root, rec *record.Volume, image string) (int64, error)

	// IsEmpty reports whether nothing was ever written where the user sees it.
	// The volume is up.
	IsEmpty(v *Volume) (bool, error)
}

// Volume is a volume whose directory is open, and the pool that it is in.
type Volume struct {
	// Pool is the pool's name.
	Pool string
	Rec  *record.Volume
	Root *disk.Root
	Dir  *beneath.Dir
}

// Making is a volume that is to be made. Rec says what was decided of it; Dir
// is empty, and under tmp.
type Making struct {
	Volume
	// QuotaKind is the record's word for what is to hold a directory's size;
	// empty: nothing.
	QuotaKind string
	// Features are what the pool's filesystem can do.
	Features func() (disk.Features, error)
	// DrawID gives the volume a quota id of which free says that the filesystem
	// does not know it.
	DrawID func(free func(id uint32) (bool, error)) (uint32, error)
	// Heavy waits for its turn to load the disk; done ends that.
	Heavy func(ctx context.Context) (done func(), err error)

	backends *Backends
}

// Backends are both backends, with what they need of the process they run in.
// There is one for each process, and a machine has one such process for each
// pool: package disk keeps them apart.
type Backends struct {
	// DeviceDir is where links to the devices of Block volumes are.
	DeviceDir string
	// Fault is called with the name of each step that changes the disk, before
	// it is taken; an error ends the operation there.
	Fault func(step string) error
	// Log receives what no caller is told.
	Log *slog.Logger
	// Scans of the machine's mounts are shared by all who ask at the same time.
	Scans MountScans
	// Questions are asked of filesystems that may not answer.
	Questions Questions
	// RepairMemory is what one repair may take, in bytes; 0, but for tests:
	// what this process has left.
	RepairMemory atomic.Uint64

	links links
}

// Of returns the backend that a record means. What no version of this program
// wrote ([IsKnown]) is taken for an image, and fails for want of one.
func (b *Backends) Of(rec *record.Volume) Backend {
	if rec.Backend == record.BackendDirectory {
		return directory{b}
	}
	return loopImage{b}
}

// IsKnown reports whether the record's backend is one that this program knows.
func IsKnown(rec *record.Volume) bool {
	return rec.Backend == record.BackendDirectory || rec.Backend == record.BackendLoop
}

// HasDevice reports whether a volume stands on a loop device.
func HasDevice(rec *record.Volume) bool { return rec.Backend == record.BackendLoop }

// TakesAll reports whether every byte of a volume's size is taken from the
// disk, so that nobody has to look. It is not asked of one that is growing.
func TakesAll(rec *record.Volume) bool {
	return rec.Backend == record.BackendLoop && rec.Allocation == record.AllocationThick
}

// writeRecord writes the record of a new volume, once all is known that is in
// it.
func (m *Making) writeRecord() error {
	if err := m.backends.Fault("write record"); err != nil {
		return err
	}
	return disk.WriteVolume(m.Dir, m.Rec)
}

// chownRoot gives the root directory of what the user sees its owner and
// permissions.
func chownRoot(dir *os.File, rec *record.Volume) error {
	fd := int(dir.Fd())
	if err := unix.Fchown(fd, int(rec.Owner), int(rec.Group)); err != nil {
		return fmt.Errorf("chown: %w", err)
	}

	// After chown, which clears set-id bits.
	if err := unix.Fchmod(fd, rec.Mode); err != nil {
		return fmt.Errorf("chmod: %w", err)
	}

	return nil
}
