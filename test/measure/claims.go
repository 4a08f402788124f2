package measure

import (
	"context"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	watchtools "k8s.io/client-go/tools/watch"
)

// selectedNode is what the scheduler writes on a claim that waits for its first
// consumer.
const selectedNode = "volume.kubernetes.io/selected-node"

// Claims makes and deletes claims of one namespace and takes the times that a
// watch sees, so that nothing polls.
type Claims struct {
	kube      kubernetes.Interface
	namespace string

	mu     sync.Mutex
	claims map[string]*claim // by name
	byPV   map[string]*claim
}

type claim struct {
	pv    string
	bound chan time.Time // one value, when it is Bound
	gone  chan time.Time // one value, when its PersistentVolume is gone
}

// NewClaims watches the claims of a namespace, and PersistentVolumes, until ctx
// ends.
func NewClaims(ctx context.Context, kube kubernetes.Interface, namespace string) (*Claims, error) {
	c := &Claims{kube: kube, namespace: namespace, claims: map[string]*claim{}, byPV: map[string]*claim{}}
	// Only for the resource version: what is there already is nobody's business
	// here.
	one := metav1.ListOptions{Limit: 1}
	claims, err := kube.CoreV1().PersistentVolumeClaims(namespace).List(ctx, one)
	if err != nil {
		return nil, fmt.Errorf("watch claims: %w", err)
	}
	volumes, err := kube.CoreV1().PersistentVolumes().List(ctx, one)
	if err != nil {
		return nil, fmt.Errorf("watch PersistentVolumes: %w", err)
	}
	onClaims := &cache.ListWatch{WatchFuncWithContext: func(ctx context.Context,
		o metav1.ListOptions) (watch.Interface, error) {
		return kube.CoreV1().PersistentVolumeClaims(namespace).Watch(ctx, o)
	}}
	onVolumes := &cache.ListWatch{WatchFuncWithContext: func(ctx context.Context,
		o metav1.ListOptions) (watch.Interface, error) {
		return kube.CoreV1().PersistentVolumes().Watch(ctx, o)
	}}
	if err := follow(ctx, claims.ResourceVersion, onClaims, c.claimChanged); err != nil {
		return nil, fmt.Errorf("watch claims: %w", err)
	}
	if err := follow(ctx, volumes.ResourceVersion, onVolumes, c.volumeChanged); err != nil {
		return nil, fmt.Errorf("watch PersistentVolumes: %w", err)
	}
	return c, nil
}

// follow calls changed with every event after a resource version, until ctx
// ends.
func follow(ctx context.Context, from string, on cache.WatcherWithContext, changed func(watch.Event)) error {
	w, err := watchtools.NewRetryWatcherWithContext(ctx, from, on)
	if err != nil {
		return err
	}
	go func() {
		for event := range w.ResultChan() {
			changed(event)
		}
	}()
	return nil
}

func (c *Claims) claimChanged(event watch.Event) {
	object, ok := event.Object.(*corev1.PersistentVolumeClaim)
	if !ok || object.Status.Phase != corev1.ClaimBound {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if known := c.claims[object.Name]; known != nil && known.pv == "" {
		known.pv = object.Spec.VolumeName
		c.byPV[known.pv] = known
		known.bound <- time.Now()
	}
}

func (c *Claims) volumeChanged(event watch.Event) {
	object, ok := event.Object.(*corev1.PersistentVolume)
	if !ok || event.Type != watch.Deleted {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if known := c.byPV[object.Name]; known != nil {
		delete(c.byPV, object.Name)
		known.gone <- time.Now()
	}
}

// Wish is what claims to make.
type Wish struct {
	Names []string
	Class string
	Size  string
	Mode  corev1.PersistentVolumeMode // empty: Filesystem
	Node  func(i int) string          // the node that is selected for the i-th, as a scheduler would
}

// Bind makes all claims of a wish at once and returns when they are Bound: how
// long each took, and all of them.
func (c *Claims) Bind(ctx context.Context, w Wish) (Times, time.Duration, error) {
	size, err := resource.ParseQuantity(w.Size)
	if err != nil {
		return nil, 0, fmt.Errorf("size %q: %w", w.Size, err)
	}
	mode := w.Mode
	if mode == "" {
		mode = corev1.PersistentVolumeFilesystem
	}
	c.mu.Lock()
	for _, name := range w.Names {
		c.claims[name] = &claim{bound: make(chan time.Time, 1), gone: make(chan time.Time, 1)}
	}
	c.mu.Unlock()

	return c.all(ctx, w.Names, "bound", func(i int, known *claim) (<-chan time.Time, error) {
		_, err := c.kube.CoreV1().PersistentVolumeClaims(c.namespace).Create(ctx, &corev1.PersistentVolumeClaim{
			ObjectMeta: metav1.ObjectMeta{Name: w.Names[i], Annotations: map[string]string{selectedNode: w.Node(i)}},
			Spec: corev1.PersistentVolumeClaimSpec{
				StorageClassName: &w.Class,
				AccessModes:      []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, VolumeMode: &mode,
				Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{
					corev1.ResourceStorage: size}},
			},
		}, metav1.CreateOptions{})
		return known.bound, err
	})
}

// Delete deletes bound claims at once and returns when their PersistentVolumes
// are gone.
func (c *Claims) Delete(ctx context.Context, names []string) (Times, time.Duration, error) {
	return c.all(ctx, names, "gone", func(i int, known *claim) (<-chan time.Time, error) {
		return known.gone, c.kube.CoreV1().PersistentVolumeClaims(c.namespace).Delete(ctx, names[i],
			metav1.DeleteOptions{})
	})
}

// all does something with all claims at once and waits for what has to come of
// it.
func (c *Claims) all(ctx context.Context, names []string, what string, do func(int, *claim) (<-chan time.Time,
	error)) (Times, time.Duration, error) {
	type outcome struct {
		took time.Duration
		err  error
	}
	start := time.Now()
	done := make(chan outcome, len(names))
	for i, name := range names {
		c.mu.Lock()
		known := c.claims[name]
		c.mu.Unlock()
		go func() {
			begun := time.Now()
			wait, err := do(i, known)
			if err != nil {
				done <- outcome{0, err}
				return
			}
			select {
			case at := <-wait:
				done <- outcome{at.Sub(begun), nil}
			case <-ctx.Done():
				done <- outcome{0, fmt.Errorf("claim %s is not %s: %w", name, what, context.Cause(ctx))}
			}
		}()
	}
	var times Times
	var first error
	for range names {
		o := <-done
		if o.err != nil && first == nil {
			first = o.err
		}
		times = append(times, o.took)
	}
	return times, time.Since(start), first
}

// Names makes n names with a common beginning.
func Names(prefix string, n int) []string {
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("%s-%d", prefix, i)
	}
	return names
}
