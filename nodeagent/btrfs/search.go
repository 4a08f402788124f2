package btrfs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Trees, from linux/btrfs_tree.h.
const (
	rootTree  = 1
	quotaTree = 8
)

// Types of items, from linux/btrfs_tree.h.
const (
	inodeItem          = 1   // (inode, inodeItem, 0), in a subvolume's own tree
	rootItem           = 132 // (subvolume, rootItem, transaction of its creation if a snapshot)
	rootBackref        = 144 // (subvolume, rootBackref, the one it is in)
	rootRef            = 156 // (subvolume, rootRef, one made in it)
	qgroupStatusItem   = 240 // (0, qgroupStatusItem, 0)
	qgroupInfoItem     = 242 // (0, qgroupInfoItem, group)
	qgroupLimitItem    = 244 // (0, qgroupLimitItem, group)
	qgroupRelationItem = 246 // (group, qgroupRelationItem, parent or child)
)

// searchKey is struct btrfs_ioctl_search_key followed by the buffer's size:
// what struct btrfs_ioctl_search_args_v2 is before its buffer.
type searchKey struct {
	Tree                   uint64
	MinObject, MaxObject   uint64
	MinOffset, MaxOffset   uint64
	MinTransID, MaxTransID uint64
	MinType, MaxType       uint32
	Items                  uint32
	_                      uint32
	_                      [4]uint64
	BufSize                uint64
}

// item is what a tree holds under a key. Data is valid until the next one.
type item struct {
	Object, Offset uint64
	Data           []byte
}

// searchBuffer is the room for items of one call; the largest we look for is a
// ROOT_REF with a name of 255 bytes.
const searchBuffer = 16 << 10

// topSubvolume is the id of the one that all others lie in
// (BTRFS_FS_TREE_OBJECTID).
const topSubvolume = 5

const searchHeader = 32 // size of struct btrfs_ioctl_search_header

// search calls found with the items of one type whose objects and offsets are
// in the given ranges, in order, until it returns false. It needs
// CAP_SYS_ADMIN. ENOENT means that the filesystem has no such tree.
func search(fs *os.File, tree uint64, kind uint32, objects, offsets [2]uint64,
	found func(item) bool) error {
	var args struct {
		searchKey
		Buf [searchBuffer]byte
	}
	from := [2]uint64{objects[0], offsets[0]}
	for {
		args.searchKey = searchKey{
			Tree:      tree,
			MinObject: from[0], MaxObject: objects[1],
			// The range of keys is one slice of (object, type, offset), so
			// that other offsets and types come along: see below.
			MinOffset: from[1], MaxOffset: offsets[1],
			MaxTransID: math.MaxUint64,
			MinType:    kind, MaxType: kind,
			Items:   math.MaxUint32,
			BufSize: searchBuffer,
		}
		if err := ioctl(fs, iocTreeSearchV2, unsafe.Pointer(&args)); err != nil {
			return fmt.Errorf("search tree %d: %w", tree, err)
		}
		if args.Items == 0 {
			return nil
		}
		buf := args.Buf[:]
		for range args.Items {
			h := buf[:searchHeader] // transid, objectid, offset; type, len
			it := item{
				Object: binary.NativeEndian.Uint64(h[8:]),
				Offset: binary.NativeEndian.Uint64(h[16:]),
			}
			itemKind := binary.NativeEndian.Uint32(h[24:])
			end := searchHeader + binary.NativeEndian.Uint32(h[28:])
			it.Data, buf = buf[searchHeader:end], buf[end:]
			from = [2]uint64{it.Object, it.Offset}
			if itemKind == kind && it.Offset >= offsets[0] && it.Offset <= offsets[1] &&
				!found(it) {
				return nil
			}
		}
		// Go on after the last key seen.
		switch {
		case from[1] < math.MaxUint64:
			from[1]++
		case from[0] < objects[1]:
			from = [2]uint64{from[0] + 1, 0}
		default:
			return nil
		}
	}
}

// one is the range of a single number.
func one(n uint64) [2]uint64 { return [2]uint64{n, n} }

// anyNumber is the range of all numbers.
var anyNumber = [2]uint64{0, math.MaxUint64}

// le64 is the n-th little-endian number of an item.
func le64(b []byte, n int) uint64 {
	if len(b) < 8*(n+1) {
		return 0
	}
	return binary.LittleEndian.Uint64(b[8*n:])
}

// rootState is how far a subvolume is on its way out.
type rootState int

const (
	rootGone    rootState = iota // no trace in the root tree
	rootDropped                  // deleted; the cleaner has yet to free it
	rootLive
)

// stateOf tells by the subvolume's place in another one, which goes at once
// when it is deleted, and by its root item, which goes when it is freed.
func stateOf(fs *os.File, subvolume uint64) (rootState, error) {
	if subvolume == topSubvolume { // it is in no other
		return rootLive, nil
	}
	_, live, err := placeOf(fs, subvolume)
	if err != nil {
		return rootGone, err
	}
	if live {
		return rootLive, nil
	}
	state := rootGone
	err = search(fs, rootTree, rootItem, one(subvolume), anyNumber, func(item) bool {
		state = rootDropped
		return false
	})
	return state, err
}

// place is where a subvolume is.
type place struct {
	subvolume, inode uint64 // the directory, in another subvolume
	name             string
}

// placeOf returns where a subvolume is, and false if it is deleted.
func placeOf(fs *os.File, subvolume uint64) (p place, live bool, err error) {
	// struct btrfs_root_ref: the directory's inode (8 bytes), a sequence (8),
	// the length of the name (2), the name.
	const nameAt = 18
	err = search(fs, rootTree, rootBackref, one(subvolume), anyNumber, func(it item) bool {
		live = len(it.Data) > nameAt
		if live {
			p = place{it.Offset, le64(it.Data, 0), string(it.Data[nameAt:])}
		}
		return false
	})
	return p, live, err
}

// openByID opens a directory of a subvolume without a path, so that nothing a
// tenant does to names matters. ENOENT means that it is gone. See
// open_by_handle_at(2); the handle is struct btrfs_fid without a parent.
func openByID(fs *os.File, subvolume, inode uint64) (*os.File, error) {
	const withoutParent = 0x4d // FILEID_BTRFS_WITHOUT_PARENT
	name := fmt.Sprintf("inode %d of subvolume %d", inode, subvolume)
	generation, err := generationOf(fs, subvolume, inode)
	if err != nil {
		return nil, &os.PathError{Op: "look up", Path: name, Err: err}
	}
	var fid [20]byte
	binary.NativeEndian.PutUint64(fid[0:], inode)
	binary.NativeEndian.PutUint64(fid[8:], subvolume)
	binary.NativeEndian.PutUint32(fid[16:], generation)
	handle := unix.NewFileHandle(withoutParent, fid[:])
	var fd int
	err = control(fs, func(mount int) (err error) {
		fd, err = unix.OpenByHandleAt(mount, handle,
			unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOATIME|unix.O_CLOEXEC)
		return err
	})
	if errors.Is(err, unix.ESTALE) { // gone since it was looked up
		err = unix.ENOENT
	}
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

// generationOf returns what tells an inode from others that had its number.
func generationOf(fs *os.File, subvolume, inode uint64) (uint32, error) {
	var generation uint32
	found := false
	err := search(fs, subvolume, inodeItem, one(inode), one(0), func(it item) bool {
		generation, found = uint32(le64(it.Data, 0)), true
		return false
	})
	if err == nil && !found {
		err = unix.ENOENT
	}
	return generation, err
}
