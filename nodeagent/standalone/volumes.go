// Package standalone is the controller side of one machine without a cluster:
// volumes are wished for and made in one call, and the records on disk are the
// only ones. Package csi declares what it needs of it (Volumes, Catalogue).
package standalone

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/backend"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/publish"
	"github.com/quarry-storage/quarry/nodeagent/record"
	"github.com/quarry-storage/quarry/nodeagent/store"
	"github.com/quarry-storage/quarry/nodeagent/translate"
)

// Volumes makes, lists and deletes the volumes of one store. Errors have a
// reason (*translate.Error).
type Volumes struct {
	Store *store.Store
	// Node is what this machine is called.
	Node string
}

// Ensure makes the volume called name, and returns it ready to be used. A
// second call with the same wish returns the volume that is there, whatever its
// size; with another wish it is an error.
func (s *Volumes) Ensure(ctx context.Context, name string, wish v1alpha1.VolumeSpec,
	nodes []string) (*v1alpha1.Volume, error) {
	if len(nodes) > 0 && !slices.Contains(nodes, s.Node) {
		return nil, translate.Errorf(v1alpha1.ReasonNoSuitableNode,
			"this is node %s, which is none of those asked for", s.Node)
	}

	wish.NodeName = s.Node
	digest, err := digestOf(wish)
	if err != nil {
		return nil, err
	}

	_, err = s.Store.Find(ctx, name)
	if missing, is := errors.AsType[*store.NotFoundError](err); is {
		err = s.create(ctx, name, wish, digest, missing.Unseen)
	}

	if err != nil {
		return nil, translate.WithReason(err)
	}

	v, err := s.Store.Activate(ctx, name)
	if err != nil {
		return nil, translate.WithReason(err)
	}
	if v.Origin.Node != "" && v.Origin.Node != s.Node {
		// Its disk came from there, and its digest was made there.
		wish.NodeName = v.Origin.Node
		if digest, err = digestOf(wish); err != nil {
			return nil, err
		}
	}
	if v.Origin.Wish != digest {
		return nil, translate.Errorf(v1alpha1.ReasonAlreadyExists,
			"volume %s exists, and was made with other parameters than those given now", name)
	}

	return s.describe(&v), nil
}

func selectorOf(wish *v1alpha1.VolumeSpec) (labels.Selector, error) {
	if wish.PoolSelector == nil {
		return labels.Everything(), nil
	}
	selector, err := metav1.LabelSelectorAsSelector(wish.PoolSelector)
	if err != nil {
		return nil, translate.Errorf(v1alpha1.ReasonInvalidParameter, "poolSelector: %w", err)
	}
	return selector, nil
}

// create makes a volume that was not found. Where it may be on one of the pools
// that could not be looked at, made from this wish before, say, another one,
// empty, would be in its place: that is an error.
func (s *Volumes) create(ctx context.Context, name string, wish v1alpha1.VolumeSpec,
	digest string, unseen []*disk.OfflineError) error {
	request, err := translate.RequestOf(&v1alpha1.Volume{
		ObjectMeta: metav1.ObjectMeta{Name: name,
			Labels: map[string]string{v1alpha1.LabelPVName: name}}, Spec: wish,
	})
	if err != nil {
		return translate.WithReason(err)
	}

	if off := s.Store.Away(&request, unseen); off != nil {
		return translate.Errorf(v1alpha1.ReasonVolumeUnavailable,
			"volume %s may be on a pool that cannot be looked at, and is not made anew "+
				"(take the pool out of the configuration if its disk is gone for good): %w",
			name, off)
	}

	request.Origin.Wish = digest
	admitted, err := s.Store.Admit(ctx, request)
	if err == nil {
		_, err = s.Store.Create(ctx, admitted[0])
	}

	if _, offline := errors.AsType[*disk.OfflineError](err); offline {
		// There is no volume that would be unavailable.
		return &translate.Error{Code: v1alpha1.ReasonPoolOffline, Err: err}
	}

	return translate.WithReason(err)
}

// digestOf tells wishes apart in what is fixed when a volume is made.
func digestOf(wish v1alpha1.VolumeSpec) (string, error) {
	wish.Capacity, wish.AccessModes, wish.Claim, wish.Attributes = resource.Quantity{},
		nil, nil, nil

	// What they mean is in the other fields; digests on disk were made without
	// them.
	wish.Parameters, wish.SpreadGroup = nil, ""
	text, err := json.Marshal(wish)
	if err != nil {
		return "", fmt.Errorf("digest of a wish: %w", err)
	}

	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:]), nil
}

// Delete takes the volume away as its deletion policy says. One that does not
// exist is no error, but that is said only when every pool could be looked at.
func (s *Volumes) Delete(ctx context.Context, id string) error {
	if record.CheckID(id) != nil {
		return nil // no volume was ever called that
	}

	v, err := s.Store.Find(ctx, id)
	if _, missing := errors.AsType[*store.NotFoundError](err); missing {
		// It may be in the trash, and not durably so; nothing there is hurried.
		// Where a pool could not be looked at this says so.
		return translate.WithReason(s.Store.Delete(ctx, id, record.Deletion{OnDelete: "trash"}))
	}
	if err != nil {
		return translate.WithReason(err)
	}

	return translate.WithReason(s.delete(ctx, id, v.Origin.Deletion))
}

// delete tries again for a moment where the volume's device is held: whoever
// lists block devices (udev, losetup) has each open for an instant, and only
// who stays is a user.
func (s *Volumes) delete(ctx context.Context, id string, how record.Deletion) error {
	const tries = 20
	for try := 1; ; try++ {
		err := s.Store.Delete(ctx, id, how)
		inUse, isInUse := errors.AsType[*backend.InUseError](err)
		if !isInUse || inUse.Reason != v1alpha1.ReasonDeviceHeld || try == tries {
			return err
		}

		select {
		case <-ctx.Done():
			return err
		case <-time.After(time.Duration(try) * time.Millisecond):
		}
	}
}

// Expand makes the volume at least that many bytes large and returns it.
func (s *Volumes) Expand(ctx context.Context, id string, bytes int64) (*v1alpha1.Volume, error) {
	return (&publish.Publisher{Store: s.Store}).Expand(ctx, id, bytes)
}

// Get returns the volume.
func (s *Volumes) Get(ctx context.Context, id string) (*v1alpha1.Volume, error) {
	v, err := s.Store.Find(ctx, id)
	if err != nil {
		return nil, translate.WithReason(err)
	}
	return s.describe(&v), nil
}

// List returns all volumes but the inline ones, which are their pods'.
func (s *Volumes) List(context.Context) ([]v1alpha1.Volume, error) {
	var out []v1alpha1.Volume
	for _, v := range s.Store.List() {
		if !translate.IsInline(&v.Volume) {
			out = append(out, *s.describe(&v))
		}
	}
	return out, nil
}

func (s *Volumes) describe(v *store.Volume) *v1alpha1.Volume {
	out := translate.VolumeOnDisk(v, s.Store.FilesystemOf(v.Pool))
	out.Spec.NodeName = s.Node // the disk may have come from a machine of another name
	return out
}

// Room returns how much can still be promised to volumes such as wish, and the
// largest one, in bytes. Pools on one filesystem share its room.
func (s *Volumes) Room(_ context.Context, node string, wish v1alpha1.VolumeSpec) (available,
	largest int64, err error) {
	if node != "" && node != s.Node {
		return 0, 0, nil
	}

	selector, err := selectorOf(&wish)
	if err != nil {
		return 0, 0, err
	}

	shared := map[string]int64{}
	for _, p := range s.Store.Pools() {
		enforces := p.Features.ProjectQuota || p.Features.SimpleQuota
		needs := wish.Backend == v1alpha1.BackendDirectory &&
			wish.Enforcement != v1alpha1.EnforcementNone
		if p.Offline != nil || wish.Pool != "" && p.Name != wish.Pool ||
			!selector.Matches(labels.Set(store.PoolLabels(s.Node, &p.Pool))) || needs && !enforces {
			continue
		}

		shared[p.FilesystemID] = max(shared[p.FilesystemID], p.Available)
		largest = max(largest, p.Available)
	}

	for _, a := range shared {
		available += a
	}

	return available, largest, nil
}
