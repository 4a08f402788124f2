// Package parameters is what a StorageClass may say: it parses and checks the
// parameters, writes them into the spec of a volume, and documents them. They
// are a contract with users, the same through both front doors and in the
// attributes of inline volumes, so nothing here knows of a controller.
//
//	parameters.go  Set, what the parameters of a class say, and Parse
//	table.go       the table of all parameters, which Parse and Reference share
//	apply.go       a Set written into a Volume's spec
//	alone.go       the parameters of a volume without a cluster
//	annotation.go  a Set as a PersistentVolume remembers it, and read from there
//	pools.go       which pools a class may use
//	reference.go   docs/reference/parameters.md
//	errors.go      Error, which names what is wrong and what would be right
package parameters
