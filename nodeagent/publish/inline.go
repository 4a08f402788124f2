package publish

import (
	"context"
	"errors"
	"maps"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/record"
	"github.com/quarry-storage/quarry/nodeagent/store"
	"github.com/quarry-storage/quarry/nodeagent/translate"
)

// Inline makes and removes volumes that live and die with one pod.
type Inline struct{ Store *store.Store }

// Make makes the volume, or confirms the one that is there. The spec's
// attributes are kept on disk. It is not made as long as it may be on a pool that
// cannot be looked at: a pod that runs again after a reboot has its data.
func (i *Inline) Make(ctx context.Context, id string, spec v1alpha1.VolumeSpec) error {
	v, err := i.Store.Find(ctx, id)
	if err == nil {
		if !translate.IsInline(&v.Volume) {
			return translate.Errorf(v1alpha1.ReasonAlreadyExists,
				"volume %s exists, and is not an inline one", id)
		}

		_, err := i.Store.Activate(ctx, id)
		return translate.WithReason(err)
	}

	missing, _ := errors.AsType[*store.NotFoundError](err)
	attributes := map[string]string{translate.InlineAttribute: "true"}
	maps.Copy(attributes, spec.Attributes)
	spec.Attributes = attributes
	request, err := translate.RequestOf(&v1alpha1.Volume{ObjectMeta: metav1.ObjectMeta{Name: id},
		Spec: spec})
	if err != nil {
		return translate.WithReason(err)
	}

	if missing != nil {
		if off := i.Store.Away(&request, missing.Unseen); off != nil {
			return translate.Errorf(v1alpha1.ReasonVolumeUnavailable, "volume %s may be on a pool "+
				"that cannot be looked at, and is not made anew: %w", id, off)
		}
	}

	admitted, err := i.Store.Admit(ctx, request)
	if err == nil {
		_, err = i.Store.Create(ctx, admitted[0])
	}

	return translate.WithReason(err)
}

// Remove deletes the volume if it is an inline one. Its space is freed at once,
// whatever its parameters say of trash: nobody could ask for it back.
func (i *Inline) Remove(ctx context.Context, id string) error {
	v, err := i.Store.Find(ctx, id)
	missing, isMissing := errors.AsType[*store.NotFoundError](err)
	if isMissing {
		if off := i.Store.Away(&store.Request{ID: id}, missing.Unseen); off != nil {
			return translate.WithReason(&store.UnseenError{ID: id,
				Unseen: []*disk.OfflineError{off}})
		}
	}
	if isMissing || err == nil && !translate.IsInline(&v.Volume) {
		return nil
	}
	if err == nil {
		err = i.Store.Delete(ctx, id, record.Deletion{OnDelete: string(v1alpha1.OnDeletePurge),
			Scrub: v.Origin.Deletion.Scrub})
	}

	return translate.WithReason(err)
}
