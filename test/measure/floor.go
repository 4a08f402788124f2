package measure

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v10/controller"
)

// FloorProvisioner is the provisioner of the floor's classes.
const FloorProvisioner = "floor.quarry.storage"

// Floor runs, until ctx ends, a provisioner of the same library as Quarry's
// that does no work: what the library and Kubernetes take by themselves, and
// nobody can be faster than with them.
func Floor(ctx context.Context, kube kubernetes.Interface) {
	//nolint:staticcheck // the library takes the untyped one
	limiter := workqueue.DefaultControllerRateLimiter()
	controller.NewProvisionController(klog.Background(), kube, FloorProvisioner, nothing{},
		controller.LeaderElection(false),
		controller.Threadiness(100), controller.RateLimiter(limiter),
		controller.CreateProvisionedPVLimiter(limiter)).Run(ctx)
}

// nothing provisions without doing anything.
type nothing struct{}

func (nothing) Provision(_ context.Context, o controller.ProvisionOptions) (*corev1.PersistentVolume,
	controller.ProvisioningState, error) {
	host := []string{o.SelectedNode.Labels[corev1.LabelHostname]}
	return &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: o.PVName},
		Spec: corev1.PersistentVolumeSpec{
			Capacity: o.PVC.Spec.Resources.Requests, AccessModes: o.PVC.Spec.AccessModes,
			PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimDelete,
			PersistentVolumeSource: corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{
				Path: "/nonexistent"}},
			NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{
				NodeSelectorTerms: []corev1.NodeSelectorTerm{{
					MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelHostname,
						Operator: corev1.NodeSelectorOpIn, Values: host}}}}}},
		},
	}, controller.ProvisioningFinished, nil
}

func (nothing) Delete(context.Context, *corev1.PersistentVolume) error { return nil }
