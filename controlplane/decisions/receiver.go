package decisions

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
	"time"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	accesslogservicev3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// How fast the proxies of one instance may report, over all its streams: an Envoy
// opens one for each of its threads and ports. Who reports faster is read slower,
// and its Envoy then drops logs by itself.
const (
	bytesPerSecond = 1 << 20
	burst          = 4 << 20
	maxStreams     = 512
)

// Reporter is a proxy that reports.
type Reporter struct {
	Instance string
	Workload string // that it is of: "shop/orders"
	ID       string // the workload's SPIFFE ID
}

// Config is what a Receiver needs. All fields are required.
type Config struct {
	// Identify returns whose stream this is, from the peer's certificate. It is
	// asked before each message. Its error is logged and never sent.
	Identify func(context.Context) (Reporter, error)
	// Called says which port of which service a proxy of a workload judges, where it
	// takes requests for an authority on a port of its own. False: none, and what is
	// reported of it is not believed.
	Called func(workload string, local uint32, authority string) (service, port string, ok bool)
	// Cut is told of each connection that a proxy has cut.
	Cut     func(Reporter, Cut)
	Logger  *slog.Logger
	Metrics prometheus.Registerer
	Now     func() time.Time
}

// Receiver is Envoy's access log service.
type Receiver struct {
	accesslogservicev3.UnimplementedAccessLogServiceServer

	cfg      Config
	counters *counters
	warnings *rate.Limiter // of logs that a peer can cause
	entries  *prometheus.CounterVec

	mu    sync.Mutex // guards peers
	peers map[string]*reporting
}

// reporting is one instance that has streams.
type reporting struct {
	streams int // guarded by Receiver.mu
	rate    *rate.Limiter
}

// New makes a Receiver that serves nobody until it is registered with a server.
func New(cfg Config) *Receiver {
	r := &Receiver{
		cfg: cfg, counters: newCounters(), warnings: rate.NewLimiter(1, 10),
		peers: map[string]*reporting{},
		entries: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "zt_decisions_entries_total",
			Help: "Requests that proxies report shadow verdicts of, by what became of them: counted, same (the verdict is no other), full (no room for a counter), foreign (not the proxy's to judge).",
		}, []string{"result"}),
	}
	held := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "zt_decisions_counters", Help: "Differences of shadow policies that are told apart here.",
	}, func() float64 {
		r.counters.mu.Lock()
		defer r.counters.mu.Unlock()
		return float64(len(r.counters.held))
	})
	cfg.Metrics.MustRegister(r.entries, held)
	return r
}

// Register serves the access log service on s.
func (r *Receiver) Register(s *grpc.Server) {
	accesslogservicev3.RegisterAccessLogServiceServer(s, r)
}

// Differences is what was counted, the most frequent first, and how many reports
// were not kept.
func (r *Receiver) Differences() ([]*ztv1.ShadowDifference, uint64) { return r.counters.list() }

// Forget drops what the proxies of a workload have reported: its shadow policy is
// another now.
func (r *Receiver) Forget(workload string) { r.counters.forget(workload) }

// What became of an entry.
const (
	counted = "counted"
	same    = "same"
	full    = "full"
	foreign = "foreign"
)

// take takes one entry that a proxy has sent.
func (r *Receiver) take(who Reporter, e *accesslogv3.HTTPAccessLogEntry) {
	if d, at, judged := difference(e); judged {
		r.entries.WithLabelValues(r.count(who, d, at)).Inc()
	}
}

// count says what became of a request that a shadow policy has judged.
func (r *Receiver) count(who Reporter, d Difference, at called) string {
	if d.Allowed == d.WouldAllow {
		return same
	}
	var ok bool
	if d.Service, d.Port, ok = r.cfg.Called(who.Workload, at.port, at.authority); !ok {
		r.counters.drop(1)
		return foreign
	}
	if d.Service != who.Workload {
		d.Caller = who.ID // it judges its own calls to what lies outside
	}
	if !r.counters.add(who.Workload, d, r.cfg.Now()) {
		return full
	}
	return counted
}

var errRefused = status.Error(codes.PermissionDenied, "refused")

// StreamAccessLogs is the service. It answers nothing until the proxy has ended.
func (r *Receiver) StreamAccessLogs(stream accesslogservicev3.AccessLogService_StreamAccessLogsServer) error {
	ctx := stream.Context()
	who, err := r.cfg.Identify(ctx)
	if err != nil {
		return r.refuse("", err)
	}
	pace, ok := r.join(who.Instance)
	if !ok {
		return status.Error(codes.ResourceExhausted, "too many streams")
	}
	defer r.part(who.Instance)

	for {
		m, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return stream.SendAndClose(&accesslogservicev3.StreamAccessLogsResponse{})
		case err != nil:
			return err
		}
		if err := pace.WaitN(ctx, min(proto.Size(m), burst)); err != nil {
			return status.FromContextError(ctx.Err()).Err()
		}
		if again, err := r.cfg.Identify(ctx); err != nil || again != who {
			return r.refuse(who.Instance, err) // deregistered meanwhile
		}
		for _, e := range m.GetHttpLogs().GetLogEntry() {
			r.take(who, e)
		}
		for _, e := range m.GetTcpLogs().GetLogEntry() {
			r.takeCut(who, e)
		}
	}
}

// join counts a stream of an instance in.
func (r *Receiver) join(instance string) (*rate.Limiter, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.peers[instance]
	if p == nil {
		p = &reporting{rate: rate.NewLimiter(bytesPerSecond, burst)}
		r.peers[instance] = p
	}
	if p.streams >= maxStreams {
		return nil, false
	}
	p.streams++
	return p.rate, true
}

func (r *Receiver) part(instance string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.peers[instance]
	if p.streams--; p.streams == 0 {
		delete(r.peers, instance)
	}
}

func (r *Receiver) refuse(instance string, err error) error {
	if r.warnings.AllowN(r.cfg.Now(), 1) {
		r.cfg.Logger.Warn("access log stream refused", "instance", instance, "error", err)
	}
	return errRefused
}
