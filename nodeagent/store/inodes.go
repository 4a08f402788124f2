package store

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

// UnlimitedInodes is Request.Inodes of a volume that may hold as many files as
// its pool's filesystem.
const UnlimitedInodes = -1

// DefaultInodes is how many files a directory volume of size bytes may hold. It
// never falls as the size grows.
func DefaultInodes(size int64) int64 {
	return max(size/bytesPerInode, min(size/bytesPerInodeSmall, fewInodes), leastInodes)
}

// setInodes notes in a new volume's record what limits its files. What is
// adopted has more than anybody foresaw: it is limited only where that was
// asked for.
func setInodes(rec *record.Volume, r *Request, p plan) {
	rec.Inodes = max(r.Inodes, 0)
	if r.Inodes == 0 && p.quotaKind == record.QuotaProject && !r.adopts() {
		rec.InodesBySize, rec.Inodes = true, DefaultInodes(rec.SizeBytes)
	}
}

// inodesAt is how many files the volume may hold when it is of size bytes; 0:
// no limit of its own.
func inodesAt(rec *record.Volume, size int64) int64 {
	if rec.InodesBySize {
		return max(rec.Inodes, DefaultInodes(size))
	}
	return rec.Inodes
}

// inodesHold reports whether a limit in force is the record's, while the volume
// grows also that of the size it grows to.
func inodesHold(rec *record.Volume, limit uint64) bool {
	return limit >= uint64(inodesAt(rec, rec.SizeBytes)) &&
		limit <= uint64(inodesAt(rec, rec.Promise()))
}
