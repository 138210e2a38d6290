package serve

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"net"
	"net/url"
	"path"
	"strings"
	"sync"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ztmesh/ztmesh/controlplane/zttest/adsclient"
	"github.com/ztmesh/ztmesh/xds"
)

// patience bounds a wait for something that is to happen. Nothing is shown by
// its passing but a failure.
const patience = 20 * time.Second

// server is a Fleet behind a real gRPC server with mTLS.
type server struct {
	*Fleet
	t       *testing.T
	address string
	ca      *authority
	metrics *prometheus.Registry
	stop    func() // ends it; again does nothing
}

func newServer(t *testing.T, change ...func(*Config)) *server {
	t.Helper()
	return newServerOf(t, newAuthority(t), change...)
}

// newServerOf is newServer with a given authority: servers of one mesh.
func newServerOf(t *testing.T, ca *authority, change ...func(*Config)) *server {
	t.Helper()
	s := &server{t: t, ca: ca, metrics: prometheus.NewRegistry()}
	cfg := Config{Authorize: instanceOfPeer, Server: "test", Metrics: s.metrics, Retry: Retry{First: time.Hour, Most: time.Hour}}
	for _, c := range change {
		c(&cfg)
	}
	s.Fleet = New(cfg)
	s.SetEndpoints(nil)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.address = listener.Addr().String()
	g := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{s.ca.issue(t, "spiffe://control.test/server/1")},
		ClientAuth:   tls.RequireAndVerifyClientCert,
		ClientCAs:    s.ca.pool,
	})), grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: time.Second, PermitWithoutStream: true}))
	s.Register(g)
	s.RegisterSecrets(g)
	var served sync.WaitGroup
	served.Go(func() {
		if err := g.Serve(listener); err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	s.stop = sync.OnceFunc(func() {
		s.Close()
		g.GracefulStop()
		served.Wait()
	})
	t.Cleanup(s.stop)
	return s
}

// instanceOfPeer is the rule of the product: …/node/INSTANCE in the certificate.
func instanceOfPeer(ctx context.Context) (string, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return "", errors.New("no peer")
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.PeerCertificates) == 0 || len(info.State.PeerCertificates[0].URIs) != 1 {
		return "", errors.New("no identity")
	}
	uri := info.State.PeerCertificates[0].URIs[0]
	if !strings.HasPrefix(uri.Path, "/node/") {
		return "", errors.New("not a node")
	}
	return path.Base(uri.Path), nil
}

// dial connects with the certificate of an instance.
func (s *server) dial(identity string, options ...grpc.DialOption) *grpc.ClientConn {
	s.t.Helper()
	options = append(options, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
		MinVersion:   tls.VersionTLS13,
		ServerName:   "server",
		Certificates: []tls.Certificate{s.ca.issue(s.t, "spiffe://control.test/"+identity)},
		RootCAs:      s.ca.pool,
	})))
	conn, err := grpc.NewClient(s.address, options...)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { conn.Close() })
	return conn
}

// client is a stream whose errors fail the test.
type client struct {
	*adsclient.Client
	t *testing.T
}

// connect opens an ADS stream of an instance on a connection of its own.
func (s *server) connect(instance string) *client {
	s.t.Helper()
	return s.stream(s.dial("node/"+instance), instance)
}

func (s *server) stream(conn *grpc.ClientConn, node string) *client {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	s.t.Cleanup(cancel)
	c, err := adsclient.Open(ctx, conn, node)
	if err != nil {
		s.t.Fatal(err)
	}
	return &client{Client: c, t: s.t}
}

func (c *client) subscribe(typeURL string, names ...string) {
	c.t.Helper()
	c.must(c.Subscribe(typeURL, names...))
}

func (c *client) unsubscribe(typeURL string, names ...string) {
	c.t.Helper()
	c.must(c.Unsubscribe(typeURL, names...))
}

func (c *client) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

// recv expects the next response to be of a type and to say something.
func (c *client) recv(typeURL, says string) *discoveryv3.DeltaDiscoveryResponse {
	c.t.Helper()
	m, err := c.Recv()
	if err != nil {
		c.t.Fatalf("waiting for %s: %v", says, err)
	}
	if got := adsclient.Says(m); m.GetTypeUrl() != typeURL || got != says {
		c.t.Fatalf("received %s %q, want %s %q", typeLabel(m.GetTypeUrl()), got, typeLabel(typeURL), says)
	}
	return m
}

// accept is recv and an ACK.
func (c *client) accept(typeURL, says string) {
	c.t.Helper()
	c.must(c.Ack(c.recv(typeURL, says)))
}

// refuse is recv and a NACK.
func (c *client) refuse(typeURL, says, message string) {
	c.t.Helper()
	c.must(c.Nack(c.recv(typeURL, says), message))
}

// silent shows that nothing else is on its way: the answer about a name that
// nobody has is the next thing said. What was set before is answered before. It
// needs the instance's secrets to be set.
func (c *client) silent() {
	c.t.Helper()
	c.subscribe(xds.SecretType, "fence")
	c.accept(xds.SecretType, "-fence")
	c.unsubscribe(xds.SecretType, "fence")
}

// connected is a client that has fetched the target of base at revision 1.
func (s *server) connected(instance string) *client {
	s.t.Helper()
	c := s.connect(instance)
	c.subscribe(xds.ClusterType)
	s.await(instance)
	s.SetSecrets(instance, []*xds.Resource{})
	s.SetEndpoints(map[string]*xds.Assignment{"svc/a": xds.Everywhere(res(xds.EndpointType, "svc/a", "e1"))})
	s.Set(1, map[string]*xds.Resources{instance: base()})
	c.accept(xds.ClusterType, "+app/http@1 +svc/a@1")
	c.subscribe(xds.EndpointType, "svc/a")
	c.accept(xds.EndpointType, "+svc/a@e1")
	c.subscribe(xds.ListenerType)
	c.accept(xds.ListenerType, "+in/http@1 +out/http@1")
	c.subscribe(xds.RouteType, "out/http")
	c.accept(xds.RouteType, "+out/http@1")
	c.subscribe(xds.ExtensionType, "gate/http", "policy/http")
	c.accept(xds.ExtensionType, "+gate/http@1")
	c.accept(xds.ExtensionType, "+policy/http@1")
	s.status(instance, func(p ProxyStatus) bool { return p.AckedRevision >= 1 })
	return c
}

// await waits until an instance is connected.
func (s *server) await(instance string) {
	s.t.Helper()
	s.until("connection of "+instance, func() bool {
		for _, c := range s.Connected() {
			if c == instance {
				return true
			}
		}
		return false
	})
}

// until waits for Changed until done says so.
func (s *server) until(what string, done func() bool) {
	s.t.Helper()
	limit := time.After(patience)
	for !done() {
		select {
		case <-s.Changed():
		case <-limit:
			s.t.Fatalf("%s: not within %v; status %+v", what, patience, s.Status())
		}
	}
}

// status waits until the one proxy of an instance has a status that fits.
func (s *server) status(instance string, fits func(ProxyStatus) bool) ProxyStatus {
	s.t.Helper()
	var found ProxyStatus
	s.until("status of "+instance, func() bool {
		for _, p := range s.Status() {
			if p.Instance == instance {
				found = p
				return fits(p)
			}
		}
		return false
	})
	return found
}

// count returns the value of a counter or gauge, summed over its labels that
// match value, or all if it is empty.
func (s *server) count(name, value string) float64 {
	s.t.Helper()
	families, err := s.metrics.Gather()
	if err != nil {
		s.t.Fatal(err)
	}
	var sum float64
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			if value == "" || m.GetLabel()[0].GetValue() == value {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return sum
}

func res(typeURL, name, version string) *xds.Resource {
	return &xds.Resource{
		Type: typeURL, Name: name, Version: version,
		Body: &anypb.Any{TypeUrl: typeURL, Value: []byte(name + version)},
	}
}

// target makes resources of "type name@version" lines.
func target(lines ...string) *xds.Resources {
	types := map[string]string{
		"listener": xds.ListenerType, "cluster": xds.ClusterType,
		"route": xds.RouteType, "extension": xds.ExtensionType,
	}
	r := xds.Resources{}
	for _, line := range lines {
		label, rest, _ := strings.Cut(line, " ")
		name, version, _ := strings.Cut(rest, "@")
		typeURL := types[label]
		if r[typeURL] == nil {
			r[typeURL] = map[string]*xds.Resource{}
		}
		r[typeURL][name] = res(typeURL, name, version)
	}
	return &r
}

// base is the target of a small proxy.
func base() *xds.Resources {
	return target(
		"cluster app/http@1", "cluster svc/a@1",
		"listener in/http@1", "listener out/http@1",
		"route out/http@1",
		"extension gate/http@1", "extension policy/http@1",
	)
}

// with is base with some resources in another version, or more.
func with(lines ...string) *xds.Resources {
	r := *base()
	for typeURL, byName := range *target(lines...) {
		for name, x := range byName {
			r[typeURL][name] = x
		}
	}
	return &r
}

// without takes one resource out of a target that nobody has yet.
func without(r *xds.Resources, typeURL, name string) *xds.Resources {
	delete((*r)[typeURL], name)
	return r
}

// authority issues certificates with one URI SAN.
type authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	pool *x509.CertPool
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{key: key, cert: cert, pool: x509.NewCertPool()}
	a.pool.AddCert(cert)
	return a
}

func (a *authority) issue(t *testing.T, id string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	uri, err := url.Parse(id)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), URIs: []*url.URL{uri}, DNSNames: []string{"server"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}
