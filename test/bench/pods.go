package bench

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/quarry-storage/quarry/test/measure"
	"github.com/quarry-storage/quarry/test/testbed/build"
)

// pods measures from the creation of a pod, with its claim, to its container
// running: through the real scheduler and kubelet, beside the volumes that need
// nobody.
func (b *bench) pods(ctx context.Context, s *Section) error {
	order := []string{"emptyDir", "hostPath"}
	classes := map[string]string{}
	for _, kind := range kinds[1:] {
		order = append(order, kind.name)
		classes[kind.name] = kind.class
	}
	took := map[string]measure.Times{}
	for range b.Rounds {
		for _, name := range order {
			times, err := b.pod(ctx, name, classes[name])
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			took[name] = append(took[name], times)
		}
	}
	t := s.table("", "pod created to running, median, ms", "p99", "against emptyDir")
	bars := measure.Bars{Title: "Pod created to running", Unit: "ms, median"}
	base := measure.Milliseconds(took["emptyDir"].Quantile(0.5))
	for _, name := range order {
		p50 := measure.Milliseconds(took[name].Quantile(0.5))
		t.Row(name, p50, measure.Milliseconds(took[name].Quantile(0.99)), p50/base)
		bars.Bars = append(bars.Bars, measure.Bar{Name: name, Value: p50})
	}
	s.Plots["running"] = bars
	s.note("Medians of %d pods of each kind, one after the other, in turns; the claim is made with its pod and waits "+
		"for the scheduler.", b.Rounds)
	return nil
}

// pod makes a pod with a volume, and returns how long it took to run; it is
// taken away again.
func (b *bench) pod(ctx context.Context, kind, class string) (time.Duration, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, 3*time.Minute, fmt.Errorf("not within 3 minutes"))
	defer cancel()
	name := b.names("pod", 1)[0]
	volume := corev1.Volume{Name: "data"}
	switch {
	case kind == "emptyDir":
		volume.EmptyDir = &corev1.EmptyDirVolumeSource{}
	case kind == "hostPath":
		create := corev1.HostPathDirectoryOrCreate
		volume.HostPath = &corev1.HostPathVolumeSource{Path: "/volumes/host-path/" + name, Type: &create}
	default:
		volume.PersistentVolumeClaim = &corev1.PersistentVolumeClaimVolumeSource{ClaimName: name}
	}
	pod := podWith(name, volume)
	core := b.kube.CoreV1()
	changes, err := core.Pods(namespace).Watch(ctx,
		metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("metadata.name", name).String()})
	if err != nil {
		return 0, err
	}
	defer changes.Stop()

	start := time.Now()
	if class != "" {
		claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec: corev1.PersistentVolumeClaimSpec{
				StorageClassName: &class, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
				Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{
					corev1.ResourceStorage: resource.MustParse(claimSize)}}}}
		if _, err := core.PersistentVolumeClaims(namespace).Create(ctx, claim, metav1.CreateOptions{}); err != nil {
			return 0, err
		}
	}
	if _, err := core.Pods(namespace).Create(ctx, pod, metav1.CreateOptions{}); err != nil {
		return 0, err
	}
	took, err := b.running(ctx, changes, name, start)
	if err != nil || class == "" {
		return took, err
	}
	return took, core.PersistentVolumeClaims(namespace).Delete(ctx, name, metav1.DeleteOptions{})
}

// podWith is a pod whose container does nothing but have a volume.
func podWith(name string, volume corev1.Volume) *corev1.Pod {
	grace := int64(0)
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PodSpec{
		TerminationGracePeriodSeconds: &grace, AutomountServiceAccountToken: new(false),
		Containers: []corev1.Container{{Name: "c", Image: build.PauseImage, ImagePullPolicy: corev1.PullNever,
			VolumeMounts: []corev1.VolumeMount{{Name: "data", MountPath: "/data"}}}},
		Volumes: []corev1.Volume{volume}}}
}

// running returns how long after start the pod ran; it is deleted then, and
// gone when this returns.
func (b *bench) running(ctx context.Context, changes watch.Interface, name string,
	start time.Time) (time.Duration, error) {
	took := time.Duration(0)
	for {
		select {
		case event, open := <-changes.ResultChan():
			if !open {
				return 0, fmt.Errorf("pod %s: the watch ended", name)
			}
			seen, ok := event.Object.(*corev1.Pod)
			switch {
			case !ok:
			case event.Type == watch.Deleted:
				return took, nil
			case seen.Status.Phase == corev1.PodRunning && took == 0:
				took = time.Since(start)
				if err := b.kube.CoreV1().Pods(namespace).Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
					return 0, err
				}
			}
		case <-ctx.Done():
			return 0, fmt.Errorf("pod %s: %w", name, context.Cause(ctx))
		}
	}
}
