package serve

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretservicev3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ztmesh/ztmesh/xds"
)

// Config is what a Fleet needs. Authorize is required; everything else has a
// useful zero value.
type Config struct {
	// Authorize returns the instance whose stream this is, from the peer's
	// certificate or credentials. Its error is logged and never sent.
	Authorize func(ctx context.Context) (instance string, err error)

	// OnConnect is called when the first stream of an instance has said who it is,
	// from that stream's goroutine and before it is answered. It may call the
	// setters; it should return soon. The instance stays silent until it has a
	// configuration, so whoever serves ADS answers each call by SetSecrets (if the
	// instance takes them here), SetGates and Set; Set with nil for an instance
	// that should not exist.
	OnConnect func(instance string)

	// OnDisconnect is called after the last stream of an instance has ended. The
	// calls for one instance never overlap and alternate with OnConnect.
	OnDisconnect func(instance string)

	// OnForeign is called when a stream asked for a name that is not of its instance,
	// with the stream's context. It should return soon.
	OnForeign func(ctx context.Context, instance, typeURL, name string)

	// Retain keeps what was set for an instance after its last stream, and accepts
	// it before its first. Without it both are dropped, so that a proxy that comes
	// back after hours on another replica is never told an old state: whoever sets
	// then answers OnConnect. The agent, with its one Envoy, retains.
	Retain bool

	Server  string                // identifies this server to Envoy; not secret
	Logger  *slog.Logger          // default: discards
	Metrics prometheus.Registerer // default: not registered
	Now     func() time.Time      // default: time.Now

	Admission Admission // of many proxies at once
	Retry     Retry     // of what a proxy refuses

	FirstRequest time.Duration // a stream says who it is within this; default 10 s
	SendTimeout  time.Duration // a response leaves within this, or the stream ends; default 30 s
}

func (c Config) withDefaults() Config {
	if c.OnConnect == nil {
		c.OnConnect = func(string) {}
	}
	if c.OnDisconnect == nil {
		c.OnDisconnect = func(string) {}
	}
	if c.OnForeign == nil {
		c.OnForeign = func(context.Context, string, string, string) {}
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	c.Retry = c.Retry.withDefaults()
	if c.FirstRequest == 0 {
		c.FirstRequest = 10 * time.Second
	}
	if c.SendTimeout == 0 {
		c.SendTimeout = 30 * time.Second
	}
	return c
}

// Fleet is the proxies that are connected here and what each is told. Its
// methods may be called from any goroutine; Set from one at a time.
//
// Of one revision, SetZone, SetEndpoints, SetSecrets and SetGates come before Set: what
// they set is part of what a proxy must ACK for Set's revision.
type Fleet struct {
	cfg       Config
	identity  *corev3.ControlPlane
	metrics   *metrics
	warnings  *rate.Limiter // of logs that a peer can cause
	changed   chan struct{} // holds one
	endpoints endpoints
	admission *admission
	senders   *senders

	// revision is the newest that Set was given, once all of it is in place.
	revision atomic.Uint64

	closing context.Context // is done once Close was called
	close   context.CancelFunc

	mu      sync.Mutex // guards proxies; taken before a proxy's lock
	proxies map[string]*proxy

	secrets, gates lastMap // as they were set last

	marks  sync.Mutex // guards marked; taken after any other
	marked map[string]struct{}
}

// New makes a Fleet that serves nobody until it is registered with a server.
func New(cfg Config) *Fleet {
	cfg = cfg.withDefaults()
	closing, cancel := context.WithCancel(context.Background())
	m := newMetrics(cfg.Metrics)
	f := &Fleet{
		closing:   closing,
		close:     cancel,
		cfg:       cfg,
		identity:  &corev3.ControlPlane{Identifier: cfg.Server},
		metrics:   m,
		admission: newAdmission(cfg.Admission, m),
		warnings:  rate.NewLimiter(1, 10),
		changed:   make(chan struct{}, 1),
		proxies:   map[string]*proxy{},
		marked:    map[string]struct{}{},
	}
	f.senders = &senders{limit: f.admission.Sending, patience: cfg.SendTimeout}
	f.countRefused(cfg.Metrics)
	return f
}

// Register serves ADS, delta only, on s.
func (f *Fleet) Register(s *grpc.Server) {
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(s, &aggregated{fleet: f})
}

// RegisterSecrets serves SDS, delta only, on s: a stream of its own, on which
// no other type is answered. It is what an agent serves to its Envoy on a Unix
// socket. Such streams do not count for Status.
func (f *Fleet) RegisterSecrets(s *grpc.Server) {
	secretservicev3.RegisterSecretDiscoveryServiceServer(s, &secrets{fleet: f})
}

// Set says what the proxies are told as of revision, which only grows. An
// instance that is not in the map is unchanged by it; nil ends its streams and
// forgets it. The values are shared and must not change afterwards.
//
// Unless Config.Retain, instances without a stream are passed over.
func (f *Fleet) Set(revision uint64, proxies map[string]*xds.Resources) {
	// Until it has ACKed the new target, a proxy vouches for nothing newer than
	// what came before this call.
	before := f.revision.Load()
	if revision > 0 {
		before = min(before, revision-1)
	}
	for instance, target := range proxies {
		if target == nil {
			f.remove(instance)
			continue
		}
		if p := f.lookup(instance); p != nil {
			p.setTarget(target, before)
		}
	}
	if revision > f.revision.Load() {
		f.revision.Store(revision)
	}
	f.notify()
}

// SetEndpoints replaces the endpoints of the clusters that are named; nil means
// none. Proxies hear of them if their configuration has the cluster. Before the
// first call no stream is answered about endpoints; after it, a cluster that
// was never named has none. So call it, be it with an empty map, before Set.
func (f *Fleet) SetEndpoints(clusters map[string]*xds.Assignment) {
	moved, first := f.endpoints.set(clusters)
	if len(moved) == 0 && !first {
		return
	}
	revision := f.revision.Load()
	for _, p := range f.all() {
		p.endpointsMoved(moved, first, revision)
	}
}

// SetZone says where an instance runs, and so which endpoints are near to it. Empty:
// not known.
func (f *Fleet) SetZone(instance, zone string) {
	if p := f.lookup(instance); p != nil {
		p.setZone(zone, f.revision.Load())
	}
}

// SetSecrets replaces the secrets of an instance. Names that are not among them
// do not exist for it. nil means not known yet: its streams wait.
func (f *Fleet) SetSecrets(instance string, secrets []*xds.Resource) {
	if p := f.lookup(instance); p != nil {
		var byName map[string]*xds.Resource
		if secrets != nil {
			byName = f.secrets.of(secrets...)
		}
		p.setSecrets(byName, f.revision.Load())
	}
}

// SetGates replaces the layer of closed gates of an instance. nil means not
// known yet: its streams wait.
func (f *Fleet) SetGates(instance string, gates *xds.Resource) {
	if p := f.lookup(instance); p != nil {
		var byName map[string]*xds.Resource
		if gates != nil {
			byName = f.gates.of(gates)
		}
		p.setGates(byName, f.revision.Load())
	}
}

// Revision returns the newest revision that was set.
func (f *Fleet) Revision() uint64 { return f.revision.Load() }

// Connected returns the instances that have a stream, sorted.
func (f *Fleet) Connected() []string {
	var names []string
	for _, p := range f.all() {
		if p.connected() {
			names = append(names, p.instance)
		}
	}
	slices.Sort(names)
	return names
}

// Status returns one entry for every instance that has an ADS stream, sorted
// by instance.
func (f *Fleet) Status() []ProxyStatus {
	var all []ProxyStatus
	for _, p := range f.all() {
		if s, ok := p.status(f.revision.Load()); ok {
			all = append(all, s)
		}
	}
	slices.SortFunc(all, func(a, b ProxyStatus) int { return strings.Compare(a.Instance, b.Instance) })
	return all
}

// Changed receives when Status may have changed since the last receive.
// Several changes make one value. It is never closed and has one reader.
func (f *Fleet) Changed() <-chan struct{} { return f.changed }

// TakeChanged returns the instances whose status, as StatusOf tells it, may have
// changed since the last call, and the revision up to which that is so: what holds for
// the newest of any other instance holds for that one.
func (f *Fleet) TakeChanged() (revision uint64, instances []string) {
	// In this order: all that Set has changed is marked before it counts.
	revision = f.revision.Load()
	f.marks.Lock()
	defer f.marks.Unlock()
	for i := range f.marked {
		instances = append(instances, i)
	}
	clear(f.marked)
	return revision, instances
}

// StatusOf is Status of one instance; false if it has no ADS stream.
func (f *Fleet) StatusOf(instance string) (ProxyStatus, bool) {
	f.mu.Lock()
	p := f.proxies[instance]
	f.mu.Unlock()
	if p == nil {
		return ProxyStatus{}, false
	}
	return p.status(f.revision.Load())
}

// Streaming says whether an instance has an ADS stream, and StatusOf something to tell.
func (f *Fleet) Streaming(instance string) bool {
	f.mu.Lock()
	p := f.proxies[instance]
	f.mu.Unlock()
	if p == nil {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.speaker() != nil
}

func (f *Fleet) mark(instance string) {
	f.marks.Lock()
	defer f.marks.Unlock()
	f.marked[instance] = struct{}{}
}

// Close ends every stream and refuses new ones, so that a graceful stop of the
// server does not wait for them.
func (f *Fleet) Close() { f.close() }

// lookup returns the proxy of an instance, or nil if what is set for it is to
// be dropped.
func (f *Fleet) lookup(instance string) *proxy {
	f.mu.Lock()
	defer f.mu.Unlock()
	p := f.proxies[instance]
	if p == nil && f.cfg.Retain {
		p = f.newProxy(instance)
		f.proxies[instance] = p
	}
	return p
}

// all returns the proxies of this moment.
func (f *Fleet) all() []*proxy {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := make([]*proxy, 0, len(f.proxies))
	for _, p := range f.proxies {
		all = append(all, p)
	}
	return all
}

// remove ends the streams of an instance. The proxy leaves the map with the
// last of them, or at once if it has none.
func (f *Fleet) remove(instance string) {
	f.mu.Lock()
	p := f.proxies[instance]
	if p != nil && !p.connected() && p.leaving == nil {
		delete(f.proxies, instance)
	}
	f.mu.Unlock()
	if p != nil {
		p.forget() // marks it
		p.end(errRefused)
	}
}

// attach joins a stream that has said who it is to its proxy and reports the
// first one. It waits for an OnDisconnect of the same instance that is still
// running.
func (f *Fleet) attach(s *stream) (*proxy, error) {
	for {
		f.mu.Lock()
		p := f.proxies[s.instance]
		if p != nil && p.leaving != nil {
			left := p.leaving
			f.mu.Unlock()
			select {
			case <-left:
				continue
			case <-s.ctx.Done():
				return nil, context.Cause(s.ctx)
			}
		}
		if p == nil {
			p = f.newProxy(s.instance)
			f.proxies[s.instance] = p
		}
		first, surplus := p.join(s)
		f.mu.Unlock()
		if surplus != nil {
			surplus.end(status.Error(codes.ResourceExhausted, "too many streams"))
		}
		if first {
			f.metrics.connected.Inc()
			f.cfg.OnConnect(s.instance)
		}
		f.notify()
		return p, nil
	}
}

// detach undoes attach and reports the end of the last stream.
func (f *Fleet) detach(s *stream) {
	p := s.proxy
	f.mu.Lock()
	last := p.part(s)
	if last {
		p.leaving = make(chan struct{})
	}
	f.mu.Unlock()
	if last {
		f.metrics.connected.Dec()
		f.cfg.OnDisconnect(p.instance)
		f.mu.Lock()
		if !f.cfg.Retain {
			delete(f.proxies, p.instance)
		}
		close(p.leaving)
		p.leaving = nil
		f.mu.Unlock()
	}
	p.mark()
	f.notify()
}

func (f *Fleet) notify() {
	select {
	case f.changed <- struct{}{}:
	default:
	}
}

// refuse counts and logs a stream that is not served.
func (f *Fleet) refuse(reason string, attrs ...any) {
	f.metrics.refused.WithLabelValues(reason).Inc()
	f.warn("xds stream refused", append([]any{"reason", reason}, attrs...)...)
}

// warn logs what a peer can cause as often as it likes.
func (f *Fleet) warn(message string, attrs ...any) {
	if f.warnings.AllowN(f.cfg.Now(), 1) {
		f.cfg.Logger.Warn(message, attrs...)
	}
}
