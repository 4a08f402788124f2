// Package translate puts Volume objects into the store's words, and records on
// disk into Volume objects. It is the only place that knows both, and knows no
// cluster and no process: the agent, the CSI node service, a machine without a
// cluster and the administrator's commands all speak by it.
//
// Nothing of a Volume is lost on the way to the disk and back but what its
// record does not keep, which [VolumeOf] lists. A test fills every field, so
// that a new one cannot be forgotten.
//
//	request.go  a Volume object into a request to the store
//	volume.go   a record into a Volume object
//	status.go   what the store says of a volume into a Volume's status
//	inline.go   volumes that live and die with one pod
//	error.go    errors into the API's reasons
package translate
