// Package config reads the agent's configuration: which directories of which
// nodes are pools, and what holds for each of them.
//
// The configuration is data and nothing else: no scripts, no templates, no
// paths computed from anything. All nodes read the same file (the chart puts
// it in a ConfigMap), so that an agent needs no right to read Node objects;
// what is particular to a node is found in it under the node's name.
//
//	pools:                      # of every node that is not under nodes
//	- name: default             # required; the Pool object is "<node>.default"
//	  path: /volumes            # required; absolute
//	  labels: {disk: fast}      # what a class's poolSelector chooses by
//	  reserve: 10%              # kept free: a percentage of the filesystem, or a quantity (20Gi); default 5%
//	  overcommit: "1.0"         # how many times the rest may be promised; default 1.0
//	  defaultFilesystem: ext4   # in loop images whose class names none: ext4, xfs or btrfs; default ext4
//	  allowNetworkFilesystem: false # true: also on nfs, ceph, cifs, fuse, ...; no other node may have a pool in the same directory
//	  requireMountpoint: false  # true: path must be a mount point, the root disk will not do
//	  enableQuota: false        # true: turn simple quotas on where the filesystem is btrfs and has none (it concerns all of it)
//	  purgeUnderPressure: false # true: trash may be freed before its time when space runs out
//	nodes:
//	  node4:
//	    pools: []               # replaces the list above on this node; an empty list means no pools
//	byClaimIndex: true          # keep links named by namespace and claim beside the volumes; default true
//	heavyJobs: 2                # mkfs, copies and scrubs at the same time on one node; default 2
//
// Everything is checked before anything is used, and a field that is not known
// is an error: a misspelt requireMountpoint must not mean false.
package config
