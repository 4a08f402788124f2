// Package nodeagent does, on one node, what the records ask for, and says what is there.
//
// It watches only the Volumes of its own node (a field selector on spec.nodeName), keeps them on disk through package store,
// and writes their status and its own Pools. It has no rights on PersistentVolumes, claims, pods or secrets, and it emits no
// events: it sets conditions, the controller speaks to users.
//
// The disk comes first. At start the pools are opened and every volume is brought up before the API server is asked for
// anything, so that a node that boots while the control plane is down has its volumes.
//
// Nothing but spec.desiredState makes it remove data. A Volume that is gone from the API, or is being deleted there, leaves
// the volume on disk as it was; it is counted as an orphan until the controller writes the record again or a person decides.
//
// Files:
//
//	agent.go    the process: what is started in which order
//	volumes.go  one Volume: from what is wanted to what is
//	groups.go   the claims of one pod, admitted together
//	wish.go     words of the API into words of the store, and back
//	pools.go    Pool objects: identity and room
//	mounts.go   told by the kernel when mounts change
//	metrics.go  what Prometheus sees
package nodeagent
