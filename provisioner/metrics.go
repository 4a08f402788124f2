package provisioner

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	libmetrics "sigs.k8s.io/sig-storage-lib-external-provisioner/v10/controller/metrics"
)

// Metrics are the provisioner's own. The library's failed_total counts
// rescheduling and ignored claims as failures; alerts belong on
// quarry_provision_failures_total instead.
type Metrics struct {
	duration *prometheus.HistogramVec
	failures *prometheus.CounterVec
	waiting  prometheus.Gauge
	healed   prometheus.Counter
	swept    prometheus.Counter
	capacity prometheus.Counter
	orphans  prometheus.Gauge
	// startedOver counts claims that were given up because their node was lost.
	startedOver prometheus.Counter
	library     libmetrics.Metrics
}

// NewMetrics makes them and registers them.
func NewMetrics(registry prometheus.Registerer) (*Metrics, error) {
	m := &Metrics{
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "quarry_provision_duration_seconds",
			Help: "Time from the library's call to a volume that is ready and published, by " +
				"StorageClass. Successes only.",
			Buckets: []float64{.005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10, 30, 60},
		}, []string{"class"}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "quarry_provision_failures_total",
			Help: "Tries to provision that did not succeed, by StorageClass and by reason, the " +
				"same as the Volume's condition or the event gives.",
		}, []string{"class", "reason"}),
		waiting: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "quarry_waiting_claims", Help: "Claims that could not be served yet and " +
				"are retried.",
		}),
		healed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "quarry_healed_records_total", Help: "Volume records that were lost and " +
				"written again from their PersistentVolume.",
		}),
		swept: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "quarry_swept_attempts_total", Help: "Attempts that were never published and " +
				"that nobody wanted any more.",
		}),
		capacity: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "quarry_capacity_writes_total", Help: "CSIStorageCapacity objects created, " +
				"changed or deleted.",
		}),
		orphans: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "quarry_orphaned_volumes", Help: "Volumes that were published and that no " +
				"PersistentVolume points at any more. They are kept until a person decides.",
		}),
		startedOver: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "quarry_node_loss_claims_total", Help: "Claims that were deleted, their data " +
				"kept, to start over on another node because theirs was lost (onNodeLoss).",
		}),
		library: libmetrics.New("quarry"),
	}
	for _, c := range []prometheus.Collector{
		m.duration, m.failures, m.waiting, m.healed, m.swept, m.capacity, m.orphans, m.startedOver,
		m.library.PersistentVolumeClaimProvisionTotal,
		m.library.PersistentVolumeClaimProvisionFailedTotal,
		m.library.PersistentVolumeClaimProvisionDurationSeconds,
		m.library.PersistentVolumeDeleteTotal,
		m.library.PersistentVolumeDeleteFailedTotal,
		m.library.PersistentVolumeDeleteDurationSeconds,
	} {
		if err := registry.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *Metrics) provisioned(class string, took time.Duration) {
	m.duration.WithLabelValues(class).Observe(took.Seconds())
}

func (m *Metrics) failed(class, reason string) { m.failures.WithLabelValues(class, reason).Inc() }
