package translate

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/record"
	"github.com/quarry-storage/quarry/nodeagent/store"
)

// RequestOf is what a Volume object asks the store for. The error, a
// *store.RefusedError, is one in the object.
func RequestOf(v *v1alpha1.Volume) (store.Request, error) {
	s := &v.Spec
	r := store.Request{
		ID:           v.Name,
		Pool:         s.Pool,
		Backend:      string(s.Backend),
		Enforcement:  string(s.Enforcement),
		VolumeMode:   string(s.VolumeMode),
		Allocation:   string(s.Allocation),
		SizeBytes:    s.Capacity.Value(),
		Inodes:       s.Inodes,
		FSType:       s.FSType,
		MkfsOptions:  s.MkfsOptions,
		MountOptions: s.MountOptions,
		Origin:       OriginOf(v),
	}

	if s.PoolSelector != nil {
		selector, err := metav1.LabelSelectorAsSelector(s.PoolSelector)
		if err != nil {
			return r, &store.RefusedError{
				Reason:  v1alpha1.ReasonInvalidOptions,
				Message: "poolSelector: " + err.Error(),
			}
		}

		r.PoolSelector = selector
	}

	if s.Owner != nil {
		r.Owner = *s.Owner
	}

	if s.Group != nil {
		r.Group = *s.Group
	}

	if s.Mode != "" {
		mode, err := strconv.ParseUint(s.Mode, 8, 32)
		if err != nil {
			return r, &store.RefusedError{
				Reason:  v1alpha1.ReasonInvalidOptions,
				Message: fmt.Sprintf("mode %q is not an octal number", s.Mode),
			}
		}

		r.Mode = uint32(mode)
	}

	if s.Adopt != nil {
		r.Adopt = adoptionOf(v)
	}

	if s.Source != nil {
		r.Source = &record.Source{Volume: s.Source.Volume, Snapshot: s.Source.Snapshot}
	}

	return r, nil
}

// adoptionOf is what a volume is to be made of. Where the volume is published
// somebody may have had data in it, so what is to be adopted has to be there:
// nothing empty is made in its place.
func adoptionOf(v *v1alpha1.Volume) *store.Adoption {
	kind := v.Spec.Adopt.Type
	if v.Spec.Published {
		kind = v1alpha1.AdoptionType(strings.TrimSuffix(string(kind), "OrCreate"))
	}
	return &store.Adoption{Path: v.Spec.Adopt.Path, Type: string(kind)}
}

// OriginOf is what of a Volume object is kept on disk so that the cluster's
// objects can be written again.
func OriginOf(v *v1alpha1.Volume) record.Origin {
	s := &v.Spec
	o := record.Origin{
		Node:             s.NodeName,
		PVName:           v.Labels[v1alpha1.LabelPVName],
		Provisioner:      s.Provisioner,
		StorageClass:     s.StorageClassName,
		ReclaimPolicy:    string(s.ReclaimPolicy),
		RequestedBackend: string(s.Backend),
		Deletion:         deletionOf(s.Deletion),
		Attributes:       s.Attributes,
		Parameters:       s.Parameters,
		SpreadGroup:      s.SpreadGroup,
	}
	for _, m := range s.AccessModes {
		o.AccessModes = append(o.AccessModes, string(m))
	}

	if c := s.Claim; c != nil {
		o.ClaimNamespace, o.ClaimName, o.ClaimUID = c.Namespace, c.Name, string(c.UID)
		o.ClaimLabels, o.ClaimLabelsLeftOut = c.Labels, int(c.LabelsLeftOut)
	}

	return o.Bound()
}

func deletionOf(d v1alpha1.DeletionPolicy) record.Deletion {
	out := record.Deletion{OnDelete: string(d.OnDelete), Scrub: string(d.Scrub)}
	if d.TrashRetention != nil {
		out.RetentionSeconds = int64(d.TrashRetention.Duration / time.Second)
	}
	return out
}

// RemovalOf is what the desired state makes of the deletion policy: a volume
// that is to be Deleted is freed at once, whatever its class says about trash.
func RemovalOf(v *v1alpha1.Volume) record.Deletion {
	d := deletionOf(v.Spec.Deletion)
	if v.Spec.DesiredState == v1alpha1.DesiredTrashed {
		d.OnDelete = string(v1alpha1.OnDeleteTrash)
	} else {
		d.OnDelete = string(v1alpha1.OnDeletePurge)
	}
	return d
}
