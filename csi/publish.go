package csi

import (
	"context"
	"strings"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

// What kubelet puts into the volume context: that a volume is inline, and with
// podInfoOnMount whose it is.
const (
	kubeletPrefix   = "csi.storage.k8s.io/"
	ephemeralKey    = kubeletPrefix + "ephemeral"
	podNameKey      = kubeletPrefix + "pod.name"
	podNamespaceKey = kubeletPrefix + "pod.namespace"

	// inlineSizeKey is the attribute of an inline volume's size; the others are
	// a StorageClass's parameters.
	inlineSizeKey = "size"
	// inlinePrefix begins the ids that kubelet makes up for inline volumes
	// (csi-<SHA-256>), and no others of ours: volumes of claims are called
	// pvc-<claim UID>-<attempt>.
	inlinePrefix = "csi-"
)

// NodePublishVolume implements the RPC.
func (n *Node) NodePublishVolume(
	ctx context.Context,
	req *spec.NodePublishVolumeRequest,
) (*spec.NodePublishVolumeResponse, error) {
	if req.GetVolumeId() == "" {
		return nil, invalid("volume_id is missing")
	}
	if err := checkPath("target_path", req.GetTargetPath()); err != nil {
		return nil, err
	}

	w, err := wantedOne(req.GetVolumeCapability())
	if err != nil {
		return nil, err
	}
	if err := existingID(req.GetVolumeId()); err != nil {
		return nil, err
	}
	if err := checkMap("volume_context", req.GetVolumeContext()); err != nil {
		return nil, err
	}

	alone := onePath(req.GetVolumeCapability().GetAccessMode().GetMode())
	if isInline(req.GetVolumeContext()) {
		if err := n.makeInline(ctx, req, w); err != nil {
			return nil, err
		}
		alone = true
	} else if req.GetStagingTargetPath() == "" {
		// Spec, NodePublishVolume.
		return nil, failedPrecondition(
			"staging_target_path is missing: volumes are staged before they are published")
	} else if err := checkPath("staging_target_path", req.GetStagingTargetPath()); err != nil {
		return nil, err
	}

	err = n.Volumes.Publish(ctx, req.GetVolumeId(), req.GetTargetPath(), flagsOf(req, w), alone)
	if err != nil {
		return nil, toStatus(err)
	}

	return &spec.NodePublishVolumeResponse{}, nil
}

// isInline reports whether a volume is an inline one. Only kubelet sets the
// key: what a pod or a PersistentVolume says under csi.storage.k8s.io/ it
// overwrites for inline volumes, and for others it sets "false".
func isInline(volumeContext map[string]string) bool { return volumeContext[ephemeralKey] == "true" }

// makeInline makes the volume that a pod asks for in its own spec.
func (n *Node) makeInline(ctx context.Context, req *spec.NodePublishVolumeRequest, w want) error {
	if n.Inline == nil {
		return failedPrecondition(
			"inline volumes are switched off here; use a generic ephemeral volume, or the " +
				"chart's value csi.inlineVolumes")
	}
	if !strings.HasPrefix(req.GetVolumeId(), inlinePrefix) {
		return invalid(
			"volume_id %s is not one that an inline volume has", quote(req.GetVolumeId()))
	}
	if w.mode != corev1.PersistentVolumeFilesystem {
		return invalid("an inline volume is a filesystem")
	}

	attributes := map[string]string{}
	size := ""
	for key, value := range req.GetVolumeContext() {
		switch {
		case key == inlineSizeKey:
			size = value
		case !strings.HasPrefix(key, kubeletPrefix):
			attributes[key] = value
		}
	}

	if size == "" {
		return invalid("an inline volume needs the attribute %q, such as 1Gi", inlineSizeKey)
	}

	q, err := resource.ParseQuantity(size)
	if err != nil || q.Sign() <= 0 || q.CmpInt64(maxSize) > 0 {
		return invalid("attribute %q: %s is not a size such as 1Gi", inlineSizeKey, quote(size))
	}

	spec := v1alpha1.VolumeSpec{
		NodeName:     n.Name,
		DesiredState: v1alpha1.DesiredPresent,
		Published:    true,
		Provisioner:  v1alpha1.CSIDriver,
		VolumeMode:   w.mode,
		AccessModes:  w.accesses,
		MountOptions: w.mountFlags,
		Capacity:     *resource.NewQuantity(q.Value(), resource.BinarySI),
	}
	if _, err := n.Parameters(withFSType(attributes, w.fsType), &spec); err != nil {
		return toStatus(err)
	}

	namespace, pod := req.GetVolumeContext()[podNamespaceKey], req.GetVolumeContext()[podNameKey]
	if namespace != "" && pod != "" {
		// For people who look at the disk.
		spec.Attributes = map[string]string{podNamespaceKey: namespace, podNameKey: pod}
	}

	return toStatus(n.Inline.Make(ctx, req.GetVolumeId(), spec))
}
