package store

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the zt_store_* metrics of one store.
type metrics struct {
	registry   prometheus.Registerer // nil: none
	registered []prometheus.Collector
	commit     prometheus.Histogram
	snapshots  prometheus.Counter
	scrubs     prometheus.Counter
	scrubbed   prometheus.Gauge
}

// newMetrics makes the metrics; they are seen once ready has been called.
func newMetrics(registry prometheus.Registerer) *metrics {
	return &metrics{
		registry: registry,
		commit: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "zt_store_commit_seconds", Help: "Time from proposing an entry to its being applied, on the leader.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 16),
		}),
		snapshots: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "zt_store_snapshots_total", Help: "Snapshots that this server has written.",
		}),
		scrubs: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "zt_store_scrubs_total", Help: "How often log and snapshots were read through and found whole. Damage ends the server.",
		}),
		scrubbed: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "zt_store_scrubbed_timestamp_seconds", Help: "When log and snapshots were last read through and found whole.",
		}),
	}
}

// register shows the metrics of an open store.
func (m *metrics) register(s *Store) error {
	if m.registry == nil {
		return nil
	}
	leads := func() float64 {
		if s.IsLeader() {
			return 1
		}
		return 0
	}
	var errs []error
	for _, c := range []prometheus.Collector{
		m.commit, m.snapshots, m.scrubs, m.scrubbed,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "zt_store_disk_full_ratio", Help: "1 while the disk is so full that changes are refused.",
		}, func() float64 {
			if s.Full() {
				return 1
			}
			return 0
		}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "zt_store_applied_index", Help: "The Raft index of the last entry applied here.",
		}, func() float64 { return float64(s.State().Index()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "zt_store_is_leader", Help: "1 while this server leads.",
		}, leads),
	} {
		if err := m.registry.Register(c); err != nil {
			errs = append(errs, err)
			continue
		}
		m.registered = append(m.registered, c)
	}
	return errors.Join(errs...)
}

func (m *metrics) unregister() {
	for _, c := range m.registered {
		m.registry.Unregister(c)
	}
}
