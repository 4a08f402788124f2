package translate

import (
	"path"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/record"
	"github.com/quarry-storage/quarry/nodeagent/store"
)

// VolumeOf is the Volume object that a record answers. What the record does not
// say is said as the API has it where nothing is said. The volume is published:
// somebody may have been given it.
//
// A record keeps no pool, for it is in one, and no pool selector but that among
// its parameters, nor which volumes were admitted with it. Of what was adopted
// it knows the path relative to its pool ([AdoptionOf]). A filesystem that
// nobody asked for by name is named, and a volume whose backend was left open
// says which one it has where its record is of a time before that was kept.
func VolumeOf(r *record.Volume) *v1alpha1.Volume {
	o := &r.Origin
	v := &v1alpha1.Volume{
		ObjectMeta: metav1.ObjectMeta{
			Name:              r.ID,
			CreationTimestamp: metav1.NewTime(r.CreatedAt),
			Labels:            map[string]string{},
		},
		Spec: v1alpha1.VolumeSpec{
			NodeName:         o.Node,
			DesiredState:     v1alpha1.DesiredPresent,
			Published:        true,
			Backend:          v1alpha1.Backend(or(o.RequestedBackend, r.Backend)),
			Enforcement:      v1alpha1.Enforcement(or(r.Enforcement, record.EnforcementQuota)),
			VolumeMode:       corev1.PersistentVolumeMode(or(r.VolumeMode, record.ModeFilesystem)),
			Allocation:       v1alpha1.Allocation(or(r.Allocation, record.AllocationThick)),
			Capacity:         *resource.NewQuantity(r.Promise(), resource.BinarySI),
			Inodes:           inodesOf(r),
			FSType:           r.FSType,
			MkfsOptions:      r.MkfsOptions,
			MountOptions:     r.MountOptions,
			Owner:            unlessZero(r.Owner),
			Group:            unlessZero(r.Group),
			StorageClassName: o.StorageClass,
			ReclaimPolicy:    corev1.PersistentVolumeReclaimPolicy(o.ReclaimPolicy),
			Provisioner:      o.Provisioner,
			Attributes:       o.Attributes,
			Parameters:       o.Parameters,
			SpreadGroup:      o.SpreadGroup,
			Deletion:         DeletionPolicyOf(o.Deletion),
		},
	}

	if o.PVName != "" {
		v.Labels[v1alpha1.LabelPVName] = o.PVName
	}

	if r.Mode != 0 && r.Mode != store.DefaultMode {
		v.Spec.Mode = "0" + strconv.FormatUint(uint64(r.Mode), 8)
	}

	for _, m := range o.AccessModes {
		v.Spec.AccessModes = append(v.Spec.AccessModes, corev1.PersistentVolumeAccessMode(m))
	}

	if r.Source != nil {
		v.Spec.Source = &v1alpha1.VolumeSource{Volume: r.Source.Volume, Snapshot: r.Source.Snapshot}
	}

	if o.ClaimName != "" {
		v.Spec.Claim = &v1alpha1.ClaimReference{
			Namespace:     o.ClaimNamespace,
			Name:          o.ClaimName,
			UID:           types.UID(o.ClaimUID),
			Labels:        o.ClaimLabels,
			LabelsLeftOut: int32(o.ClaimLabelsLeftOut),
		}
	}

	return v
}

// AdoptionOf is what a volume of the pool at poolPath was adopted from, nil if
// it was made. It is never "or create": where the data is missing nothing is
// made in its place.
func AdoptionOf(r *record.Volume, poolPath string) *v1alpha1.Adoption {
	if r.AdoptedFrom == "" {
		return nil
	}
	kind := v1alpha1.AdoptDirectory
	if r.Backend == record.BackendLoop {
		kind = v1alpha1.AdoptFile
	}
	return &v1alpha1.Adoption{Path: path.Join(poolPath, r.AdoptedFrom), Type: kind}
}

// DeletionPolicyOf is a record's deletion policy in the API's words.
func DeletionPolicyOf(d record.Deletion) v1alpha1.DeletionPolicy {
	out := v1alpha1.DeletionPolicy{
		OnDelete: v1alpha1.OnDelete(or(d.OnDelete, string(v1alpha1.OnDeletePurge))),
		Scrub:    v1alpha1.Scrub(or(d.Scrub, string(v1alpha1.ScrubNone))),
	}
	if d.RetentionSeconds > 0 {
		out.TrashRetention = &metav1.Duration{
			Duration: time.Duration(d.RetentionSeconds) * time.Second}
	}

	return out
}

// inodesOf is how many files were asked for. A number that follows from the
// size was not; a directory that could have one and has none was made without.
func inodesOf(r *record.Volume) int64 {
	switch {
	case r.InodesBySize:
		return 0
	case r.Inodes == 0 && r.QuotaKind == record.QuotaProject && r.AdoptedFrom == "":
		return store.UnlimitedInodes
	}
	return r.Inodes
}

func or(said, otherwise string) string {
	if said == "" {
		return otherwise
	}
	return said
}

func unlessZero(id int64) *int64 {
	if id == 0 {
		return nil
	}
	return &id
}
