package xds_test

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ztmesh/ztmesh/controlplane/zttest/envoy"
	"github.com/ztmesh/ztmesh/identity"
	"github.com/ztmesh/ztmesh/xds"
)

// patience bounds every wait of these tests; none of them depends on it.
const patience = 30 * time.Second

// loopback is an address of this host that nobody else uses, so that listeners
// have fixed ports and tests do not meet.
func loopback(t *testing.T) string {
	t.Helper()
	b := make([]byte, 3)
	if _, err := rand.Read(b); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("127.%d.%d.%d", 1+b[0]%254, b[1], 1+b[2]%254)
}

// proxy is a real Envoy that is told what Build makes.
type proxy struct {
	*envoy.Process
	t    *testing.T
	c    *control
	p    *pki
	conf *xds.Config
	in   xds.Instance
}

// newProxy starts an Envoy for the workload and holds back the resources whose
// names begin with one of hold. It returns when all others are acknowledged.
func newProxy(t *testing.T, p *pki, c *control, conf *xds.Config, hold ...string) *proxy {
	t.Helper()
	return startProxy(t, p, c, conf, xds.FromADS, hold...)
}

func startProxy(t *testing.T, p *pki, c *control, conf *xds.Config, secrets xds.SecretSource, hold ...string) *proxy {
	t.Helper()
	address := loopback(t)
	in := xds.Instance{ID: "i-" + strings.ReplaceAll(conf.Workload, "/", "-"), Address: address, Egress: address, Secrets: secrets}
	dir, err := os.MkdirTemp("", "zt") // a short path: sockets allow 108 bytes
	check(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })

	r := &proxy{t: t, c: c, p: p, conf: conf, in: in}
	c.set(in.ID, xds.Gates(nil), xds.SVID(certPEM(t, p.svid(t, conf.ID))), xds.Bundle(map[string][]byte{td: identity.EncodePEM(p.roots)}))
	resources := r.build(conf)
	c.set(in.ID, without(resources, hold)...)

	boot := xds.BootstrapConfig{
		TrustDomain: td, Workload: conf.Workload, Instance: in, Servers: []string{c.addr},
		AdminSocket: filepath.Join(dir, "admin"), BindAddress: true,
	}
	node := xds.Node(certPEM(t, p.node(t, in.ID)))
	bundle := xds.ControlBundle(td, identity.EncodePEM(p.roots))
	if secrets == xds.FromAgent {
		boot.AgentSocket = filepath.Join(dir, "agent")
		c.set(in.ID, node, bundle)
		c.serveSecrets(t, boot.AgentSocket)
	} else {
		boot.NodeDir = filepath.Join(dir, "node")
		check(t, os.Mkdir(boot.NodeDir, 0o700))
		for name, res := range map[string]*xds.Resource{xds.NodeFile: node, xds.ControlBundleFile: bundle} {
			b, err := xds.File(res)
			check(t, err)
			check(t, os.WriteFile(filepath.Join(boot.NodeDir, name), b, 0o600))
		}
	}
	boot.PublicRoots = filepath.Join(dir, "roots.pem")
	check(t, os.WriteFile(boot.PublicRoots, append(identity.EncodePEM(p.roots), c.publicRoots...), 0o600))
	bootstrap, err := xds.Bootstrap(boot)
	check(t, err)
	r.Process, err = envoy.Start(envoy.Config{Bootstrap: bootstrap, Dir: dir, Admin: boot.AdminSocket})
	check(t, err)
	t.Cleanup(func() {
		check(t, r.Stop(patience))
		if t.Failed() {
			t.Logf("envoy %s:\n%s", conf.Workload, r.Log())
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	check(t, r.Ready(ctx))
	r.applied(without(resources, hold)...)
	return r
}

func without(resources *xds.Resources, names []string) []*xds.Resource {
	var out []*xds.Resource
next:
	for _, r := range resources.All() {
		for _, n := range names {
			if strings.HasPrefix(r.Name, n) {
				continue next
			}
		}
		out = append(out, r)
	}
	return out
}

func (p *proxy) build(conf *xds.Config) *xds.Resources {
	p.t.Helper()
	r, err := xds.Build(conf, p.in)
	check(p.t, err)
	check(p.t, xds.Consistent(r))
	return r
}

// apply tells the Envoy and waits for its acknowledgement.
func (p *proxy) apply(resources ...*xds.Resource) {
	p.t.Helper()
	p.c.set(p.in.ID, resources...)
	p.applied(resources...)
}

func (p *proxy) applied(resources ...*xds.Resource) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), patience)
	defer cancel()
	err := p.Await(ctx, func() bool {
		if len(p.c.refused()) > 0 {
			return true
		}
		for _, r := range resources {
			if !p.c.has(p.in.ID, r) {
				return false
			}
		}
		return true
	})
	if n := p.c.refused(); len(n) > 0 {
		p.t.Fatalf("refused: %s", strings.Join(n, "\n"))
	}
	check(p.t, err)
}

// dial opens a connection to a port as id; a nil pair shows no certificate.
func (p *proxy) dial(port uint32, pair *identity.KeyPair, alpn ...string) (*tls.Conn, error) {
	conf := &tls.Config{InsecureSkipVerify: true, NextProtos: alpn, MinVersion: tls.VersionTLS13} //nolint:gosec // the server's identity is another test's subject
	if pair != nil {
		conf.Certificates = []tls.Certificate{*pair.TLS()}
	}
	d := tls.Dialer{Config: conf}
	ctx, cancel := context.WithTimeout(p.t.Context(), patience)
	defer cancel()
	c, err := d.DialContext(ctx, "tcp", net.JoinHostPort(p.in.Address, fmt.Sprint(port)))
	if err != nil {
		return nil, err
	}
	check(p.t, c.SetDeadline(time.Now().Add(patience)))
	return c.(*tls.Conn), nil
}

// answer is what came back: status 0 if the connection was closed.
type answer struct {
	status       int
	reason, body string
	header       http.Header
}

// raw sends bytes on a new connection and reads one response.
func (p *proxy) raw(port uint32, pair *identity.KeyPair, request string) answer {
	p.t.Helper()
	c, err := p.dial(port, pair, "http/1.1")
	if err != nil {
		return answer{}
	}
	defer c.Close()
	return exchange(c, request)
}

func exchange(c net.Conn, request string) answer {
	if _, err := io.WriteString(c, request); err != nil {
		return answer{}
	}
	method, _, _ := strings.Cut(request, " ")
	resp, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: method})
	if err != nil {
		return answer{}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return answer{}
	}
	return answer{resp.StatusCode, resp.Header.Get(xds.ReasonHeader), string(body), resp.Header}
}

// get is a well-formed request for a host.
func get(method, host, path string) string {
	return fmt.Sprintf("%s %s HTTP/1.1\r\nHost: %s\r\nContent-Length: 0\r\n\r\n", method, path, host)
}

// newApp is an application that says what reached it.
func newApp(t *testing.T) (target string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	protocols := &http.Protocols{}
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	srv := &http.Server{
		Protocols:         protocols,
		ReadHeaderTimeout: patience,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set(xds.ReasonHeader, "forged")
			fmt.Fprintf(w, "%s %s %s\n%s", r.Method, r.RequestURI, r.Proto, r.Header.Get("X-Forwarded-Client-Cert"))
		}),
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close(); <-done })
	return l.Addr().String()
}

// tcpApp greets whoever connects and echoes; it counts connections.
type tcpApp struct {
	target   string
	accepted atomic.Int64
}

func newTCPApp(t *testing.T) *tcpApp {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	a := &tcpApp{target: l.Addr().String()}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			a.accepted.Add(1)
			go func() {
				defer c.Close()
				_, _ = io.WriteString(c, "hello\n")
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-done })
	return a
}

func (p *proxy) address(port uint32) string { return net.JoinHostPort(p.in.Address, fmt.Sprint(port)) }

// until waits for what nothing acknowledges.
func (p *proxy) until(done func() bool) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), patience)
	defer cancel()
	check(p.t, p.Await(ctx, done))
}
