package filesystem

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Type is a kind of filesystem, as in mount(2).
type Type string

// The filesystems that volumes are made with.
const (
	Ext4  Type = "ext4"
	XFS   Type = "xfs"
	Btrfs Type = "btrfs"
)

// Types are all of them.
func Types() []Type { return []Type{Ext4, XFS, Btrfs} }

// Valid reports whether it is one of ours.
func (t Type) Valid() bool { return t == Ext4 || t == XFS || t == Btrfs }

// Info is what a superblock says.
type Info struct {
	Type      Type
	UUID      string // lower case, with hyphens
	Label     string
	SizeBytes int64 // of the filesystem, which may be smaller than its device
	BlockSize int64 // bytes

	// HasErrors: the kernel or fsck found damage that was not repaired (ext4).
	HasErrors bool
	// Clean: nothing has to be checked before a mount. A journal that has to be
	// replayed counts as clean, for that happens at mount.
	Clean bool
}

// ErrNone says that there is no filesystem: what was looked at reads as zeros.
var ErrNone = errors.New("blank: no filesystem")

// UnknownError says that there is something, and not one of our filesystems.
type UnknownError struct {
	Signature string // what it may be; can be empty
}

func (e *UnknownError) Error() string {
	if e.Signature != "" {
		return "not a filesystem of ours but " + e.Signature
	}
	return "not a filesystem of ours, and not blank"
}

// CorruptError says that a superblock is there and damaged.
type CorruptError struct {
	Type Type
	What string
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("the %s superblock is damaged: %s", e.Type, e.What)
}

// headBytes is what is looked at for signatures: the superblocks of all
// filesystems, volume managers and partition tables that keep theirs in front.
const headBytes = 1 << 20

// Identify tells what filesystem is on a device or in an image, from its
// superblock, with its checksum verified. It returns [ErrNone] if the first MiB
// is all zeros, an [*UnknownError] if it is something else, and a
// [*CorruptError] if the superblock is damaged. A device shorter than a MiB is
// looked at as far as it goes.
func Identify(r io.ReaderAt) (Info, error) {
	head := make([]byte, headBytes)
	n, err := r.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return Info{}, fmt.Errorf("read superblock: %w", err)
	}
	head = head[:n]
	switch {
	case at(head, 0, "XFSB"):
		return identifyXFS(head)
	case at(head, btrfsOffset+0x40, "_BHRfS_M"):
		return identifyBtrfs(head[btrfsOffset:])
	case at(head, extOffset+0x38, "\x53\xef"):
		return identifyExt(head[extOffset:])
	case isZero(head):
		return Info{}, ErrNone
	}
	return Info{}, &UnknownError{Signature: signature(head)}
}

// CheckBlank returns nil if the first and the last MiB of a device or image
// read as zeros, which is what [Make] wants to see. The end matters because
// software RAID and GPT keep a superblock there. Otherwise it returns an
// [*AlreadyFormattedError].
func CheckBlank(f *os.File) error {
	if isHole(f) {
		return nil
	}
	info, err := Identify(f)
	if err == nil {
		return &AlreadyFormattedError{Device: f.Name(), Found: fmt.Sprintf("%s with UUID %s",
			info.Type, info.UUID)}
	}
	if !errors.Is(err, ErrNone) {
		var unknown *UnknownError
		var corrupt *CorruptError
		if errors.As(err, &unknown) || errors.As(err, &corrupt) {
			return &AlreadyFormattedError{Device: f.Name(), Found: err.Error()}
		}
		return fmt.Errorf("%s: %w", f.Name(), err)
	}
	size, err := f.Seek(0, io.SeekEnd) // works on block devices too
	if err != nil {
		return err
	}
	tail := make([]byte, min(size, headBytes))
	if _, err := f.ReadAt(tail, size-int64(len(tail))); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if !isZero(tail) {
		return &AlreadyFormattedError{Device: f.Name(), Found: "data at its end"}
	}
	return nil
}

// isHole reports whether an image has nowhere any data, and so reads as zeros:
// it was never written to. That is known without reading it (SEEK_DATA of
// lseek(2)); space that is only reserved counts as a hole.
func isHole(f *os.File) bool {
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() {
		return false
	}
	_, err = unix.Seek(int(f.Fd()), 0, unix.SEEK_DATA)
	return errors.Is(err, unix.ENXIO)
}

// AlreadyFormattedError says that a device is not blank, so that it will not be
// formatted.
type AlreadyFormattedError struct {
	Device string
	Found  string
}

func (e *AlreadyFormattedError) Error() string {
	return fmt.Sprintf("%s will not be formatted, it has data: %s", e.Device, e.Found)
}

const (
	extOffset   = 1024
	btrfsOffset = 64 << 10
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// identifyExt reads struct ext4_super_block
// (Documentation/filesystems/ext4/super.rst).
func identifyExt(sb []byte) (Info, error) {
	const (
		incompatExtents       = 0x40
		incompat64Bit         = 0x80
		incompatJournalDevice = 0x8
		compatJournal         = 0x4
		roCompatMetadataCsum  = 0x400
		stateValid, stateErr  = 1, 2
	)
	if len(sb) < 1024 {
		return Info{}, &CorruptError{Ext4, "cut off"}
	}
	le := binary.LittleEndian
	compat, incompat, roCompat := le.Uint32(sb[0x5c:]), le.Uint32(sb[0x60:]), le.Uint32(sb[0x64:])
	if incompat&incompatJournalDevice != 0 {
		return Info{}, &UnknownError{Signature: "the external journal of an ext4"}
	}
	if incompat&incompatExtents == 0 {
		return Info{}, &UnknownError{Signature: "ext2 or ext3"}
	}
	if roCompat&roCompatMetadataCsum != 0 {
		// The kernel's crc32c leaves out the final inversion.
		if sum := ^crc32.Checksum(sb[:0x3fc], castagnoli); sum != le.Uint32(sb[0x3fc:]) {
			return Info{}, &CorruptError{Ext4, "wrong checksum"}
		}
	}
	shift := le.Uint32(sb[0x18:])
	if shift > 6 {
		return Info{}, &CorruptError{Ext4, "impossible block size"}
	}
	blocks := uint64(le.Uint32(sb[0x4:]))
	if incompat&incompat64Bit != 0 {
		blocks |= uint64(le.Uint32(sb[0x150:])) << 32
	}
	state := le.Uint16(sb[0x3a:])
	info := Info{
		Type: Ext4, UUID: formatUUID(sb[0x68:]), Label: text(sb[0x78:0x88]),
		BlockSize: 1024 << shift,
		HasErrors: state&stateErr != 0,
		// Without a journal, valid is cleared while it is mounted.
		Clean: state&stateErr == 0 && (state&stateValid != 0 || compat&compatJournal != 0),
	}
	info.SizeBytes = int64(blocks) * info.BlockSize
	return info, nil
}

// identifyXFS reads struct xfs_dsb (fs/xfs/libxfs/xfs_format.h), big-endian.
func identifyXFS(sb []byte) (Info, error) {
	const crcOffset = 224
	if len(sb) < 512 {
		return Info{}, &CorruptError{XFS, "cut off"}
	}
	be := binary.BigEndian
	sector := int(be.Uint16(sb[102:]))
	if sector < 512 || sector > 32768 || sector&(sector-1) != 0 || sector > len(sb) {
		return Info{}, &CorruptError{XFS, "impossible sector size"}
	}
	if version := be.Uint16(sb[100:]) & 0xf; version == 5 { // older ones have no checksum
		sum := crc32.Update(0, castagnoli, sb[:crcOffset])
		sum = crc32.Update(sum, castagnoli, make([]byte, 4)) // the field itself counts as 0
		sum = crc32.Update(sum, castagnoli, sb[crcOffset+4:sector])
		if sum != binary.LittleEndian.Uint32(sb[crcOffset:]) {
			return Info{}, &CorruptError{XFS, "wrong checksum"}
		}
	}
	if sb[126] != 0 { // sb_inprogress
		return Info{}, &CorruptError{XFS, "mkfs has not finished"}
	}
	block := int64(be.Uint32(sb[4:]))
	return Info{
		Type: XFS, UUID: formatUUID(sb[32:]), Label: text(sb[108:120]),
		BlockSize: block, SizeBytes: int64(be.Uint64(sb[8:])) * block, Clean: true,
	}, nil
}

// identifyBtrfs reads struct btrfs_super_block
// (include/uapi/linux/btrfs_tree.h).
func identifyBtrfs(sb []byte) (Info, error) {
	if len(sb) < 4096 {
		return Info{}, &CorruptError{Btrfs, "cut off"}
	}
	le := binary.LittleEndian
	// crc32c; the others take more than they are worth here.
	if checksumType := le.Uint16(sb[0xc4:]); checksumType == 0 {
		if crc32.Checksum(sb[0x20:4096], castagnoli) != le.Uint32(sb) {
			return Info{}, &CorruptError{Btrfs, "wrong checksum"}
		}
	}
	return Info{
		Type: Btrfs, UUID: formatUUID(sb[0x20:]), Label: text(sb[0x12b : 0x12b+256]),
		BlockSize: int64(le.Uint32(sb[0x90:])), SizeBytes: int64(le.Uint64(sb[0x70:])), Clean: true,
	}, nil
}

// signature gives a name to what else is found in practice, for people.
func signature(head []byte) string {
	for _, s := range []struct {
		offset int
		magic  string
		name   string
	}{
		{0, "LUKS\xba\xbe", "an encrypted volume (LUKS)"},
		{512, "LABELONE", "an LVM physical volume"},
		{4096, "\xfc\x4e\x2b\xa9", "a software RAID member (md)"},
		{0, "\xfc\x4e\x2b\xa9", "a software RAID member (md)"},
		{4086, "SWAPSPACE2", "swap space"},
		{0, "hsqs", "squashfs"},
		{1024, "\x10\x20\xf5\xf2", "f2fs"},
		{32769, "CD001", "ISO 9660"},
		{3, "NTFS    ", "NTFS"},
		{512, "EFI PART", "a partition table (GPT)"},
		{510, "\x55\xaa", "a partition table (MBR) or FAT"},
	} {
		if at(head, s.offset, s.magic) {
			return s.name
		}
	}
	return ""
}

func at(b []byte, offset int, magic string) bool {
	return len(b) >= offset+len(magic) && string(b[offset:offset+len(magic)]) == magic
}

func isZero(b []byte) bool { return len(bytes.TrimLeft(b, "\x00")) == 0 }

func text(b []byte) string {
	s, _, _ := strings.Cut(string(b), "\x00")
	return s
}

func formatUUID(b []byte) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:16])
}
