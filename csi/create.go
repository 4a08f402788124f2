package csi

import (
	"context"
	"maps"
	"slices"
	"strings"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

const (
	// defaultSize is the size of a volume where the caller gives none, in
	// bytes.
	defaultSize = 1 << 30
	// sizeUnit is what sizes are rounded up to, in bytes: the block of every
	// filesystem.
	sizeUnit = 4096
	// maxSize is the largest size there can be, in bytes.
	maxSize = 1 << 60
)

// What external-provisioner --extra-create-metadata adds to the parameters.
const (
	claimNameKey      = "csi.storage.k8s.io/pvc/name"
	claimNamespaceKey = "csi.storage.k8s.io/pvc/namespace"
)

// CreateVolume implements the RPC.
func (c *Controller) CreateVolume(
	ctx context.Context,
	req *spec.CreateVolumeRequest,
) (*spec.CreateVolumeResponse, error) {
	key, err := keyOf(req.GetName())
	if err != nil {
		return nil, err
	}

	w, err := wanted(req.GetVolumeCapabilities())
	if err != nil {
		return nil, err
	}
	if err := checkMap("parameters", req.GetParameters()); err != nil {
		return nil, err
	}
	if len(req.GetMutableParameters()) > 0 {
		return nil, invalid("mutable_parameters: volumes have no attributes that change")
	}
	if req.GetVolumeContentSource() != nil {
		return nil, invalid("volume_content_source: volumes are made empty")
	}

	size, err := sizeFor(req.GetCapacityRange())
	if err != nil {
		return nil, err
	}

	nodes, err := nodesFor(req.GetAccessibilityRequirements())
	if err != nil {
		return nil, err
	}

	wish := v1alpha1.VolumeSpec{
		DesiredState: v1alpha1.DesiredPresent,
		VolumeMode:   w.mode,
		AccessModes:  w.accesses,
		MountOptions: w.mountFlags,
		Capacity:     *resource.NewQuantity(size, resource.BinarySI),
		Provisioner:  v1alpha1.CSIDriver,
		Claim:        claimOf(req.GetName(), req.GetParameters()),
	}
	if key != req.GetName() {
		// For people: the id does not say which volume of theirs it is.
		wish.Attributes = map[string]string{v1alpha1.AttributeName: req.GetName()}
	}

	parameters, err := c.Parameters(withFSType(req.GetParameters(), w.fsType), &wish)
	if err != nil {
		return nil, toStatus(err)
	}

	v, err := c.Volumes.Ensure(ctx, key, wish, nodes)
	if err != nil {
		return nil, toStatus(err)
	}
	if have, r := capacityOf(
		v,
	), req.GetCapacityRange(); have < r.GetRequiredBytes() ||
		r.GetLimitBytes() > 0 && have > r.GetLimitBytes() {
		return nil, status.Errorf(
			codes.AlreadyExists,
			"volume %s exists with %d bytes, which is not within the range asked for now",
			v.Name,
			have,
		)
	}
	if why := w.mismatch(v); why != "" {
		return nil, status.Errorf(codes.AlreadyExists, "volume %s exists: %s", v.Name, why)
	}

	return &spec.CreateVolumeResponse{Volume: message(v, parameters)}, nil
}

// withFSType gives a capability's filesystem type to volumes whose class names
// none. Where the class names the same, as external-provisioner makes it,
// nothing changes; where it names another, the parameters' own check says so.
func withFSType(class map[string]string, fsType string) map[string]string {
	const key = "csi.storage.k8s.io/fstype"
	if fsType == "" || class[key] == fsType {
		return class
	}

	with := map[string]string{}
	maps.Copy(with, class)

	if with[key] == "" {
		with[key] = fsType
	}

	return with
}

// claimOf is the claim a volume is for, as far as the sidecar tells; nil where
// nobody does. It names volumes pvc-<claim UID>.
func claimOf(name string, parameters map[string]string) *v1alpha1.ClaimReference {
	ref := &v1alpha1.ClaimReference{
		Namespace: parameters[claimNamespaceKey],
		Name:      parameters[claimNameKey],
	}
	if ref.Namespace == "" || ref.Name == "" {
		return nil
	}
	if uid, ok := strings.CutPrefix(name, "pvc-"); ok {
		ref.UID = types.UID(uid)
	}
	return ref
}

// sizeFor chooses the size of a new volume.
func sizeFor(r *spec.CapacityRange) (int64, error) {
	required, limit := r.GetRequiredBytes(), r.GetLimitBytes()
	if err := checkRange(required, limit); err != nil {
		return 0, err
	}

	size := required
	switch {
	case size == 0 && limit > 0:
		size = min(defaultSize, limit/sizeUnit*sizeUnit)
	case size == 0:
		size = defaultSize
	}

	size = (size + sizeUnit - 1) / sizeUnit * sizeUnit
	if size == 0 || limit > 0 && size > limit {
		return 0, status.Errorf(
			codes.OutOfRange,
			"no multiple of %d lies between required_bytes %d and limit_bytes %d",
			sizeUnit,
			required,
			limit,
		)
	}

	return size, nil
}

// expandTo is the size to grow to.
func expandTo(r *spec.CapacityRange) (int64, error) {
	if r == nil {
		return 0, invalid("capacity_range is missing")
	}
	if err := checkRange(r.GetRequiredBytes(), r.GetLimitBytes()); err != nil {
		return 0, err
	}
	if r.GetRequiredBytes() == 0 {
		return 0, invalid("capacity_range has no required_bytes")
	}
	return sizeFor(r)
}

func checkRange(required, limit int64) error {
	switch {
	case required < 0 || limit < 0:
		return status.Errorf(codes.OutOfRange,
			"required_bytes %d and limit_bytes %d: a size is not negative", required, limit)
	case limit > 0 && required > limit:
		return status.Errorf(codes.OutOfRange,
			"required_bytes %d is more than limit_bytes %d", required, limit)
	case required > maxSize:
		return status.Errorf(codes.OutOfRange, "required_bytes %d: no disk is that large", required)
	}
	return nil
}

// nodesFor reads the nodes that will do, the best first; none: any.
func nodesFor(t *spec.TopologyRequirement) ([]string, error) {
	if len(t.GetRequisite())+len(t.GetPreferred()) == 0 {
		return nil, nil
	}

	allowed := segmentNodes(t.GetRequisite())
	var nodes []string
	for _, node := range append(segmentNodes(t.GetPreferred()), allowed...) {
		// Preferred topologies are among the requisite ones, where those are
		// given (spec, TopologyRequirement).
		if !slices.Contains(nodes, node) &&
			(len(t.GetRequisite()) == 0 || slices.Contains(allowed, node)) {
			nodes = append(nodes, node)
		}
	}

	if len(nodes) == 0 {
		return nil, status.Errorf(
			codes.ResourceExhausted,
			"none of the topologies asked for has a %s, so none is a node with Quarry",
			v1alpha1.TopologyNode,
		)
	}

	return nodes, nil
}

func segmentNodes(topologies []*spec.Topology) []string {
	var nodes []string
	for _, t := range topologies {
		if node := t.GetSegments()[v1alpha1.TopologyNode]; node != "" {
			nodes = append(nodes, node)
		}
	}
	return nodes
}
