package provisioner

import (
	"context"
	"fmt"
	"time"

	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v10/controller"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

// Delays between the tries of one claim or PersistentVolume. They are only the
// safety net: what a claim waits for wakes it (wake.go). The library's own
// first retry would come after 15 s.
const (
	firstRetry = 500 * time.Millisecond
	lastRetry  = 2 * time.Minute
)

// runLibrary runs the external-provisioner library until ctx ends. It must be
// called once, by the leader.
func runLibrary(
	ctx context.Context,
	kube kubernetes.Interface,
	l *localDoor,
	in informers,
	o Options,
) error {
	// The library ends the process on a wrong option, so nothing here comes
	// from outside unchecked.
	if o.Workers < 1 {
		return fmt.Errorf("workers: %d", o.Workers)
	}

	c := controller.NewProvisionController(
		klog.FromContext(ctx),
		kube,
		v1alpha1.LocalProvisioner,
		l,
		// The manager elects the leader: the library would neither release its
		// lease nor end without an exit code.
		controller.LeaderElection(false),
		// 0 retries for ever. After any other number the library forgets the
		// claim, and what was made for it.
		controller.FailedProvisionThreshold(0),
		controller.FailedDeleteThreshold(0),
		// A PersistentVolume deleted before its claim is still reclaimed
		// (KEP-2644).
		controller.AddFinalizer(true),
		// Workers block on agents, so there are many.
		controller.Threadiness(o.Workers),
		controller.RateLimiter(o.limiter),
		// With a limiter, saving a PersistentVolume is retried for ever;
		// without, its fresh volume would be deleted.
		controller.CreateProvisionedPVLimiter(workqueue.DefaultTypedControllerRateLimiter[any]()),
		controller.ProvisionTimeout(o.ProvisionTimeout),
		controller.DeletionTimeout(o.DeletionTimeout),
		controller.ClaimsInformer(l.waiting.claimsFor(in.claims)),
		controller.VolumesInformer(l.waiting.volumesFor(in.volumes)),
		controller.ClassesInformer(in.classes),
		controller.NodesLister(everyNode{corelisters.NewNodeLister(in.nodes.GetIndexer())}),
		controller.MetricsInstance(l.metrics.library),
	)
	c.Run(ctx)
	return nil
}

// retryLimiter is the library's rate limiter for both of its queues, whose keys
// never meet: UIDs and names.
func retryLimiter() workqueue.TypedRateLimiter[any] {
	return workqueue.NewTypedItemExponentialFailureRateLimiter[any](firstRetry, lastRetry)
}
