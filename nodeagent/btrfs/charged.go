package btrfs

import (
	"errors"
	"math"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// A Cursor is a place in the look at what a volume is charged, kept between
// calls without holding anything open. The zero Cursor is the beginning.
type Cursor struct {
	begun bool
	// way leads from the volume's subvolume down to the one whose own are being
	// read; on are those on it.
	way []branch
	on  map[uint64]struct{}
	// inside: all that lies in the volume was looked at; last is the member of
	// its group that was then looked at last.
	inside bool
	last   uint64
	done   bool
}

// branch is a subvolume, and the last of those in it that was looked at.
type branch struct{ subvolume, after uint64 }

// Done reports whether all was looked at.
func (c *Cursor) Done() bool { return c.done }

// Charged is Strays and Foreign for a slice of time, from the cursor on: a
// tenant can make a hundred thousand subvolumes. It returns what was found in
// the slice, looks at one subvolume at least, and at least for as long as the
// first took.
func Charged(fs *os.File, id uint64, group uint32, at *Cursor, slice time.Duration) (strays []Stray,
	foreign []uint64, err error) {
	var until time.Time
	up := newWayUp(fs, id)
	for started := time.Now(); !at.done; {
		if !at.inside {
			s, found, err := at.within(fs, id, group)
			if err != nil {
				return strays, foreign, err
			}
			at.inside = !found
			if found && s.isStray() {
				strays = append(strays, s)
			}
		} else {
			m, where, found, err := at.member(up, group)
			if err != nil {
				return strays, foreign, err
			}
			at.done = !found
			if found && where == elsewhere {
				foreign = append(foreign, m)
			}
		}
		now := time.Now()
		if until.IsZero() {
			until = now.Add(max(slice, now.Sub(started)))
		}
		if !now.Before(until) {
			break
		}
	}
	return strays, foreign, nil
}

// within looks at the next subvolume that lies in the volume, itself the first.
// found is false when there is none left.
func (c *Cursor) within(fs *os.File, id uint64, group uint32) (s Stray, found bool, err error) {
	if !c.begun {
		c.begun, c.on = true, map[uint64]struct{}{}
		return c.enter(fs, id, group)
	}
	for len(c.way) > 0 {
		here := &c.way[len(c.way)-1]
		next, more := uint64(0), false
		err := search(fs, rootTree, rootRef, one(here.subvolume), after(here.after),
			func(it item) bool {
				next, more = it.Offset, true
				return false
			})
		if err != nil {
			return s, false, err
		}
		if !more {
			delete(c.on, here.subvolume)
			c.way = c.way[:len(c.way)-1]
			continue
		}
		here.after = next
		if _, circle := c.on[next]; circle {
			continue // moved about meanwhile
		}
		return c.enter(fs, next, group)
	}
	return s, false, nil
}

// enter looks at a subvolume, and has those in it looked at next.
func (c *Cursor) enter(fs *os.File, subvolume uint64, group uint32) (Stray, bool, error) {
	c.way = append(c.way, branch{subvolume: subvolume})
	c.on[subvolume] = struct{}{}
	s, err := strayOf(fs, subvolume, group)
	return s, err == nil, err
}

// member looks where the next member of the group 1/group lies. found is false
// when there is none left.
func (c *Cursor) member(up *wayUp, group uint32) (m uint64, where whereabouts, found bool,
	err error) {
	if group == NoGroup {
		return 0, deleted, false, nil
	}
	subvolumes := after(c.last)
	subvolumes[1] = 1<<levelShift - 1
	err = search(up.fs, quotaTree, qgroupRelationItem, one(qgroupID(group)), subvolumes,
		func(it item) bool {
			m, found = it.Offset, true
			return false
		})
	if errors.Is(err, unix.ENOENT) { // quotas are off
		return 0, deleted, false, nil
	}
	if err != nil || !found {
		return 0, deleted, false, err
	}
	c.last = m
	where, err = up.from(m)
	return m, where, err == nil, err
}

// after is the range of the numbers behind one.
func after(n uint64) [2]uint64 { return [2]uint64{n + 1, math.MaxUint64} }
