package record

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

// fill gives every field below v a value that is not its zero value, so that a
// field that is added to a record later is filled without anybody's doing.
func fill(t *testing.T, v reflect.Value, path string) {
	switch {
	case v.Type() == reflect.TypeFor[time.Time]():
		v.Set(reflect.ValueOf(time.Unix(int64(len(path)), 0).UTC()))
	case v.Kind() == reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(t, v.Elem(), path)
	case v.Kind() == reflect.Struct:
		for i := range v.NumField() {
			fill(t, v.Field(i), path+"."+v.Type().Field(i).Name)
		}
	case v.Kind() == reflect.String:
		v.SetString("of " + path)
	case v.Kind() == reflect.Bool:
		v.SetBool(true)
	case v.CanInt():
		v.SetInt(int64(len(path)))
	case v.CanUint():
		v.SetUint(uint64(len(path)))
	case v.Type() == reflect.TypeFor[map[string]string]():
		v.Set(reflect.ValueOf(map[string]string{path: "x"}))
	case v.Type() == reflect.TypeFor[[]string]():
		v.Set(reflect.ValueOf([]string{path}))
	default:
		t.Fatalf("fill does not know %s of type %s", path, v.Type())
	}
}

// TestEveryFieldIsWritten writes and reads a volume of whose fields none is
// empty.
func TestEveryFieldIsWritten(t *testing.T) {
	v := &Volume{}
	fill(t, reflect.ValueOf(v).Elem(), "v")
	v.ID = "pvc-1"
	data, err := EncodeVolume(v)
	require.NoError(t, err)
	got, err := DecodeVolume(data)
	require.NoError(t, err)
	require.Equal(t, v, got)
}

// TestFollowLosesNothing heals a record's object: whatever it does not name
// stays as the disk has it, and whatever it names is taken over. It goes over
// all fields there are, also those that are not there yet.
func TestFollowLosesNothing(t *testing.T) {
	var o Origin
	fill(t, reflect.ValueOf(&o).Elem(), "o")
	healed := Origin{ClaimNamespace: o.ClaimNamespace, ClaimName: o.ClaimName}
	require.Equal(t, o, o.Follow(healed), "an object that names nothing but a claim takes nothing away")
	free := o
	free.ClaimNamespace, free.ClaimName, free.ClaimUID, free.ClaimLabels, free.ClaimLabelsLeftOut = "", "", "", nil, 0
	require.Equal(t, free, o.Follow(Origin{}), "a volume that has no claim any more has none on the disk either")
	again := Origin{ClaimNamespace: o.ClaimNamespace, ClaimName: o.ClaimName, ClaimUID: "made again"}
	require.Equal(t, o.ClaimLabels, o.Follow(again).ClaimLabels, "the claim was made again, by its name")

	kind := reflect.TypeFor[Origin]()
	for i := range kind.NumField() {
		t.Run(kind.Field(i).Name, func(t *testing.T) {
			var next Origin
			fill(t, reflect.ValueOf(&next).Elem().Field(i), "next")
			got := o.Follow(next)
			from := next
			if kind.Field(i).Name == "Wish" {
				from = o // it is what the volume was made for
			}
			require.Equal(t, reflect.ValueOf(from).Field(i).Interface(), reflect.ValueOf(got).Field(i).Interface())
		})
	}

	other := o.Follow(Origin{ClaimNamespace: o.ClaimNamespace, ClaimName: "another", ClaimUID: "uid"})
	require.Empty(t, other.ClaimLabels, "another claim's labels are not this one's")
	require.Zero(t, other.ClaimLabelsLeftOut)
}

func manyLabels(n int) map[string]string {
	labels := map[string]string{}
	for i := range n {
		labels[fmt.Sprintf("a%05d", i)] = strings.Repeat("x", 63)
	}
	return labels
}

// TestBound keeps the first labels by name, and counts the others.
func TestBound(t *testing.T) {
	few := Origin{ClaimLabels: manyLabels(v1alpha1.MaxClaimLabels)}
	require.Equal(t, few, few.Bound())

	many := Origin{ClaimLabels: manyLabels(12_600)}.Bound()
	require.Equal(t, few.ClaimLabels, many.ClaimLabels)
	require.Equal(t, 12_600-v1alpha1.MaxClaimLabels, many.ClaimLabelsLeftOut)
	require.Equal(t, many, many.Bound(), "a second call changes nothing")

	large := Origin{ClaimLabels: map[string]string{}}
	for i := range v1alpha1.MaxClaimLabels {
		large.ClaimLabels[fmt.Sprintf("%s/%05d", strings.Repeat("d", 250), i)] = strings.Repeat("x", 63)
	}
	bytes := 0
	kept := large.Bound()
	for name, value := range kept.ClaimLabels {
		bytes += len(name) + len(value)
	}
	require.LessOrEqual(t, bytes, v1alpha1.MaxClaimLabelBytes)
	require.Equal(t, v1alpha1.MaxClaimLabels, len(kept.ClaimLabels)+kept.ClaimLabelsLeftOut)
}

// TestNothingIsWrittenThatIsNotRead refuses what would be too large.
func TestNothingIsWrittenThatIsNotRead(t *testing.T) {
	var tooLarge *TooLargeError
	_, err := EncodeVolume(&Volume{ID: "pvc-1", MountOptions: []string{strings.Repeat("x", MaxSize)}})
	require.ErrorAs(t, err, &tooLarge)
	_, err = EncodePool(&Pool{UID: "u", Name: strings.Repeat("x", MaxSize)})
	require.ErrorAs(t, err, &tooLarge)
	_, err = EncodeTrash(&Trash{Deletion: Deletion{Scrub: strings.Repeat("x", MaxSize)}})
	require.ErrorAs(t, err, &tooLarge)
}

// TestRecordOfAnEarlierVersion reads what was written without a bound, and
// keeps of it what would be written now.
func TestRecordOfAnEarlierVersion(t *testing.T) {
	old := &Volume{ID: "pvc-1", SizeBytes: 7, Origin: Origin{ClaimName: "data", ClaimLabels: manyLabels(26_000)}}
	data, err := sealVolume(old)
	require.NoError(t, err)
	require.Greater(t, len(data), 2<<20)
	require.Less(t, len(data), MaxRead)
	got, err := DecodeVolume(data)
	require.NoError(t, err)
	require.Len(t, got.Origin.ClaimLabels, v1alpha1.MaxClaimLabels)
	_, err = EncodeVolume(got)
	require.NoError(t, err)
}
