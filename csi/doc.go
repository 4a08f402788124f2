// Package csi translates: Identity, Controller and Node of the Container
// Storage Interface, v1.13.0, driver csi.quarry.storage. It validates what a
// caller sends, says it in the API's words, lets others do the work, and turns
// what they answer back into the specification's messages and codes. There is
// no storage logic here, and no state but the list of volumes that an operation
// is in flight on.
//
// What does the work is declared in volumes.go and handed in by the program: on
// a cluster the controller service stands over the Volume records (package
// provisioner), on one machine over the store itself (package standalone); the
// node service always stands over the store (package publish).
//
//	volumes.go     what this package needs of others
//	codes.go       the one table from reasons to gRPC codes
//	identity.go    the Identity service
//	controller.go  the Controller service
//	create.go      CreateVolume
//	list.go        ListVolumes
//	node.go        the Node service
//	publish.go     NodePublishVolume, and inline volumes
//	capability.go  which access modes and kinds of volumes are given
//	ids.go         the ids that callers know volumes by
//	request.go     limits on what a caller may send
//	server.go      the gRPC server
//	intercept.go   what every call passes: a log, a net for panics, one change at
//	               a time for each volume
//	inflight.go    the volumes that an operation is in flight on
//	socket.go      the unix socket
//
// A rule that is not obvious carries the place it comes from; "spec" is spec.md
// of the Container Storage Interface v1.13.0.
package csi
