package provisioner

import (
	"cmp"
	"context"
	"sync"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

// agent answers the records of one node through the API as an agent would, and
// keeps no disk. It knows one pool of a given size, and refuses what does not
// fit.
type agent struct {
	k    *cluster
	node string

	mu     sync.Mutex
	size   int64
	held   map[string]int64 // by record
	inUse  map[string]bool
	paused bool
	// path is the pool's; empty: /volumes.
	path string
	// failGrowth is what keeps volumes from growing.
	failGrowth string
	// fail is why no volume is made, and refused how many were.
	fail    string
	refused int
}

// agent starts one; it ends with the test.
func (k *cluster) agent(node, size string) *agent {
	k.t.Helper()
	q := resource.MustParse(size)
	a := &agent{k: k, node: node, size: q.Value(), held: map[string]int64{}, inUse: map[string]bool{}}
	k.make(&v1alpha1.Pool{ObjectMeta: metav1.ObjectMeta{Name: node + ".default",
		Labels: map[string]string{v1alpha1.LabelPool: "default"}},
		Spec: v1alpha1.PoolSpec{NodeName: node, Pool: "default"}})
	a.report()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		wait.UntilWithContext(ctx, a.watch, 50e6) // the CRD may be deleted under it
	}()
	k.t.Cleanup(func() {
		cancel()
		<-done
		_ = k.Delete(context.Background(), &v1alpha1.Pool{ObjectMeta: metav1.ObjectMeta{Name: node + ".default"}})
	})
	return a
}

func (a *agent) watch(ctx context.Context) {
	w, err := a.k.Watch(ctx, &v1alpha1.VolumeList{}, client.MatchingFields{"spec.nodeName": a.node})
	if err != nil {
		return
	}
	defer w.Stop()
	for {
		select {
		case e, open := <-w.ResultChan():
			if !open {
				return
			}
			if v, ok := e.Object.(*v1alpha1.Volume); ok && e.Type != "DELETED" {
				a.answer(ctx, v)
			}
		case <-ctx.Done():
			return
		}
	}
}

// answer does what a record asks, unless the agent is paused.
func (a *agent) answer(ctx context.Context, v *v1alpha1.Volume) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.paused {
		a.answerLocked(ctx, v)
	}
}

func (a *agent) answerLocked(ctx context.Context, v *v1alpha1.Volume) {
	before := v.DeepCopy()
	others, complete, fits := a.grouped(ctx, v)
	v.Status.ObservedGeneration = v.Generation
	set := func(kind string, status metav1.ConditionStatus, reason, message string) {
		meta.SetStatusCondition(&v.Status.Conditions, metav1.Condition{Type: kind, Status: status, Reason: reason,
			Message: message, ObservedGeneration: v.Generation})
	}
	switch {
	case v.Spec.DesiredState != v1alpha1.DesiredPresent && a.inUse[v.Name]:
		set(v1alpha1.ConditionInUse, metav1.ConditionTrue, v1alpha1.ReasonMounted, "mounted by pod x")
	case v.Spec.DesiredState == v1alpha1.DesiredDeleted:
		delete(a.held, v.Name)
		a.report()
		v.Status.Phase = v1alpha1.VolumeDeleted
		set(v1alpha1.ConditionReady, metav1.ConditionFalse, v1alpha1.ReasonRemoved, "deleted")
	case v.Spec.DesiredState == v1alpha1.DesiredTrashed:
		v.Status.Phase = v1alpha1.VolumeTrashed
		set(v1alpha1.ConditionReady, metav1.ConditionFalse, v1alpha1.ReasonRemoved, "trashed")
	case v.Status.Phase == v1alpha1.VolumeRefused:
		return
	case a.fail != "" && a.held[v.Name] == 0:
		a.refused++
		v.Status.Phase = v1alpha1.VolumeRefused
		set(v1alpha1.ConditionReady, metav1.ConditionFalse, v1alpha1.ReasonCreateFailed, a.fail)
	case !complete:
		return // the last one answers for all
	case !fits:
		a.refused++
		v.Status.Phase = v1alpha1.VolumeRefused
		set(v1alpha1.ConditionReady, metav1.ConditionFalse, v1alpha1.ReasonGroupRefused,
			"the claims of one pod are admitted together, and one was not")
	default:
		want := v.Spec.Capacity.Value()
		if a.held[v.Name] > 0 && want > a.held[v.Name] && a.failGrowth != "" {
			set(v1alpha1.ConditionResized, metav1.ConditionFalse, v1alpha1.ReasonResizing, a.failGrowth)
			break
		}
		if want != a.held[v.Name] && want-a.held[v.Name] > a.freeLocked() {
			if a.held[v.Name] > 0 {
				set(v1alpha1.ConditionResized, metav1.ConditionFalse, v1alpha1.ReasonResizeInfeasible,
					"no room to grow in pool default")
				break
			}
			a.report() // before the refusal, as the API asks
			v.Status.Phase = v1alpha1.VolumeRefused
			set(v1alpha1.ConditionReady, metav1.ConditionFalse, v1alpha1.ReasonInsufficientCapacity,
				"no pool has room for "+v.Spec.Capacity.String())
			break
		}
		if a.held[v.Name] != want {
			a.held[v.Name] = want
			a.report()
		}
		v.Status.Phase, v.Status.Backend, v.Status.Pool, v.Status.FSType = v1alpha1.VolumeReady, v1alpha1.BackendLoop,
			"default", "ext4"
		v.Status.Path = cmp.Or(a.path, "/volumes") + "/" + v.Name + "/mount/data"
		v.Status.Capacity = new(v.Spec.Capacity.DeepCopy())
		set(v1alpha1.ConditionReady, metav1.ConditionTrue, v1alpha1.ReasonReady, "")
		set(v1alpha1.ConditionResized, metav1.ConditionTrue, v1alpha1.ReasonResized, "")
	}
	before.Status.ObservedGeneration = v.Generation
	if equality.Semantic.DeepEqual(before.Status, v.Status) {
		return
	}
	if err := a.k.Status().Patch(ctx, v, client.MergeFrom(before)); err != nil && !apierrors.IsNotFound(err) &&
		ctx.Err() == nil {
		a.k.t.Errorf("agent of %s: %v", a.node, err)
	}
	for _, m := range others {
		if v.Status.Phase != v1alpha1.VolumeRefused {
			a.answerLocked(ctx, m)
			continue
		}
		base := m.DeepCopy()
		m.Status.Phase, m.Status.ObservedGeneration = v1alpha1.VolumeRefused, m.Generation
		m.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionReady, Status: metav1.ConditionFalse,
			Reason:  v1alpha1.ReasonGroupRefused,
			Message: "another claim of the pod does not fit", LastTransitionTime: metav1.Now()}}
		if err := a.k.Status().Patch(ctx, m, client.MergeFrom(base)); err != nil && !apierrors.IsNotFound(err) &&
			ctx.Err() == nil {
			a.k.t.Errorf("agent of %s: %v", a.node, err)
		}
	}
}

// grouped reports how a volume's group stands: whether it is complete, with its
// other members, and whether there is room for all of it. One that was refused
// refuses all.
func (a *agent) grouped(ctx context.Context, v *v1alpha1.Volume) (others []*v1alpha1.Volume, complete, fits bool) {
	if v.Spec.Admission == nil || a.held[v.Name] > 0 || v.Spec.DesiredState != v1alpha1.DesiredPresent {
		return nil, true, true
	}
	var list v1alpha1.VolumeList
	require.NoError(a.k.t, client.IgnoreNotFound(a.k.List(ctx, &list, client.MatchingFields{"spec.nodeName": a.node})))
	fits = true
	all, have := v.Spec.Capacity.Value(), 1
	for i := range list.Items {
		m := &list.Items[i]
		if m.Name == v.Name || m.Spec.Admission == nil || m.Spec.Admission.Name != v.Spec.Admission.Name ||
			m.Spec.DesiredState != v1alpha1.DesiredPresent {
			continue
		}
		have++
		switch {
		case m.Status.Phase == v1alpha1.VolumeRefused:
			fits = false
		case a.held[m.Name] == 0:
			all += m.Spec.Capacity.Value()
			others = append(others, m)
		}
	}
	return others, have >= len(v.Spec.Admission.Claims), fits && all <= a.freeLocked()
}

func (a *agent) freeLocked() int64 {
	free := a.size
	for _, n := range a.held {
		free -= n
	}
	return free
}

// report writes the pool's status.
func (a *agent) report() {
	free := resource.NewQuantity(a.freeLocked(), resource.BinarySI)
	var pool v1alpha1.Pool
	ctx := context.Background()
	require.NoError(a.k.t, a.k.Get(ctx, client.ObjectKey{Name: a.node + ".default"}, &pool))
	before := pool.DeepCopy()
	pool.Status.Available, pool.Status.MaximumVolumeSize = free, free
	pool.Status.Capacity = resource.NewQuantity(a.size, resource.BinarySI)
	meta.SetStatusCondition(&pool.Status.Conditions, metav1.Condition{Type: v1alpha1.ConditionReady,
		Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonReady})
	require.NoError(a.k.t, a.k.Status().Patch(ctx, &pool, client.MergeFrom(before)))
}

// set changes the agent under its lock and looks at every record again.
func (a *agent) set(change func()) {
	a.mu.Lock()
	change()
	a.report()
	a.mu.Unlock()
	var list v1alpha1.VolumeList
	require.NoError(a.k.t, a.k.List(context.Background(), &list, client.MatchingFields{"spec.nodeName": a.node}))
	for i := range list.Items {
		a.answer(context.Background(), &list.Items[i])
	}
}

// label puts a label on the agent's pool.
func (a *agent) label(key, value string) {
	var pool v1alpha1.Pool
	ctx := context.Background()
	require.NoError(a.k.t, a.k.Get(ctx, client.ObjectKey{Name: a.node + ".default"}, &pool))
	before := pool.DeepCopy()
	pool.Labels[key] = value
	require.NoError(a.k.t, a.k.Patch(ctx, &pool, client.MergeFrom(before)))
}
