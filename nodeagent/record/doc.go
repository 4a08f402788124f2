// Package record is the format of what Quarry writes on a pool's disk. The disk
// is the truth: everything that is needed to bring a volume back after the
// cluster's own data is lost stands in the volume's directory, next to its
// data.
//
// Three files, each a JSON document of one form:
//
//	{"format": 1, "checksum": "sha256:<hex>", "<kind>": {...}}
//
//	.quarry/pool.json    Pool:   the identity of the pool
//	<id>/volume.json     Volume: one volume
//	<id>/trash.json      Trash:  the volume was deleted, and what that is to mean
//
// The checksum is taken over the compacted bytes of the body as they are read,
// so that a file can be read by people and changed by nobody. A file of another
// format or with a broken checksum is reported and left alone: an
// *UnreadableError.
package record
