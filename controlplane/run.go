package controlplane

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"net/http/pprof"
	"time"

	accesslogservicev3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	grpcpeer "google.golang.org/grpc/peer"

	"github.com/ztmesh/ztmesh/controlplane/api"
	"github.com/ztmesh/ztmesh/controlplane/decisions"
	"github.com/ztmesh/ztmesh/controlplane/policy"
	"github.com/ztmesh/ztmesh/controlplane/refusals"
	"github.com/ztmesh/ztmesh/controlplane/spec"
	"github.com/ztmesh/ztmesh/controlplane/view"
	"github.com/ztmesh/ztmesh/failpoint"
	"github.com/ztmesh/ztmesh/identity"
	"github.com/ztmesh/ztmesh/store"
	"github.com/ztmesh/ztmesh/store/state"
	"github.com/ztmesh/ztmesh/xds/serve"
)

// listeners are the four ports, all taken before anything is served.
type listeners struct {
	admin, node, cluster, local net.Listener
	plain                       net.Listener // nil: there is none
}

func (s *Server) listen() (l listeners, err error) {
	last := s.dir.loadAddresses()
	for _, p := range []struct {
		to                  *net.Listener
		name, address, last string
	}{
		{&l.admin, "admin", s.cfg.AdminListen, last.Admin},
		{&l.node, "node", s.cfg.NodeListen, last.Node},
		{&l.cluster, "cluster", s.cfg.ClusterListen, last.Cluster},
		{&l.local, "local", s.cfg.LocalListen, last.Local},
	} {
		if *p.to, err = listen(p.name, p.address, p.last); err != nil {
			l.close()
			return l, err
		}
	}
	if s.cfg.PlaintextNodes != "" {
		if l.plain, err = listen("plaintext", s.cfg.PlaintextNodes, last.Plaintext); err != nil {
			l.close()
			return l, err
		}
	}
	return l, nil
}

func (l listeners) close() {
	for _, p := range []net.Listener{l.admin, l.node, l.cluster, l.local, l.plain} {
		if p != nil {
			p.Close()
		}
	}
}

// Run serves until ctx ends (then it returns nil) or something that it cannot do
// without fails. It hands leadership over before it goes.
//
// An error that wraps store.ErrUnreadable says that this server's log is lost or
// damaged, one that wraps store.ErrDiverged that its state is not that of the others: it
// can only come back as another member, see Reseed.
func (s *Server) Run(ctx context.Context) error {
	err := s.run(ctx)
	if errors.Is(err, store.ErrUnreadable) || errors.Is(err, store.ErrDiverged) {
		return fmt.Errorf("%w\nthis server must not vote with what it has; to put a new member in its place: ztd reseed --data-dir %s", err, string(s.dir))
	}
	return err
}

func (s *Server) run(ctx context.Context) error {
	lock, err := s.dir.lock()
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := s.dir.checkDiverged(); err != nil {
		return err
	}
	l, err := s.listen()
	if err != nil {
		return err
	}
	defer l.close()
	if err := s.openIdentity(); err != nil {
		return err
	}
	defer s.journal.Close()
	if s.refusals, err = refusals.Open(refusals.Config{
		Path: s.dir.refusals(), MaxBytes: s.cfg.RefusalBytes, Now: s.cfg.Now, Logger: s.cfg.Logger, Metrics: s.metrics,
	}); err != nil {
		return err
	}
	defer s.refusals.Close()
	failpoint.Hit("controlplane.start.identified")
	if s.addresses, err = s.advertise(l); err != nil {
		return err
	}

	clusterTLS, err := identity.ClusterServerConfig(s.trust())
	if err != nil {
		return err
	}
	port := &clusterPort{
		raft: newBranch(l.cluster.Addr()), grpc: newBranch(l.cluster.Addr()), gone: newBranch(l.cluster.Addr()), listener: l.cluster, tls: clusterTLS,
		refused: s.noteConnection,
		td:      s.td, member: s.member, handshake: s.cfg.Handshake, log: s.cfg.Logger, open: map[*peerConn]struct{}{},
	}
	raftTLS, err := s.peerTLS(identity.ALPNRaft)
	if err != nil {
		return err
	}
	if err := s.hasLog(); err != nil {
		return err
	}
	agreedOn, err := store.Open(store.Config{
		ID: s.id, Dir: s.dir.raft(), Cipher: s.data, Address: s.addresses.Cluster, Listener: port.raft,
		Dial: func(ctx context.Context, address string) (net.Conn, error) {
			return (&tls.Dialer{Config: raftTLS}).DialContext(ctx, "tcp", address)
		},
		Logger: s.cfg.Logger, Now: s.cfg.Now, Metrics: s.metrics, Timing: s.cfg.Timing, Format: s.cfg.Format, Reserve: s.cfg.DiskReserve,
		Audit: s.cfg.Audit,
	})
	if err != nil {
		return err
	}
	if err := s.noteOpened(); err != nil {
		return errors.Join(err, agreedOn.Close())
	}
	s.agreedOn.Store(agreedOn)
	failpoint.Hit("controlplane.start.opened")
	return s.serve(ctx, l, port, agreedOn)
}

// serve runs everything. The parts fail together; the store and its port go last,
// since handing leadership over needs both.
func (s *Server) serve(ctx context.Context, l listeners, port *clusterPort, agreedOn *store.Store) error {
	g, ctx := errgroup.WithContext(ctx)
	portCtx, stopPort := context.WithCancel(context.Background())
	defer stopPort()
	portDone := make(chan error, 1)
	go func() { portDone <- port.Run(portCtx) }()
	g.Go(func() error {
		select {
		case err := <-portDone:
			portDone <- nil
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	err := s.start(ctx, g, l, port, agreedOn)
	if err != nil {
		g.Go(func() error { return err })
	}
	err = g.Wait()
	if errors.Is(err, context.Canceled) {
		err = nil
	}
	err = errors.Join(err, agreedOn.Close())
	stopPort()
	if e := <-portDone; !errors.Is(e, context.Canceled) {
		err = errors.Join(err, e)
	}
	return err
}

// member says whether a server, known by its certificate, is of the cluster, as
// far as this one knows.
func (s *Server) member(id string) bool {
	agreedOn := s.agreedOn.Load()
	return agreedOn == nil || memberOf(agreedOn.State(), s.id, id)
}

// watchMembers cuts off who is not of the cluster any more. If that is this server
// itself, it ends: nobody will tell it of what changes from now on.
func (s *Server) watchMembers(port *clusterPort) func(*state.State, state.Changes) error {
	was := false
	return func(st *state.State, changed state.Changes) error {
		if !changed.Servers {
			return nil
		}
		_, is := st.Server(s.id)
		if was && !is {
			return store.ErrRemoved
		}
		was = is
		port.cut()
		return nil
	}
}

// peerTLS is how this server dials the cluster port of others: of members only.
func (s *Server) peerTLS(protocol string) (*tls.Config, error) {
	c, err := identity.ClusterClientConfig(s.trust(), protocol)
	if err != nil {
		return nil, err
	}
	verify := c.VerifyConnection
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		if err := verify(cs); err != nil {
			return err
		}
		uri, err := identity.URI(cs.PeerCertificates[0])
		if err != nil {
			return err
		}
		who, err := identity.ParseControlID(uri, s.td)
		if err != nil {
			return err
		}
		if !s.member(who.Name) {
			return fmt.Errorf("%s is not of this cluster", who)
		}
		return nil
	}
	return c, nil
}

// memberOf says whether this server should talk to another. One that has not
// caught up so far as to know itself cannot tell, and believes the certificate.
func memberOf(st *state.State, self, id string) bool {
	if _, knowsItself := st.Server(self); !knowsItself {
		return true
	}
	_, ok := st.Server(id)
	return ok
}

// passthrough are the streams that the fleet, and the receiver of decisions, judge
// themselves.
var passthrough = map[string]bool{
	accesslogservicev3.AccessLogService_StreamAccessLogs_FullMethodName:             true,
	discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResources_FullMethodName:  true,
	discoveryv3.AggregatedDiscoveryService_StreamAggregatedResources_FullMethodName: true,
}

// start wires the parts together; it reads as the architecture.
func (s *Server) start(ctx context.Context, g *errgroup.Group, l listeners, port *clusterPort, agreedOn *store.Store) error {
	s.metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), s.clock.metric())
	peerTLS, err := s.peerTLS(identity.ALPNHTTP2)
	if err != nil {
		return err
	}
	serverTLS, err := identity.ServerConfig(s.trust())
	if err != nil {
		return err
	}
	views := view.NewCache()
	signer := &issuer{authority: s.authority, keys: s.keys, signing: s.signing(), roots: s.roots, state: agreedOn.State, clock: &s.clock}
	rule := s.cfg.Autopilot.withDefaults()
	others := newCluster(&cluster{self: s.id, store: agreedOn, tls: peerTLS, log: s.cfg.Logger, now: s.cfg.Now, every: rule.Check})

	var loop *reconciler
	var held *proxies
	fleet := serve.New(serve.Config{
		Authorize:    func(ctx context.Context) (string, error) { return s.instance(ctx, agreedOn) },
		OnConnect:    func(id string) { loop.OnConnect(id) },
		OnDisconnect: func(id string) { loop.OnDisconnect(id) },
		OnForeign:    s.noteForeign,
		Server:       s.id, Logger: s.cfg.Logger, Metrics: s.metrics, Now: s.cfg.Now,
	})
	receiver := decisions.New(decisions.Config{
		Identify: func(ctx context.Context) (decisions.Reporter, error) { return s.reporter(ctx, agreedOn) },
		Called: func(workload string, local uint32, authority string) (service, port string, ok bool) {
			return loop.called(workload, local, authority)
		},
		Cut:    func(who decisions.Reporter, c decisions.Cut) { held.cut(who.Instance, c) },
		Logger: s.cfg.Logger, Metrics: s.metrics, Now: s.cfg.Now,
	})
	resolver := newOutside(&outside{
		resolution: s.cfg.Resolution, publish: fleet.SetEndpoints, log: s.cfg.Logger, now: s.cfg.Now,
	}, s.metrics)
	loop = newReconciler(&reconciler{
		fleet: fleet, outside: resolver, views: views, authority: s.authority, roots: s.roots, forget: receiver.Forget,
		log: s.cfg.Logger, now: s.cfg.Now, newest: agreedOn.State,
		mayIssue: func() error { return s.mayIssue(agreedOn.LastContact()) },
	}, s.metrics)
	held = newProxies(&proxies{self: s.id, fleet: fleet, cluster: others, moved: others.moved, full: others.DiskFull, newest: others.newestHash, now: s.cfg.Now})
	keys := newKeeper(&keeper{s: s, store: agreedOn, others: others, every: s.cfg.KeyCheck}, s.metrics)
	door := api.New(api.Config{
		ServerID: s.id, Version: Version, Log: agreed{agreedOn, &s.clock}, Cluster: others, Proxies: held,
		Differences: &differences{receiver: receiver, cluster: others}, Issuer: signer, Backup: s.backup, Keys: keys, Audit: audited{agreedOn, s.journal}, Refusals: refused{s.refusals}, Views: views, Identify: s.identify,
		Passthrough: passthrough, Logger: s.cfg.Logger, Metrics: s.metrics, Now: s.cfg.Now,
		Handshake: s.cfg.Handshake,
	})
	handler, err := door.NewHandler()
	if err != nil {
		return err
	}
	node := door.Node(s.noting("node port", newLanes(serverTLS, s.metrics)))
	fleet.Register(node)
	receiver.Register(node)
	internal := door.Internal(grpc.Creds(handshaken{credentials.NewTLS(serverTLS)}))
	strangers := door.Strangers(grpc.Creds(handshaken{credentials.NewTLS(serverTLS)}))

	g.Go(func() error { return agreedOn.Wait(ctx) })
	g.Go(func() error { return others.Run(ctx) })
	g.Go(func() error { return others.watchDisk(ctx) })
	g.Go(func() error { return held.Run(ctx) })
	g.Go(func() error { return agreedOn.Watch(ctx, loop.OnState) })
	g.Go(func() error { return agreedOn.Watch(ctx, s.watchMembers(port)) })
	g.Go(func() error { return loop.Run(ctx) })
	g.Go(func() error { return resolver.Run(ctx) })
	g.Go(func() error { return s.renewer(signer).Run(ctx) })
	g.Go(func() error {
		return watchLiveness(ctx, s.cfg.Liveness.withDefaults(), agreedOn, held, s.cfg.Logger, s.cfg.Now)
	})
	compared := newHashMetrics(s.metrics)
	g.Go(func() error { return s.watchHashes(ctx, others, rule.Check, compared) })
	g.Go(func() error { return watchClock(ctx, &s.clock, others, rule.Check, s.cfg.Logger) })
	g.Go(func() error {
		p := &pilot{rule: rule, store: agreedOn, others: others, remove: door.RemoveDead, log: s.cfg.Logger, now: s.cfg.Now}
		return p.run(ctx)
	})
	g.Go(func() error { return s.announce(ctx, door, others, agreedOn) })
	g.Go(func() error { return fillAudit(ctx, agreedOn, others, s.cfg.Logger) })
	g.Go(func() error { return s.refusals.Run(ctx) })
	g.Go(func() error { return s.checkJournal(ctx, agreedOn) })
	g.Go(func() error { return s.anchorJournal(ctx, door, agreedOn) })
	g.Go(func() error { return s.keepAdminContext(ctx, agreedOn) })
	g.Go(func() error { return s.keepPeers(ctx, agreedOn) })
	g.Go(func() error { return s.keepSealedRoot(ctx, agreedOn) })
	g.Go(func() error { return agreedOn.Watch(ctx, keys.OnState) })
	g.Go(func() error { return keys.run(ctx) })
	g.Go(func() error { return serveGRPC(ctx, internal, port.grpc, nil) })
	g.Go(func() error { return serveGRPC(ctx, strangers, port.gone, nil) })
	g.Go(func() error { return serveGRPC(ctx, node, l.node, fleet.Close) })
	if l.plain != nil {
		plain := door.Node(insecure.NewCredentials())
		fleet.Register(plain)
		g.Go(func() error { return serveGRPC(ctx, plain, l.plain, fleet.Close) })
	}
	g.Go(func() error {
		defer handler.Close()
		return s.serveHTTP(ctx, tls.NewListener(l.admin, serverTLS), handler)
	})
	g.Go(func() error { return s.serveHTTP(ctx, l.local, s.local(agreedOn, loop)) })
	g.Go(func() error { return s.becomeReady(ctx, loop, agreedOn) })
	return nil
}

// instance is the proxy whose stream this is, if it is enrolled.
func (s *Server) instance(ctx context.Context, agreedOn *store.Store) (string, error) {
	p, ok := grpcpeer.FromContext(ctx)
	if !ok {
		return "", errors.New("no connection")
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return s.named(ctx, agreedOn)
	}
	who, ok, err := identity.PeerPrincipal(info.State, s.td)
	if err != nil {
		return "", err
	}
	if !ok || who.Role != identity.Node {
		return "", errors.New("not a node's certificate")
	}
	if _, enrolled := agreedOn.State().Instance(who.Name); !enrolled {
		return "", fmt.Errorf("instance %s is not enrolled", who.Name)
	}
	return who.Name, nil
}

// PlaintextInstance is the header that Config.PlaintextNodes believes.
const PlaintextInstance = "zt-instance"

// named is the proxy that a stream without TLS says it is, where that is believed.
func (s *Server) named(ctx context.Context, agreedOn *store.Store) (string, error) {
	named := metadata.ValueFromIncomingContext(ctx, PlaintextInstance)
	if s.cfg.PlaintextNodes == "" || len(named) != 1 {
		return "", errors.New("no TLS")
	}
	if _, enrolled := agreedOn.State().Instance(named[0]); !enrolled {
		return "", fmt.Errorf("instance %s is not enrolled", named[0])
	}
	return named[0], nil
}

// reporter is the proxy whose log this is, if it is enrolled.
func (s *Server) reporter(ctx context.Context, agreedOn *store.Store) (decisions.Reporter, error) {
	id, err := s.instance(ctx, agreedOn)
	if err != nil {
		return decisions.Reporter{}, err
	}
	i, ok := agreedOn.State().Instance(id)
	if !ok {
		return decisions.Reporter{}, errNotEnrolled
	}
	ref, err := spec.ParseRef(i.Workload, "")
	return decisions.Reporter{Instance: id, Workload: i.Workload, ID: policy.ID(s.td, ref)}, err
}

// identify is the API's way to read a certificate.
func (s *Server) identify(cs tls.ConnectionState) (api.Principal, error) {
	who, ok, err := identity.PeerPrincipal(cs, s.td)
	if err != nil || !ok {
		return api.Principal{}, err
	}
	return api.Principal{Role: api.Role(who.Role), Name: who.Name}, nil
}

// serveGRPC serves until ctx ends. before is called ahead of the stop.
func serveGRPC(ctx context.Context, srv *grpc.Server, l net.Listener, before func()) error {
	stop := context.AfterFunc(ctx, func() {
		if before != nil {
			before()
		}
		srv.Stop()
	})
	defer stop()
	if err := srv.Serve(l); err != nil && ctx.Err() == nil {
		return err
	}
	return ctx.Err()
}

func (s *Server) serveHTTP(ctx context.Context, l net.Listener, h http.Handler) error {
	srv := &http.Server{
		Handler: h, ReadHeaderTimeout: s.cfg.Handshake, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		ErrorLog: log.New(handshakes{s}, "", 0),
	}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return ctx.Err()
}

// local is what is served on loopback: metrics, health and profiles.
func (s *Server) local(agreedOn *store.Store, loop *reconciler) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/metrics", promhttp.HandlerFor(s.metrics, promhttp.HandlerOpts{}))
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) {
		revision, why := readiness(agreedOn, loop)
		leader, _ := agreedOn.Leader()
		switch {
		case why != "":
			http.Error(w, why, http.StatusServiceUnavailable)
		case agreedOn.Full():
			fmt.Fprintf(w, "ok revision=%d leader=%s disk=full\n", revision, leader)
		default:
			fmt.Fprintf(w, "ok revision=%d leader=%s\n", revision, leader)
		}
	})
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	serveFailpoints(mux, agreedOn)
	return mux
}
