package provisioner

import (
	"context"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	ctrlmetrics "sigs.k8s.io/controller-runtime/pkg/metrics"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

// Options are the provisioner's settings; the zero value of each gives the
// default named in its comment.
type Options struct {
	// Namespace is Quarry's own: of the agents' pods, of the lease and of the
	// capacity objects. Required.
	Namespace string
	// AgentLabels select the agents' pods in it. Default:
	// app.kubernetes.io/name=quarry, app.kubernetes.io/component=agent.
	AgentLabels map[string]string
	// LeaseName names the lease of the leader election. Default:
	// quarry-controller.
	LeaseName string
	// NoLeaderElection is for tests and for a single process on a workbench.
	NoLeaderElection bool
	// Workers is how many claims, and how many PersistentVolumes, are worked on
	// at a time. Default: 100.
	Workers int
	// ProvisionTimeout bounds one try of one claim. Default: 60 s.
	ProvisionTimeout time.Duration
	// DeletionTimeout bounds one try of one PersistentVolume, DeleteWait the
	// wait for the agent in it. Default: 2 min, 10 s.
	DeletionTimeout time.Duration
	DeleteWait      time.Duration
	// SweepGrace is how old an unpublished attempt is before the sweep looks at
	// it. Default: 1 min.
	SweepGrace time.Duration
	// NodeLoss allows claims to be deleted so that they start over elsewhere,
	// for classes with onNodeLoss.
	NodeLoss bool
	// Deployment, if set, is the controller's own, in its namespace. It owns
	// the capacity objects, so that they go with it: the scheduler would
	// believe what they said last for ever.
	Deployment string
	// TemplateNodeSize is the largest volume, in bytes, that a node which the
	// cluster autoscaler would add has room for. 0: the autoscaler is told
	// nothing.
	TemplateNodeSize int64
	// IgnoreCapacity leaves the scheduler's look at capacity off: it chooses
	// nodes whether they have room or not.
	IgnoreCapacity bool
	// capacityOwner is the reference to it.
	capacityOwner *metav1.OwnerReference
	// MetricsAddress and HealthAddress are where those are served. Default: not
	// at all.
	MetricsAddress string
	HealthAddress  string
	// Registry takes the metrics. Default: controller-runtime's, which
	// MetricsAddress serves.
	Registry prometheus.Registerer
	// ServeCSI, if set, serves the CSI front door. It runs on every replica,
	// leader or not, until ctx ends.
	ServeCSI func(ctx context.Context, door *CSI) error

	// limiter replaces the delays between tries, for tests.
	limiter workqueue.TypedRateLimiter[any]
}

func (o Options) withDefaults() Options {
	if len(o.AgentLabels) == 0 {
		o.AgentLabels = map[string]string{
			"app.kubernetes.io/name":      "quarry",
			"app.kubernetes.io/component": "agent",
		}
	}

	orDefault(&o.LeaseName, "quarry-controller")
	orDefault(&o.Workers, 100)
	orDefault(&o.ProvisionTimeout, time.Minute)
	orDefault(&o.DeletionTimeout, 2*time.Minute)
	orDefault(&o.DeleteWait, defaultDeleteWait)
	orDefault(&o.SweepGrace, defaultSweepGrace)
	if o.limiter == nil {
		o.limiter = retryLimiter()
	}
	if o.Registry == nil {
		o.Registry = ctrlmetrics.Registry
	}

	return o
}

func orDefault[T comparable](field *T, value T) {
	if zero := *new(T); *field == zero {
		*field = value
	}
}

// NewScheme knows the kinds of Kubernetes and of Quarry.
func NewScheme() (*runtime.Scheme, error) {
	s := runtime.NewScheme()
	kinds := []func(*runtime.Scheme) error{clientscheme.AddToScheme, v1alpha1.AddToScheme}
	for _, add := range kinds {
		if err := add(s); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// managerOptions are the options of the manager that setup needs: what is
// cached, and how the leader is elected.
func managerOptions(o Options) (manager.Options, error) {
	o = o.withDefaults()
	if o.Namespace == "" {
		return manager.Options{}, fmt.Errorf("the provisioner's options lack a namespace")
	}

	scheme, err := NewScheme()
	if err != nil {
		return manager.Options{}, err
	}

	metrics := o.MetricsAddress
	if metrics == "" {
		metrics = "0" // the manager's word for none
	}

	volumes, claims, records := newPackers()
	return manager.Options{
		Scheme: scheme,
		Cache: cache.Options{
			DefaultTransform: cache.TransformStripManagedFields(),
			ByObject: map[client.Object]cache.ByObject{
				// Only the agents' pods; the pods of a claim are read live when
				// they matter.
				&corev1.Pod{}: {Transform: trimPod, Namespaces: map[string]cache.Config{
					o.Namespace: {LabelSelector: labels.SelectorFromSet(o.AgentLabels)},
				}},
				&corev1.Node{}: {Transform: trimNode},
				// What there is most of lies packed, and is not gone through
				// again without news.
				&corev1.PersistentVolume{}: {
					Transform:  volumes.transform,
					SyncPeriod: new(time.Duration(0)),
				},
				&corev1.PersistentVolumeClaim{}: {
					Transform:  claims.transform,
					SyncPeriod: new(time.Duration(0)),
				},
				&v1alpha1.Volume{}: {
					Transform:  records.transform,
					SyncPeriod: new(time.Duration(0)),
				},
				&storagev1.CSIStorageCapacity{}: {
					Namespaces: map[string]cache.Config{o.Namespace: {}},
				},
			},
		},
		LeaderElection:          !o.NoLeaderElection,
		LeaderElectionID:        o.LeaseName,
		LeaderElectionNamespace: o.Namespace,
		// The process ends when the manager does; the other replica takes over
		// at once.
		LeaderElectionReleaseOnCancel: true,
		Metrics:                       metricsserver.Options{BindAddress: metrics},
		HealthProbeBindAddress:        o.HealthAddress,
	}, nil
}

// Throughput returns the config with client-side limits that a burst of a few
// hundred claims does not meet, unless it has limits already; the API server
// protects itself by priority and fairness.
func Throughput(config *rest.Config) *rest.Config {
	c := rest.CopyConfig(config)
	if c.QPS == 0 {
		c.QPS, c.Burst = 500, 1000
	}
	return c
}

// protobuf has a client of built-in kinds only speak the form that costs least.
// The manager's client chooses by kind.
func protobuf(config *rest.Config) *rest.Config {
	c := rest.CopyConfig(config)
	c.ContentType = runtime.ContentTypeProtobuf
	c.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	return c
}
