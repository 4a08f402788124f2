package nodeagent

import (
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/quarry-storage/quarry/api/v1alpha1"
	"github.com/quarry-storage/quarry/nodeagent/store"
)

// meter is what Prometheus sees of the agent. What the store knows is read when
// it is scraped.
type meter struct {
	store     *store.Store
	durations *prometheus.HistogramVec

	online, capacity, promised, available *prometheus.Desc
	volumes, unavailable, trashed         *prometheus.Desc
	oldestLook, freedBytes, freedFiles    *prometheus.Desc
}

func newMeter(registry prometheus.Registerer, s *store.Store) (*meter, error) {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("quarry_"+name, help, labels, nil)
	}
	m := &meter{
		store: s,
		unavailable: desc("volumes_unavailable",
			"Volumes that are on the node's disks and cannot be used, by the reason of their "+
				"condition Ready.", "reason"),
		durations: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "quarry_agent_operation_duration_seconds",
			Help: "How long the agent worked on a Volume that changed its phase, by the " +
				"phase it came to.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 16),
		}, []string{"phase"}),
		online: desc("pool_online", "1 when the pool's disk is there and is the pool's.",
			"pool"),
		capacity: desc("pool_capacity_bytes", "What the pool may promise altogether.", "pool"),
		promised: desc("pool_promised_bytes",
			"What is promised to volumes and trash on the pool's filesystem.", "pool"),
		available: desc("pool_available_bytes", "What can still be promised.", "pool"),
		volumes:   desc("pool_volumes", "Volumes in the pool.", "pool"),
		trashed: desc("pool_trash_entries", "Deleted volumes whose space is not free yet.",
			"pool"),
		oldestLook: desc("pool_recheck_age_seconds",
			"How long ago a volume of the pool that is held by a quota was looked at whole, of "+
				"all the longest: for so long at the most a file can be charged to the "+
				"wrong volume.", "pool"),
		freedBytes: desc("trash_freed_bytes_total", "Bytes of images freed in the background."),
		freedFiles: desc("trash_freed_files_total",
			"Files, directories and subvolumes freed in the background."),
	}
	if registry == nil {
		return m, nil
	}

	for _, c := range []prometheus.Collector{m, m.durations} {
		if err := registry.Register(c); err != nil {
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}

	return m, nil
}

// observe records how long a change of phase took. A look that changed nothing
// is not news.
func (m *meter) observe(before, after v1alpha1.VolumePhase, took time.Duration) {
	if before != after {
		m.durations.WithLabelValues(string(after)).Observe(took.Seconds())
	}
}

// Describe implements prometheus.Collector.
func (m *meter) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{m.online, m.capacity, m.promised, m.available, m.volumes,
		m.trashed, m.oldestLook, m.freedBytes, m.freedFiles, m.unavailable} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (m *meter) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	for reason, n := range m.store.Unavailable() {
		gauge(m.unavailable, float64(n), reason)
	}

	for _, p := range m.store.Pools() {
		if p.Offline != nil {
			gauge(m.online, 0, p.Name)
			continue
		}

		gauge(m.online, 1, p.Name)
		gauge(m.capacity, float64(p.Capacity), p.Name)
		gauge(m.promised, float64(p.Promised), p.Name)
		gauge(m.available, float64(p.Available), p.Name)
		gauge(m.volumes, float64(p.Volumes), p.Name)
		gauge(m.trashed, float64(p.Trashed), p.Name)
	}

	for pool, age := range m.store.OldestLook() {
		gauge(m.oldestLook, age.Seconds(), pool)
	}

	bytes, files := m.store.Freed()
	ch <- prometheus.MustNewConstMetric(m.freedBytes, prometheus.CounterValue, float64(bytes))
	ch <- prometheus.MustNewConstMetric(m.freedFiles, prometheus.CounterValue, float64(files))
}
