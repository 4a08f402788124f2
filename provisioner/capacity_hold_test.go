package provisioner

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

func TestHoldsGetLonger(t *testing.T) {
	r := nodeRefusal{Node: "n", Class: "c", Below: 6 << 30, Claim: &v1alpha1.ClaimReference{Namespace: "ns",
		Name: "data", UID: "u"}}
	now := time.Now()
	first := r.after(nil, 8<<30, now)
	require.Equal(t, firstHold, first.For)
	other := r
	other.Below = 5 << 30
	both := other.after(first, 8<<30, now.Add(time.Second))
	require.Equal(t, first.Until, both.Until, "the second claim of the group makes it no longer")
	require.EqualValues(t, 5<<30, both.Below)

	second := r.after(first, 8<<30, first.Until.Add(time.Second))
	require.Equal(t, 2*firstHold, second.For)
	require.Equal(t, longestHold, r.after(&hold{For: longestHold, Until: now}, 8<<30, now.Add(time.Second)).For)
	require.Equal(t, firstHold, r.after(second, 8<<30, second.Until.Add(second.For+time.Second)).For, "it was long ago")

	require.False(t, first.grown(8<<30))
	require.True(t, first.grown(12<<30))
	failing := (&nodeRefusal{Below: 1}).after(nil, 8<<30, now)
	require.False(t, failing.grown(100<<30), "room does not mend a node that fails")

	require.False(t, failing.madeBefore(time.Time{}))
	require.False(t, failing.madeBefore(now.Add(-time.Hour)))
	require.True(t, failing.madeBefore(now.Add(time.Minute)), "the agent was started anew")
	require.False(t, first.madeBefore(now.Add(time.Minute)), "which makes no room")

	object := &storagev1.CSIStorageCapacity{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{
		v1alpha1.AnnotationHold: second.text()}}}
	require.Equal(t, second, holdIn(object))
	object.Annotations[v1alpha1.AnnotationHold] = "{}"
	require.Nil(t, holdIn(object))
}
