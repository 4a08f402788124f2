// Package nodeagent does, on one node, what the Volume objects ask for, and
// says what is there.
//
// It watches only the Volumes of its own node (a field selector on
// spec.nodeName), keeps them on disk through package store, and writes their
// status and its own Pools. It has no rights on PersistentVolumes, claims, pods
// or secrets, and it emits no events: it sets conditions, the controller speaks
// to users.
//
// The disk comes first. At start the pools are opened and every volume is
// brought up before the API server is asked for anything, so that a node that
// boots while the control plane is down has its volumes.
//
// Nothing but spec.desiredState makes it remove data. A Volume that is gone
// from the API, or is being deleted there, leaves the volume on disk as it was;
// it is counted as an orphan until the controller writes the object again or a
// person decides.
//
// The process:
//
//	agent.go      what is started in which order; health
//	informers.go  changes of Volume and Pool objects, into the queue
//	lanes.go      the workers of the queue, and how many of them one pool may keep
//	mountwatch.go changes of the node's mounts
//	resync.go     changes on the disks: which Volumes say something else by now
//	metrics.go    what Prometheus sees
//
// One Volume:
//
//	reconcile.go  from what is wanted to what is: make, bring up, grow; its status
//	admission.go  the claims of one pod are promised room together
//	written.go    status that the cache does not have yet
//	failures.go   when a volume that cannot be made is given up
//	copies.go     what was found may be a copy of the volume
//	removal.go    into the trash, or deleted
//
// The node's pools:
//
//	poolstatus.go    Pool objects: room, conditions
//	poolidentity.go  which cluster this is, and which disk each pool must be
//	offline.go       why a pool is offline, as far as only the cluster knows it
//	takeover.go      a disk that another node had last; one identity on two nodes
//	orphans.go       volumes that no Volume object speaks of
//	machineid.go     which machine this is
//	machine.go       what the machine is like: kernel, system, SELinux, cgroups
//
//	verifyobjects.go  `quarry verify --cluster`: Volume objects against the disk
//
// Package translate puts Volume objects into the store's words and back.
package nodeagent
