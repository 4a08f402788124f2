package provisioner

import (
	"reflect"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

func TestAttemptNames(t *testing.T) {
	const pv = "pvc-5f3c"
	for id, want := range map[string]int{
		"pvc-5f3c-1": 1, "pvc-5f3c-12": 12, "pvc-5f3c-0": 0, "pvc-5f3c-01": 0, "pvc-5f3c--1": 0, "pvc-5f3c-": 0,
		"pvc-5f3c": 0, "pvc-5f3c-1x": 0, "pvc-5f3d-1": 0, "pvc-5f3c-1/..": 0, "pvc-5f3c-+1": 0,
	} {
		n, ok := attemptNumber(pv, id)
		require.Equal(t, want, n, id)
		require.Equal(t, want > 0, ok, id)
	}
	for _, id := range []string{"", ".", "..", "a/b", "A", "a_b", "-a", "a-", "a.b", "a\x00", "ä"} {
		require.False(t, v1alpha1.IsVolumeID(id), id)
	}
}

func TestPlanAttempt(t *testing.T) {
	const pv = "pvc-1"
	want := v1alpha1.VolumeSpec{NodeName: "here", DesiredState: v1alpha1.DesiredPresent,
		Capacity: resource.MustParse("1Gi")}
	record := func(n int, change func(*v1alpha1.Volume)) v1alpha1.Volume {
		v := *newVolumeObject(pv, attemptID(pv, n), &want)
		if change != nil {
			change(&v)
		}
		return v
	}
	elsewhere := func(v *v1alpha1.Volume) { v.Spec.NodeName = "there" }
	published := func(v *v1alpha1.Volume) { v.Spec.NodeName = "there"; v.Spec.Published = true }
	ready := func(v *v1alpha1.Volume) { v.Spec.NodeName = "there"; v.Status.Phase = v1alpha1.VolumeReady }
	lost := func(v *v1alpha1.Volume) { v.Status.Phase = v1alpha1.VolumeLost }
	tombstone := func(v *v1alpha1.Volume) { v.Spec.DesiredState = v1alpha1.DesiredDeleted }
	refused := func(v *v1alpha1.Volume) { v.Status.Phase = v1alpha1.VolumeRefused }
	larger := func(v *v1alpha1.Volume) { v.Spec.Capacity = resource.MustParse("2Gi") }
	equal := func(v *v1alpha1.Volume) { v.Spec.Capacity = resource.MustParse("1073741824") }

	for _, test := range []struct {
		name     string
		existing []v1alpha1.Volume
		use      string
		next     string
		abandon  []string
	}{
		{"nothing there", nil, "", "pvc-1-1", nil},
		{"one under way", []v1alpha1.Volume{record(1, equal)}, "pvc-1-1", "pvc-1-2", nil},
		{"one on another node", []v1alpha1.Volume{record(1, elsewhere)}, "", "pvc-1-2", []string{"pvc-1-1"}},
		{"published on another node", []v1alpha1.Volume{record(1, published)}, "pvc-1-1", "pvc-1-2", nil},
		{"published there, and one under way here", []v1alpha1.Volume{record(2, nil), record(1, published)}, "pvc-1-1",
			"pvc-1-3", []string{"pvc-1-2"}},
		{"ready on another node", []v1alpha1.Volume{record(1, ready)}, "pvc-1-1", "pvc-1-2", nil},
		{"ready there, and one under way here", []v1alpha1.Volume{record(2, nil), record(1, ready)}, "pvc-1-1",
			"pvc-1-3", []string{"pvc-1-2"}},
		{"ready there, and published there", []v1alpha1.Volume{record(1, ready), record(2, published)}, "pvc-1-2",
			"pvc-1-3", nil},
		{"lost before anybody had it", []v1alpha1.Volume{record(1, lost)}, "", "pvc-1-2", []string{"pvc-1-1"}},
		{"a tombstone keeps its number", []v1alpha1.Volume{record(3, tombstone)}, "", "pvc-1-4", nil},
		{"refused", []v1alpha1.Volume{record(1, refused)}, "", "pvc-1-2", []string{"pvc-1-1"}},
		{"another size", []v1alpha1.Volume{record(1, larger)}, "", "pvc-1-2", []string{"pvc-1-1"}},
		{"two under way", []v1alpha1.Volume{record(1, nil), record(2, nil)}, "pvc-1-1", "pvc-1-3", []string{"pvc-1-2"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := planAttempt(pv, &want, test.existing)
			use := ""
			if p.use != nil {
				use = p.use.Name
			}
			var abandon []string
			for _, v := range p.abandon {
				abandon = append(abandon, v.Name)
				require.False(t, isServed(v), "what somebody may have been given is never given up")
			}
			require.Equal(t, test.use, use)
			require.Equal(t, test.next, p.next)
			require.Equal(t, test.abandon, abandon)
		})
	}
}

// Whether a field is fixed at creation is decided when it is added.
func TestEveryFieldIsFixedOrMayChange(t *testing.T) {
	mayChange := []string{
		"DesiredState", "Published", "Claim", "Admission", "Attributes",
		"ReclaimPolicy", "Deletion", "Parameters", "SpreadGroup",
	}
	fixed := []string{
		"NodeName", "Pool", "PoolSelector", "Backend", "Enforcement", "Allocation",
		"FSType", "MkfsOptions", "MountOptions", "VolumeMode", "AccessModes", "Capacity",
		"Owner", "Group", "Mode", "Inodes", "Adopt", "Source",
		"StorageClassName", "Provisioner",
	}

	spec := v1alpha1.VolumeSpec{
		Capacity: resource.MustParse("1"),
		Deletion: v1alpha1.DeletionPolicy{OnDelete: v1alpha1.OnDeletePurge},
	}
	fields := reflect.ValueOf(&spec).Elem()
	for i := range fields.NumField() {
		name := fields.Type().Field(i).Name
		require.NotEqual(t, slices.Contains(fixed, name), slices.Contains(mayChange, name), name)

		// A field that is set is still there exactly if it is fixed.
		value := fields.Field(i)
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
		}
		require.False(t, value.IsZero(), name)
		left := reflect.ValueOf(fixedAtCreation(&spec)).Field(i)
		require.Equal(t, slices.Contains(fixed, name), !left.IsZero(), name)
	}
}
