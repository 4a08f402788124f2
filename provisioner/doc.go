// Package provisioner decides: it turns claims into Volume records, records
// into PersistentVolumes, and back. It never touches a disk and never imports
// the agent; the two meet in the record (api/v1alpha1).
//
// The files, in the order a claim meets them:
//
//	parameters.go  a StorageClass's parameters as one typed struct; reference.go documents them from the same table
//	claim.go       what of a claim can be served at all
//	placement.go   the node, where the scheduler did not choose one
//	pods.go        which pod uses a claim, and which claims belong together
//	local.go       the classic front door: Provision and Delete of the external-provisioner library
//	records.go     the one way in which a Volume record is made, waited for, published and given up (both front doors)
//	attempts.go    which of a claim's records to go on with, and what the next one is called
//	errors.go      every way to fail, and the one table of what follows from each
//	pv.go          a PersistentVolume from a record, and a record from a PersistentVolume
//	wake.go        claims that wait for something, and how they are woken without polling
//	agents.go      which nodes' agents are ready
//	heal.go        a record lost from the API is written again from its PersistentVolume
//	sweep.go       a record nobody wants any more is given up; a record whose data is gone is removed
//	capacity.go    what fits where, told to the scheduler
//	advice.go      why the scheduler finds no node for a claim
//	expansion.go   growth of classic volumes
//	news.go        conditions that agents set, told as events
//	controller.go  all of it wired together under one leader election
//
// The rules it lives by: intent is written before anything acts on it (a crash
// leaves a record, never a secret); spec.desiredState is the only thing that
// makes an agent remove data, and only Records and the sweep set it;
// spec.published is set before a PersistentVolume exists, and what was
// published is never swept; a record is removed only after its agent reported
// phase Deleted.
package provisioner
