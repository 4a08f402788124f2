// Package rescue brings volumes back: from the trash, after their
// PersistentVolume was taken away, from disks whose cluster lost its data or
// that moved to another node, and out of data that was on a node before Quarry.
//
// It runs on an administrator's machine with an administrator's rights, next to
// a cluster that works on the same objects. So everything here reads live,
// decides by what it read, writes one object at a time in an order in which a
// crash between any two writes leaves nothing that would be deleted, and can be
// run again: it goes on where it stopped.
//
// Three rules keep data from being lost, and each function's order of writes
// follows from them:
//   - A PersistentVolume with policy Delete whose claimRef has the UID of a
//     claim that does not exist is Released, and its data is deleted. So a UID
//     is only ever written of a claim that was just read; else the claim is
//     named without it, and the binder fills it in.
//   - A claim that was bound before (phase Lost) comes back only to a
//     PersistentVolume whose claimRef has its UID.
//   - The controller writes a lost Volume again from its PersistentVolume,
//     under the node that one names. A PersistentVolume that is being replaced
//     says so (v1alpha1.AnnotationReclaimPolicy), and is left alone.
//
// The files:
//
//	rescuer.go    the Rescuer, which works on a cluster
//	restore.go    a volume back from the trash, or one without a
//	              PersistentVolume; deleting one for good
//	snapshot.go   what there is, on disk and in the cluster, at one time
//	plan.go       what would make the cluster whole again, and what a person has to decide
//	plan_move.go  the part of the plan for volumes whose disk is on another node now
//	apply.go      a plan carried out
//	move.go       the objects of a moved volume, replaced one after the other
//	adopt.go      data that was on a node before Quarry becomes a volume
//	handover.go   a PersistentVolume made by hand becomes one of Quarry's
//	objects.go    the PersistentVolume and the claim of a volume, as they are to be
//	write.go      Volumes, PersistentVolumes and claims, written so that a second call finds them
//	await.go      waits for agents and for the binder
package rescue
