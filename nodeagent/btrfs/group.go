package btrfs

import (
	"errors"
	"fmt"
	"math"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// levelShift is where a qgroup's id has its level: 1/n is 1<<48 | n.
const levelShift = 48

func qgroupID(group uint32) uint64 { return 1<<levelShift | uint64(group) }

func level(qgroup uint64) uint64 { return qgroup >> levelShift }

// Group is a level-1 group.
type Group struct {
	Number  uint64   // n of 1/n; ours fit 32 bits
	Limit   uint64   // bytes; 0: none
	Usage   uint64   // bytes at the last commit, at most 30 seconds ago; see Sync
	Members []uint64 // ids of subvolumes, deleted ones that still have extents included
}

// ErrNotInForce says that the kernel took a request without an error, and that
// the filesystem does not have what was asked for.
type ErrNotInForce struct {
	Group     uint32
	Subvolume uint64 // if not 0: it is not a member
	Want, Got uint64 // else: limits in bytes
}

func (e *ErrNotInForce) Error() string {
	if e.Subvolume != 0 {
		return fmt.Sprintf("subvolume %d is not in group 1/%d", e.Subvolume, e.Group)
	}
	return fmt.Sprintf("group 1/%d: limit not in force: want %d bytes, read back %d",
		e.Group, e.Want, e.Got)
}

// ErrGroupInUse says why a group cannot be removed now. Deleted is the better
// half: try again when the kernel has freed the subvolume (WaitFreed).
type ErrGroupInUse struct {
	Group     uint32
	Subvolume uint64
	Deleted   bool   // the subvolume is deleted and not freed yet
	Usage     uint64 // it is freed, and snapshots elsewhere share this many bytes of it
}

func (e *ErrGroupInUse) Error() string {
	why := "exists"
	switch {
	case e.Deleted:
		why = "is deleted and not freed yet"
	case e.Usage > 0:
		why = fmt.Sprintf("is deleted, and snapshots of it share %d bytes", e.Usage)
	}
	return fmt.Sprintf("group 1/%d is in use: its member, subvolume %d, %s",
		e.Group, e.Subvolume, why)
}

// CreateGroup makes the group 1/group. A second call changes nothing.
func CreateGroup(fs *os.File, group uint32) error {
	err := createQgroup(fs, qgroupID(group), true)
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("create group 1/%d: %w", group, err)
	}
	return nil
}

// SetLimit limits the group 1/group to so many bytes, 0 for none, and reads it
// back: *ErrNotInForce if it is not what was set. A limit may grow and shrink
// at any time; below what is used already, nothing is lost and nothing more can
// be written. A second call changes nothing.
func SetLimit(fs *os.File, group uint32, bytes uint64) error {
	const none = math.MaxUint64 // CLEAR_VALUE in fs/btrfs/qgroup.c
	args := struct {
		ID    uint64
		Limit qgroupLimit
	}{qgroupID(group), qgroupLimit{Flags: limitMaxRfer, MaxRfer: bytes}}
	if bytes == 0 {
		args.Limit.MaxRfer = none
	}
	if err := ioctl(fs, iocQgroupLimit, unsafe.Pointer(&args)); err != nil {
		return fmt.Errorf("limit group 1/%d to %d bytes: %w", group, bytes, err)
	}
	got, _, err := readLimit(fs, group)
	if err != nil {
		return err
	}
	if got != bytes {
		return &ErrNotInForce{Group: group, Want: bytes, Got: got}
	}
	return nil
}

// GetGroup returns the group 1/group, and false if there is none.
func GetGroup(fs *os.File, group uint32) (Group, bool, error) {
	found, err := groups(fs, one(qgroupID(group)))
	if err != nil || len(found) == 0 {
		return Group{}, false, err
	}
	return found[0], true, nil
}

// GroupFree reports whether there is no group 1/group.
func GroupFree(fs *os.File, group uint32) (bool, error) {
	_, exists, err := readLimit(fs, group)
	return err == nil && !exists, err
}

// Groups returns all level-1 groups of the filesystem, none if quotas are off.
func Groups(fs *os.File) ([]Group, error) {
	return groups(fs, [2]uint64{1 << levelShift, 2<<levelShift - 1})
}

func groups(fs *os.File, ids [2]uint64) ([]Group, error) {
	var all []Group
	at := make(map[uint64]int)
	err := search(fs, quotaTree, qgroupInfoItem, one(0), ids, func(it item) bool {
		at[it.Offset] = len(all)
		all = append(all, Group{Number: it.Offset & (1<<levelShift - 1), Usage: le64(it.Data, 1)})
		return true
	})
	if errors.Is(err, unix.ENOENT) { // quotas are off
		return nil, nil
	}
	if err == nil {
		err = search(fs, quotaTree, qgroupLimitItem, one(0), ids, func(it item) bool {
			if i, ok := at[it.Offset]; ok {
				all[i].Limit = limitOf(it)
			}
			return true
		})
	}
	if err == nil {
		err = search(fs, quotaTree, qgroupRelationItem, ids, anyNumber, func(it item) bool {
			if i, ok := at[it.Object]; ok && level(it.Offset) == 0 {
				all[i].Members = append(all[i].Members, it.Offset)
			}
			return true
		})
	}
	return all, err
}

// AddMember puts a subvolume and what is charged to it into the group 1/group.
// A second call changes nothing.
func AddMember(fs *os.File, subvolume uint64, group uint32) error {
	err := assign(fs, subvolume, qgroupID(group), true)
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("put subvolume %d into group 1/%d: %w", subvolume, group, err)
	}
	member, err := isMember(fs, subvolume, group)
	if err == nil && !member {
		err = &ErrNotInForce{Group: group, Subvolume: subvolume}
	}
	return err
}

// RemoveGroup removes the group 1/group after its subvolumes are gone, with
// what the kernel keeps of theirs. It does not wait: as long as a member is not
// freed, or shares extents with a snapshot elsewhere, it returns *ErrGroupInUse
// and should be called again. No such group is no error.
func RemoveGroup(fs *os.File, group uint32) error {
	return removeGroup(fs, group, func(*ErrGroupInUse) bool { return false })
}

// DissolveGroup is RemoveGroup for a volume that is deleted. It waits for the
// kernel to free what was deleted, and for nobody else: a live member lies in
// another volume and is taken out of the group, and what snapshots elsewhere
// share of a freed one stays charged to that one alone, in the level-0 group
// that the kernel keeps for it.
func DissolveGroup(fs *os.File, group uint32) error {
	return removeGroup(fs, group, func(in *ErrGroupInUse) bool { return !in.Deleted })
}

// removeGroup asks of each member that is in the way whether it is taken out.
func removeGroup(fs *os.File, group uint32, expel func(*ErrGroupInUse) bool) error {
	g, exists, err := GetGroup(fs, group)
	if err != nil || !exists {
		return err
	}
	for _, m := range g.Members {
		err := removeMember(fs, group, m)
		var used *ErrGroupInUse
		if errors.As(err, &used) && expel(used) {
			err = Expel(fs, m, group)
		}
		if err != nil {
			return err
		}
	}
	err = createQgroup(fs, qgroupID(group), false)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove group 1/%d: %w", group, err)
	}
	return nil
}

// removeMember takes the level-0 group of a freed subvolume out of the group,
// and away: kernels differ in whether they do that themselves.
func removeMember(fs *os.File, group uint32, subvolume uint64) error {
	state, err := stateOf(fs, subvolume)
	if err != nil {
		return err
	}
	if state != rootGone {
		return &ErrGroupInUse{Group: group, Subvolume: subvolume, Deleted: state == rootDropped}
	}
	// The kernel compares with its own, newest count; this one is for the
	// message.
	var usage uint64
	err = search(fs, quotaTree, qgroupInfoItem, one(0), one(subvolume), func(it item) bool {
		usage = le64(it.Data, 1)
		return false
	})
	if err != nil {
		return err
	}
	if usage > 0 {
		return &ErrGroupInUse{Group: group, Subvolume: subvolume, Usage: usage}
	}
	if err := Expel(fs, subvolume, group); err != nil {
		return err
	}
	err = createQgroup(fs, subvolume, false)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove group 0/%d: %w", subvolume, err)
	}
	return nil
}

func isMember(fs *os.File, subvolume uint64, group uint32) (member bool, err error) {
	err = search(fs, quotaTree, qgroupRelationItem, one(subvolume), one(qgroupID(group)),
		func(item) bool {
			member = true
			return false
		})
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	return member, err
}

// readLimit returns the limit of the group in bytes, 0 for none, and whether
// there is such a group.
func readLimit(fs *os.File, group uint32) (bytes uint64, exists bool, err error) {
	err = search(fs, quotaTree, qgroupLimitItem, one(0), one(qgroupID(group)), func(it item) bool {
		bytes, exists = limitOf(it), true
		return false
	})
	if errors.Is(err, unix.ENOENT) {
		return 0, false, nil
	}
	return bytes, exists, err
}

// limitOf reads struct btrfs_qgroup_limit_item.
func limitOf(it item) uint64 {
	if le64(it.Data, 0)&limitMaxRfer == 0 {
		return 0
	}
	return le64(it.Data, 1)
}

func createQgroup(fs *os.File, id uint64, create bool) error {
	args := struct{ Create, ID uint64 }{ID: id}
	if create {
		args.Create = 1
	}
	return ioctl(fs, iocQgroupCreate, unsafe.Pointer(&args))
}

func assign(fs *os.File, child, parent uint64, add bool) error {
	args := struct{ Add, Child, Parent uint64 }{Child: child, Parent: parent}
	if add {
		args.Add = 1
	}
	return ioctl(fs, iocQgroupAssign, unsafe.Pointer(&args))
}
