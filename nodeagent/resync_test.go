package nodeagent

import (
	"context"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/backend"
)

// TestAChangeOfOneVolumeLooksAtThatOne: neither what follows the disks nor the
// report of a pool goes through the node's Volumes for a change of one.
func TestAChangeOfOneVolumeLooksAtThatOne(t *testing.T) {
	b := newBench(t)
	const volumes = 20
	made := func(name string) {
		b.want(name, 1<<20, directory)
		require.Equal(t, v1alpha1.VolumeReady, b.now(name).Phase)
	}
	for i := range volumes {
		made(fmt.Sprint("vol-", i))
	}
	feed := b.store.Feed()
	_, all := feed.Take()
	require.True(t, all, "it begins with all")
	b.Agent.pools.flush(t.Context())
	lists, gets := 0, 0
	b.Agent.client = interceptor.NewClient(b.objects, interceptor.Funcs{
		List: func(ctx context.Context, c client.WithWatch, list client.ObjectList, opts ...client.ListOption) error {
			if _, of := list.(*v1alpha1.VolumeList); of {
				lists++
			}
			return c.List(ctx, list, opts...)
		},
		Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, o client.Object,
			opts ...client.GetOption) error {
			if _, of := o.(*v1alpha1.Volume); of {
				gets++
			}
			return c.Get(ctx, key, o, opts...)
		},
	})
	made("one-more")
	ids, all := feed.Take()
	require.False(t, all)
	require.Equal(t, []string{"one-more"}, ids)
	gets = 0
	b.Agent.pools.flush(t.Context())
	require.LessOrEqual(t, gets, 1)
	b.Agent.followMoved(t.Context(), feed)
	require.Zero(t, lists)

	// An object that goes makes its volume an orphan in the next report.
	v := &v1alpha1.Volume{}
	require.NoError(t, b.objects.Get(t.Context(), client.ObjectKey{Name: "vol-3"}, v))
	require.NoError(t, b.objects.Delete(t.Context(), v))
	require.NoError(t, b.reconcile(t.Context(), "vol-3"))
	b.Agent.pools.flush(t.Context())
	pool := &v1alpha1.Pool{}
	require.NoError(t, b.objects.Get(t.Context(), client.ObjectKey{Name: "node1.default"}, pool))
	require.EqualValues(t, 1, pool.Status.Orphaned)
	require.Zero(t, lists)
}

// A size that is not enforced for another reason than before is news as well.
func TestEnforcedNews(t *testing.T) {
	lost := func(reason string) error { return &backend.EnforcementError{Reason: reason} }
	condition := func(status metav1.ConditionStatus, reason string) []metav1.Condition {
		return []metav1.Condition{{Type: v1alpha1.ConditionEnforced, Status: status,
			Reason: reason}}
	}
	for _, c := range []struct {
		conditions []metav1.Condition
		found      error
		want       bool
	}{
		{nil, nil, false},
		{nil, lost(v1alpha1.ReasonQuotaLost), true},
		{condition(metav1.ConditionTrue, v1alpha1.ReasonEnforced), nil, false},
		{condition(metav1.ConditionTrue, v1alpha1.ReasonEnforced), lost(v1alpha1.ReasonEscaped),
			true},
		{condition(metav1.ConditionFalse, v1alpha1.ReasonEscaped), lost(v1alpha1.ReasonEscaped),
			false},
		{condition(metav1.ConditionFalse, v1alpha1.ReasonQuotaLost), lost(v1alpha1.ReasonUncounted),
			true},
		{condition(metav1.ConditionFalse, v1alpha1.ReasonQuotaLost), nil, true},
	} {
		require.Equal(t, c.want, isEnforcedNews(c.conditions, c.found), "%v, %v", c.conditions,
			c.found)
	}
}
