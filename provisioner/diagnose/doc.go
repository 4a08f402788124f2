// Package diagnose looks at a cluster through its API server, for a person who
// is on call: what is wrong, how bad it is, and what to do next. It changes
// nothing.
//
// One look (Look) reads what there is. All that follows from it is decided by
// functions of what was read, so that the same look always leads to the same
// words, and tests of them need no cluster.
//
// The files:
//
//	look.go      what is read of a cluster
//	finding.go   what is wrong: how bad, where, why, and what to do
//	remedies.go  what to do about each reason
//	nodes.go     nodes, their agents, and the controller
//	pools.go     pools
//	volumes.go   volumes, with what leads to them
//	claims.go    claims that wait, and why
//	events.go    the newest event that says something
//	story.go     all there is about one volume, pool or claim
//	usage.go     how full volumes are, as kubelets say
//	status.go    all of it on one screen
//
// And what it needs of the cluster, installed or not:
//
//	install.go         what is read of an installation, each part by itself
//	doctor.go          the checks, and what they come to
//	doctor_cluster.go  those of the cluster, of what may be done there, and before an install
//	doctor_quarry.go   those of Quarry's own programs and objects
//	rights.go          what its accounts cannot do without
//	kinds.go           whether the CustomResourceDefinitions are of this version
package diagnose
