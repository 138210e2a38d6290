package identity_test

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"net"
	"net/url"
	"slices"
	"testing"
	"time"

	"github.com/ztmesh/ztmesh/identity"
)

// result is what both ends of one connection over loopback say, once each has
// had a byte from the other: in TLS 1.3 a client learns only then that the
// server refused its certificate.
type result struct {
	clientErr, serverErr error
	client, server       tls.ConnectionState
	received             int // bytes that the server got from the client's application
}

func connect(t *testing.T, server, client *tls.Config) result {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var r result
	done := make(chan struct{})
	go func() {
		defer close(done)
		raw, err := l.Accept()
		if err != nil {
			r.serverErr = err
			return
		}
		defer raw.Close()
		conn := tls.Server(raw, server)
		b := make([]byte, 1)
		r.received, r.serverErr = conn.Read(b)
		r.server = conn.ConnectionState()
		if r.serverErr == nil {
			_, r.serverErr = conn.Write(b)
		}
	}()
	raw, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conn := tls.Client(raw, client)
	if r.clientErr = conn.Handshake(); r.clientErr == nil {
		if _, r.clientErr = conn.Write([]byte{1}); r.clientErr == nil {
			_, r.clientErr = io.ReadFull(conn, make([]byte, 1))
		}
	}
	r.client = conn.ConnectionState()
	raw.Close()
	<-done
	return r
}

func (r result) err() error { return errors.Join(r.serverErr, r.clientErr) }

func must(t *testing.T) func(*tls.Config, error) *tls.Config {
	return func(c *tls.Config, err error) *tls.Config {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
}

// Who gets in at which port, by which credential. CVE-2020-7956: a role is not
// another role. CVE-2021-37219: a proxy's certificate on the Raft port.
func TestWhoMayConnect(t *testing.T) {
	c, foreign, other := newCluster(t, trustDomain), newCluster(t, trustDomain), newCluster(t, "other.example")
	a := c.authority(t, serverA)
	svid, err := a.MakeSVID(web, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	server := c.server(t, serverB)
	credentials := []struct {
		name    string
		pair    *identity.KeyPair
		open    string // 7400, 7401: the principal, or "refused"
		cluster bool   // 7402
		serves  bool   // may stand as a server
	}{
		{name: "none", open: ""},
		{name: "server", pair: server, open: "server/" + serverB, cluster: true, serves: true},
		{name: "admin", pair: c.admin(t, "ada"), open: "admin/ada"},
		{name: "node", pair: c.node(t, instance), open: "node/" + instance},
		{name: "workload", pair: svid, open: "refused"},
		{name: "intermediate", pair: a.Intermediate(), open: "refused"},
		{name: "server of a foreign root of the same trust domain", pair: foreign.server(t, serverB), open: "refused"},
		{name: "admin of a foreign root of the same trust domain", pair: foreign.admin(t, "ada"), open: "refused"},
		{name: "server of another trust domain", pair: other.server(t, serverB), open: "refused"},
		{name: "admin of another trust domain", pair: other.admin(t, "ada"), open: "refused"},
	}
	openPort := must(t)(identity.ServerConfig(c.trust(server)))
	clusterPort := must(t)(identity.ClusterServerConfig(c.trust(server)))
	for _, cr := range credentials {
		t.Run(cr.name, func(t *testing.T) {
			r := connect(t, openPort, must(t)(identity.ClientConfig(c.trust(cr.pair))))
			got := "refused"
			if r.err() == nil {
				p, ok, err := identity.PeerPrincipal(r.server, trustDomain)
				if err != nil {
					t.Fatal(err)
				}
				if got = ""; ok {
					got = p.String()
				}
			}
			if got != cr.open || (got == "refused" && r.received > 0) {
				t.Errorf("at the open ports %q (%v), want %q", got, r.err(), cr.open)
			}
			for _, protocol := range []string{identity.ALPNRaft, identity.ALPNHTTP2} {
				config := must(t)(identity.ClusterClientConfig(c.trust(server), protocol))
				config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
					if cr.pair == nil {
						return &tls.Certificate{}, nil
					}
					return cr.pair.TLS(), nil
				}
				r := connect(t, clusterPort, config)
				if (r.err() == nil) != cr.cluster || (!cr.cluster && r.received > 0) {
					t.Errorf("at the cluster port by %s: %v, want in: %v", protocol, r.err(), cr.cluster)
				}
				if cr.cluster && r.server.NegotiatedProtocol != protocol {
					t.Errorf("negotiated %q, want %q", r.server.NegotiatedProtocol, protocol)
				}
			}
			if cr.pair == nil {
				return
			}
			// The same credential in the place of the server.
			imposter := openPort.Clone()
			imposter.GetConfigForClient = nil
			imposter.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return cr.pair.TLS(), nil }
			imposter.ClientAuth, imposter.VerifyConnection = tls.NoClientCert, nil
			if r := connect(t, imposter, must(t)(identity.ClientConfig(c.trust(nil)))); (r.err() == nil) != cr.serves || (!cr.serves && r.received > 0) {
				t.Errorf("as a server: %v, want %v", r.err(), cr.serves)
			}
		})
	}
}

// A certificate that our own root signed but the package never would: each is
// refused as a client and as a server. CVE-2018-16886 (CN), CVE-2022-21656 and
// 21657 (SAN and key usages), CVE-2022-40716 (several SANs).
func TestMisusedCertificates(t *testing.T) {
	root := newRogue(t, trustDomain, nil)
	server, admin := identity.ServerID(trustDomain, serverA), identity.AdminID(trustDomain, "ada")
	in := root.intermediate(t, serverA)
	in = newPair(t, in.Key, in.Leaf(), root.cert())
	trust := func(p *identity.KeyPair) identity.Trust {
		return identity.Trust{
			TrustDomain: trustDomain, Now: func() time.Time { return start },
			Roots:       func() []*x509.Certificate { return []*x509.Certificate{root.cert()} },
			Certificate: func() (*tls.Certificate, error) { return p.TLS(), nil },
		}
	}
	good := signLeaf(t, in, server, nil)
	for _, tt := range []struct {
		name   string
		change func(*x509.Certificate)
	}{
		{"two URI SANs", func(c *x509.Certificate) {
			c.URIs = append(c.URIs, parseURL(t, identity.ServerID(trustDomain, serverB)))
		}},
		{"a workload's SAN beside it", func(c *x509.Certificate) { c.URIs = append(c.URIs, parseURL(t, web)) }},
		{"a DNS SAN beside it", func(c *x509.Certificate) { c.DNSNames = []string{"localhost"} }},
		{"CN instead of a SAN", func(c *x509.Certificate) { c.URIs, c.Subject = nil, pkix.Name{CommonName: server} }},
		{"CN of an admin, SAN of nobody", func(c *x509.Certificate) {
			c.URIs, c.Subject = []*url.URL{parseURL(t, "spiffe://control.shop.example/none/x")}, pkix.Name{CommonName: admin}
		}},
		{"SAN of the trust domain alone", func(c *x509.Certificate) { c.URIs = []*url.URL{parseURL(t, "spiffe://control.shop.example")} }},
		{"expired", func(c *x509.Certificate) { c.NotBefore, c.NotAfter = start.Add(-2*time.Hour), start.Add(-time.Second) }},
		{"not yet valid", func(c *x509.Certificate) { c.NotBefore, c.NotAfter = start.Add(time.Second), start.Add(time.Hour) }},
		{"is an authority", func(c *x509.Certificate) { c.IsCA = true }},
		{"may sign certificates", func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign }},
		{"may not sign", func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment }},
		{"for any extended usage", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} }},
		{"for any extended usage too", func(c *x509.Certificate) { c.ExtKeyUsage = append(c.ExtKeyUsage, x509.ExtKeyUsageAny) }},
		{"for no extended usage", func(c *x509.Certificate) { c.ExtKeyUsage = nil }},
		{"for code signing", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning} }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bad := signLeaf(t, in, server, tt.change)
			if r := connect(t, must(t)(identity.ServerConfig(trust(good))), must(t)(identity.ClientConfig(trust(bad)))); r.err() == nil || r.received > 0 {
				t.Error("accepted as a client")
			}
			if r := connect(t, must(t)(identity.ServerConfig(trust(bad))), must(t)(identity.ClientConfig(trust(good)))); r.err() == nil || r.received > 0 {
				t.Error("accepted as a server")
			}
		})
	}
	t.Run("as it should be", func(t *testing.T) {
		r := connect(t, must(t)(identity.ServerConfig(trust(good))), must(t)(identity.ClientConfig(trust(good))))
		wantErr(t, r.err(), "")
	})
	clientOnly := signLeaf(t, in, server, func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[:1] })
	if r := connect(t, must(t)(identity.ServerConfig(trust(clientOnly))), must(t)(identity.ClientConfig(trust(good)))); r.err() == nil {
		t.Error("a client's certificate serves")
	}

	// Who may sign what: docs/adr/0006.
	for name, pair := range map[string]*identity.KeyPair{
		"an admin by a server's intermediate":          signLeaf(t, in, admin, nil),
		"a node by a server's intermediate":            signLeaf(t, in, identity.NodeID(trustDomain, instance), nil),
		"another server by a server's intermediate":    signLeaf(t, in, identity.ServerID(trustDomain, serverB), nil),
		"a server by the root itself":                  root.leaf(t, server, nil),
		"an admin by an admin":                         signLeaf(t, root.leaf(t, admin, nil), admin, nil),
		"a server by an intermediate's intermediate's": signLeaf(t, newPair(t, good.Key, good.Chain...), server, nil),
	} {
		if r := connect(t, must(t)(identity.ServerConfig(trust(good))), must(t)(identity.ClientConfig(trust(pair)))); r.err() == nil {
			t.Errorf("%s is accepted", name)
		}
	}
	direct := connect(t, must(t)(identity.ServerConfig(trust(good))), must(t)(identity.ClientConfig(trust(root.leaf(t, admin, nil)))))
	wantErr(t, direct.err(), "")
}

// The root is good for its own names only, whoever signs with it.
func TestNameConstraints(t *testing.T) {
	c := newCluster(t, trustDomain)
	in := c.authority(t, serverA).Intermediate()
	opts := x509.VerifyOptions{Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(), CurrentTime: start, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}
	opts.Roots.AddCert(c.root.Certificate())
	opts.Intermediates.AddCert(in.Leaf())
	for uri, want := range map[string]string{
		web: "", identity.ServerID(trustDomain, serverA): "",
		"spiffe://other.example/ns/shop/sa/web": "not permitted",
		"spiffe://op.example/ns/shop/sa/web":    "not permitted",
	} {
		_, err := signLeaf(t, in, uri, nil).Leaf().Verify(opts)
		wantErr(t, err, want)
	}
}

func TestCVE_2024_2048_NonCATrustAnchor(t *testing.T) {
	c := newCluster(t, trustDomain)
	server, admin := c.server(t, serverA), c.admin(t, "ada")
	self := newRogue(t, trustDomain, func(c *x509.Certificate) { c.IsCA, c.KeyUsage = false, x509.KeyUsageDigitalSignature })
	for name, anchor := range map[string]*x509.Certificate{
		"the client's own certificate": admin.Leaf(),
		"a self-signed leaf":           self.cert(),
		"an intermediate":              c.authority(t, serverA).Intermediate().Leaf(),
		"another trust domain's root":  newCluster(t, "other.example").root.Certificate(),
	} {
		trust := c.trust(server)
		trust.Roots = func() []*x509.Certificate { return append(c.roots(), anchor) }
		r := connect(t, must(t)(identity.ServerConfig(trust)), must(t)(identity.ClientConfig(c.trust(admin))))
		if r.err() == nil || r.received > 0 {
			t.Errorf("%s is taken as a trust anchor", name)
		}
		trust.Certificate = nil
		r = connect(t, must(t)(identity.ServerConfig(c.trust(server))), must(t)(identity.ClientConfig(trust)))
		if r.err() == nil || r.received > 0 {
			t.Errorf("%s is taken as a trust anchor by a client", name)
		}
	}
	wantErr(t, connect(t, must(t)(identity.ServerConfig(c.trust(server))), must(t)(identity.ClientConfig(c.trust(admin)))).err(), "")
}

// Also when a client keeps sessions, none is resumed: after its certificate has
// ended, it does not get in.
func TestCVE_2025_68121_NoResumption(t *testing.T) {
	c := newCluster(t, trustDomain)
	server, node := c.server(t, serverA), c.node(t, instance)
	for name, config := range map[string]*tls.Config{
		"open":    must(t)(identity.ServerConfig(c.trust(server))),
		"cluster": must(t)(identity.ClusterServerConfig(c.trust(server))),
	} {
		pair := node
		if name == "cluster" {
			pair = server
		}
		client := must(t)(identity.ClientConfig(c.trust(pair)))
		cache := &sessions{}
		client.ClientSessionCache = cache
		client.ServerName = "same"
		for range 3 {
			r := connect(t, config, client)
			wantErr(t, r.err(), "")
			if r.client.DidResume || r.server.DidResume {
				t.Errorf("%s: resumed", name)
			}
		}
		if cache.put > 0 {
			t.Errorf("%s: %d tickets were sent", name, cache.put)
		}
	}
	config, client := must(t)(identity.ServerConfig(c.trust(c.server(t, serverA)))), must(t)(identity.ClientConfig(c.trust(node)))
	client.ClientSessionCache = tls.NewLRUClientSessionCache(8)
	wantErr(t, connect(t, config, client).err(), "")
	c.now = node.NotAfter().Add(time.Second)
	fresh := must(t)(identity.ServerConfig(c.trust(c.server(t, serverA))))
	if r := connect(t, fresh, client); r.err() == nil || r.received > 0 {
		t.Error("in with a certificate that has ended")
	}
}

type sessions struct{ put int }

func (s *sessions) Get(string) (*tls.ClientSessionState, bool) { return nil, false }
func (s *sessions) Put(string, *tls.ClientSessionState)        { s.put++ }

func TestOnlyTLS13(t *testing.T) {
	c := newCluster(t, trustDomain)
	client := must(t)(identity.ClientConfig(c.trust(nil)))
	client.MinVersion, client.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	wantErr(t, connect(t, must(t)(identity.ServerConfig(c.trust(c.server(t, serverA)))), client).err(), "version")
}

func TestClusterPortWantsAProtocol(t *testing.T) {
	c := newCluster(t, trustDomain)
	server := c.server(t, serverA)
	port := must(t)(identity.ClusterServerConfig(c.trust(server)))
	for _, protocols := range [][]string{nil, {"http/1.1"}} {
		client := must(t)(identity.ClientConfig(c.trust(server)))
		client.NextProtos = protocols
		if r := connect(t, port, client); r.err() == nil || r.received > 0 {
			t.Errorf("%v gets in", protocols)
		}
	}
	client := must(t)(identity.ClusterClientConfig(c.trust(server), identity.ALPNRaft))
	if r := connect(t, must(t)(identity.ServerConfig(c.trust(server))), client); r.err() == nil || r.received > 0 {
		t.Error("a Raft client talks to another port")
	}
	mute := bare(server)
	mute.NextProtos = nil
	if r := connect(t, mute, client); r.err() == nil || r.received > 0 {
		t.Error("a Raft client talks to a server that names no protocol")
	}
}

// Certificates and roots change under a running config.
func TestRotationWithoutRestart(t *testing.T) {
	c, next := newCluster(t, trustDomain), newCluster(t, trustDomain)
	var current identity.Current
	roots := c.roots()
	trust := c.trust(nil)
	trust.Certificate, trust.Roots = current.Certificate, func() []*x509.Certificate { return roots }
	port := must(t)(identity.ServerConfig(trust))
	wantErr(t, connect(t, port, must(t)(identity.ClientConfig(c.trust(nil)))).serverErr, "no certificate yet")
	for _, from := range []*cluster{c, next} {
		current.Set(from.server(t, serverA))
		roots = from.roots()
		r := connect(t, port, must(t)(identity.ClientConfig(from.trust(from.admin(t, "ada")))))
		wantErr(t, r.err(), "")
		if !r.client.PeerCertificates[0].Equal(current.Get().Leaf()) {
			t.Error("an old certificate is shown")
		}
	}
	if r := connect(t, port, must(t)(identity.ClientConfig(next.trust(c.admin(t, "ada"))))); r.err() == nil {
		t.Error("the old root is still trusted")
	}
	roots = nil
	if r := connect(t, port, must(t)(identity.ClientConfig(next.trust(nil)))); r.err() == nil {
		t.Error("a server without roots talks")
	}
}

// Roots that change while a handshake is under way hold for it, too.
func TestRotationWithinAHandshake(t *testing.T) {
	c, next := newCluster(t, trustDomain), newCluster(t, trustDomain)
	trust := c.trust(c.server(t, serverA))
	asked := 0 // by one connection at a time
	trust.Roots = func() []*x509.Certificate {
		if asked++; asked > 1 {
			return next.roots()
		}
		return c.roots()
	}
	client := must(t)(identity.ClientConfig(c.trust(c.admin(t, "ada"))))
	if r := connect(t, must(t)(identity.ServerConfig(trust)), client); r.err() == nil || r.received > 0 {
		t.Errorf("in by a root that is gone (asked %d times)", asked)
	}
}

// What every handshake needs of the roots is made once for a set of them.
func TestRootsAreLookedAtOnce(t *testing.T) {
	c, next := newCluster(t, trustDomain), newCluster(t, trustDomain)
	roots := c.roots()
	trust := c.trust(c.server(t, serverA))
	trust.Roots = func() []*x509.Certificate { return roots }
	port := must(t)(identity.ServerConfig(trust))
	get := func() *tls.Config { return must(t)(port.GetConfigForClient(&tls.ClientHelloInfo{})) }
	first := get()
	roots = slices.Clone(roots)
	if get() != first {
		t.Error("made again from the same roots")
	}
	roots[0] = next.root.Certificate() // within the slice that was given
	if second := get(); second == first || second.ClientCAs.Equal(first.ClientCAs) {
		t.Error("not made again from other roots")
	}
}

// BenchmarkHandshake is both ends of a proxy's connection, over a pipe.
func BenchmarkHandshake(b *testing.B) {
	c := newCluster(b, trustDomain)
	server, err := identity.ServerConfig(c.trust(c.server(b, serverA)))
	if err != nil {
		b.Fatal(err)
	}
	client, err := identity.ClientConfig(c.trust(c.node(b, instance)))
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		one, other := net.Pipe()
		done := make(chan error, 1)
		go func() { done <- tls.Server(other, server).Handshake() }()
		if err := errors.Join(tls.Client(one, client).Handshake(), <-done); err != nil {
			b.Fatal(err)
		}
	}
}

func TestPinnedClient(t *testing.T) {
	c, other := newCluster(t, trustDomain), newCluster(t, trustDomain)
	server := c.server(t, serverA)
	pin := identity.PinOf(c.root.Certificate())
	dial := func(p identity.Pin, pair *identity.KeyPair) (r result, td string, root *x509.Certificate) {
		t.Helper()
		client := must(t)(identity.PinnedClientConfig(p, c.clock, func(d string, r *x509.Certificate) { td, root = d, r }))
		return connect(t, bare(pair), client), td, root
	}
	r, td, root := dial(pin, server)
	if r.err() != nil || td != trustDomain || !root.Equal(c.root.Certificate()) {
		t.Errorf("learned %q, %v", td, r.err())
	}
	mitm, admin := other.server(t, serverA), c.admin(t, "ada")
	leafAsPin := identity.PinOf(server.Leaf())
	for _, tt := range []struct {
		name string
		pin  identity.Pin
		pair *identity.KeyPair
	}{
		{"another cluster", pin, mitm},
		{"the pinned root shown below a foreign chain", pin, newPair(t, mitm.Key, append(mitm.Chain[:2:2], c.root.Certificate())...)},
		{"the pinned root in the place of the foreign one's intermediate", pin, newPair(t, mitm.Key, mitm.Leaf(), c.root.Certificate())},
		{"no root shown", pin, newPair(t, server.Key, server.Chain[:2]...)},
		{"the pin of the leaf", leafAsPin, server},
		{"the pin of the intermediate", identity.PinOf(server.Chain[1]), server},
		{"an admin", pin, newPair(t, admin.Key, admin.Leaf(), c.root.Certificate())},
	} {
		r, td, _ := dial(tt.pin, tt.pair)
		if r.err() == nil || r.received > 0 || td != "" {
			t.Errorf("%s: %v, learned %q, %d bytes sent", tt.name, r.err(), td, r.received)
		}
	}
	c.now = server.NotAfter().Add(time.Second)
	if r, _, _ := dial(pin, server); r.err() == nil || r.received > 0 {
		t.Error("an ended certificate is accepted")
	}
}

// bare serves with pair whatever it is.
func bare(pair *identity.KeyPair) *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{*pair.TLS()}, MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}}
}

// CVE-2026-50166: without a root or a pin there is no config to send a token by.
func TestCVE_2026_50166_NoTrustNoConnection(t *testing.T) {
	c := newCluster(t, trustDomain)
	_, err := identity.PinnedClientConfig(identity.Pin{}, c.clock, nil)
	if !errors.Is(err, identity.ErrNoTrust) {
		t.Errorf("no pin: %v", err)
	}
	trust := c.trust(c.server(t, serverA))
	port := must(t)(identity.ServerConfig(trust))
	trust.Roots = nil
	for name, config := range map[string]func() (*tls.Config, error){
		"client":         func() (*tls.Config, error) { return identity.ClientConfig(trust) },
		"server":         func() (*tls.Config, error) { return identity.ServerConfig(trust) },
		"cluster server": func() (*tls.Config, error) { return identity.ClusterServerConfig(trust) },
		"cluster client": func() (*tls.Config, error) { return identity.ClusterClientConfig(trust, identity.ALPNRaft) },
	} {
		if _, err := config(); !errors.Is(err, identity.ErrNoTrust) {
			t.Errorf("%s: %v", name, err)
		}
	}
	trust.Roots = func() []*x509.Certificate { return nil }
	r := connect(t, port, must(t)(identity.ClientConfig(trust)))
	if !errors.Is(r.clientErr, identity.ErrNoTrust) || r.received > 0 {
		t.Errorf("an empty set of roots: %v, %d bytes sent", r.clientErr, r.received)
	}
	for name, trust := range map[string]identity.Trust{
		"no clock":         {TrustDomain: trustDomain, Roots: c.roots},
		"no trust domain":  {Roots: c.roots, Now: c.clock},
		"bad trust domain": {TrustDomain: "control.x", Roots: c.roots, Now: c.clock},
	} {
		if _, err := identity.ClientConfig(trust); err == nil {
			t.Errorf("%s: a config", name)
		}
	}
}

func TestPeerPrincipalWantsVerification(t *testing.T) {
	c := newCluster(t, trustDomain)
	cs := tls.ConnectionState{PeerCertificates: c.admin(t, "ada").Chain}
	_, ok, err := identity.PeerPrincipal(cs, trustDomain)
	if ok {
		t.Error("a certificate that nobody verified counts")
	}
	wantErr(t, err, "not verified")
}
