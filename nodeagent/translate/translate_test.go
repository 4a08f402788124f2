package translate

import (
	"fmt"
	"reflect"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/backend"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/record"
	"github.com/quarry-storage/quarry/nodeagent/store"
)

// fill gives every field below v a value of its own that is not zero, but those
// that fixed names by their path.
func fill(t *testing.T, v reflect.Value, path string, fixed map[string]any) {
	t.Helper()
	if value, ok := fixed[path]; ok {
		v.Set(reflect.ValueOf(value).Convert(v.Type()))
		return
	}
	if !v.CanSet() {
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			fill(t, v.Field(i), path+"."+v.Type().Field(i).Name, fixed)
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(t, v.Elem(), path, fixed)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range v.Len() {
			fill(t, v.Index(i), fmt.Sprintf("%s%d", path, i), fixed)
		}
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(reflect.ValueOf(path).Convert(v.Type().Key()),
			reflect.ValueOf("value").Convert(v.Type().Elem()))
	case reflect.String:
		v.SetString(path)
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int32, reflect.Int64:
		v.SetInt(int64(len(path)) << 8)
	case reflect.Uint32, reflect.Uint64:
		v.SetUint(uint64(len(path)) << 8)
	default:
		t.Fatalf("%s: a test of a %s is missing", path, v.Kind())
	}
}

// TestVolumeSurvivesTheRecord fills every field of a Volume's spec and looks
// for it after the way to a record and back.
func TestVolumeSurvivesTheRecord(t *testing.T) {
	notKept := []string{
		"Pool",         // the record is in it
		"PoolSelector", // among the parameters
		"Admission",    // of that moment
		"Adopt",        // relative to the pool: TestAdoptionComesBack
	}
	v := &v1alpha1.Volume{ObjectMeta: metav1.ObjectMeta{Name: "pvc-1",
		Labels: map[string]string{v1alpha1.LabelPVName: "pv"}}}
	fill(t, reflect.ValueOf(&v.Spec).Elem(), "", map[string]any{
		".PoolSelector":            &metav1.LabelSelector{MatchLabels: map[string]string{"disk": "fast"}},
		".DesiredState":            v1alpha1.DesiredPresent,
		".Capacity":                *resource.NewQuantity(1<<30, resource.BinarySI),
		".Mode":                    "0640",
		".Deletion.TrashRetention": &metav1.Duration{Duration: time.Hour},
		".Claim.LabelsLeftOut":     int32(7),
	})
	request, err := RequestOf(v)
	require.NoError(t, err)

	// What the store does with a request it can fulfil as it is.
	r := record.Volume{}
	from, to := reflect.ValueOf(request), reflect.ValueOf(&r).Elem()
	for i := range from.NumField() {
		name := from.Type().Field(i).Name
		field := to.FieldByName(name)
		if !field.IsValid() {
			require.Contains(t, []string{"Pool", "PoolSelector", "Adopt", "found"}, name,
				"the record has no such field")
			continue
		}
		field.Set(from.Field(i))
	}
	back := VolumeOf(&r)
	require.Equal(t, v.Name, back.Name)
	require.Equal(t, v.Labels, back.Labels)
	want := reflect.ValueOf(&v.Spec).Elem()
	for _, name := range notKept {
		require.False(t, want.FieldByName(name).IsZero())
		want.FieldByName(name).SetZero()
	}
	require.Equal(t, v.Spec, back.Spec)
}

// TestRecordSurvivesTheVolume fills every field of a record and looks for it in
// the request that its Volume makes.
func TestRecordSurvivesTheVolume(t *testing.T) {
	r := &record.Volume{}
	fill(t, reflect.ValueOf(r).Elem(), "", map[string]any{
		".CreatedAt":               time.Unix(1, 0),
		".Backend":                 "loop",
		".Origin.RequestedBackend": "loop",
		".GrowingTo":               int64(0),
		".InodesBySize":            false,
		".Mode":                    uint32(0o640),
	})
	v := VolumeOf(r)
	require.True(t, v.CreationTimestamp.Equal(&metav1.Time{Time: r.CreatedAt}))
	request, err := RequestOf(v)
	require.NoError(t, err)

	r.Origin.Wish = "" // no part of the Volume
	from, to := reflect.ValueOf(r).Elem(), reflect.ValueOf(request)
	for i := range from.NumField() {
		name := from.Type().Field(i).Name
		if field := to.FieldByName(name); field.IsValid() {
			require.Equal(t, from.Field(i).Interface(), field.Interface(), name)
			continue
		}
		require.Contains(t, []string{
			"CreatedAt",                                                     // the object's
			"GrowingTo",                                                     // in SizeBytes, where it is more
			"InodesBySize",                                                  // TestInodesThatNobodyAskedFor
			"QuotaKind", "QuotaID", "FSUUID", "LogicalBlockSize", "EverRaw", // how it was made
			"PoolUID",                 // where; in the status of the object
			"AdoptedFrom", "Adopting", // TestAdoptionComesBack
		}, name, "the Volume does not say it")
	}

	r.GrowingTo = 2 * r.SizeBytes
	require.Equal(t, r.GrowingTo, VolumeOf(r).Spec.Capacity.Value())
}

// TestEmptyRecord is of a volume that nothing is said of: what the API has
// where nothing is said is said.
func TestEmptyRecord(t *testing.T) {
	v := VolumeOf(&record.Volume{ID: "a", Backend: record.BackendDirectory,
		Mode: store.DefaultMode})
	require.Equal(t, v1alpha1.VolumeSpec{
		DesiredState: v1alpha1.DesiredPresent,
		Published:    true,
		Backend:      v1alpha1.BackendDirectory,
		Enforcement:  v1alpha1.EnforcementQuota,
		VolumeMode:   corev1.PersistentVolumeFilesystem,
		Allocation:   v1alpha1.AllocationThick,
		Capacity:     *resource.NewQuantity(0, resource.BinarySI),
		Deletion: v1alpha1.DeletionPolicy{OnDelete: v1alpha1.OnDeletePurge,
			Scrub: v1alpha1.ScrubNone},
	}, v.Spec)
	require.NotContains(t, v.Labels, v1alpha1.LabelPVName)
}

func TestInodesThatNobodyAskedFor(t *testing.T) {
	for _, c := range []struct {
		record record.Volume
		want   int64
	}{
		{record.Volume{QuotaKind: record.QuotaProject, Inodes: 1024, InodesBySize: true}, 0},
		{record.Volume{QuotaKind: record.QuotaProject, Inodes: 1024}, 1024},
		{record.Volume{QuotaKind: record.QuotaProject}, store.UnlimitedInodes},
		{record.Volume{QuotaKind: record.QuotaProject, AdoptedFrom: "old"}, 0},
		{record.Volume{QuotaKind: record.QuotaBtrfs}, 0},
		{record.Volume{Backend: record.BackendLoop, Inodes: 5}, 5},
	} {
		require.Equal(t, c.want, VolumeOf(&c.record).Spec.Inodes, "%+v", c.record)
	}
}

func TestAdoptionComesBack(t *testing.T) {
	r := &record.Volume{Backend: record.BackendDirectory}
	require.Nil(t, AdoptionOf(r, "/volumes"))
	r.AdoptedFrom = "old/data"
	require.Equal(t, &v1alpha1.Adoption{Path: "/volumes/old/data", Type: v1alpha1.AdoptDirectory},
		AdoptionOf(r, "/volumes"))
	r.Backend = record.BackendLoop
	require.Equal(t, v1alpha1.AdoptFile, AdoptionOf(r, "/volumes").Type)

	// What was published is never made empty.
	v := &v1alpha1.Volume{Spec: v1alpha1.VolumeSpec{Adopt: &v1alpha1.Adoption{Path: "/volumes/old",
		Type: v1alpha1.AdoptDirectoryOrCreate}}}
	for published, want := range map[bool]string{false: "DirectoryOrCreate", true: "Directory"} {
		v.Spec.Published = published
		request, err := RequestOf(v)
		require.NoError(t, err)
		require.Equal(t, &store.Adoption{Path: "/volumes/old", Type: want}, request.Adopt)
	}
}

func TestWhatIsWrongInAVolume(t *testing.T) {
	for name, change := range map[string]func(*v1alpha1.VolumeSpec){
		"mode": func(s *v1alpha1.VolumeSpec) { s.Mode = "rwx" },
		"poolSelector": func(s *v1alpha1.VolumeSpec) {
			s.PoolSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"a": "b c"}}
		},
	} {
		v := &v1alpha1.Volume{}
		change(&v.Spec)
		_, err := RequestOf(v)
		var refused *store.RefusedError
		require.ErrorAs(t, err, &refused, name)
		require.Equal(t, v1alpha1.ReasonInvalidOptions, refused.Reason)
		require.ErrorContains(t, err, name)
	}
}

func TestWithReason(t *testing.T) {
	require.NoError(t, WithReason(nil))
	for want, err := range map[string]error{
		v1alpha1.ReasonVolumeNotFound:    &store.NotFoundError{ID: "a"},
		v1alpha1.ReasonVolumeInUse:       &backend.InUseError{ID: "a"},
		v1alpha1.ReasonVolumeUnavailable: &disk.OfflineError{Err: fmt.Errorf("away")},
		v1alpha1.ReasonMismatch:          &disk.MismatchError{ID: "a"},
		v1alpha1.ReasonTargetTaken:       Errorf(v1alpha1.ReasonTargetTaken, "taken"),
		v1alpha1.ReasonFailed:            fmt.Errorf("anything"),
	} {
		got := WithReason(fmt.Errorf("do: %w", err))
		var with interface{ Reason() string }
		require.ErrorAs(t, got, &with)
		require.Equal(t, want, with.Reason())
		require.ErrorIs(t, got, err)
	}
}
