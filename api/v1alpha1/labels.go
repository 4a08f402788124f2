package v1alpha1

// Names that are part of Quarry's contract with users: drivers, labels and
// annotations.
const (
	// LocalProvisioner is the StorageClass provisioner of classic volumes:
	// PersistentVolumes of the kind "local".
	LocalProvisioner = "local.quarry.storage"
	// CSIDriver is the StorageClass provisioner and CSI driver name of CSI
	// volumes.
	CSIDriver = "csi.quarry.storage"

	// TopologyNode is the topology key of CSI volumes; its value is the node's
	// name.
	TopologyNode = "topology.quarry.storage/node"

	// AttributeName is the attribute of a volume that holds the name a CSI
	// client gave it, where that name could not be the volume's own.
	AttributeName = "quarry.storage/name"

	// LabelPVName is set on a Volume: the PersistentVolume the attempt is made
	// for ("pvc-<claim UID>").
	LabelPVName = "quarry.storage/pv-name"
	// LabelNode is set on a Volume and a Pool: the node's name, for people who
	// list by label.
	LabelNode = "quarry.storage/node"
	// LabelPool is set on a Pool: the pool's name on its node.
	LabelPool = "quarry.storage/pool"

	// LabelOrphaned is "true" on a Volume that was published and has no
	// PersistentVolume any more: somebody took it away to rescue the data.
	// Nothing happens to it until a person decides.
	LabelOrphaned = "quarry.storage/orphaned"

	// AnnotationVolume is set on a PersistentVolume: the name of the Volume
	// behind it.
	AnnotationVolume = "quarry.storage/volume"
	// AnnotationNode and AnnotationNodeUID are set on a PersistentVolume: the
	// node that holds the data. The UID tells a node rebuilt under the same
	// name from the one the volume was made on.
	AnnotationNode    = "quarry.storage/node"
	AnnotationNodeUID = "quarry.storage/node-uid"
	// AnnotationPool is set on a PersistentVolume: the pool's name on the node.
	AnnotationPool = "quarry.storage/pool"
	// AnnotationParameters is set on a PersistentVolume: the class's parameters
	// the volume was made with, as JSON, so that a lost Volume can be written
	// again as it was.
	AnnotationParameters = "quarry.storage/parameters"
	// AnnotationGivenUp is set on a Volume by the controller: it is to be
	// deleted as an attempt that nobody was served from. Agents delete such a
	// volume only if nothing is in it.
	AnnotationGivenUp = "quarry.storage/given-up"
	// AnnotationReclaimPolicy is set on a PersistentVolume while it is being
	// replaced by one of the same name under policy Retain: the policy that the
	// new one gets.
	AnnotationReclaimPolicy = "quarry.storage/reclaim-policy"

	// AnnotationHold is set on a CSIStorageCapacity while sizes that the node
	// refused, although it seems to have room for them, are not offered to it.
	AnnotationHold = "quarry.storage/hold"
)
