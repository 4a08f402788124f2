// Package publish offers a node's volumes at paths that somebody else names:
// kubelet, for pods. It is the node side of the CSI front door, without a word
// of CSI: package csi declares what it needs of it.
//
// The kernel is the only memory. What is published where is read from the mount
// table, so a restart forgets nothing, and a second call of anything finds what
// the first one did.
//
// A volume is bound by a descriptor that is proven to be it (store.Open), never
// by path, at a target that is opened without following a link in its last
// element. What is found mounted at a target is compared with the volume before
// it is taken for it, and before it is unmounted.
//
// # A Block volume that is published read-only
//
// A read-only bind mount of a device node protects the node and not the device,
// and BLKROSET would stop the other users of the device too, though not those
// that have it open. So a read-only publish gets a loop device of its own over
// the volume's device (loop.AttachReadOnly), on which the kernel refuses writes
// whoever opens it. It comes with the first read-only publish and goes with the
// last. A crash between its making and its binding leaves it behind; Sweep, at
// the program's start, takes it away, and it keeps a volume from being deleted
// until then.
package publish
