package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v10/controller"

	"github.com/quarry-storage/quarry/test/testbed"
)

const (
	// floor is a provisioner that does no work: what the library and Kubernetes take by themselves.
	floor     = "floor.quarry.storage"
	directory = "bench-directory"
	loop      = "bench-loop"
	node      = "node1"
)

var kube kubernetes.Interface

func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		fmt.Println("the benchmarks make a cluster on this machine and need root: run `make bench`")
		os.Exit(0)
	}
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if err := testbed.Down(ctx, os.Stderr); err != nil {
		return 1, err
	}
	cluster, err := testbed.Up(ctx, testbed.Config{Nodes: 1, Log: os.Stderr, ExtraPools: []testbed.Disk{{Path: "/volumes-btrfs", Filesystem: "btrfs"}}})
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, cluster.Down(ctx)) }()
	config, err := clientcmd.BuildConfigFromFlags("", cluster.Kubeconfig())
	if err != nil {
		return 1, err
	}
	config.QPS, config.Burst = 1000, 2000
	if kube, err = kubernetes.NewForConfig(config); err != nil {
		return 1, err
	}
	tarball, err := filepath.Abs("../../dist/quarry-image.tar")
	if err != nil {
		return 1, err
	}
	if err := cluster.Load(ctx, tarball); err != nil {
		return 1, err
	}
	if _, err := cluster.Helm(ctx, "install", "quarry", "../../charts/quarry", "--namespace", "quarry-system", "--create-namespace",
		"--values", "values.yaml", "--wait", "--timeout", "3m"); err != nil {
		return 1, err
	}
	_, err = kube.StorageV1().StorageClasses().Create(ctx, &storagev1.StorageClass{
		ObjectMeta: metav1.ObjectMeta{Name: "bench-floor"}, Provisioner: floor, VolumeBindingMode: new(storagev1.VolumeBindingWaitForFirstConsumer),
	}, metav1.CreateOptions{})
	if err != nil {
		return 1, err
	}
	//lint:ignore SA1019 the library takes the untyped one
	limiter := workqueue.DefaultControllerRateLimiter()
	go controller.NewProvisionController(klog.Background(), kube, floor, nothing{}, controller.LeaderElection(false),
		controller.Threadiness(100), controller.RateLimiter(limiter), controller.CreateProvisionedPVLimiter(limiter)).Run(ctx)
	return m.Run(), nil
}

// nothing provisions without doing anything.
type nothing struct{}

func (nothing) Provision(_ context.Context, o controller.ProvisionOptions) (*corev1.PersistentVolume, controller.ProvisioningState, error) {
	return &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: o.PVName},
		Spec: corev1.PersistentVolumeSpec{
			Capacity: o.PVC.Spec.Resources.Requests, AccessModes: o.PVC.Spec.AccessModes, PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimDelete,
			PersistentVolumeSource: corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: "/nonexistent"}},
			NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
				MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{node}}}}}}},
		},
	}, controller.ProvisioningFinished, nil
}

func (nothing) Delete(context.Context, *corev1.PersistentVolume) error { return nil }

// BenchmarkBind measures the time from the creation of one claim to Bound, as a watch sees it, on a quiet cluster: the three
// classes in turns, so that whatever else the machine does is in all of them. What is reported is the median of each, and the
// ratio to the floor.
func BenchmarkBind(b *testing.B) {
	classes := []string{"bench-floor", directory, loop}
	took := map[string][]time.Duration{}
	for round := 0; b.Loop(); round++ {
		for _, class := range classes {
			took[class] = append(took[class], bind(b, class, fmt.Sprintf("%s-%d-%d", class, b.N, round)))
		}
	}
	median := func(class string) float64 {
		slices.Sort(took[class])
		return float64(took[class][len(took[class])/2]) / float64(time.Millisecond)
	}
	for _, class := range classes {
		b.ReportMetric(median(class), class+"-ms")
	}
	b.ReportMetric(median(directory)/median("bench-floor"), "directory/floor")
	b.ReportMetric(median(loop)/median("bench-floor"), "loop/floor")
}

// BenchmarkBindMany measures a hundred claims at once.
func BenchmarkBindMany(b *testing.B) {
	for _, class := range []string{"bench-floor", directory, loop} {
		b.Run(class, func(b *testing.B) {
			for b.Loop() {
				done := make(chan time.Duration)
				for i := range 100 {
					go func() { done <- bind(b, class, fmt.Sprintf("many-%s-%d-%d", class, time.Now().UnixNano(), i)) }()
				}
				var all []time.Duration
				for range 100 {
					all = append(all, <-done)
				}
				slices.Sort(all)
				b.ReportMetric(float64(all[49])/float64(time.Millisecond), "p50-ms")
				b.ReportMetric(float64(all[98])/float64(time.Millisecond), "p99-ms")
			}
		})
	}
}

// bind makes a claim, waits until it is bound, and takes it away again.
func bind(b *testing.B, class, name string) time.Duration {
	ctx, cancel := context.WithTimeout(b.Context(), 5*time.Minute)
	defer cancel()
	claims := kube.CoreV1().PersistentVolumeClaims("default")
	watch, err := claims.Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + name})
	if err != nil {
		b.Error(err)
		return 0
	}
	defer watch.Stop()
	start := time.Now()
	_, err = claims.Create(ctx, &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{"volume.kubernetes.io/selected-node": node}},
		Spec: corev1.PersistentVolumeClaimSpec{StorageClassName: &class, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("64Mi")}}},
	}, metav1.CreateOptions{})
	if err != nil {
		b.Error(err)
		return 0
	}
	took, pv := time.Duration(0), ""
	for event := range watch.ResultChan() {
		if c, ok := event.Object.(*corev1.PersistentVolumeClaim); ok && c.Status.Phase == corev1.ClaimBound {
			took, pv = time.Since(start), c.Spec.VolumeName
			break
		}
	}
	if took == 0 {
		b.Errorf("claim %s was not bound", name)
	}
	if err := claims.Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
		b.Error(err)
	}
	// The next one begins when this one is gone: deleting is work too, and not what is measured.
	err = wait.PollUntilContextCancel(ctx, 20*time.Millisecond, true, func(ctx context.Context) (bool, error) {
		_, err := kube.CoreV1().PersistentVolumes().Get(ctx, pv, metav1.GetOptions{})
		return apierrors.IsNotFound(err), nil
	})
	if err != nil {
		b.Error(err)
	}
	return took
}
