package nodeagent

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/store"
)

const (
	// reportAfter is how long a change waits for what comes with it, so that a
	// report does not compete with the volume it follows from, and reportEvery
	// bounds how often Pool objects are written while volumes come and go.
	// Together they are how old the room that is published can be. Before a
	// refusal it is reported at once.
	reportAfter = 100 * time.Millisecond
	reportEvery = 900 * time.Millisecond
	// roomStep is what the room of a pool is rounded down to, so that an object
	// is not written for a few blocks' sake.
	roomStep = 1 << 20
	// identifyRetry is how long to wait before the API server is asked again
	// who this cluster is.
	identifyRetry = time.Second
	// earlyWait is how long a start waits for the API server before the disks
	// are brought up without it.
	earlyWait = 3 * time.Second
)

// poolReporter keeps the Pool objects of the node: made once, written when
// there is news.
type poolReporter struct {
	agent *Agent
	wake  chan struct{}

	mu        sync.Mutex // one writer at a time: run, and flush before a refusal
	clusterID string
	// told is what the store was told last of each pool.
	told map[string]disk.Expectation
	// foreign are the pools in whose place a disk of another cluster is, or was
	// when it was last looked at, with what is on it.
	foreign map[string]foreignDisk
	// elsewhere are the pools that another node had last; twins, by pool, the
	// other Pool objects with its identity.
	elsewhere map[string]elsewhere
	twins     map[string]string
	// strangers may be volumes that no object speaks of.
	strangers suspects
}

func newPoolReporter(a *Agent) *poolReporter {
	return &poolReporter{agent: a, wake: make(chan struct{}, 1),
		told: map[string]disk.Expectation{}, foreign: map[string]foreignDisk{},
		elsewhere: map[string]elsewhere{}, strangers: suspects{feed: a.store.Feed()}}
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

		if !pause(ctx, reportAfter) {
			return
		}

		p.flush(ctx)
		if !pause(ctx, reportEvery) { // a burst becomes one write
			return
		}
	}
}

// pause waits, and reports whether ctx has not ended meanwhile.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

func (p *poolReporter) name(pool string) string {
	return v1alpha1.PoolObjectName(p.agent.opts.Node, pool)
}

// flush writes what changed of all pools, now.
func (p *poolReporter) flush(ctx context.Context) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.flushLocked(ctx)
}

func (p *poolReporter) flushLocked(ctx context.Context) {
	if p.clusterID == "" {
		return // not identified yet
	}

	configured := map[string]bool{}
	pools := p.agent.store.Pools()
	for _, pool := range pools {
		configured[p.name(pool.Name)] = true
		if err := p.report(ctx, &pool); err != nil && ctx.Err() == nil {
			p.agent.log.WarnContext(ctx, "report pool", "pool", pool.Name, "error", err)
			time.AfterFunc(identifyRetry, p.poke)
		}
	}

	p.agent.store.Told(pools)
	if err := p.retire(ctx, configured); err != nil && ctx.Err() == nil {
		p.agent.log.WarnContext(ctx, "report pools that are not configured any more", "error", err)
		time.AfterFunc(identifyRetry, p.poke)
	}
}

// retire says of the node's Pool objects that no pool of the configuration has
// that there is no room in them: what they said last would bring volumes here
// for ever. Only people delete them, for they remember which disk was there.
func (p *poolReporter) retire(ctx context.Context, configured map[string]bool) error {
	var list v1alpha1.PoolList
	if err := p.agent.client.List(ctx, &list); err != nil {
		return fmt.Errorf("list pool objects: %w", err)
	}

	for i := range list.Items {
		object := &list.Items[i]
		if configured[object.Name] || object.Spec.NodeName != p.agent.opts.Node {
			continue
		}

		status := object.Status.DeepCopy()
		status.Available, status.MaximumVolumeSize = quantity(0), quantity(0)
		setPoolCondition(status, v1alpha1.ConditionReady, metav1.ConditionFalse,
			disk.OfflineNotConfigured,
			"the agent's configuration has no such pool; delete this object when its volumes are "+
				"not needed any more")

		if err := p.write(ctx, object, status); err != nil {
			return err
		}
	}

	return nil
}

func (p *poolReporter) report(ctx context.Context, pool *store.Pool) error {
	object, made, err := p.fetch(ctx, pool)
	if err != nil {
		return err
	}

	p.askElsewhere(ctx, pool)
	if p.expect(pool, object, made) {
		p.agent.store.Refresh(ctx)
		for _, now := range p.agent.store.Pools() {
			if now.Name == pool.Name {
				pool = &now
			}
		}
	}

	if object, err = p.update(ctx, pool, object); err != nil {
		return err
	}

	status := object.Status.DeepCopy()
	p.describe(ctx, pool, status)
	return p.write(ctx, object, status)
}

// write writes a Pool object's status if it is not what it was.
func (p *poolReporter) write(ctx context.Context, object *v1alpha1.Pool,
	status *v1alpha1.PoolStatus) error {
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

// fetch returns the Pool object, which it makes where there is none. A pool
// that is offline has no identity to be remembered.
func (p *poolReporter) fetch(ctx context.Context, pool *store.Pool) (object *v1alpha1.Pool,
	made bool, err error) {
	a := p.agent
	object = &v1alpha1.Pool{}
	err = a.client.Get(ctx, client.ObjectKey{Name: p.name(pool.Name)}, object)
	if apierrors.IsNotFound(err) {
		object = &v1alpha1.Pool{
			ObjectMeta: metav1.ObjectMeta{Name: p.name(pool.Name),
				Labels: store.PoolLabels(a.opts.Node, &pool.Pool)},
			Spec: v1alpha1.PoolSpec{NodeName: a.opts.Node, Pool: pool.Name},
		}
		if pool.Offline == nil {
			object.Spec.UID = pool.UID
		}

		err = a.client.Create(ctx, object)
		if made = err == nil; apierrors.IsAlreadyExists(err) {
			err = a.live.Get(ctx, client.ObjectKeyFromObject(object), object)
		}
	}

	if err != nil {
		return nil, false, fmt.Errorf("pool object %s: %w", p.name(pool.Name), err)
	}

	return object, made, nil
}

// update brings the Pool object's labels up to date, and lets it remember the
// identity of a pool that it knew none of.
func (p *poolReporter) update(ctx context.Context, pool *store.Pool,
	object *v1alpha1.Pool) (*v1alpha1.Pool, error) {
	changed := object.DeepCopy()
	changed.Labels = store.PoolLabels(p.agent.opts.Node, &pool.Pool)
	if changed.Spec.UID == "" && pool.Offline == nil {
		changed.Spec.UID = pool.UID
	}

	if equality.Semantic.DeepEqual(object, changed) {
		return object, nil
	}
	if err := p.agent.client.Patch(ctx, changed, client.MergeFromWithOptions(object,
		client.MergeFromWithOptimisticLock{})); err != nil {
		return nil, fmt.Errorf("update pool object %s: %w", object.Name, err)
	}

	return changed, nil
}

func (p *poolReporter) describe(ctx context.Context, pool *store.Pool,
	status *v1alpha1.PoolStatus) {
	status.Path = pool.Path
	p.setTwins(pool.Name, status)
	if pool.Offline != nil {
		status.Available, status.MaximumVolumeSize = quantity(0), quantity(0)
		offline := p.elsewhereOffline(pool, p.foreignOffline(pool, p.offline(ctx, pool)))
		setPoolCondition(status, v1alpha1.ConditionReady, metav1.ConditionFalse, offline.Reason,
			offline.Err.Error())
		return
	}

	if p.agent.opts.MachineID != "" {
		status.MachineID = p.agent.opts.MachineID
	}

	f := pool.Features
	status.Filesystem, status.FilesystemID = f.Filesystem, pool.FilesystemID
	status.Features = v1alpha1.PoolFeatures{ProjectQuota: f.ProjectQuota,
		SimpleQuota: f.SimpleQuota, Reflink: f.Reflink,
		DirectIO: f.DirectIO, QuotactlFD: f.QuotactlFD}
	status.Capacity, status.Promised = quantity(pool.Capacity), quantity(pool.Promised)
	status.Available = quantity(pool.Available / roomStep * roomStep)

	// What trash would give way to counts for one volume, so that the scheduler
	// sends it here and the trash is freed.
	status.MaximumVolumeSize = quantity((pool.Available + pool.Purgeable) / roomStep * roomStep)
	status.Volumes = int32(pool.Volumes)
	orphans, moved := p.orphans(ctx, pool)
	status.Orphaned = int32(len(orphans))
	setPoolCondition(status, v1alpha1.ConditionReady, metav1.ConditionTrue, v1alpha1.ReasonReady,
		f.NoQuotaBecause)
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

	from := ""
	if moved != "" {
		from = fmt.Sprintf("; the disk was made on node %s; `quarry recover` moves them here",
			moved)
	}

	setPoolCondition(status, v1alpha1.ConditionOrphans, metav1.ConditionTrue, "Orphans",
		"on disk, kept, and no Volume object speaks of: "+strings.Join(what, ", ")+more+from)
}

func setPoolCondition(status *v1alpha1.PoolStatus, kind string, truth metav1.ConditionStatus,
	reason, message string) {
	meta.SetStatusCondition(&status.Conditions, metav1.Condition{Type: kind, Status: truth,
		Reason: reason, Message: message})
}

func quantity(bytes int64) *resource.Quantity {
	return resource.NewQuantity(bytes,
		resource.BinarySI)
}
