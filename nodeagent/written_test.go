package nodeagent

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

func object(uid, version string) *v1alpha1.Volume {
	v := &v1alpha1.Volume{}
	v.Name, v.UID, v.ResourceVersion = "data", types.UID(uid), version
	return v
}

func TestNewestIsWrittenOrCached(t *testing.T) {
	for name, c := range map[string]struct {
		written, cached *v1alpha1.Volume
		mine            bool
	}{
		"nothing was written":    {nil, object("a", "7"), false},
		"the cache is behind":    {object("a", "10"), object("a", "9"), true},
		"the cache has it":       {object("a", "10"), object("a", "10"), false},
		"the cache has a newer":  {object("a", "10"), object("a", "11"), false},
		"another of that name":   {object("a", "10"), object("b", "9"), false},
		"versions of no numbers": {object("a", "x"), object("a", "y"), false},
	} {
		t.Run(name, func(t *testing.T) {
			var w written
			if c.written != nil {
				w.note(c.written)
			}
			for range 2 {
				want := c.cached
				if c.mine {
					want = c.written
				}
				require.Equal(t, want, w.newest(c.cached))
			}
			require.Equal(t, c.mine, len(w.objects) == 1, "what is seen is let go of")
		})
	}
}

// After etcd was restored from a backup, versions are smaller than what was
// written before.
func TestNewestIsTheCacheInTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var w written
		w.note(object("a", "10"))
		time.Sleep(writtenFor)
		require.Equal(t, "10", w.newest(object("a", "9")).ResourceVersion)
		time.Sleep(time.Second)
		require.Equal(t, "9", w.newest(object("a", "9")).ResourceVersion)
	})
}

// A change on the disk is noticed before the watch brings what was said of it.
// It is not said again.
func TestStatusIsWrittenOnce(t *testing.T) {
	b := newBench(t)
	behind := map[string]*v1alpha1.Volume{}
	writes := 0
	b.client = interceptor.NewClient(b.objects, interceptor.Funcs{
		Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, into client.Object,
			o ...client.GetOption) error {
			if v, ok := into.(*v1alpha1.Volume); ok && behind[key.Name] != nil {
				behind[key.Name].DeepCopyInto(v)
				return nil
			}
			return c.Get(ctx, key, into, o...)
		},
		SubResourcePatch: func(ctx context.Context, c client.Client, sub string, what client.Object,
			p client.Patch, o ...client.SubResourcePatchOption) error {
			if _, ok := what.(*v1alpha1.Volume); ok {
				writes++
			}
			return c.SubResource(sub).Patch(ctx, what, p, o...)
		},
	})

	b.want("data", 16<<20, directory)
	for _, wish := range []v1alpha1.DesiredState{v1alpha1.DesiredPresent, v1alpha1.DesiredDeleted} {
		b.change("data", func(s *v1alpha1.VolumeSpec) { s.DesiredState = wish })
		before := &v1alpha1.Volume{}
		require.NoError(t, b.objects.Get(t.Context(), client.ObjectKey{Name: "data"}, before))
		behind["data"], writes = before, 0

		feed := b.store.Feed()
		feed.Take() // a new follower looks at all
		require.NoError(t, b.reconcile(t.Context(), "data"))
		require.Equal(t, 1, writes)

		b.followMoved(t.Context(), feed)
		require.Zero(t, b.queue.Len(), "there is nothing to look at again")
		require.NoError(t, b.reconcile(t.Context(), "data"))
		require.Equal(t, 1, writes, "nothing is written again")
		delete(behind, "data")
	}
}
