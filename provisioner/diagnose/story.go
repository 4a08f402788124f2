package diagnose

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/provisioner"
)

// Story is all that the API server knows of one volume, pool or claim. Its
// fields are part of what `kubectl quarry describe` prints as JSON: objects are
// Kubernetes' and Quarry's own.
type Story struct {
	// Kind says what it is about: Volume, Pool or PersistentVolumeClaim.
	Kind string `json:"kind"`
	// Findings are what is wrong with it, or with what it needs: its node and
	// the controller.
	Findings []Finding `json:"findings"`
	// Waiting is why the claim has no volume; nil if it has one.
	Waiting *Waiting `json:"waiting,omitempty"`

	Claim            *corev1.PersistentVolumeClaim `json:"claim,omitempty"`
	Class            *storagev1.StorageClass       `json:"storageClass,omitempty"`
	PersistentVolume *corev1.PersistentVolume      `json:"persistentVolume,omitempty"`
	// Volumes are the volume, or all attempts that were made for the claim; of
	// a pool all that are on it.
	Volumes []v1alpha1.Volume `json:"volumes"`
	// Usage is how full the volume is; nil where kubelet does not know it.
	Usage *Usage `json:"usage,omitempty"`
	// Pools are those that the volumes are on.
	Pools []v1alpha1.Pool `json:"pools"`
	// Nodes are those of the volumes or the pool.
	Nodes []Node `json:"nodes"`
	// Pods use the claim.
	Pods []corev1.Pod `json:"pods"`
	// Events are about any of these, the newest last.
	Events []corev1.Event `json:"events"`

	// At is when it was read.
	At time.Time `json:"-"`
}

// teller reads what a story needs.
type teller struct {
	client.Reader
	c *Cluster
	// story is what was found so far.
	story *Story
}

// TellClaim tells of a claim. It is an apierrors.IsNotFound if there is none.
func TellClaim(ctx context.Context, reader client.Reader, s Selectors, key client.ObjectKey,
	now time.Time) (*Story, error) {
	t := newTeller(reader, KindClaim, now)
	claim := &corev1.PersistentVolumeClaim{}
	if err := t.Get(ctx, key, claim); err != nil {
		return nil, fmt.Errorf("read claim %s: %w", key.String(), err)
	}

	t.story.Claim = claim
	return t.tell(ctx, s, t.ofClaim, t.ofVolumes)
}

// TellVolume tells of a volume. It is an apierrors.IsNotFound if there is none.
func TellVolume(ctx context.Context, reader client.Reader, s Selectors, name string,
	now time.Time) (*Story, error) {
	t := newTeller(reader, KindVolume, now)
	v := &v1alpha1.Volume{}
	if err := t.Get(ctx, client.ObjectKey{Name: name}, v); err != nil {
		return nil, fmt.Errorf("read Volume %s: %w", name, err)
	}

	t.story.Volumes = []v1alpha1.Volume{*v}
	return t.tell(ctx, s, t.aboveVolume, t.ofVolumes)
}

// TellPool tells of a pool, <node>.<pool>. It is an apierrors.IsNotFound if
// there is none.
func TellPool(ctx context.Context, reader client.Reader, s Selectors, name string,
	now time.Time) (*Story, error) {
	t := newTeller(reader, KindPool, now)
	p := &v1alpha1.Pool{}
	if err := t.Get(ctx, client.ObjectKey{Name: name}, p); err != nil {
		return nil, fmt.Errorf("read Pool %s: %w", name, err)
	}

	t.story.Pools = []v1alpha1.Pool{*p}
	return t.tell(ctx, s, t.onPool)
}

func newTeller(reader client.Reader, kind string, now time.Time) *teller {
	return &teller{
		Reader: reader,
		c: &Cluster{
			At: now, Nodes: map[string]*corev1.Node{},
			Classes: map[string]*storagev1.StorageClass{},
		},
		story: &Story{
			Kind: kind, At: now, Findings: []Finding{},
			Volumes: []v1alpha1.Volume{}, Pools: []v1alpha1.Pool{},
			Pods: []corev1.Pod{}, Events: []corev1.Event{},
		},
	}
}

// tell reads step after step, then what all stories have, and decides what of
// it is wrong as a look at the whole cluster would.
func (t *teller) tell(ctx context.Context, s Selectors,
	steps ...func(context.Context) error) (*Story, error) {
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}

	if err := t.whoLooksAfterIt(ctx, s); err != nil {
		return nil, err
	}
	if err := t.events(ctx); err != nil {
		return nil, err
	}

	c, story := t.c, t.story
	c.Volumes, c.Pods, c.Events = story.Volumes, story.Pods, story.Events
	if story.PersistentVolume != nil {
		c.PVs = []corev1.PersistentVolume{*story.PersistentVolume}
	}

	if story.Claim != nil {
		c.Claims = []corev1.PersistentVolumeClaim{*story.Claim}
	}

	if story.Class != nil {
		c.Classes[story.Class.Name] = story.Class
	}

	status := c.Status()
	story.Nodes = status.Nodes
	story.Findings = slices.DeleteFunc(status.Findings, func(f Finding) bool {
		return f.Kind == KindPool && !story.hasPool(f.Name) // another one of its node
	})
	if len(status.Waiting) > 0 {
		story.Waiting = &status.Waiting[0]
	}

	return story, nil
}

func (s *Story) hasPool(name string) bool {
	return slices.ContainsFunc(s.Pools, func(p v1alpha1.Pool) bool { return p.Name == name })
}

// find reads an object that may not exist; found is false then.
func (t *teller) find(ctx context.Context, key client.ObjectKey, o client.Object) (found bool,
	err error) {
	err = t.Get(ctx, key, o)
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read %T %s: %w", o, key.String(), err)
	}
	return true, nil
}

// ofClaim goes down from a claim: its PersistentVolume and its volume, or the
// attempts at one.
func (t *teller) ofClaim(ctx context.Context) error {
	claim := t.story.Claim
	if name := claim.Spec.VolumeName; name != "" {
		pv := &corev1.PersistentVolume{}
		found, err := t.find(ctx, client.ObjectKey{Name: name}, pv)
		if err != nil {
			return err
		}
		if found {
			t.story.PersistentVolume = pv
		}
	}

	named := map[string]bool{}
	if pv := t.story.PersistentVolume; pv != nil {
		if id, _, ours := provisioner.VolumeOf(pv); ours {
			v := &v1alpha1.Volume{}
			found, err := t.find(ctx, client.ObjectKey{Name: id}, v)
			if err != nil {
				return err
			}
			if found {
				t.story.Volumes, named[id] = append(t.story.Volumes, *v), true
			}
		}
	}

	var attempts v1alpha1.VolumeList
	err := t.List(ctx, &attempts, client.MatchingLabels{
		v1alpha1.LabelPVName: "pvc-" + string(claim.UID)})
	if err != nil {
		return fmt.Errorf("list the attempts of claim %s/%s: %w", claim.Namespace, claim.Name, err)
	}

	for i := range attempts.Items {
		if !named[attempts.Items[i].Name] {
			t.story.Volumes = append(t.story.Volumes, attempts.Items[i])
		}
	}

	return t.aroundClaim(ctx)
}

// aboveVolume goes up from a volume: the PersistentVolume that leads to it, and
// its claim.
func (t *teller) aboveVolume(ctx context.Context) error {
	v := &t.story.Volumes[0]
	var pvs corev1.PersistentVolumeList
	if err := t.List(ctx, &pvs); err != nil {
		return fmt.Errorf("list PersistentVolumes: %w", err)
	}

	at := slices.IndexFunc(pvs.Items, func(pv corev1.PersistentVolume) bool {
		return provisioner.LeadsTo(&pv, v)
	})

	var key client.ObjectKey
	if ref := v.Spec.Claim; ref != nil {
		key = client.ObjectKey{Namespace: ref.Namespace, Name: ref.Name}
	}

	if at >= 0 {
		t.story.PersistentVolume = &pvs.Items[at]
		// Whose it is now says the PersistentVolume.
		if ref := pvs.Items[at].Spec.ClaimRef; ref != nil {
			key = client.ObjectKey{Namespace: ref.Namespace, Name: ref.Name}
		}
	}

	if key.Name == "" {
		return nil
	}

	claim := &corev1.PersistentVolumeClaim{}
	found, err := t.find(ctx, key, claim)
	if err != nil || !found {
		return err
	}

	t.story.Claim = claim
	return t.aroundClaim(ctx)
}

// aroundClaim reads a claim's class, and the pods that use it.
func (t *teller) aroundClaim(ctx context.Context) error {
	claim := t.story.Claim
	if name := className(claim); name != "" {
		class := &storagev1.StorageClass{}
		found, err := t.find(ctx, client.ObjectKey{Name: name}, class)
		if err != nil {
			return err
		}
		if found {
			t.story.Class = class
		}
	}

	var pods corev1.PodList
	if err := t.List(ctx, &pods, client.InNamespace(claim.Namespace)); err != nil {
		return fmt.Errorf("list pods of namespace %s: %w", claim.Namespace, err)
	}

	for i := range pods.Items {
		if slices.Contains(claimsOf(&pods.Items[i]), claim.Name) {
			t.story.Pods = append(t.story.Pods, pods.Items[i])
		}
	}

	return nil
}

// ofVolumes reads the pools that the volumes are on.
func (t *teller) ofVolumes(ctx context.Context) error {
	read := map[string]bool{}
	for i := range t.story.Volumes {
		v := &t.story.Volumes[i]
		name := v1alpha1.PoolObjectName(v.Spec.NodeName, cmp.Or(v.Status.Pool, v.Spec.Pool))
		if read[name] || cmp.Or(v.Status.Pool, v.Spec.Pool) == "" {
			continue
		}

		read[name] = true
		p := &v1alpha1.Pool{}
		found, err := t.find(ctx, client.ObjectKey{Name: name}, p)
		if err != nil {
			return err
		}
		if found {
			t.story.Pools = append(t.story.Pools, *p)
		}
	}

	return nil
}

// onPool reads the volumes of a pool.
func (t *teller) onPool(ctx context.Context) error {
	p := &t.story.Pools[0]
	var all v1alpha1.VolumeList
	if err := t.List(ctx, &all,
		client.MatchingFields{"spec.nodeName": p.Spec.NodeName}); err != nil {
		return fmt.Errorf("list the Volumes of node %s: %w", p.Spec.NodeName, err)
	}

	for i := range all.Items {
		if cmp.Or(all.Items[i].Status.Pool, all.Items[i].Spec.Pool) == p.Spec.Pool {
			t.story.Volumes = append(t.story.Volumes, all.Items[i])
		}
	}

	return nil
}

// whoLooksAfterIt reads the nodes with all their pools, their agents, and the
// controller.
func (t *teller) whoLooksAfterIt(ctx context.Context, s Selectors) error {
	nodes := map[string]bool{}
	for i := range t.story.Volumes {
		nodes[t.story.Volumes[i].Spec.NodeName] = true
	}

	for i := range t.story.Pools {
		nodes[t.story.Pools[i].Spec.NodeName] = true
	}

	for name := range nodes {
		node := &corev1.Node{}
		found, err := t.find(ctx, client.ObjectKey{Name: name}, node)
		if err != nil {
			return err
		}
		if found {
			t.c.Nodes[name] = node
		}

		var pools v1alpha1.PoolList
		if err := t.List(ctx, &pools, client.MatchingFields{"spec.nodeName": name}); err != nil {
			return fmt.Errorf("list the Pools of node %s: %w", name, err)
		}

		t.c.Pools = append(t.c.Pools, pools.Items...)
	}

	var agents, controllers corev1.PodList
	if err := t.List(ctx, &agents, ours(s.Namespace, s.Agent)...); err != nil {
		return fmt.Errorf("list the agents' pods: %w", err)
	}
	if err := t.List(ctx, &controllers, ours(s.Namespace, s.Controllers)...); err != nil {
		return fmt.Errorf("list the controller's pods: %w", err)
	}

	t.c.Controllers = controllers.Items
	for i := range agents.Items {
		if nodes[agents.Items[i].Spec.NodeName] {
			t.c.Agents = append(t.c.Agents, agents.Items[i])
		}
	}

	return nil
}

// events reads the events about everything in the story but the other volumes
// of a pool.
func (t *teller) events(ctx context.Context) error {
	s := t.story
	var about []types.UID
	if s.Kind != KindPool { // whose volumes may be many, and are only named
		for i := range s.Volumes {
			about = append(about, s.Volumes[i].UID)
		}
	}

	if s.Claim != nil {
		about = append(about, s.Claim.UID)
	}

	if s.PersistentVolume != nil {
		about = append(about, s.PersistentVolume.UID)
	}

	for i := range s.Pools {
		about = append(about, s.Pools[i].UID)
	}

	for i := range s.Pods {
		about = append(about, s.Pods[i].UID)
	}

	for _, uid := range about {
		var events corev1.EventList
		if err := t.List(ctx, &events, client.MatchingFields{
			"involvedObject.uid": string(uid)}); err != nil {
			return fmt.Errorf("list events: %w", err)
		}

		s.Events = append(s.Events, events.Items...)
	}

	slices.SortStableFunc(s.Events, func(a, b corev1.Event) int {
		return EventTime(&a).Compare(EventTime(&b))
	})
	return nil
}
