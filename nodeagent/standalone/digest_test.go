package standalone

import (
	"reflect"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

// A wish is the same as an earlier one if it differs at most in what may
// change, or is said by other fields. A field that is added to the API has to
// be put into one of these lists, as in the controller's
// TestEveryFieldIsFixedOrMayChange; digests on disk must not change by it.
func TestDigestIsOfWhatIsFixed(t *testing.T) {
	leftOut := []string{"Capacity", "AccessModes", "Claim", "Attributes", "Parameters", "SpreadGroup"}
	// The same in each wish without a cluster.
	never := []string{"DesiredState", "Published", "Admission"}
	counts := []string{
		"NodeName", "Pool", "PoolSelector", "Backend", "Enforcement", "Allocation", "VolumeMode", "FSType",
		"MkfsOptions", "MountOptions", "Owner", "Group", "Mode", "Inodes", "Adopt", "Source",
		"StorageClassName", "Provisioner", "ReclaimPolicy", "Deletion",
	}

	plain, err := digestOf(v1alpha1.VolumeSpec{})
	require.NoError(t, err)

	fields := reflect.TypeFor[v1alpha1.VolumeSpec]()
	for i := range fields.NumField() {
		name := fields.Field(i).Name
		known := slices.Concat(leftOut, never, counts)
		require.Contains(t, known, name)

		wish := v1alpha1.VolumeSpec{}
		set(reflect.ValueOf(&wish).Elem().Field(i))
		digest, err := digestOf(wish)
		require.NoError(t, err)
		require.Equal(t, slices.Contains(leftOut, name), digest == plain, name)
	}
}

// set makes a field other than zero.
func set(value reflect.Value) {
	switch value.Kind() {
	case reflect.Pointer:
		value.Set(reflect.New(value.Type().Elem()))
	case reflect.Map:
		value.Set(reflect.MakeMap(value.Type()))
	case reflect.Slice:
		value.Set(reflect.MakeSlice(value.Type(), 1, 1))
	case reflect.String:
		value.SetString("x")
	case reflect.Bool:
		value.SetBool(true)
	case reflect.Int64:
		value.SetInt(1)
	case reflect.Struct:
		switch value.Interface().(type) {
		case resource.Quantity:
			value.Set(reflect.ValueOf(resource.MustParse("1")))
		default:
			set(value.Field(0))
		}
	}
}

// Digests are on disks: another one of the same wish would make each volume
// that is there one of another wish.
func TestDigestStays(t *testing.T) {
	digest, err := digestOf(v1alpha1.VolumeSpec{
		NodeName: "here", DesiredState: v1alpha1.DesiredPresent, Backend: v1alpha1.BackendLoop,
		Enforcement: v1alpha1.EnforcementStrict, Allocation: v1alpha1.AllocationThick, FSType: "ext4",
		Capacity:    resource.MustParse("1Gi"),
		Deletion:    v1alpha1.DeletionPolicy{OnDelete: v1alpha1.OnDeletePurge},
		MkfsOptions: []string{"-i", "65536"}, Provisioner: v1alpha1.CSIDriver,
	})
	require.NoError(t, err)
	require.Equal(t, "bfde14901af4cdfd8d03998e7eff5c947752116736b4f9349718ae13f32d6dc3", digest)
}
