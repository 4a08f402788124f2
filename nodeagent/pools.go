package nodeagent

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/store"
)

const (
	// reportEvery bounds how often Pool objects are written while volumes come and go in a burst.
	reportEvery = 200 * time.Millisecond
	// roomStep is what the room of a pool is rounded down to, so that an object is not written for a few blocks' sake.
	roomStep = 1 << 20
	// identifyRetry is how long to wait before the API server is asked again who this cluster is.
	identifyRetry = time.Second
)

// poolReporter keeps the Pool objects of the node: made once, written when there is news.
type poolReporter struct {
	agent *Agent
	wake  chan struct{}

	mu        sync.Mutex // one writer at a time: run, and flush before a refusal
	clusterID string
}

// poke asks for a look at the pools.
func (p *poolReporter) poke() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

func (p *poolReporter) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.wake:
		}
		p.flush(ctx)
		select {
		case <-ctx.Done():
			return
		case <-time.After(reportEvery): // a burst becomes one write
		}
	}
}

// identify learns from the API server what each pool's identity must be, and lets new pools be made. It is done once the
// objects of the node are known: a pool that has a Pool object with an identity is never made again somewhere else.
func (p *poolReporter) identify(ctx context.Context) error {
	a := p.agent
	err := wait.PollUntilContextCancel(ctx, identifyRetry, true, func(ctx context.Context) (bool, error) {
		var ns corev1.Namespace
		if err := a.live.Get(ctx, client.ObjectKey{Name: metav1.NamespaceSystem}, &ns); err != nil {
			a.log.WarnContext(ctx, "ask the API server which cluster this is", "error", err)
			return false, nil
		}
		p.clusterID = string(ns.UID)
		return true, nil
	})
	if err != nil {
		return err
	}
	p.expect(ctx)
	a.store.Refresh(ctx)
	p.flush(ctx)
	return nil
}

// expect tells the store what the Pool objects say.
func (p *poolReporter) expect(ctx context.Context) {
	for _, pool := range p.agent.store.Pools() {
		e := store.Expectation{UID: pool.UID, ClusterID: p.clusterID}
		object := &v1alpha1.Pool{}
		switch err := p.agent.client.Get(ctx, client.ObjectKey{Name: p.name(pool.Name)}, object); {
		case err == nil && object.Spec.UID != "":
			e.UID = object.Spec.UID
		case err == nil || apierrors.IsNotFound(err):
			// Nobody remembers the pool: what is there counts, and where nothing is, a pool may be made.
			e.MayCreate = true
			if pool.Offline != nil {
				e.UID = ""
			}
		}
		p.agent.store.Expect(pool.Name, e)
	}
}

func (p *poolReporter) name(pool string) string { return p.agent.opts.Node + "." + pool }

// flush writes what changed of all pools, now.
func (p *poolReporter) flush(ctx context.Context) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.clusterID == "" {
		return // not identified yet
	}
	for _, pool := range p.agent.store.Pools() {
		if err := p.report(ctx, &pool); err != nil && ctx.Err() == nil {
			p.agent.log.WarnContext(ctx, "report pool", "pool", pool.Name, "error", err)
			time.AfterFunc(identifyRetry, p.poke)
		}
	}
}

func (p *poolReporter) report(ctx context.Context, pool *store.Pool) error {
	object, err := p.ensure(ctx, pool)
	if err != nil {
		return err
	}
	status := object.Status.DeepCopy()
	p.describe(ctx, pool, status)
	if equality.Semantic.DeepEqual(&object.Status, status) {
		return nil
	}
	changed := object.DeepCopy()
	changed.Status = *status
	if err := p.agent.client.Status().Patch(ctx, changed, client.MergeFrom(object)); err != nil {
		return fmt.Errorf("write the status of pool %s: %w", object.Name, err)
	}
	return nil
}

// ensure returns the Pool object, made or brought up to date where it is not.
func (p *poolReporter) ensure(ctx context.Context, pool *store.Pool) (*v1alpha1.Pool, error) {
	a := p.agent
	labels := maps.Clone(pool.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	labels[v1alpha1.LabelPool] = pool.Name
	labels[v1alpha1.LabelNode] = a.opts.Node
	if len(a.opts.Node) > 63 { // longer than a label's value may be
		delete(labels, v1alpha1.LabelNode)
	}
	object := &v1alpha1.Pool{}
	err := a.client.Get(ctx, client.ObjectKey{Name: p.name(pool.Name)}, object)
	if apierrors.IsNotFound(err) {
		object = &v1alpha1.Pool{
			ObjectMeta: metav1.ObjectMeta{Name: p.name(pool.Name), Labels: labels},
			Spec:       v1alpha1.PoolSpec{NodeName: a.opts.Node, Pool: pool.Name, UID: pool.UID},
		}
		err = a.client.Create(ctx, object)
		if apierrors.IsAlreadyExists(err) {
			err = a.live.Get(ctx, client.ObjectKeyFromObject(object), object)
		} else {
			// Deleted by a person, or never there: the disk that is in its place now is the pool.
			p.expect(ctx)
			if pool.Offline != nil {
				a.store.Refresh(ctx)
			}
		}
	}
	if err != nil {
		return nil, fmt.Errorf("pool object %s: %w", p.name(pool.Name), err)
	}
	if equality.Semantic.DeepEqual(object.Labels, labels) && (object.Spec.UID != "" || pool.UID == "") {
		return object, nil
	}
	changed := object.DeepCopy()
	changed.Labels = labels
	if changed.Spec.UID == "" {
		changed.Spec.UID = pool.UID
	}
	if err := a.client.Patch(ctx, changed, client.MergeFromWithOptions(object, client.MergeFromWithOptimisticLock{})); err != nil {
		return nil, fmt.Errorf("update pool object %s: %w", object.Name, err)
	}
	return changed, nil
}

func (p *poolReporter) describe(ctx context.Context, pool *store.Pool, status *v1alpha1.PoolStatus) {
	status.Path = pool.Path
	if pool.Offline != nil {
		status.Available, status.MaximumVolumeSize = quantity(0), quantity(0)
		setPoolCondition(status, v1alpha1.ConditionReady, metav1.ConditionFalse, pool.Offline.Reason, pool.Offline.Err.Error())
		return
	}
	f := pool.Features
	status.Filesystem, status.FilesystemID = f.Filesystem, pool.FilesystemID
	status.Features = v1alpha1.PoolFeatures{ProjectQuota: f.ProjectQuota, SimpleQuota: f.SimpleQuota, Reflink: f.Reflink, DirectIO: f.DirectIO, QuotactlFD: f.QuotactlFD}
	status.Capacity, status.Promised = quantity(pool.Capacity), quantity(pool.Promised)
	status.Available = quantity(pool.Available / roomStep * roomStep)
	status.MaximumVolumeSize = status.Available
	status.Volumes = int32(pool.Volumes)
	orphans := p.orphans(ctx, pool.Name)
	status.Orphaned = int32(len(orphans))
	setPoolCondition(status, v1alpha1.ConditionReady, metav1.ConditionTrue, v1alpha1.ReasonReady, f.NoQuotaBecause)
	what := append(orphans, slices.Sorted(maps.Keys(pool.Broken))...)
	if len(what) == 0 {
		meta.RemoveStatusCondition(&status.Conditions, v1alpha1.ConditionOrphans)
		return
	}
	const named = 10
	more := ""
	if len(what) > named {
		more = fmt.Sprintf(" and %d more", len(what)-named)
		what = what[:named]
	}
	setPoolCondition(status, v1alpha1.ConditionOrphans, metav1.ConditionTrue, "Orphans",
		"on disk, kept, and no Volume object speaks of: "+strings.Join(what, ", ")+more)
}

// orphans are the pool's volumes that no Volume object speaks of.
func (p *poolReporter) orphans(ctx context.Context, pool string) []string {
	var list v1alpha1.VolumeList
	if err := p.agent.client.List(ctx, &list); err != nil {
		return nil
	}
	known := map[string]bool{}
	for i := range list.Items {
		known[list.Items[i].Name] = true
	}
	var out []string
	for _, v := range p.agent.store.List() {
		if v.Pool == pool && !known[v.ID] && !IsInline(&v.Volume) {
			out = append(out, v.ID)
		}
	}
	return out
}

func setPoolCondition(status *v1alpha1.PoolStatus, kind string, truth metav1.ConditionStatus, reason, message string) {
	meta.SetStatusCondition(&status.Conditions, metav1.Condition{Type: kind, Status: truth, Reason: reason, Message: message})
}

func quantity(bytes int64) *resource.Quantity { return resource.NewQuantity(bytes, resource.BinarySI) }
