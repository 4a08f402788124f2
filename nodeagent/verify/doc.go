// Package verify looks whether everything holds on a node's disks: records,
// quotas, images, loop devices, mounts, links, trash, adoptions. It compares what
// is written with what the kernel does, changes nothing, and says of each
// [Finding] whether there is a repair that loses no data.
//
// It looks through a [View]: with a store that runs ([Live]), whose locks keep
// its operations out, or with one that was only made ([Pools]), as `quarry
// verify` does beside an agent at work. It trusts neither: pools are opened and
// records read anew. It is run after every test of the store, and of every node
// after the tests of a whole cluster.
//
// # Files
//
//	verify.go   the view, pools, records, trash, leaks
//	data.go     a volume's data: directories, images, devices, mounts
//	quotas.go   quotas that belong to no volume, and to two
//	adoption.go adoptions that are not finished, and the links they left
//	findings.go what does not hold, and its repair
package verify
