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
//	  # What is kept free: a percentage of the filesystem, or a quantity (20Gi).
//	  reserve: 10%              # default 5%
//	  overcommit: "1.0"         # how often the rest may be promised; default 1.0
//	  # In loop images whose class names none: ext4, xfs or btrfs.
//	  defaultFilesystem: ext4   # default ext4
//	  # true: also on nfs, ceph, cifs, fuse, ...; no other node may have a pool
//	  # in the same directory.
//	  allowNetworkFilesystem: false
//	  # true: path must be a mount point, the root disk will not do.
//	  requireMountpoint: false
//	  # true: turn simple quotas on where the filesystem is btrfs and has none
//	  # (it concerns all of it).
//	  enableQuota: false
//	  # true: trash may be freed before its time when space runs out.
//	  purgeUnderPressure: false
//	nodes:
//	  node4:
//	    pools: []               # instead of the list above; empty: no pools
//	# Keep links named by namespace and claim beside the volumes.
//	byClaimIndex: true          # default true
//	# How many mkfs, copies and scrubs run at the same time on one node.
//	heavyJobs: 2                # default 2
//
// Everything is checked before anything is used, and a field that is not known
// is an error: a misspelt requireMountpoint must not mean false.
package config
