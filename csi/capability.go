package csi

import (
	"slices"
	"strings"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	corev1 "k8s.io/api/core/v1"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

type accessMode = spec.VolumeCapability_AccessMode_Mode

// accessModes are the modes of a volume that one node can reach, with the word
// that a PersistentVolume has for each. Which mode a volume has is said anew by
// every caller; nothing of it is in the volume.
var accessModes = map[accessMode]corev1.PersistentVolumeAccessMode{
	spec.VolumeCapability_AccessMode_SINGLE_NODE_WRITER:        corev1.ReadWriteOnce,
	spec.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER:  corev1.ReadWriteOnce,
	spec.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER: corev1.ReadWriteOncePod,
	spec.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY:   corev1.ReadOnlyMany,
}

// onePath reports whether a volume may be published at one path only in a mode:
// so it is in all that are not said to be for many (spec, NodePublishVolume,
// second table).
func onePath(mode accessMode) bool {
	return mode != spec.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER
}

// want is what one or more capabilities ask of a volume.
type want struct {
	mode       corev1.PersistentVolumeMode
	accesses   []corev1.PersistentVolumeAccessMode
	fsType     string
	mountFlags []string
}

// wanted reads the capabilities of a volume: all of them have to hold at once.
func wanted(capabilities []*spec.VolumeCapability) (want, error) {
	if len(capabilities) == 0 {
		return want{}, invalid("volume_capabilities are missing")
	}

	var w want
	for i, c := range capabilities {
		one, err := wantedOne(c)
		if err != nil {
			return want{}, err
		}
		if i > 0 &&
			(one.mode != w.mode || one.fsType != w.fsType ||
				!slices.Equal(one.mountFlags, w.mountFlags)) {
			return want{}, invalid(
				"volume_capabilities contradict each other: a volume is a filesystem or a block " +
					"device, of one fs_type and with the same mount_flags")
		}

		for _, a := range one.accesses {
			if !slices.Contains(w.accesses, a) {
				w.accesses = append(w.accesses, a)
			}
		}

		w.mode, w.fsType, w.mountFlags = one.mode, one.fsType, one.mountFlags
	}

	slices.Sort(w.accesses)
	return w, nil
}

func wantedOne(c *spec.VolumeCapability) (want, error) {
	if c == nil {
		return want{}, invalid("volume_capability is missing")
	}
	if c.GetAccessMode() == nil {
		return want{}, invalid("volume_capability has no access_mode")
	}

	access, ok := accessModes[c.GetAccessMode().GetMode()]
	if !ok {
		return want{}, invalid(
			"access_mode %s is not possible for a volume on one node's disk",
			c.GetAccessMode().GetMode(),
		)
	}

	w := want{accesses: []corev1.PersistentVolumeAccessMode{access}}
	switch t := c.GetAccessType().(type) {
	case *spec.VolumeCapability_Block:
		w.mode = corev1.PersistentVolumeBlock
	case *spec.VolumeCapability_Mount:
		w.mode = corev1.PersistentVolumeFilesystem
		if err := w.mount(t.Mount); err != nil {
			return want{}, err
		}
	default:
		return want{}, invalid("volume_capability has no access_type: neither block nor mount")
	}

	return w, nil
}

func (w *want) mount(m *spec.VolumeCapability_MountVolume) error {
	if m.GetVolumeMountGroup() != "" {
		return invalid("volume_mount_group is not given: the CO sets the group of files")
	}

	size := 0
	for _, flag := range m.GetMountFlags() {
		if size += len(flag); size > maxMap || len(m.GetMountFlags()) > 64 {
			return invalid("mount_flags are too many")
		}
		if !isText(flag) {
			return invalid("mount flag %s is no text", quote(flag))
		}
		for word := range strings.SplitSeq(flag, ",") {
			if word = strings.TrimSpace(word); word != "" {
				w.mountFlags = append(w.mountFlags, word)
			}
		}
	}

	w.fsType = m.GetFsType()
	if len(w.fsType) > maxName || !isText(w.fsType) {
		return invalid("fs_type %s is no filesystem", quote(w.fsType))
	}

	return nil
}

// alike reports whether two filesystem types are the same, as far as both are
// known.
func alike(a, b string) bool { return a == "" || b == "" || a == b }

// mismatch says in what a volume is not what is wanted, or "".
func (w want) mismatch(v *v1alpha1.Volume) string {
	mode := v.Spec.VolumeMode
	if mode == "" {
		mode = corev1.PersistentVolumeFilesystem
	}

	switch {
	case w.mode != mode:
		return "it is a " + string(mode) + " volume, not " + string(w.mode)
	case v.Status.Backend == v1alpha1.BackendLoop && !alike(w.fsType, v.Status.FSType):
		return "its filesystem is " + v.Status.FSType + ", not " + quote(w.fsType)
	}

	return ""
}
