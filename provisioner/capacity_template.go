package provisioner

import (
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// The cluster autoscaler asks whether a pod would fit on a node that does not
// exist yet. Nothing is published for such a node, so the answer would be no,
// and none would ever be made. Since 1.36 the nodes that it makes up carry a
// label of their own. Where an administrator says how large a new node's pools
// are, one more object for each class is published for that label.

const (
	// templateNodes is the key, and the annotation, of those objects. No node
	// is called so.
	templateNodes = "/template"
	// labelTemplateNode is on the nodes that the autoscaler makes up.
	labelTemplateNode = "cluster-autoscaler.kubernetes.io/template-node"
)

// template is the objects for nodes that do not exist yet, by name.
func (c *capacityPublisher) template(
	classes []storagev1.StorageClass,
) map[string]*storagev1.CSIStorageCapacity {
	want := map[string]*storagev1.CSIStorageCapacity{}
	if c.templateSize <= 0 {
		return want
	}

	size := resource.NewQuantity(c.templateSize, resource.BinarySI)
	for i := range classes {
		if class := &classes[i]; isOurClass(class) && waitsForConsumer(class) {
			object := c.object(
				class,
				templateNodes,
				map[string]string{labelTemplateNode: "true"},
				room{},
			)
			object.Capacity, object.MaximumVolumeSize = size, size
			want[object.Name] = object
		}
	}

	return want
}
