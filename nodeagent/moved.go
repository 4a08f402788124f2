package nodeagent

import (
	"context"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/store"
)

// followMoved looks at the Volumes that something changed for on the disks, and at
// those whose growth waits for room; at all of them only where a pool came or went.
func (a *Agent) followMoved(ctx context.Context, feed *store.Feed) {
	ids, all := feed.Take()
	if all {
		a.requeueMoved(ctx)
		return
	}
	for _, id := range ids {
		if v, err := a.record(ctx, id); err != nil || v != nil && a.moved(v, a.inTrash) {
			a.queue.Add(id)
		}
	}
	a.growing.Range(func(key, _ any) bool {
		id := key.(string)
		v, err := a.record(ctx, id)
		if err == nil && v == nil {
			a.growing.Delete(id)
			return true
		}
		if there, err := a.store.Get(id); v != nil && err == nil && a.roomToGrow(v, &there) {
			a.queue.Add(id)
		}
		return true
	})
}

// record returns a Volume, nil if there is none.
func (a *Agent) record(ctx context.Context, id string) (*v1alpha1.Volume, error) {
	v := &v1alpha1.Volume{}
	err := a.client.Get(ctx, client.ObjectKey{Name: id}, v)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read volume %s: %w", id, err)
	}
	return v, nil
}

// waitsForRoom reports whether a volume is to grow, and does not fit.
func waitsForRoom(v *v1alpha1.Volume) bool {
	c := meta.FindStatusCondition(v.Status.Conditions, v1alpha1.ConditionResized)
	return c != nil && c.Status == metav1.ConditionFalse && c.Reason == v1alpha1.ReasonResizeInfeasible
}
