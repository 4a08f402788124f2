package btrfs

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// A Stray is a subvolume whose usage is not charged to the volume that it lies
// in, or not to that volume alone.
type Stray struct {
	Subvolume uint64
	Outside   bool     // it is not in the volume's group
	Elsewhere []uint64 // other groups that it is in, as the kernel numbers them
}

// Strays returns the subvolumes inside the subvolume id, at any depth, and id
// itself, that are not in the group 1/group or are in others as well. With
// NoGroup every group is another one. What is moved about meanwhile may be
// missed, or be named though it is charged rightly: look again.
func Strays(fs *os.File, id uint64, group uint32) ([]Stray, error) {
	var strays []Stray
	at := Cursor{}
	for {
		s, found, err := at.within(fs, id, group)
		if err != nil || !found {
			return strays, err
		}
		if s.isStray() {
			strays = append(strays, s)
		}
	}
}

func (s *Stray) isStray() bool { return s.Outside || len(s.Elsewhere) > 0 }

// strayOf looks at the relations by the child: a group that took the subvolume
// in is found wherever it is.
func strayOf(fs *os.File, subvolume uint64, group uint32) (Stray, error) {
	s := Stray{Subvolume: subvolume, Outside: group != NoGroup}
	parents := [2]uint64{1 << levelShift, anyNumber[1]}
	err := search(fs, quotaTree, qgroupRelationItem, one(subvolume), parents, func(it item) bool {
		if group != NoGroup && it.Offset == qgroupID(group) {
			s.Outside = false
		} else {
			s.Elsewhere = append(s.Elsewhere, it.Offset)
		}
		return true
	})
	if errors.Is(err, unix.ENOENT) { // quotas are off
		err = nil
	}
	return s, err
}

// PutBack charges a stray to the group 1/group alone, with all that it holds:
// into that group first, so that it is limited at every moment, and then out of
// the others. A second call changes nothing. A stray that was deleted meanwhile
// is no error.
func PutBack(fs *os.File, s Stray, group uint32) error {
	if s.Outside {
		err := AddMember(fs, s.Subvolume, group)
		if err != nil && isGone(fs, s.Subvolume) {
			return nil
		}
		if err != nil {
			return err
		}
	}
	for _, other := range s.Elsewhere {
		if err := leave(fs, s.Subvolume, other); err != nil {
			return err
		}
	}
	return nil
}

// leave takes a subvolume out of a group, with all that it is charged there.
func leave(fs *os.File, subvolume, qgroup uint64) error {
	err := assign(fs, subvolume, qgroup, false)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("take subvolume %d out of group %d/%d: %w",
			subvolume, level(qgroup), qgroup&(1<<levelShift-1), err)
	}
	return nil
}

func isGone(fs *os.File, subvolume uint64) bool {
	state, err := stateOf(fs, subvolume)
	return err == nil && state != rootLive
}

// Foreign returns the members of the group 1/group that are live and do not lie
// inside the subvolume id: what they hold is charged to a volume that it is not
// in.
func Foreign(fs *os.File, id uint64, group uint32) ([]uint64, error) {
	var foreign []uint64
	at, up := Cursor{}, newWayUp(fs, id)
	for {
		m, where, found, err := at.member(up, group)
		if err != nil || !found {
			return foreign, err
		}
		if where == elsewhere {
			foreign = append(foreign, m)
		}
	}
}

// Expel takes a subvolume out of the group 1/group. A second call changes
// nothing.
func Expel(fs *os.File, subvolume uint64, group uint32) error {
	return leave(fs, subvolume, qgroupID(group))
}

// whereabouts is where a subvolume lies, as seen from another one.
type whereabouts int

const (
	inside    whereabouts = iota // in it, at any depth, or it itself
	elsewhere                    // live, and not in it
	deleted                      // its place is gone
)

// wayUp tells where subvolumes lie as seen from one of them. It remembers what
// it met, so that ten thousand of them, one in the other, cost ten thousand
// looks.
type wayUp struct {
	fs    *os.File
	known map[uint64]whereabouts
}

func newWayUp(fs *os.File, id uint64) *wayUp {
	return &wayUp{fs: fs, known: map[uint64]whereabouts{id: inside}}
}

// from goes up from a subvolume until it meets one that it knows.
func (w *wayUp) from(subvolume uint64) (whereabouts, error) {
	var way []uint64
	met := map[uint64]bool{}
	where, known := w.known[subvolume]
	for at := subvolume; !known; where, known = w.known[at] {
		p, live, err := placeOf(w.fs, at)
		if err != nil {
			return deleted, err
		}
		if !live && at == subvolume && at != topSubvolume {
			return deleted, nil
		}
		way, met[at] = append(way, at), true
		// The top of the filesystem, or the way up changed while it was read.
		if !live || met[p.subvolume] {
			where = elsewhere
			break
		}
		at = p.subvolume
	}
	for _, id := range way {
		w.known[id] = where
	}
	return where, nil
}

// Loosen prepares the deletion of the volume whose subvolume is id and whose
// group is 1/group, NoGroup if it has none of its own.
//
// A full group refuses everything but unlink(2), the removal of a subvolume
// too, so its limit is lifted; and what lies in the volume leaves all other
// groups, which may be full as well. Members that do not lie in the volume
// leave its group: it is not to wait for them. It is for a volume that nobody
// uses and that will not be used again. A second call changes nothing.
func Loosen(fs *os.File, id uint64, group uint32) error {
	strays, err := Strays(fs, id, group)
	if err != nil {
		return err
	}
	for _, s := range strays {
		s.Outside = false // nobody writes to it any more
		if err := PutBack(fs, s, group); err != nil {
			return err
		}
	}
	if group == NoGroup {
		return nil
	}
	g, exists, err := GetGroup(fs, group)
	if err != nil || !exists {
		return err
	}
	if err := SetLimit(fs, group, 0); err != nil {
		return err
	}
	up := newWayUp(fs, id)
	for _, m := range g.Members {
		where, err := up.from(m)
		if err != nil {
			return err
		}
		if where == inside {
			continue
		}
		if err := Expel(fs, m, group); err != nil {
			return err
		}
	}
	return nil
}
