package serve

import (
	"context"
	"slices"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretservicev3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/delta/v3"
	protocol "github.com/envoyproxy/go-control-plane/pkg/server/stream/v3"
	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ztmesh/ztmesh/xds"
)

// A peer is authenticated and may still be hostile. No Envoy of this mesh asks
// for more or longer names.
const (
	maxNames      = 1 << 16 // per stream, of all types together
	maxNameLength = 256     // bytes
)

var errExcess = status.Error(codes.ResourceExhausted, "too many names")

// aggregated is the ADS service.
type aggregated struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	fleet *Fleet
}

func (a *aggregated) DeltaAggregatedResources(t discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	return a.fleet.serve(t, "")
}

func (a *aggregated) StreamAggregatedResources(discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	return a.fleet.refuseSotW()
}

// secrets is the SDS service.
type secrets struct {
	secretservicev3.UnimplementedSecretDiscoveryServiceServer
	fleet *Fleet
}

func (a *secrets) DeltaSecrets(t secretservicev3.SecretDiscoveryService_DeltaSecretsServer) error {
	return a.fleet.serve(t, xds.SecretType)
}

func (a *secrets) StreamSecrets(secretservicev3.SecretDiscoveryService_StreamSecretsServer) error {
	return a.fleet.refuseSotW()
}

func (f *Fleet) refuseSotW() error {
	f.refuse(refusedSotW)
	return status.Error(codes.Unimplemented, "delta only")
}

// serve runs one stream. onlyType is the type of a service that has one, else
// empty.
func (f *Fleet) serve(t protocol.DeltaStream, onlyType string) error {
	instance, err := f.cfg.Authorize(t.Context())
	if err != nil {
		f.refuse(refusedAuth, "error", err)
		return errRefused
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	s := &stream{
		DeltaStream: t,
		fleet:       f,
		instance:    instance,
		secretsOnly: onlyType != "",
		ctx:         ctx,
		end:         cancel,
		watches:     map[string]*watch{},
		requests:    rate.NewLimiter(rate.Limit(f.admission.Requests), requestBurst),
		answered:    func() {},
	}
	defer func() { s.answered() }()
	s.silence = time.AfterFunc(f.cfg.FirstRequest, func() {
		f.refuse(refusedSilent, "instance", instance)
		s.end(status.Error(codes.DeadlineExceeded, "no request"))
	})
	defer s.silence.Stop()
	defer context.AfterFunc(f.closing, func() { s.end(status.Error(codes.Unavailable, "server is stopping")) })()
	defer func() {
		if s.proxy != nil {
			f.detach(s)
		}
	}()
	// The server belongs to this stream, so that its cache and its callbacks know
	// whom they serve, and so that it can be stopped alone.
	err = delta.NewServer(ctx, s, s, delta.DeactivateLegacyWildcardForTypes([]string{
		xds.RouteType, xds.EndpointType, xds.ExtensionType, xds.RuntimeType, xds.SecretType,
	})).DeltaStreamHandler(s, onlyType)
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// stream is one delta stream: the transport, the callbacks and the cache of the
// go-control-plane server that runs it. Except where noted, its fields belong to
// the goroutine of that server.
type stream struct {
	protocol.DeltaStream
	fleet       *Fleet
	instance    string
	secretsOnly bool // SDS and not ADS
	ctx         context.Context
	end         context.CancelCauseFunc // closes the stream; the first cause is its status; any goroutine may call it
	silence     *time.Timer             // ends a stream that does not say who it is
	requests    *rate.Limiter           // of what it asks for
	answered    func()                  // says to the admission that all of a first answer is ACKed

	proxy   *proxy    // nil until the first request was good
	since   time.Time // set with proxy
	current *response // what is being sent, in a turn of the admission; nil: nothing

	// watches has one entry per type that was asked for. Written by the stream's
	// goroutine with proxy.mu held, so read by it without and by others with.
	watches map[string]*watch
}

// wakeAllLocked leaves a token for each type that has a watch. proxy.mu is held.
func (s *stream) wakeAllLocked() { s.wakeLocked(inOrder[:]...) }

// wakeLocked is wakeAllLocked for some types.
func (s *stream) wakeLocked(types ...string) {
	for _, typeURL := range types {
		if w := s.watches[typeURL]; w != nil {
			w.wakeLocked()
		}
	}
}

func (s *stream) wake(types ...string) {
	s.proxy.mu.Lock()
	defer s.proxy.mu.Unlock()
	s.wakeLocked(types...)
}

// atOnce is how long a response takes at most that the peer reads.
const atOnce = 5 * time.Millisecond

// Send sends what respond made, if it made anything. A peer that does not read
// blocks it, and then only until SendTimeout. The goroutine that is blocked ends
// when the handler has returned, which cancels the stream under it.
func (s *stream) Send(m *discoveryv3.DeltaDiscoveryResponse) error {
	if s.current == nil {
		return nil
	}
	s.current = nil
	done := make(chan error, 1)
	go func() { done <- s.DeltaStream.Send(m) }()
	late := time.NewTimer(atOnce)
	defer late.Stop()
	select {
	case err := <-done:
		s.fleet.admission.done()
		return err
	case <-s.ctx.Done():
		s.fleet.admission.done()
		return context.Cause(s.ctx)
	case <-late.C: // it waits for the peer, and nobody else for it
		s.fleet.admission.done()
		late.Reset(s.fleet.cfg.SendTimeout)
	}
	select {
	case err := <-done:
		return err
	case <-s.ctx.Done():
		return context.Cause(s.ctx)
	case <-late.C:
		s.fleet.refuse(refusedUnread, "instance", s.instance)
		return status.Error(codes.DeadlineExceeded, "response was not read")
	}
}

// OnDeltaStreamOpen is part of delta.Callbacks.
func (s *stream) OnDeltaStreamOpen(context.Context, int64, string) error { return nil }

// OnDeltaStreamClosed is part of delta.Callbacks.
func (s *stream) OnDeltaStreamClosed(int64, *corev3.Node) {}

// OnStreamDeltaRequest is part of delta.Callbacks: it sees each request before
// the cache does. It settles who is speaking and what is ACKed.
func (s *stream) OnStreamDeltaRequest(_ int64, r *discoveryv3.DeltaDiscoveryRequest) error {
	if s.proxy == nil || r.GetNode() != nil {
		// node.id proves nothing; a wrong one shows a bootstrap that was mixed up.
		if r.GetNode().GetId() != s.instance {
			s.fleet.refuse(refusedNode, "instance", s.instance)
			return errRefused
		}
	}
	r.Node = nil // an Envoy's extensions fill 100 KB that nobody reads
	if s.secretsOnly && r.GetTypeUrl() == "" {
		r.TypeUrl = xds.SecretType
	}
	if typeLabel(r.GetTypeUrl()) == "" || s.secretsOnly && r.GetTypeUrl() != xds.SecretType {
		s.fleet.refuse(refusedType, "instance", s.instance)
		return status.Error(codes.InvalidArgument, "type is not served")
	}
	if excessive(r) {
		s.fleet.refuse(refusedExcess, "instance", s.instance)
		return errExcess
	}
	if s.proxy == nil {
		s.silence.Stop()
		if err := s.enter(); err != nil {
			return err
		}
	}
	if err := pace(s.ctx, s.requests); err != nil {
		return err
	}
	if w := s.watches[r.GetTypeUrl()]; w != nil {
		w.acknowledge(r)
	}
	return nil
}

// enter waits until the stream is admitted, and joins it to its proxy.
func (s *stream) enter() error {
	f := s.fleet
	if s.secretsOnly { // of an agent, whose one Envoy opens one for each secret
		return s.join()
	}
	arrived, err := f.admission.arrive(s.ctx, s.instance, f.cfg.Now())
	if err != nil {
		if err == errCrowded || err == errFlapped {
			f.refuse(refusedCrowd, "instance", s.instance)
		}
		return err
	}
	err = s.join()
	arrived()
	if err != nil {
		return err
	}
	s.answered, err = f.admission.answer(s.ctx, s.proxy.target())
	if err != nil {
		s.answered = func() {}
	}
	return err
}

func (s *stream) join() error {
	s.since = s.fleet.cfg.Now()
	p, err := s.fleet.attach(s)
	if err == nil {
		s.proxy = p
	}
	return err
}

// excessive says whether one request asks for more than any should.
func excessive(r *discoveryv3.DeltaDiscoveryRequest) bool {
	long := func(name string) bool { return len(name) > maxNameLength }
	if slices.ContainsFunc(r.GetResourceNamesSubscribe(), long) {
		return true
	}
	for name, version := range r.GetInitialResourceVersions() {
		if long(name) || long(version) {
			return true
		}
	}
	return false
}

// CreateWatch is part of cache.ConfigWatcher. Nothing calls it: state of the
// world is refused at the door.
func (s *stream) CreateWatch(*cache.Request, cache.Subscription, chan cache.Response) (func(), error) {
	return nil, status.Error(codes.Unimplemented, "delta only")
}

// CreateDeltaWatch is part of cache.ConfigWatcher. The server calls it for each
// request, after it has cancelled the former watch of the type.
func (s *stream) CreateDeltaWatch(r *cache.DeltaRequest, sub cache.Subscription, out chan cache.DeltaResponse) (func(), error) {
	names := max(len(sub.SubscribedResources()), len(sub.ReturnedResources()))
	for typeURL, other := range s.watches {
		if typeURL != r.GetTypeUrl() {
			names += len(other.sub.SubscribedResources())
		}
	}
	if names > maxNames {
		s.fleet.refuse(refusedExcess, "instance", s.instance)
		return nil, errExcess
	}
	w := s.watches[r.GetTypeUrl()]
	created := w == nil
	if created {
		w = newWatch(s, r.GetTypeUrl(), sub)
	} else {
		w.subscribe(r, sub)
	}
	s.proxy.mu.Lock()
	defer s.proxy.mu.Unlock()
	if created {
		s.watches[w.typeURL] = w
	}
	w.out = out
	w.wakeLocked()
	return w.cancel, nil
}

// OnStreamDeltaResponse is part of delta.Callbacks: it sees each response, with
// its nonce, just before Send.
func (s *stream) OnStreamDeltaResponse(_ int64, r *discoveryv3.DeltaDiscoveryRequest, m *discoveryv3.DeltaDiscoveryResponse) {
	if s.current == nil {
		return
	}
	w := s.watches[r.GetTypeUrl()]
	w.commit(m.GetNonce(), s.current)
	s.fleet.metrics.pushes.WithLabelValues(typeLabel(w.typeURL)).Inc()
	s.report(s.current.view)
}

// report tells Status how far this stream is with a view.
func (s *stream) report(v *view) {
	if s.secretsOnly {
		return
	}
	sent, acked := s.holds(v)
	if acked {
		s.answered()
	}
	if s.proxy.report(s, v, sent, acked, s.nacks(), s.fleet.revision.Load(), s.fleet.cfg.Now()) {
		s.proxy.mark()
		s.fleet.notify()
	}
}
