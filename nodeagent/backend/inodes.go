package backend

import "github.com/quarry-storage/quarry/nodeagent/record"

// How many files a directory volume may hold where nobody said: in proportion
// to its size, as many as mke2fs(8) makes room for. Inodes are the
// filesystem's, which is the node's root disk where nothing else is configured,
// and a program that makes empty files would take them from everybody.
const (
	bytesPerInode = 16 << 10
	// Small volumes get one for each block, up to fewInodes.
	bytesPerInodeSmall = 4 << 10
	fewInodes          = 32 << 10
	leastInodes        = 1 << 10
)

// DefaultInodes is how many files a directory volume of size bytes may hold. It
// never falls as the size grows.
func DefaultInodes(size int64) int64 {
	return max(size/bytesPerInode, min(size/bytesPerInodeSmall, fewInodes), leastInodes)
}

// InodesAt is how many files the volume may hold when it is of size bytes; 0:
// no limit of its own.
func InodesAt(rec *record.Volume, size int64) int64 {
	if rec.InodesBySize {
		return max(rec.Inodes, DefaultInodes(size))
	}
	return rec.Inodes
}

// InodesHold reports whether a limit in force is the record's, while the volume
// grows also that of the size it grows to.
func InodesHold(rec *record.Volume, limit uint64) bool {
	return limit >= uint64(InodesAt(rec, rec.SizeBytes)) &&
		limit <= uint64(InodesAt(rec, rec.Promise()))
}
