package serve

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"sync"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretservicev3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
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

// transport is a delta stream of gRPC.
type transport interface {
	Context() context.Context
	Send(*discoveryv3.DeltaDiscoveryResponse) error
	Recv() (*discoveryv3.DeltaDiscoveryRequest, error)
}

// errLeft is the end of a stream whose client wants no more.
var errLeft = errors.New("the client has closed the stream")

// serve runs one stream. onlyType is the type of a service that has one, else
// empty.
func (f *Fleet) serve(t transport, onlyType string) error {
	instance, err := f.cfg.Authorize(t.Context())
	if err != nil {
		f.refuse(refusedAuth, "error", err)
		return errRefused
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	s := &stream{
		transport:   t,
		fleet:       f,
		instance:    instance,
		secretsOnly: onlyType != "",
		ctx:         ctx,
		end:         cancel,
		requests:    rate.NewLimiter(rate.Limit(f.admission.Requests), requestBurst),
		answered:    func() {},
	}
	silence := time.AfterFunc(f.cfg.FirstRequest, func() {
		f.refuse(refusedSilent, "instance", instance)
		s.end(status.Error(codes.DeadlineExceeded, "no request"))
	})
	defer silence.Stop()
	s.spoke = func() { silence.Stop() }
	defer context.AfterFunc(f.closing, func() { s.end(status.Error(codes.Unavailable, "server is stopping")) })()
	go s.receive() // until this returns, which ends Recv
	<-ctx.Done()
	s.leave()
	if cause := context.Cause(ctx); cause != errLeft {
		return cause
	}
	return nil
}

// stream is one delta stream. Its requests are taken by one goroutine, which waits for
// them; its responses are made and written by the senders of the fleet, one after the
// other.
type stream struct {
	transport   transport
	fleet       *Fleet
	instance    string
	secretsOnly bool // SDS and not ADS
	ctx         context.Context
	end         context.CancelCauseFunc // closes the stream; the first cause is its status; any goroutine may call it

	// taking is held while a request is taken, callbacks included: the end of the
	// stream waits for that. It guards what follows.
	taking   sync.Mutex
	spoke    func()        // stops waiting for the first request
	requests *rate.Limiter // of what it asks for

	proxy    *proxy    // nil until the first request was good
	since    time.Time // set with proxy
	answered func()    // says to the admission that all of a first answer is ACKed

	// mu guards the state of the protocol: what is in the watches, and the following.
	// It is never held while calling out or sending, and taken before proxy.mu.
	mu        sync.Mutex
	nonce     uint64    // of the newest response
	refused   bool      // something was NACKed on it
	retryAt   time.Time // when retries fires; zero: it does not
	retries   *time.Timer
	strangers []stranger // asked for and not the proxy's, not told of yet

	// watches has one entry per type that was asked for, by indexOf. Written with mu
	// and proxy.mu held, so read with either.
	watches [len(inOrder)]*watch
	tokens  []*watch // guarded by proxy.mu: what may have something to say, in that order
	ready   bool     // guarded by proxy.mu: the senders know of it
}

// stranger is a name that is not the proxy's.
type stranger struct{ typeURL, name string }

// wakeAllLocked leaves a token for each type that has a watch. proxy.mu is held.
func (s *stream) wakeAllLocked() { s.wakeLocked(inOrder[:]...) }

// wakeLocked is wakeAllLocked for some types. It says whether one of them has a watch.
func (s *stream) wakeLocked(types ...string) (any bool) {
	for _, typeURL := range types {
		if w := s.watches[indexOf(typeURL)]; w != nil {
			w.wakeLocked()
			any = true
		}
	}
	return any
}

// wakeHeldBack leaves a token for each of some types that may have something to say
// that was held back. mu is held.
func (s *stream) wakeHeldBack(types ...string) {
	s.proxy.mu.Lock()
	defer s.proxy.mu.Unlock()
	for _, typeURL := range types {
		i := indexOf(typeURL)
		if w := s.watches[i]; w != nil && w.said != s.proxy.view.at[i] {
			w.wakeLocked()
		}
	}
}

// receive takes requests until the stream ends.
func (s *stream) receive() {
	for {
		r, err := s.transport.Recv()
		if err != nil {
			s.end(errLeft)
			return
		}
		if err := s.take(r); err != nil {
			s.end(err)
			return
		}
	}
}

// leave undoes what the stream has done to the fleet. Requests that come later are not
// taken.
func (s *stream) leave() {
	s.taking.Lock()
	defer s.taking.Unlock()
	s.answered()
	s.rests()
	if s.proxy != nil {
		s.fleet.detach(s)
	}
}

// take takes one request. Its error ends the stream.
func (s *stream) take(r *discoveryv3.DeltaDiscoveryRequest) error {
	s.taking.Lock()
	defer s.taking.Unlock()
	if s.ctx.Err() != nil {
		return context.Cause(s.ctx)
	}
	if err := s.check(r); err != nil {
		return err
	}
	if s.proxy == nil {
		s.spoke()
		if err := s.enter(); err != nil {
			return err
		}
	}
	if err := pace(s.ctx, s.requests, s.price(r)); err != nil {
		return err
	}
	return s.heed(r)
}

// check settles who is speaking and what may be asked for.
func (s *stream) check(r *discoveryv3.DeltaDiscoveryRequest) error {
	if s.proxy == nil || r.GetNode() != nil {
		// node.id proves nothing; a wrong one shows a bootstrap that was mixed up.
		if r.GetNode().GetId() != s.instance {
			s.fleet.refuse(refusedNode, "instance", s.instance)
			return errRefused
		}
	}
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
	return nil
}

// heed does what a request says.
func (s *stream) heed(r *discoveryv3.DeltaDiscoveryRequest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := indexOf(r.GetTypeUrl())
	w := s.watches[i]
	created := w == nil
	if created {
		w = newWatch(s, r)
	} else {
		w.acknowledge(r)
		w.subscribe(r)
	}
	names := max(w.subscribed.len(), len(r.GetInitialResourceVersions()))
	for _, other := range s.watches {
		if other != nil && other != w {
			names += other.subscribed.len()
		}
	}
	if names > maxNames {
		s.fleet.refuse(refusedExcess, "instance", s.instance)
		return errExcess
	}
	s.proxy.mu.Lock()
	if created {
		s.watches[i] = w
	}
	v := s.proxy.view
	if w.said != v.at[i] {
		w.wakeLocked()
	}
	idle := len(s.tokens) == 0
	s.proxy.mu.Unlock()
	if idle {
		s.report(v)
	}
	return nil
}

// respond makes the next response; nil: there is nothing to say. Then, and only then,
// the stream is no longer ready.
func (s *stream) respond() *discoveryv3.DeltaDiscoveryResponse {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		w, v, last := s.token()
		if w == nil {
			return nil
		}
		next := w.next(v)
		var m *discoveryv3.DeltaDiscoveryResponse
		if next != nil {
			s.nonce++
			m = w.message(next, strconv.FormatUint(s.nonce, 10))
			w.commit(m.GetNonce(), next)
			s.fleet.metrics.pushes.WithLabelValues(typeLabel(w.typeURL)).Inc()
		}
		if m != nil || last { // else the next token reports, at once
			s.report(v)
		}
		if m != nil {
			return m
		}
	}
}

// token takes the next token; nil: there is none.
func (s *stream) token() (w *watch, v *view, last bool) {
	p := s.proxy
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(s.tokens) == 0 || s.ctx.Err() != nil {
		s.tokens, s.ready = s.tokens[:0], false
		return nil, nil, true
	}
	w = s.tokens[0]
	s.tokens = slices.Delete(s.tokens, 0, 1)
	w.queued = false
	return w, p.view, len(s.tokens) == 0
}

// rest says that a response is sent, and whether there may be another.
func (s *stream) rest() (more bool) {
	s.proxy.mu.Lock()
	defer s.proxy.mu.Unlock()
	s.ready = len(s.tokens) > 0
	return s.ready
}

// tell tells of names that are not the proxy's.
func (s *stream) tell() {
	s.mu.Lock()
	strangers := s.strangers
	s.strangers = nil
	s.mu.Unlock()
	for _, n := range strangers {
		s.fleet.foreign(s.transport.Context(), s.instance, n.typeURL, n.name)
	}
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
	answered, err := f.admission.answer(s.ctx, s.proxy.target())
	if err == nil {
		s.answered = answered
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

// price is what a request counts for: one, and one for each name that is not the proxy's.
// Each of these is answered, noted and told of; of its own, a proxy has no more than there
// are. Those that it has asked for before are looked through again when it asks for more,
// which is a 64th of that. Of a type of which nothing is known yet no name can be told from
// another.
func (s *stream) price(r *discoveryv3.DeltaDiscoveryRequest) int {
	n := 1
	d := s.desired(r.GetTypeUrl(), s.proxy.current())
	if !d.known {
		return n
	}
	if w := s.watches[indexOf(r.GetTypeUrl())]; w != nil && len(r.GetResourceNamesSubscribe())+len(r.GetResourceNamesUnsubscribe()) > 0 {
		s.mu.Lock() // a sender may find that the stream is at rest
		n += max(0, w.subscribed.len()-len(d.names)) / 64
		s.mu.Unlock()
	}
	for _, name := range r.GetResourceNamesSubscribe() {
		if d.names[name] == nil && name != wildcard {
			n++
		}
	}
	for name := range r.GetInitialResourceVersions() {
		if d.names[name] == nil {
			n++
		}
	}
	return n
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
