package nodeagent

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/disk"
	"github.com/quarry-storage/quarry/nodeagent/store"
)

// askEarly asks the API server which cluster this is before any disk is
// touched: that of another cluster must not be. An API server that does not
// answer keeps nobody's volumes down; then the disks count, and trash is not
// freed until it answers.
func (p *poolReporter) askEarly(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, earlyWait)
	defer cancel()

	if err := p.ask(ctx); err != nil {
		p.agent.log.WarnContext(ctx, "ask the API server which cluster this is; the pools are "+
			"brought up as they are", "error", err)
		return
	}

	known, err := Identities(ctx, p.agent.live, p.agent.opts.Node)
	if err != nil {
		p.agent.log.WarnContext(ctx, "ask the API server which disks are this node's", "error", err)
	}

	for _, pool := range p.agent.store.Pools() {
		p.agent.store.Expect(pool.Name, disk.Expectation{UID: known[pool.Name].UID,
			ClusterID: p.clusterID})
	}
}

func (p *poolReporter) ask(ctx context.Context) error {
	var ns corev1.Namespace
	if err := p.agent.live.Get(ctx, client.ObjectKey{Name: metav1.NamespaceSystem},
		&ns); err != nil {
		return err
	}
	p.clusterID = string(ns.UID)
	return nil
}

// identify learns from the API server what each pool's identity must be, and
// lets new pools be made. It is done once the objects of the node are known: a
// pool that has a Pool object with an identity is never made again somewhere
// else.
func (p *poolReporter) identify(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()

	a := p.agent
	err := wait.PollUntilContextCancel(ctx, identifyRetry, true,
		func(ctx context.Context) (bool, error) {
			if err := p.ask(ctx); err != nil {
				a.log.WarnContext(ctx, "ask the API server which cluster this is", "error", err)
				return false, nil
			}
			return true, nil
		})
	if err != nil {
		return err
	}

	for _, pool := range a.store.Pools() {
		object := &v1alpha1.Pool{}
		err := a.client.Get(ctx, client.ObjectKey{Name: p.name(pool.Name)}, object)
		switch {
		case err == nil:
			p.expect(&pool, object, false)
		case apierrors.IsNotFound(err):
			p.expect(&pool, nil, false)
		default:
			return fmt.Errorf("pool object %s: %w", p.name(pool.Name), err)
		}
	}

	a.store.Refresh(ctx)
	p.flushLocked(ctx)
	return nil
}

// expect tells the store what is known of a pool by its object (nil: there is
// none), and returns whether that is news; it takes effect at the next Refresh.
// made: the object was made just now, since a person had deleted it or it never
// was: then nobody remembers the pool, the disk that is in its place now
// counts, and where none is a pool may be made.
func (p *poolReporter) expect(pool *store.Pool, object *v1alpha1.Pool, made bool) bool {
	e := disk.Expectation{UID: pool.UID, ClusterID: p.clusterID}
	forgotten := made || object == nil
	if pool.Offline == nil || forgotten {
		delete(p.foreign, pool.Name)
	}

	_, foreign := p.foreign[pool.Name]
	if !foreign && isForeign(pool, object) {
		p.foreign[pool.Name], foreign = foreignDisk{}, true
	}

	switch {
	case !forgotten && object.Spec.UID != "":
		e.UID = object.Spec.UID
	case pool.Offline != nil && (forgotten || foreign):
		e.UID = ""
	}

	// Where a disk of another cluster was, its mount point may be empty for a
	// while; nothing is made there unasked.
	e.MayCreate = !foreign && (forgotten || object.Spec.UID == "")
	e.Never = e.MayCreate
	if object != nil {
		e.TakeOver = object.Spec.TakeOver
	}

	e.TakeFrom = p.elsewhere[pool.Name].takeFrom
	if told, ok := p.told[pool.Name]; ok && told == e {
		return false
	}

	p.told[pool.Name] = e
	p.agent.store.Expect(pool.Name, e)
	return true
}

// Identities returns what the node's Pool objects say the pools' identities
// are, by pool.
func Identities(ctx context.Context, reader client.Reader,
	node string) (map[string]disk.Expectation, error) {
	var list v1alpha1.PoolList
	if err := reader.List(ctx, &list, client.MatchingFields{"spec.nodeName": node}); err != nil {
		return nil, fmt.Errorf("list the pools of %s: %w", node, err)
	}

	out := map[string]disk.Expectation{}
	for _, p := range list.Items {
		out[p.Spec.Pool] = disk.Expectation{UID: p.Spec.UID}
	}

	return out, nil
}
