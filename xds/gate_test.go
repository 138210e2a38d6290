package xds_test

import (
	"bufio"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/ztmesh/ztmesh/identity"
	"github.com/ztmesh/ztmesh/xds"
)

// closed says that a connection was ended by the other side: an answer that
// merely does not come is not that.
func closed(err error) bool {
	return err != nil && !errors.Is(err, os.ErrDeadlineExceeded)
}

func TestTransport(t *testing.T) {
	p := newPKI(t)
	orders := newProxy(t, p, newControl(t, p), ordersConfig(newApp(t), newTCPApp(t).target))
	request := get("GET", ordersHost, "/public")

	if got := orders.raw(8080, p.svid(t, id("far/stranger")), request); got.status != 200 {
		t.Errorf("a caller of the mesh: %+v", got)
	}
	now := time.Now()
	for name, pair := range map[string]*identity.KeyPair{
		"no certificate":                nil,
		"another cluster's certificate": newPKI(t).svid(t, id("far/stranger")),
		"not in the gate":               p.svid(t, id("shop/nobody")),
		"a node of the control plane":   p.node(t, "i-1"),
		"of another trust domain":       p.forge(t, now.Add(time.Hour), "spiffe://other.example/ns/far/sa/stranger"),
		"expired":                       p.forge(t, now.Add(-time.Minute), id("far/stranger")),
		"two identities":                p.forge(t, now.Add(time.Hour), id("shop/nobody"), id("far/stranger")),
		"two identities, joined":        p.forge(t, now.Add(time.Hour), id("far/stranger"), id("far/stranger")),
	} {
		if got := orders.raw(8080, pair, request); got.status != 0 {
			t.Errorf("%s: answered %+v", name, got)
		}
	}

	old := &tls.Config{
		InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12, //nolint:gosec // to see it refused
		Certificates: []tls.Certificate{*p.svid(t, id("far/stranger")).TLS()},
	}
	if c, err := tls.Dial("tcp", orders.address(8080), old); err == nil {
		_ = c.Close()
		t.Error("TLS 1.2 is accepted")
	}
	plain, err := net.Dial("tcp", orders.address(8080))
	check(t, err)
	defer plain.Close()
	check(t, plain.SetDeadline(time.Now().Add(patience)))
	if got := exchange(plain, request); got.status != 0 {
		t.Errorf("plaintext: %+v", got)
	}
}

// TestNoResumption is CVE-2025-68121: a session that could be resumed would outlive
// its certificate, and a ban.
func TestNoResumption(t *testing.T) {
	p := newPKI(t)
	orders := newProxy(t, p, newControl(t, p), ordersConfig(newApp(t), newTCPApp(t).target))
	conf := &tls.Config{
		InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}, //nolint:gosec // not the subject
		Certificates:       []tls.Certificate{*p.svid(t, id("far/stranger")).TLS()},
		ClientSessionCache: tls.NewLRUClientSessionCache(4), ServerName: "orders",
	}
	for range 3 {
		c, err := tls.Dial("tcp", orders.address(8080), conf)
		check(t, err)
		check(t, c.SetDeadline(time.Now().Add(patience)))
		if got := exchange(c, get("GET", ordersHost, "/public")); got.status != 200 {
			t.Errorf("got %+v", got)
		}
		if c.ConnectionState().DidResume {
			t.Error("a session was resumed")
		}
		_ = c.Close()
	}
}

func TestGateCutsOneIdentity(t *testing.T) {
	p := newPKI(t)
	orders := newProxy(t, p, newControl(t, p), ordersConfig(newApp(t), newTCPApp(t).target))
	request := get("GET", ordersHost, "/public")
	web, err := orders.dial(8080, p.svid(t, id("shop/web")), "http/1.1")
	check(t, err)
	defer web.Close()
	cart, err := orders.dial(8080, p.svid(t, id("shop/cart")), "http/1.1")
	check(t, err)
	defer cart.Close()
	silent := orders.silent(p.svid(t, id("shop/web")))
	tcp, err := orders.dial(7000, p.svid(t, id("shop/web")))
	check(t, err)
	defer tcp.Close()
	_, err = io.WriteString(tcp, "x\n")
	check(t, err)
	lines := bufio.NewReader(tcp)
	for _, want := range []string{"hello\n", "x\n"} {
		if got, err := lines.ReadString('\n'); err != nil || got != want {
			t.Fatalf("tcp: %q, %v", got, err)
		}
	}
	for _, c := range []net.Conn{web, cart} {
		if got := exchange(c, request); got.status != 200 {
			t.Fatalf("before: %+v", got)
		}
	}

	orders.apply(xds.Gates([]string{"zt.shop-web"}))
	if got := exchange(web, request); got.status != 0 {
		t.Errorf("an open connection of the closed identity: %+v", got)
	}
	if got := orders.raw(8080, p.svid(t, id("shop/web")), request); got.status != 0 {
		t.Errorf("a new connection of the closed identity: %+v", got)
	}
	if got := exchange(cart, request); got.status != 200 {
		t.Errorf("an open connection of another identity: %+v", got)
	}
	_, _ = io.WriteString(tcp, "y\n") // the cut may come first
	if got, err := lines.ReadString('\n'); !closed(err) {
		t.Errorf("tcp goes on: %q, %v", got, err)
	}
	if err := <-silent; !closed(err) {
		t.Errorf("a client that only answers pings was not cut: %v", err)
	}

	orders.apply(xds.Gates(nil))
	if got := orders.raw(8080, p.svid(t, id("shop/web")), request); got.status != 200 {
		t.Errorf("reopened: %+v", got)
	}
}

// silent opens an HTTP/2 connection that says nothing by itself after its
// preface; the channel gets what ended it.
func (p *proxy) silent(pair *identity.KeyPair) <-chan error {
	p.t.Helper()
	c, err := p.dial(8080, pair, "h2")
	check(p.t, err)
	fr := h2(p.t, c)
	ended := make(chan error, 1)
	go func() {
		defer c.Close()
		for {
			f, err := fr.ReadFrame()
			if err == nil {
				err = pong(fr, f)
			}
			if err != nil {
				ended <- err
				return
			}
		}
	}()
	return ended
}

func h2(t *testing.T, c net.Conn) *http2.Framer {
	t.Helper()
	_, err := io.WriteString(c, http2.ClientPreface)
	check(t, err)
	fr := http2.NewFramer(c, c)
	check(t, fr.WriteSettings())
	return fr
}

func pong(fr *http2.Framer, f http2.Frame) error {
	switch f := f.(type) {
	case *http2.SettingsFrame:
		if !f.IsAck() {
			return fr.WriteSettingsAck()
		}
	case *http2.PingFrame:
		if !f.IsAck() {
			return fr.WritePing(true, f.Data)
		}
	}
	return nil
}

// TestNoUpgrade: an extended CONNECT must not pass as the GET that Envoy would
// judge it as, and a WebSocket is nothing that a rule allows.
func TestNoUpgrade(t *testing.T) {
	p := newPKI(t)
	orders := newProxy(t, p, newControl(t, p), ordersConfig(newApp(t), newTCPApp(t).target))
	probe := p.svid(t, id("ops/probe"))
	for name, request := range map[string]string{
		"websocket": "GET /x HTTP/1.1\r\nHost: " + ordersHost + "\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
		"connect":   "CONNECT " + ordersHost + ":443 HTTP/1.1\r\nHost: " + ordersHost + "\r\n\r\n",
	} {
		if got := orders.raw(8080, probe, request); got.status == 200 || got.status == http.StatusSwitchingProtocols {
			t.Errorf("%s: %+v", name, got)
		}
	}
	c, err := orders.dial(8080, probe, "h2")
	check(t, err)
	defer c.Close()
	fr := h2(t, c)
	var block strings.Builder
	enc := hpack.NewEncoder(&block)
	for _, f := range [][2]string{
		{":method", "CONNECT"}, {":protocol", "websocket"}, {":scheme", "https"}, {":path", "/public"}, {":authority", ordersHost},
	} {
		check(t, enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]}))
	}
	check(t, fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte(block.String()), EndHeaders: true}))
	for {
		f, err := fr.ReadFrame()
		if closed(err) {
			return // the connection ended
		}
		check(t, err)
		switch f := f.(type) {
		case *http2.RSTStreamFrame, *http2.GoAwayFrame:
			return
		case *http2.HeadersFrame:
			fields, err := hpack.NewDecoder(4096, nil).DecodeFull(f.HeaderBlockFragment())
			check(t, err)
			if fields[0].Value == "200" {
				t.Errorf("extended CONNECT passed: %v", fields)
			}
			return
		}
		check(t, pong(fr, f))
	}
}

func TestTCPBeforeAuthorization(t *testing.T) {
	p := newPKI(t)
	app := newTCPApp(t)
	orders := newProxy(t, p, newControl(t, p), ordersConfig(newApp(t), app.target))

	stranger, err := orders.dial(7000, p.svid(t, id("far/stranger")))
	check(t, err) // TLS 1.3: the client is done before it is judged
	defer stranger.Close()
	_, err = io.WriteString(stranger, "x")
	check(t, err)
	if b, err := io.ReadAll(stranger); len(b) > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a peer that is not admitted got %q, %v", b, err)
	}
	silent, err := orders.dial(7000, p.svid(t, id("far/stranger")))
	check(t, err)
	defer silent.Close()
	check(t, silent.SetReadDeadline(time.Now().Add(300*time.Millisecond))) // long enough for a greeting to come
	if n, err := silent.Read(make([]byte, 1)); n > 0 {
		t.Errorf("a silent peer that is not admitted got %d bytes, %v", n, err)
	}
	if n := app.accepted.Load(); n != 0 {
		t.Errorf("the application saw %d connections", n)
	}
	web, err := orders.dial(7000, p.svid(t, id("shop/web")))
	check(t, err)
	defer web.Close()
	_, err = io.WriteString(web, "x")
	check(t, err)
	b := make([]byte, len("hello\nx"))
	if _, err := io.ReadFull(web, b); err != nil || string(b) != "hello\nx" {
		t.Errorf("an admitted peer got %q, %v", b, err)
	}
	if n := app.accepted.Load(); n != 1 {
		t.Errorf("the application saw %d connections, want that of the admitted peer", n)
	}
}

// TestMissing: what has not come, and what is gone, is closed.
func TestMissing(t *testing.T) {
	p := newPKI(t)
	c := newControl(t, p)
	conf := ordersConfig(newApp(t), newTCPApp(t).target)
	orders := newProxy(t, p, c, conf, "policy/shop/orders/http", "gate/shop/orders/grpc")
	web, public := p.svid(t, id("shop/web")), get("GET", ordersHost, "/public")
	rpc := get("POST", grpcHost, "/pkg.S/M")
	all := orders.build(conf)
	policy, gate := all.Get(xds.ExtensionType, "policy/shop/orders/http"), all.Get(xds.ExtensionType, "gate/shop/orders/grpc")

	if got := orders.raw(8080, web, public); got.status != 403 {
		t.Errorf("without a policy: %+v", got)
	}
	if got := orders.raw(9090, web, rpc); got.status != 0 {
		t.Errorf("without a gate: %+v", got)
	}
	orders.apply(policy, gate)
	if got := orders.raw(8080, web, public); got.status != 200 {
		t.Errorf("with a policy: %+v", got)
	}
	if got := orders.raw(9090, web, rpc); got.status != 200 {
		t.Errorf("with a gate: %+v", got)
	}
	c.remove(orders.in.ID, xds.ExtensionType, policy.Name)
	c.remove(orders.in.ID, xds.ExtensionType, gate.Name)
	orders.until(func() bool {
		return orders.raw(8080, web, public).status == 403 && orders.raw(9090, web, rpc).status == 0
	})
}

// TestPolicyEdit: a grant is edited on an open connection.
func TestPolicyEdit(t *testing.T) {
	p := newPKI(t)
	conf := ordersConfig(newApp(t), newTCPApp(t).target)
	orders := newProxy(t, p, newControl(t, p), conf)
	conn, err := orders.dial(8080, p.svid(t, id("far/stranger")), "http/1.1")
	check(t, err)
	defer conn.Close()
	public := get("GET", ordersHost, "/public")
	if got := exchange(conn, public); got.status != 200 {
		t.Fatalf("before: %+v", got)
	}
	orders.apply(orders.build(withoutGrant(conf, "shop/d-public")).All()...)
	if got := exchange(conn, public); got.status != 403 {
		t.Errorf("after: %+v", got)
	}
	orders.apply(orders.build(conf).All()...)
	if got := exchange(conn, public); got.status != 200 {
		t.Errorf("restored: %+v", got)
	}
	for _, stat := range []string{"listener_manager.listener_modified", "listener_manager.lds.update_rejected", "cluster_manager.cluster_modified"} {
		if n, err := orders.Stat(t.Context(), stat); err != nil || n != 0 {
			t.Errorf("%s = %d, %v", stat, n, err)
		}
	}
}

func withoutGrant(c *xds.Config, grant string) *xds.Config {
	d := *c
	d.Inbound = nil
	for _, in := range c.Inbound {
		var rules []xds.Rule
		for _, r := range in.Rules {
			if r.Grant != grant {
				rules = append(rules, r)
			}
		}
		in.Rules = rules
		d.Inbound = append(d.Inbound, in)
	}
	return &d
}

// forge signs what the authority would not: any identities and any end.
func (p *pki) forge(t *testing.T, end time.Time, ids ...string) *identity.KeyPair {
	t.Helper()
	by := p.authority.Intermediate()
	key, err := identity.NewKey()
	check(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(7), NotBefore: end.Add(-2 * time.Hour), NotAfter: end,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	for _, i := range ids {
		u, err := url.Parse(i)
		check(t, err)
		template.URIs = append(template.URIs, u)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, by.Leaf(), key.Public(), by.Key)
	check(t, err)
	cert, err := x509.ParseCertificate(der)
	check(t, err)
	pair, err := identity.NewKeyPair(key, []*x509.Certificate{cert, by.Leaf()})
	check(t, err)
	return pair
}
