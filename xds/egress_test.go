package xds_test

import (
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/ztmesh/ztmesh/xds"
)

// outside says by which name and protocol it was called, and with what.
func outside() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(xds.ReasonHeader, "forged")
		fmt.Fprintf(w, "sni=%s\n", r.TLS.ServerName)
		fmt.Fprintf(w, "proto=%s\n", r.Proto)
		echo().ServeHTTP(w, r)
	})
}

// payConfig may call two external services and one of the mesh.
func payConfig(stripe, partner web) *xds.Config {
	c := webConfig()
	c.TCPCalls = append(c.TCPCalls, xds.TCPCall{LocalPort: 15440, Service: "shop/ledger", Port: xds.ExternalPort})
	self := xds.Callers{IDs: []string{c.ID}}
	c.Egress = []xds.Egress{
		{
			Service: "shop/stripe", Hosts: []string{"api.stripe.example", "files.stripe.example"}, Port: uint32(stripe.addr.Port()), Protocol: xds.HTTP, CA: stripe.ca,
			Rules: []xds.Rule{
				{Grant: "shop/charge", Callers: self, Methods: []string{"POST"}, Paths: []xds.Path{{Value: "/v1/charges", Kind: xds.Rest}}},
				{Grant: "shop/late", Callers: self, Methods: []string{"GET"}, Paths: []xds.Path{{Value: "/late", Kind: xds.Exact}}, Conditions: xds.Conditions{Until: time.Now().Add(-time.Minute)}},
			},
			Shadow: &xds.Shadow{},
		},
		{Service: "shop/partner", Hosts: []string{"partner.example"}, Port: 443, Protocol: xds.HTTP2, Rules: []xds.Rule{{Grant: "shop/partner", Callers: self}}},
		{Service: "shop/ledger", Hosts: []string{"ledger.example"}, Port: 5432, Protocol: xds.TCP, CA: partner.ca},
	}
	return c
}

// TestEgress: calls to external hosts are judged here, by where they go and not by
// how the host was spelled (CVE-2021-39155, ISTIO-2021-008), and end at the server
// whose certificate names the host.
func TestEgress(t *testing.T) {
	stripe := newWeb(t, "api.stripe.example", outside())
	partner := newWeb(t, "partner.example", outside())
	p := newPKI(t)
	c := newControl(t, p)
	c.publicRoots = partner.ca
	orders := newProxy(t, p, c, ordersConfig(newApp(t), newTCPApp(t).target))
	conf := payConfig(stripe, partner)
	c.set("i-shop-web", endpoints(conf, orders.in.Address)...)
	c.set("i-shop-web",
		stripe.endpoints(xds.ExternalCluster("shop/stripe", "api.stripe.example")),
		stripe.endpoints(xds.ExternalCluster("shop/stripe", "files.stripe.example")),
		partner.endpoints(xds.ExternalCluster("shop/partner", "partner.example")),
		xds.Endpoints(xds.ExternalCluster("shop/ledger", "ledger.example"), nil),
	)
	web := newProxy(t, p, c, conf)
	web.until(func() bool { return web.call(ordersHost, "GET", "/orders/7", false).status == 200 })

	raw := func(request string) answer {
		conn, err := net.Dial("tcp", web.address(xds.EgressPort))
		check(t, err)
		defer conn.Close()
		check(t, conn.SetDeadline(time.Now().Add(patience)))
		return exchange(conn, request)
	}
	const deny, form = "rbac_access_denied_matched_policy[default-deny]", "rbac_access_denied_matched_policy[form]"
	for _, tt := range []struct {
		method, host, path string
		status             int
		reason             string
	}{
		{"POST", "api.stripe.example", "/v1/charges", 200, ""},
		{"POST", "api.stripe.example", "/v1/charges/7?x=%2f", 200, ""},
		{"POST", "API.Stripe.EXAMPLE", "/v1/charges", 200, ""},
		{"POST", "api.stripe.example:443", "/v1/charges", 200, ""},
		{"POST", "api.stripe.example.", "/v1/charges", 200, ""},
		{"GET", "api.stripe.example", "/v1/charges", 403, deny},
		{"POST", "api.stripe.example", "/v1", 403, deny},
		{"POST", "API.STRIPE.EXAMPLE", "/v1", 403, deny},
		{"POST", "api.stripe.example.:80", "/v1", 403, deny},
		{"POST", "api.stripe.example", "/v1/charges/../x", 403, deny},
		{"POST", "api.stripe.example", "/v1/charges/%2e%2e/x", 403, deny},
		{"POST", "api.stripe.example", "/v1/charges/;x", 403, form},
		{"POST", "api.stripe.example", "/v1/charges/%41%3b", 403, form},
		{"TRACE", "api.stripe.example", "/v1/charges", 403, form},
		{"GET", "api.stripe.example", "/late", 403, deny},
		{"POST", "files.stripe.example", "/v1/charges", 503, ""}, // its certificate names another host
		{"GET", "partner.example", "/anything", 200, ""},
		{"GET", "evil.example", "/", 403, xds.ReasonNoGrant},
		{"GET", "api.stripe.example,x", "/", 403, xds.ReasonNoGrant},
		{"GET", "u@api.stripe.example", "/", 403, xds.ReasonNoGrant},
		{"GET", "stripe.example", "/", 403, xds.ReasonNoGrant},
		{"GET", "x.api.stripe.example", "/", 403, xds.ReasonNoGrant},
		{"GET", "169.254.169.254", "/", 403, xds.ReasonNoGrant},
		{"GET", ordersHost, "/orders/7", 200, ""},
		{"DELETE", ordersHost, "/secret", 403, deny}, // by the callee
	} {
		got := raw(get(tt.method, tt.host, tt.path))
		if got.status != tt.status || got.reason != tt.reason {
			t.Errorf("%s %s%s: %d %q, want %d %q\n%s", tt.method, tt.host, tt.path, got.status, got.reason, tt.status, tt.reason, got.body)
		}
	}

	got := raw("POST /v1/charges HTTP/1.1\r\nHost: API.stripe.example\r\nX-HTTP-Method-Override: DELETE\r\nX-Forwarded-For: 1.2.3.4\r\nX-Forwarded-Client-Cert: URI=x\r\nContent-Length: 0\r\n\r\n")
	for _, want := range []string{"sni=api.stripe.example\n", "proto=HTTP/1.1\n", "host=" + fmt.Sprintf("api.stripe.example:%d", stripe.addr.Port()) + "\n"} {
		if !strings.Contains(got.body, want) {
			t.Errorf("the server was not told %q:\n%s", want, got.body)
		}
	}
	for _, name := range []string{"X-Http-Method-Override", "X-Forwarded-For", "X-Forwarded-Client-Cert", "X-Request-Id", "X-Forwarded-Proto"} {
		if got.sent(name) != "" {
			t.Errorf("the server was sent %s: %s", name, got.sent(name))
		}
	}
	if got := raw(get("GET", "partner.example", "/")); !strings.Contains(got.body, "proto=HTTP/2.0\n") || !strings.Contains(got.body, "host=partner.example\n") {
		t.Errorf("the partner was told %s", got.body)
	}
	upgrade := "GET /x HTTP/1.1\r\nHost: partner.example\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
	if got := raw(upgrade); got.status != 403 {
		t.Errorf("an upgrade: %+v", got)
	}

	// A Block of the service, and then no policy at all.
	blocked := payConfig(stripe, partner)
	blocked.Egress[1].Blocks = []xds.Block{{Name: "mesh/leak"}}
	blocked.Egress[2].Blocks = []xds.Block{{Name: "mesh/leak"}}
	r := web.build(blocked)
	web.apply(r.Get(xds.ExtensionType, xds.EgressBlocks))
	if got := raw(get("GET", "partner.example", "/")); got.status != 403 || got.reason != "rbac_access_denied_matched_policy[block:mesh/leak]" {
		t.Errorf("blocked: %+v", got)
	}
	if got := raw(get("GET", ordersHost, "/orders/7")); got.status != 200 {
		t.Errorf("beside the blocked: %+v", got)
	}
	if r.Get(xds.ListenerType, xds.TCPListener(15440)) != nil || web.build(conf).Get(xds.ListenerType, xds.TCPListener(15440)) == nil {
		t.Error("a Block of a tcp service and its listener do not agree")
	}
	c.remove("i-shop-web", xds.ExtensionType, xds.EgressPolicy)
	web.until(func() bool { return raw(get("POST", "api.stripe.example", "/v1/charges")).status == 403 })
}

// TestEgressMissing: while the policy is missing nothing leaves the mesh. Calls
// within it do not ask for it: the callee judges them.
func TestEgressMissing(t *testing.T) {
	stripe := newWeb(t, "api.stripe.example", outside())
	partner := newWeb(t, "partner.example", outside())
	p := newPKI(t)
	c := newControl(t, p)
	c.publicRoots = partner.ca
	orders := newProxy(t, p, c, ordersConfig(newApp(t), newTCPApp(t).target))
	conf := payConfig(stripe, partner)
	c.set("i-shop-web", endpoints(conf, orders.in.Address)...)
	c.set("i-shop-web",
		stripe.endpoints(xds.ExternalCluster("shop/stripe", "api.stripe.example")),
		stripe.endpoints(xds.ExternalCluster("shop/stripe", "files.stripe.example")),
		partner.endpoints(xds.ExternalCluster("shop/partner", "partner.example")),
		xds.Endpoints(xds.ExternalCluster("shop/ledger", "ledger.example"), nil),
	)
	web := newProxy(t, p, c, conf, xds.EgressPolicy)
	web.until(func() bool { return web.call(ordersHost, "GET", "/orders/7", false).status == 200 })
	for _, host := range []string{"api.stripe.example", "partner.example", "API.STRIPE.EXAMPLE:15001", "nowhere.example"} {
		if got := web.call(host, "POST", "/v1/charges", false); got.status != 403 {
			t.Errorf("%s without a policy: %+v", host, got)
		}
	}
	web.apply(without(web.build(conf), nil)...)
	web.until(func() bool { return web.call("api.stripe.example", "POST", "/v1/charges", false).status == 200 })
}
