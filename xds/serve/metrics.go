package serve

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// metrics have constant labels: never one per proxy or name.
type metrics struct {
	connected prometheus.Gauge
	pushes    *prometheus.CounterVec
	nacks     *prometheus.CounterVec
	retries   *prometheus.CounterVec
	refused   *prometheus.CounterVec
	foreign   *prometheus.CounterVec
	waiting   prometheus.Gauge
	admitted  prometheus.Histogram
}

func newMetrics(r prometheus.Registerer) *metrics {
	with := promauto.With(r)
	return &metrics{
		connected: with.NewGauge(prometheus.GaugeOpts{
			Name: "zt_serve_connected_proxies",
			Help: "Instances with at least one xDS stream on this server.",
		}),
		pushes: with.NewCounterVec(prometheus.CounterOpts{
			Name: "zt_serve_pushes_total",
			Help: "xDS responses sent, by type.",
		}, []string{"type"}),
		nacks: with.NewCounterVec(prometheus.CounterOpts{
			Name: "zt_serve_nacks_total",
			Help: "xDS responses that a proxy refused, by type.",
		}, []string{"type"}),
		retries: with.NewCounterVec(prometheus.CounterOpts{
			Name: "zt_serve_retries_total",
			Help: "Resources that a proxy had refused and was sent once more, by type.",
		}, []string{"type"}),
		refused: with.NewCounterVec(prometheus.CounterOpts{
			Name: "zt_serve_refused_streams_total",
			Help: "xDS streams that were not served or were ended for what the peer did, by reason.",
		}, []string{"reason"}),
		foreign: with.NewCounterVec(prometheus.CounterOpts{
			Name: "zt_serve_foreign_names_total",
			Help: "Resource names asked for that are unknown or another proxy's, by type.",
		}, []string{"type"}),
		waiting: with.NewGauge(prometheus.GaugeOpts{
			Name: "zt_serve_waiting_streams",
			Help: "xDS streams that wait to be served, since many have come at once.",
		}),
		admitted: with.NewHistogram(prometheus.HistogramOpts{
			Name: "zt_serve_admission_seconds",
			Help: "How long xDS streams have waited before they were served.", Buckets: []float64{.001, .01, .1, 1, 3, 10, 30},
		}),
	}
}

// countRefused measures what is refused at the moment of asking.
func (f *Fleet) countRefused(r prometheus.Registerer) {
	with := promauto.With(r)
	count := func(of func([]Nack) int) func() float64 {
		return func() float64 {
			n := 0
			for _, p := range f.all() {
				p.mu.Lock()
				n += of(p.nacks)
				p.mu.Unlock()
			}
			return float64(n)
		}
	}
	with.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "zt_serve_refused_resources",
		Help: "Resources that connected proxies refuse now, each serving on with what it had.",
	}, count(func(n []Nack) int { return len(n) }))
	with.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "zt_serve_refusing_proxies",
		Help: "Connected proxies that refuse something now.",
	}, count(func(n []Nack) int { return min(len(n), 1) }))
}

// Reasons of refused streams.
const (
	refusedSotW   = "sotw"     // state of the world is not spoken
	refusedAuth   = "identity" // Authorize said no
	refusedNode   = "node"     // node.id is not the instance of the certificate
	refusedSilent = "silent"   // no first request in time
	refusedType   = "type"     // a type URL that is not served
	refusedExcess = "excess"   // more or longer names than any Envoy of this mesh asks for
	refusedUnread = "unread"   // a response could not be sent in time
	refusedCrowd  = "crowd"    // too many are waiting
)
