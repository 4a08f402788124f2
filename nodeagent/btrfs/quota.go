package btrfs

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Mode is the kind of quotas a filesystem keeps.
type Mode int

const (
	ModeOff    Mode = iota
	ModeFull        // qgroups with shared and exclusive counts; not able, see the package
	ModeSimple      // simple quotas, Linux 6.7
)

func (m Mode) String() string {
	return [...]string{"off", "full qgroups", "simple quotas"}[m]
}

// Flags of the quota tree's status item, from linux/btrfs_tree.h.
const (
	statusOn     = 1 << 0
	statusSimple = 1 << 3 // BTRFS_QGROUP_STATUS_FLAG_SIMPLE_MODE
)

// ErrFullQgroups says that simple quotas cannot be switched on while full
// qgroups are. Whoever uses those decides.
var ErrFullQgroups = errors.New(
	"full qgroups are on: `btrfs quota disable` first, if nothing else needs them")

// QuotaMode returns the kind of quotas that are on where fs is. It reads the
// filesystem itself, so it needs no sysfs.
func QuotaMode(fs *os.File) (Mode, error) {
	mode := ModeOff
	err := search(fs, quotaTree, qgroupStatusItem, one(0), one(0), func(it item) bool {
		switch flags := le64(it.Data, 2); {
		case flags&statusOn == 0:
		case flags&statusSimple != 0:
			mode = ModeSimple
		default:
			mode = ModeFull
		}
		return false
	})
	if errors.Is(err, unix.ENOENT) { // no quota tree
		return ModeOff, nil
	}
	return mode, err
}

// EnableSimple switches simple quotas on for the whole filesystem: only where
// the administrator allowed it. What was written before is charged to nobody.
// A filesystem that has them cannot be mounted by Linux before 6.7 any more.
//
// It returns *ErrUnsupported before Linux 6.7 and ErrFullQgroups if those are
// on. A second call changes nothing.
func EnableSimple(fs *os.File) error {
	mode, err := QuotaMode(fs)
	switch {
	case err != nil:
		return err
	case mode == ModeSimple:
		return nil
	case mode == ModeFull:
		return ErrFullQgroups
	}
	args := struct{ Command, Status uint64 }{Command: quotaCtlEnableSimp}
	err = ioctl(fs, iocQuotaCtl, unsafe.Pointer(&args))
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOTTY) {
		return &ErrUnsupported{Feature: "btrfs simple quotas", Since: "6.7"}
	}
	if err != nil {
		return fmt.Errorf("enable btrfs simple quotas: %w", err)
	}
	if mode, err = QuotaMode(fs); err == nil && mode != ModeSimple {
		err = fmt.Errorf("enable btrfs simple quotas: the kernel agreed, and they are %s", mode)
	}
	return err
}

// Support says whether limits on groups are in force.
type Support struct {
	Mode   Mode
	Groups bool   // limits on level-1 groups are in force
	Reason string // why not, and what would make it so; empty if Groups
}

// probeLimit is odd on purpose: nobody else sets it.
const probeLimit = 54_321 * 4096

// probing keeps two probes of this process from removing each other's group.
var probing sync.Mutex

// Probe finds out whether limits are in force on the btrfs fs is on, by its
// mode and then by setting a limit on the group 1/probe, reading it back and
// removing the group. What a crash left of an earlier probe is removed too.
// An error means that the question could not be answered, never "no".
func Probe(fs *os.File, probe uint32) (Support, error) {
	mode, err := QuotaMode(fs)
	if err != nil {
		return Support{}, err
	}
	s := Support{Mode: mode}
	switch mode {
	case ModeOff:
		s.Reason = "simple quotas are off: they need Linux 6.7 and `btrfs quota enable --simple`"
		return s, nil
	case ModeFull:
		s.Reason = "full qgroups are on, and a user leaves them by making a subvolume: simple " +
			"quotas are needed"
		return s, nil
	}
	probing.Lock()
	defer probing.Unlock()
	err = CreateGroup(fs, probe)
	if err == nil {
		err = SetLimit(fs, probe, probeLimit)
	}
	if removeErr := DissolveGroup(fs, probe); removeErr != nil {
		return s, fmt.Errorf("probe: %w", removeErr)
	}
	var notInForce *ErrNotInForce
	switch {
	case errors.As(err, &notInForce):
		s.Reason = err.Error()
	case err != nil:
		return s, fmt.Errorf("probe: %w", err)
	default:
		s.Groups = true
	}
	return s, nil
}
