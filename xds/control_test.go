package xds_test

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	alsv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	"github.com/ztmesh/ztmesh/identity"
	"github.com/ztmesh/ztmesh/xds"
)

const td = "shop.example"

// pki is one cluster's certificates, by the package that issues the real ones.
type pki struct {
	root      *identity.Root
	authority *identity.Authority
	roots     []*x509.Certificate
}

func newPKI(t *testing.T) *pki {
	t.Helper()
	return newPKIOf(t, td)
}

func newPKIOf(t *testing.T, td string) *pki {
	t.Helper()
	s := identity.Signing{Now: time.Now, Log: func(identity.Issuance) error { return nil }}
	root, err := identity.NewRoot(td, s)
	check(t, err)
	key, err := identity.NewKey()
	check(t, err)
	cert, err := root.SignIntermediate(key.Public(), "one")
	check(t, err)
	pair, err := identity.NewKeyPair(key, []*x509.Certificate{cert})
	check(t, err)
	a, err := identity.NewAuthority(root.Certificate(), pair, "one", s)
	check(t, err)
	return &pki{root: root, authority: a, roots: []*x509.Certificate{root.Certificate()}}
}

func (p *pki) svid(t *testing.T, id string) *identity.KeyPair {
	t.Helper()
	pair, err := p.authority.MakeSVID(id, time.Hour)
	check(t, err)
	return pair
}

func (p *pki) node(t *testing.T, instance string) *identity.KeyPair {
	t.Helper()
	key, err := identity.NewKey()
	check(t, err)
	chain, err := p.root.IssueNode(key.Public(), instance)
	check(t, err)
	pair, err := identity.NewKeyPair(key, chain)
	check(t, err)
	return pair
}

func certPEM(t *testing.T, p *identity.KeyPair) (chain, key []byte) {
	t.Helper()
	secret, err := p.Key.PEM()
	check(t, err)
	return identity.EncodePEM(p.Chain), secret.Reveal()
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// control is a small delta ADS server: it sends each stream what its node is
// set to have, and keeps what was refused. A name that a node has never had is
// not answered, so that a resource can be late.
type control struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	addr        string
	stop        func() // ends the server
	publicRoots string // PEM: CAs of the proxies' hosts

	mu      sync.Mutex // guards what follows
	nodes   map[string]map[string]map[string]*xds.Resource
	changed chan struct{} // closed and replaced at every change
	nacks   []string
	acked   map[string]string // node, type and name → version
	logs    []*accesslogv3.HTTPAccessLogEntry
}

// logServer takes what proxies log of decisions.
type logServer struct {
	alsv3.UnimplementedAccessLogServiceServer
	c *control
}

func (s logServer) StreamAccessLogs(stream grpc.ClientStreamingServer[alsv3.StreamAccessLogsMessage, alsv3.StreamAccessLogsResponse]) error {
	name := ""
	for {
		m, err := stream.Recv()
		if err != nil {
			return nil
		}
		if id := m.GetIdentifier(); id != nil {
			name = id.GetLogName()
		}
		if name != xds.DecisionLog {
			return fmt.Errorf("log %q is unknown", name)
		}
		s.c.mu.Lock()
		s.c.logs = append(s.c.logs, m.GetHttpLogs().GetLogEntry()...)
		s.c.mu.Unlock()
	}
}

// logged finds the entry of a request.
func (c *control) logged(requestID string) *accesslogv3.HTTPAccessLogEntry {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.logs {
		if e.GetRequest().GetRequestId() == requestID {
			return e
		}
	}
	return nil
}

func newControl(t *testing.T, p *pki) *control {
	t.Helper()
	server, err := p.authority.MakeServer()
	check(t, err)
	conf, err := identity.ServerConfig(identity.Trust{
		TrustDomain: td,
		Roots:       func() []*x509.Certificate { return p.roots },
		Certificate: func() (*tls.Certificate, error) { return server.TLS(), nil },
		Now:         time.Now,
	})
	check(t, err)
	conf.NextProtos = []string{"h2"}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	c := &control{
		addr:    l.Addr().String(),
		nodes:   map[string]map[string]map[string]*xds.Resource{},
		changed: make(chan struct{}),
		acked:   map[string]string{},
	}
	srv := grpc.NewServer(
		grpc.Creds(credentials.NewTLS(conf)),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: time.Second, PermitWithoutStream: true}),
	)
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(srv, c)
	alsv3.RegisterAccessLogServiceServer(srv, logServer{c: c})
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(l)
	}()
	c.stop = func() { srv.Stop(); <-done }
	t.Cleanup(c.stop)
	return c
}

// secretServer answers as an agent does: the same resources, secrets only, by
// delta SDS.
type secretServer struct {
	secretv3.UnimplementedSecretDiscoveryServiceServer
	c *control
}

func (s secretServer) DeltaSecrets(stream grpc.BidiStreamingServer[discoveryv3.DeltaDiscoveryRequest, discoveryv3.DeltaDiscoveryResponse]) error {
	return s.c.DeltaAggregatedResources(stream)
}

func (c *control) serveSecrets(t *testing.T, socket string) {
	t.Helper()
	l, err := net.Listen("unix", socket)
	check(t, err)
	srv := grpc.NewServer()
	secretv3.RegisterSecretDiscoveryServiceServer(srv, secretServer{c: c})
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(l)
	}()
	t.Cleanup(func() { srv.Stop(); <-done })
}

// set replaces what a node has of the given resources' names.
func (c *control) set(node string, resources ...*xds.Resource) {
	c.edit(func() {
		byType := c.nodes[node]
		if byType == nil {
			byType = map[string]map[string]*xds.Resource{}
			c.nodes[node] = byType
		}
		for _, r := range resources {
			if byType[r.Type] == nil {
				byType[r.Type] = map[string]*xds.Resource{}
			}
			byType[r.Type][r.Name] = r
		}
	})
}

func (c *control) remove(node, typeURL, name string) {
	c.edit(func() { delete(c.nodes[node][typeURL], name) })
}

func (c *control) edit(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f()
	close(c.changed)
	c.changed = make(chan struct{})
}

func (c *control) refused() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.nacks)
}

// has says whether a node has acknowledged exactly this resource.
func (c *control) has(node string, r *xds.Resource) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.acked[node+r.Type+r.Name] == r.Version
}

// order: make before break.
var order = []string{xds.RuntimeType, xds.ClusterType, xds.EndpointType, xds.SecretType, xds.ListenerType, xds.RouteType, xds.ExtensionType}

// stream is the state of one stream; one goroutine uses it.
type stream struct {
	c        *control
	s        grpc.BidiStreamingServer[discoveryv3.DeltaDiscoveryRequest, discoveryv3.DeltaDiscoveryResponse]
	node     string
	wants    map[string]map[string]bool
	sent     map[string]map[string]string
	inFlight map[string]*discoveryv3.DeltaDiscoveryResponse
	told     map[string]bool
	nonce    int
}

func (c *control) DeltaAggregatedResources(s grpc.BidiStreamingServer[discoveryv3.DeltaDiscoveryRequest, discoveryv3.DeltaDiscoveryResponse]) error {
	st := &stream{
		c: c, s: s, wants: map[string]map[string]bool{}, sent: map[string]map[string]string{},
		inFlight: map[string]*discoveryv3.DeltaDiscoveryResponse{}, told: map[string]bool{},
	}
	requests := make(chan *discoveryv3.DeltaDiscoveryRequest)
	go func() {
		defer close(requests)
		for {
			r, err := s.Recv()
			if err != nil {
				return
			}
			select {
			case requests <- r:
			case <-s.Context().Done():
				return
			}
		}
	}()
	for {
		c.mu.Lock()
		changed := c.changed
		c.mu.Unlock()
		if err := st.push(); err != nil {
			return err
		}
		select {
		case r, ok := <-requests:
			if !ok {
				return nil
			}
			st.request(r)
		case <-changed:
		case <-s.Context().Done():
			return nil
		}
	}
}

func (st *stream) request(r *discoveryv3.DeltaDiscoveryRequest) {
	if st.node == "" {
		st.node = r.GetNode().GetId()
	}
	st.answer(r)
	t := r.GetTypeUrl()
	if st.wants[t] == nil {
		st.wants[t], st.sent[t] = map[string]bool{}, map[string]string{}
		if len(r.GetResourceNamesSubscribe()) == 0 {
			st.wants[t]["*"] = true
		}
	}
	for _, n := range r.GetResourceNamesSubscribe() {
		st.wants[t][n] = true
		delete(st.sent[t], n) // asked again: told again
	}
	for _, n := range r.GetResourceNamesUnsubscribe() {
		delete(st.wants[t], n)
		delete(st.sent[t], n)
	}
}

func (st *stream) answer(r *discoveryv3.DeltaDiscoveryRequest) {
	resp := st.inFlight[r.GetResponseNonce()]
	delete(st.inFlight, r.GetResponseNonce())
	st.c.mu.Lock()
	defer st.c.mu.Unlock()
	if e := r.GetErrorDetail(); e != nil {
		st.c.nacks = append(st.c.nacks, fmt.Sprintf("%s %s: %s", st.node, r.GetTypeUrl(), e.GetMessage()))
		return
	}
	for _, res := range resp.GetResources() {
		st.c.acked[st.node+resp.GetTypeUrl()+res.GetName()] = res.GetVersion()
	}
}

// push sends what differs, one resource in a response.
func (st *stream) push() error {
	st.c.mu.Lock()
	var out []*discoveryv3.DeltaDiscoveryResponse
	for _, t := range order {
		have := st.c.nodes[st.node][t]
		for name, r := range have {
			if !st.wants[t]["*"] && !st.wants[t][name] || st.sent[t][name] == r.Version {
				continue
			}
			st.sent[t][name] = r.Version
			if t == xds.ClusterType {
				delete(st.sent[xds.EndpointType], name) // a changed cluster waits for its endpoints
			}
			out = append(out, &discoveryv3.DeltaDiscoveryResponse{TypeUrl: t, Resources: []*discoveryv3.Resource{{
				Name: name, Version: r.Version, Resource: r.Body,
			}}})
		}
		for name := range st.sent[t] {
			if have[name] == nil {
				delete(st.sent[t], name)
				out = append(out, &discoveryv3.DeltaDiscoveryResponse{TypeUrl: t, RemovedResources: []string{name}})
			}
		}
		// A node that has nothing of a type that it asks all of: tell it so.
		if st.wants[t]["*"] && len(have) == 0 && len(st.c.nodes[st.node]) > 0 && !st.told[t] {
			st.told[t] = true
			out = append(out, &discoveryv3.DeltaDiscoveryResponse{TypeUrl: t})
		}
	}
	st.c.mu.Unlock()
	for _, resp := range out {
		st.nonce++
		resp.Nonce = strconv.Itoa(st.nonce)
		st.inFlight[resp.Nonce] = resp
		if err := st.s.Send(resp); err != nil {
			return err
		}
	}
	return nil
}
