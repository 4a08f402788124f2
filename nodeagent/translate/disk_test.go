package translate

import (
	"context"
	"log/slog"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/config"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/internal/testroot"
	"github.com/quarry-storage/quarry/nodeagent/record"
	"github.com/quarry-storage/quarry/nodeagent/store"
)

// TestVolumeSurvivesTheDisk makes volumes of every shape and reads from the
// disk what they were asked to be.
func TestVolumeSurvivesTheDisk(t *testing.T) {
	testroot.RequireRoot(t)
	c, err := config.Default(testroot.NewFilesystem(t, "ext4", 1<<30))
	require.NoError(t, err)
	c.Pools[0].Reserve, err = config.ParseReserve("0%")
	require.NoError(t, err)
	s := store.New(store.Options{Node: "node1", Pools: c.Pools, DeviceDir: t.TempDir(),
		Log: slog.New(slog.DiscardHandler)})
	s.Expect(c.Pools[0].Name, disk.Expectation{MayCreate: true, ClusterID: "cluster"})
	s.Refresh(t.Context())
	owner, group := int64(1000), int64(2000)
	for name, change := range map[string]func(*v1alpha1.VolumeSpec){
		"directory": func(s *v1alpha1.VolumeSpec) {
			s.Backend, s.Enforcement = v1alpha1.BackendDirectory, v1alpha1.EnforcementNone
			s.Owner, s.Group, s.Mode = &owner, &group, "0750"
		},
		"image": func(s *v1alpha1.VolumeSpec) {
			s.Backend, s.Allocation, s.FSType = v1alpha1.BackendLoop, v1alpha1.AllocationThin, "ext4"
			s.Inodes, s.MkfsOptions, s.MountOptions = 5000, []string{"-m", "1"}, []string{"noatime"}
			s.Owner = &owner
		},
		"auto": func(s *v1alpha1.VolumeSpec) {
			s.Backend, s.Enforcement, s.FSType = v1alpha1.BackendAuto, v1alpha1.EnforcementStrict, "ext4"
		},
		"block": func(s *v1alpha1.VolumeSpec) {
			s.Backend, s.VolumeMode = v1alpha1.BackendLoop, corev1.PersistentVolumeBlock
		},
	} {
		t.Run(name, func(t *testing.T) {
			v := &v1alpha1.Volume{
				ObjectMeta: metav1.ObjectMeta{Name: "pvc-" + name,
					Labels: map[string]string{v1alpha1.LabelPVName: "pv-" + name}},
				Spec: v1alpha1.VolumeSpec{
					NodeName: "node1", DesiredState: v1alpha1.DesiredPresent, Published: true,
					Enforcement: v1alpha1.EnforcementQuota, Allocation: v1alpha1.AllocationThick,
					VolumeMode:  corev1.PersistentVolumeFilesystem,
					AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
					Capacity:    *resource.NewQuantity(32<<20, resource.BinarySI),
					Claim: &v1alpha1.ClaimReference{Namespace: "shop", Name: name,
						UID: "uid", Labels: map[string]string{"app": "db"}},
					StorageClassName: "fast", ReclaimPolicy: corev1.PersistentVolumeReclaimDelete,
					Provisioner: v1alpha1.LocalProvisioner,
					Deletion: v1alpha1.DeletionPolicy{OnDelete: v1alpha1.OnDeletePurge,
						Scrub: v1alpha1.ScrubNone},
				},
			}
			change(&v.Spec)
			request, err := RequestOf(v)
			require.NoError(t, err)
			admitted, err := s.Admit(t.Context(), request)
			require.NoError(t, err)
			_, err = s.Create(t.Context(), admitted[0])
			require.NoError(t, err)
			t.Cleanup(func() {
				ctx := context.WithoutCancel(t.Context())
				require.NoError(t, s.Delete(ctx, v.Name, record.Deletion{}))
				require.NoError(t, s.Drain(ctx))
			})

			in, err := disk.Inspect(c.Pools[0].Path)
			require.NoError(t, err)
			require.Len(t, in.Volumes, 1)
			back := VolumeOf(&in.Volumes[0])
			require.Equal(t, v.Spec, back.Spec)
			require.Equal(t, v.Labels, back.Labels)
		})
	}
}
