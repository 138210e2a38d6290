package controlplane_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ztmesh/ztmesh/controlplane"
	"github.com/ztmesh/ztmesh/controlplane/zttest/mesh"
	"github.com/ztmesh/ztmesh/identity"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
	"github.com/ztmesh/ztmesh/store/state"
)

// TestCVE_2026_31838_DebugEndpoints: metrics, health and profiles are served on
// loopback alone. No other port has them, or what gRPC offers of the kind, for anybody.
func TestCVE_2026_31838_DebugEndpoints(t *testing.T) {
	c := newCluster(t, 2, nil)
	c.Submit(shop)
	a := c.Servers[0].Addresses()
	shown := credentialsOf(c)
	for _, path := range []string{"/metrics", "/healthz", "/debug/pprof/", "/debug/pprof/heap", "/debug/pprof/profile?seconds=1", "/debug/failpoint", "/debug/state", "/debug/members"} {
		for who, pair := range shown {
			if who == "foreign root" {
				continue // the handshake fails
			}
			client := &http.Client{Transport: &http.Transport{TLSClientConfig: c.http1(pair()), DisableKeepAlives: true}}
			for _, method := range []string{http.MethodGet, http.MethodPost} {
				req, err := http.NewRequestWithContext(c.ctx(), method, "https://"+a.Admin+path, nil)
				c.check(err)
				resp, err := client.Do(req)
				c.check(err)
				c.check(resp.Body.Close())
				if resp.StatusCode < 400 {
					t.Errorf("%s %s on the admin port by %s: %s", method, path, who, resp.Status)
				}
			}
		}
		// This build has no failpoints: nobody can arm one.
		if strings.HasPrefix(path, "/debug/pprof") || !strings.HasPrefix(path, "/debug/") {
			continue
		}
		resp, err := http.Get("http://" + a.Local + path)
		c.check(err)
		c.check(resp.Body.Close())
		if resp.StatusCode != http.StatusNotFound {
			t.Errorf("%s on the local port: %s", path, resp.Status)
		}
	}
	for _, address := range []string{a.Admin, a.Node, a.Cluster} {
		for who, pair := range shown {
			conn := c.Dial(address, pair())
			for _, method := range []string{
				"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
				"/grpc.channelz.v1.Channelz/GetServers", "/grpc.health.v1.Health/Check",
				"/envoy.service.status.v3.ClientStatusDiscoveryService/FetchClientStatus",
			} {
				err := conn.Invoke(c.ctx(), method, &ztv1.ListAdminsRequest{}, &ztv1.ListAdminsResponse{})
				// A server that was removed hears of nothing else.
				if code := status.Code(err); code != codes.Unimplemented && code != codes.Unavailable && !(code == codes.PermissionDenied && who == "removed server") {
					t.Errorf("%s at %s by %s: %v", method, address, who, err)
				}
			}
			c.check(conn.Close())
		}
	}
	for _, address := range []string{"0.0.0.0:0", ":7403", "10.0.0.1:7403", "[::]:7403", "example.com:7403"} {
		cfg := controlplane.Default()
		cfg.DataDir, cfg.LocalListen = c.Servers[0].Dir, address
		if err := cfg.Validate(); err == nil {
			t.Errorf("local port at %s: no error", address)
		}
	}
}

// imposter listens at an address and shows pair to whoever comes. It tells, for each
// connection, whether the handshake came to its end.
type imposter struct {
	listener net.Listener
	wg       sync.WaitGroup

	mu   sync.Mutex // guards what follows
	came int
	done int          // handshakes
	said bytes.Buffer // after the handshake
}

func newImposter(t *testing.T, address string, pair *identity.KeyPair) *imposter {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	i := &imposter{listener: l}
	config := &tls.Config{
		Certificates: []tls.Certificate{*pair.TLS()}, MinVersion: tls.VersionTLS13,
		NextProtos: []string{identity.ALPNRaft, identity.ALPNHTTP2}, ClientAuth: tls.RequestClientCert,
	}
	i.wg.Go(func() {
		for {
			raw, err := l.Accept()
			if err != nil {
				return
			}
			i.wg.Go(func() { i.serve(tls.Server(raw, config)) })
		}
	})
	t.Cleanup(i.close)
	return i
}

func (i *imposter) serve(conn *tls.Conn) {
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience / 10)) // a connection that just was made takes one
	err := conn.HandshakeContext(context.Background())
	i.mu.Lock()
	i.came++
	if err == nil {
		i.done++
	}
	i.mu.Unlock()
	if err == nil {
		b := make([]byte, 1024)
		n, _ := conn.Read(b) // the end is as good as a word
		i.mu.Lock()
		i.said.Write(b[:n])
		i.mu.Unlock()
	}
}

func (i *imposter) close() {
	i.listener.Close()
	i.wg.Wait()
}

func (i *imposter) counts() (came, done, said int) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.came, i.done, i.said.Len()
}

// TestCVE_2020_7956_WrongRoleAsServer is the client's side of TestClusterPortIsForServers
// (CVE-2021-37219): a server that finds a proxy, an admin or a server that was removed
// where a peer should be ends the handshake and says nothing, by Raft or by gRPC; also
// when that certificate is of the cluster's own root. The peer itself it speaks to.
func TestCVE_2020_7956_WrongRoleAsServer(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.Submit(shop)
	away := slices.DeleteFunc(slices.Clone(c.Servers), func(s *mesh.Server) bool { return s == c.Leader() })[0]
	own, address := c.identityOf(away), away.Addresses().Cluster
	gone := c.Others(away)
	removed := gone[0]
	if removed == c.Leader() {
		removed = gone[1]
	}
	was := c.identityOf(removed)
	_, node := c.enrol("shop/web")
	shown := map[string]*identity.KeyPair{
		"node": node, "admin": c.AdminPair(), "editor": c.addAdmin("ed", "editor", "shop"),
	}
	away.Stop()
	for who, pair := range shown {
		i := newImposter(t, address, pair)
		c.Until("the servers dial "+who, func() bool { came, _, _ := i.counts(); return came >= 4 })
		i.close()
		if _, done, said := i.counts(); done > 0 || said > 0 {
			t.Errorf("%s in the place of a server: %d handshakes came to an end, %d bytes were said", who, done, said)
		}
	}
	// The imposter is one that a server would speak to, had it the right to be there.
	i := newImposter(t, address, own)
	c.Until("the servers speak to the peer itself", func() bool { _, done, said := i.counts(); return done > 0 && said > 0 })
	i.close()
	away.Start()
	c.Together()

	// A server that was removed is nobody, and is not believed to be another.
	c.remove(removed)
	if err := removed.Ended(); err == nil {
		t.Error("a removed server ends without an error")
	}
	c.Until("the others know", func() bool {
		resp, err := away.Admin().ListMembers(c.ctx(), &ztv1.ListMembersRequest{})
		return err == nil && len(resp.Members) == 2
	})
	away.Stop()
	i = newImposter(t, address, was)
	c.Until("the servers dial a removed one", func() bool { came, _, _ := i.counts(); return came >= 4 })
	i.close()
	if _, done, said := i.counts(); done > 0 || said > 0 {
		t.Errorf("a removed server in the place of another: %d handshakes, %d bytes", done, said)
	}
}

// TestCVE_2026_50166_TokensOnlyToThePinnedRoot: who joins shows the token to no server
// of another root, whatever name that has, and to none without TLS.
func TestCVE_2026_50166_TokensOnlyToThePinnedRoot(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.Submit(shop)
	foreign, err := identity.NewRoot(trustDomain, identity.Signing{Now: time.Now, Log: func(identity.Issuance) error { return nil }})
	c.check(err)
	key, err := identity.NewKey()
	c.check(err)
	intermediate, err := foreign.SignIntermediate(key.Public(), c.Servers[0].ID())
	c.check(err)
	pair, err := identity.NewKeyPair(key, []*x509.Certificate{intermediate})
	c.check(err)
	authority, err := identity.NewAuthority(foreign.Certificate(), pair, c.Servers[0].ID(), identity.Signing{Now: time.Now, Log: func(identity.Issuance) error { return nil }})
	c.check(err)
	server, err := authority.MakeServer()
	c.check(err)
	_, node := c.enrol("shop/web")
	for who, shows := range map[string]*identity.KeyPair{"the same name by another root": server, "a proxy of the root": node} {
		i := newImposter(t, "127.0.0.1:0", shows)
		ctx, cancel := context.WithTimeout(c.ctx(), 2*time.Second)
		err := controlplane.Join(ctx, controlplane.JoinConfig{
			DataDir: t.TempDir(), Server: i.listener.Addr().String(), Token: c.Token(""), Logger: slog.New(slog.DiscardHandler),
		})
		cancel()
		i.close()
		if came, done, said := i.counts(); err == nil || came == 0 || done > 0 || said > 0 {
			t.Errorf("%s: %v; %d came, %d handshakes, %d bytes", who, err, came, done, said)
		}
	}
	plain, err := net.Listen("tcp", "127.0.0.1:0")
	c.check(err)
	defer plain.Close()
	var said []byte
	done := make(chan struct{})
	go func() {
		defer close(done)
		if conn, err := plain.Accept(); err == nil {
			_ = conn.SetDeadline(time.Now().Add(time.Second))
			_, _ = io.WriteString(conn, "HTTP/2 200\r\n\r\n") // it may have gone
			said, _ = io.ReadAll(conn)
			conn.Close()
		}
	}()
	ctx, cancel := context.WithTimeout(c.ctx(), 2*time.Second)
	defer cancel()
	token := c.Token("")
	if err := controlplane.Join(ctx, controlplane.JoinConfig{
		DataDir: t.TempDir(), Server: plain.Addr().String(), Token: token, Logger: slog.New(slog.DiscardHandler),
	}); err == nil {
		t.Error("a join without TLS")
	}
	<-done
	if bytes.Contains(said, []byte(strings.Split(token, ".")[2])) || len(said) == 0 {
		t.Errorf("said in the clear: %d bytes", len(said))
	}
	// A token without a pin, and one with the pin of nothing, are none.
	for what, token := range map[string]string{"no pin": token[:strings.LastIndexByte(token, '.')], "an empty pin": token[:strings.LastIndexByte(token, '.')+1]} {
		err := controlplane.Join(c.ctx(), controlplane.JoinConfig{
			DataDir: t.TempDir(), Server: c.Servers[0].Addresses().Node, Token: token, Logger: slog.New(slog.DiscardHandler),
		})
		if err == nil || status.Code(errors.Unwrap(err)) == codes.PermissionDenied {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestCVE_2021_27099_ServersRequest: what a joining server's request for an
// intermediate asks for beside its key counts for nothing.
func TestCVE_2021_27099_ServersRequest(t *testing.T) {
	c := newCluster(t, 1, nil)
	key, _ := c.NewRequest()
	admin, err := url.Parse(identity.AdminID(trustDomain, "admin"))
	c.check(err)
	greedy, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: "admin", Organization: []string{"system:masters"}},
		URIs:    []*url.URL{admin}, DNSNames: []string{"localhost"},
		ExtraExtensions: []pkix.Extension{
			{Id: []int{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 6, 1, 1, 0xff, 2, 1, 9}}, // a CA of any depth
			{Id: []int{2, 5, 29, 30}, Critical: true, Value: []byte{0x30, 0}},                      // for any name
		},
	}, key)
	c.check(err)
	resp, err := c.node(c.Servers[0], nil).EnrolServer(c.ctx(), &ztv1.EnrolServerRequest{
		Token: c.Token(""), Server: mesh.NewID(), IntermediateCsr: greedy, Format: state.Format,
	})
	c.check(err)
	got, err := x509.ParseCertificate(resp.Intermediate)
	c.check(err)
	if len(got.URIs)+len(got.DNSNames) != 0 || strings.Contains(got.Subject.String(), "admin") {
		t.Errorf("signed for %v %v %s", got.URIs, got.DNSNames, got.Subject)
	}
	if !got.MaxPathLenZero || got.MaxPathLen != 0 || time.Until(got.NotAfter) > identity.IntermediateLife {
		t.Errorf("path length %d, until %v", got.MaxPathLen, got.NotAfter)
	}
}

// TestCVE_2024_24786_OddJSON: JSON that has made parsers of protobuf's loop or recurse
// is refused at once, and the server goes on.
func TestCVE_2024_24786_OddJSON(t *testing.T) {
	c := newCluster(t, 1, nil)
	for what, body := range map[string]string{
		"an Any that is cut off":  `{"files":[{"@type":"type.googleapis.com/google.protobuf.Value","value":{`,
		"an Any without a value":  `{"@type":"type.googleapis.com/google.protobuf.Any"}`,
		"an Any in an Any":        strings.Repeat(`{"@type":"type.googleapis.com/google.protobuf.Any","value":`, 20_000) + "1" + strings.Repeat("}", 20_000),
		"unknown fields, nested":  `{"x":` + strings.Repeat(`{"x":`, 20_000) + "1" + strings.Repeat("}", 20_001),
		"a colon without a name":  `{"":}`,
		"a number of 100,000":     `{"bases":{"a":` + strings.Repeat("9", 100_000) + `}}`,
		"an exponent":             `{"bases":{"a":1e999999999}}`,
		"a key of 500,000 quotes": `{"` + strings.Repeat(`\"`, 250_000) + `":1}`,
		"twice the same key":      `{"message":"a","message":"b"}`,
		"null for all":            `{"files":[null]}`,
	} {
		code, answer := c.rest(c.AdminPair(), "POST", "/v1alpha1/apply", body)
		if code < 400 || code >= 500 {
			t.Errorf("%s: %d %v", what, code, answer)
		}
	}
	_, err := c.Admin().GetServerInfo(c.ctx(), &ztv1.GetServerInfoRequest{})
	c.check(err)
}
