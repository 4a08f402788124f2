// Package provisioner decides, for the whole cluster: it turns claims into
// Volume objects, those into PersistentVolumes, and takes them back. It never
// touches a disk and never imports the agent; the two meet in the Volume object
// (api/v1alpha1). What a StorageClass may say is package parameters.
//
// A claim meets these files, in this order:
//
//	localdoor.go       the classic front door: Provision, as the library calls it
//	csidoor.go         the CSI front door: what package csi asks of a cluster
//	frontdoor.go       what both of them need
//	claim.go           which claims can be served, and the wish that one becomes
//	claim_labels.go    which of a claim's labels its volume keeps
//	selector.go        a claim's selector, which chooses among pools
//	placement.go       the node, where the scheduler did not choose one
//	recentrefusals.go  which nodes refused lately, for that choice
//	nodes.go           whether a node exists
//	agents.go          which nodes' agents are ready
//	pods.go            which pods use a claim, and which claims belong together
//	attempts.go        which Volume of a claim to go on with, and what the next one is called
//	volumeobjects.go   the one way in which a Volume object is made, waited for and given up
//	patience.go        how long a worker waits for an agent, and when another node is tried
//	broadcast.go       how a worker waits for a change without polling
//	pv.go              a PersistentVolume from a Volume, and a Volume from a PersistentVolume
//	errors.go          every way to fail, and the one table of what follows from each
//	explained.go       the text of an event taken apart again, for those who look
//
// What is not served is tried again:
//
//	wake.go         claims and PersistentVolumes that wait, and how they are woken
//	wake_causes.go  what may end which wait
//	wake_index.go   who waits for a node or a class
//
// The end of a volume:
//
//	delete.go      Delete of the classic front door, and how both have a volume deleted
//	recentkeys.go  the deletions that were confirmed lately
//	sweep.go       attempts that nobody wants, and Volume objects whose data is gone
//	orphans.go     volumes that no PersistentVolume leads to any more
//	gonenodes.go   what speaks of nodes that do not exist any more
//
// What else happens to it:
//
//	expansion.go      growth of classic volumes
//	attributes.go     a VolumeAttributesClass, which changes nothing
//	nodeloss.go       claims that start over when their node is lost (onNodeLoss)
//	restorevolume.go  a lost Volume object is written again from its PersistentVolume
//
// What others are told:
//
//	capacity.go              how much fits where, for the scheduler (CSIStorageCapacity)
//	capacity_changes.go      which change of it is worth a write, and when
//	capacity_demand.go       the sizes that the scheduler looks for in vain
//	capacity_hold.go         what a node refused is not offered there for a while
//	capacity_template.go     nodes that do not exist yet, for the cluster autoscaler
//	capacity_controller.go   what has a node's capacity written again
//	unschedulable.go         the event that says why no node can take a claim
//	unschedulable_bypass.go  the event for a pod that goes past the scheduler
//	unschedulable_survey.go  looks at all nodes that many claims share
//	conditionevents.go       conditions that agents set, told as events
//	eventrecorder.go         events, as people can read them
//	metrics.go               the metrics
//
// And the process:
//
//	controller.go     all of it wired together, under one leader election
//	options.go        its settings, and those of the manager
//	library.go        the external-provisioner library, and its options
//	library_view.go   the caches as the library may have them
//	informers.go      the informers, connected with what waits for them
//	cache_indexes.go  how an event finds what it concerns
//	cache_pack.go     objects that rest lie packed in the caches
//	cache_walk.go     a look at each of them when a loop starts
//	cache_trim.go     what the caches keep of nodes and pods
//
// The rules it lives by: an intent is written down before anything acts on it,
// so a crash leaves a Volume object that says what was under way;
// spec.desiredState is the only thing that makes an agent remove data, and only
// volumeObjects and the sweep set it; what was published is never swept, and a
// Volume is marked as published some minutes after its PersistentVolume was
// made, or with whatever else is written of it; a Volume object is removed only
// after its agent reported phase Deleted.
package provisioner
