package xds_test

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"

	"github.com/ztmesh/ztmesh/xds"
)

// result reads what a policy filter said of a request.
func result(e *accesslogv3.HTTPAccessLogEntry, key string) string {
	return e.GetCommonProperties().GetMetadata().GetFilterMetadata()["envoy.filters.http.rbac"].GetFields()[key].GetStringValue()
}

// TestDecisionLog: denials by the proxy and what shadow rules would deny are
// always told, health checks never.
func TestDecisionLog(t *testing.T) {
	one := newSigner(t, "one")
	conf := tokenConfig(newEcho(t), provider("one", one.jwks()), xds.Provider{})
	conf.Providers = conf.Providers[:1]
	in := &conf.Inbound[0]
	in.Rules = []xds.Rule{{Grant: "shop/read", Callers: xds.Callers{Any: true}, Methods: []string{"GET"}}}
	in.Shadow = &xds.Shadow{Rules: []xds.Rule{{
		Grant: "shop/new", Callers: xds.Callers{Any: true}, Methods: []string{"GET", "POST"}, Paths: []xds.Path{{Value: "/kept", Kind: xds.Exact}},
	}}}
	in.Blocks = []xds.Block{
		{Name: "shop/stop", Callers: &xds.Callers{IDs: []string{id("shop/cart")}}},
		{Name: "shop/mallory", Users: &xds.Users{Provider: "one", Claims: []xds.Claim{{Path: []string{"sub"}, Kind: xds.StringClaim, Values: []string{"mallory"}}}}},
	}
	p := newPKI(t)
	c := newControl(t, p)
	orders := newProxy(t, p, c, conf)
	mallory := "Authorization: Bearer " + one.token(t, claims("sub", "mallory"), nil) + "\r\n"
	type want struct {
		caller, method, path, headers string
		status                        int
		key, value                    string // of the policies' metadata
		details                       string
	}
	const enforced, shadow = "zt_enforced_effective_policy_id", "zt_shadow_engine_result"
	wants := []want{
		{"shop/web", "DELETE", "/kept", "", 403, enforced, "default-deny", "[default-deny]"},
		{"shop/web", "GET", "/a;b", "", 403, enforced, "form", "[form]"},
		{"shop/cart", "GET", "/kept", "", 403, "zt_block_enforced_effective_policy_id", "block:shop/stop", "[block:shop/stop]"},
		{"shop/web", "GET", "/kept", "Authorization: Bearer x\r\n", 401, "", "", "jwt_authn_access_denied"},
		{"shop/web", "GET", "/kept", "Authorization: Bearer " + one.token(t, claims("aud", "x"), nil) + "\r\n", 403, "", "", "jwt_authn_access_denied"},
		{"shop/web", "GET", "/kept", "Authorization: bearer " + one.token(t, claims(), nil) + "\r\n", 401, "", "", "jwt_authn_access_denied"},
		{"shop/web", "GET", "/kept", mallory, 403, "zt_userblock_enforced_effective_policy_id", "block:shop/mallory", "[block:shop/mallory]"},
		{"shop/web", "GET", "/would-not", "", 200, shadow, "denied", "via_upstream"},
		{"shop/web", "POST", "/kept", "", 403, "zt_shadow_effective_policy_id", "grant:shop/new", "[default-deny]"},
	}
	for i, w := range wants {
		request := w.method + " " + w.path + " HTTP/1.1\r\nHost: " + ordersHost + "\r\nX-Request-Id: d" + strconv.Itoa(i) + "\r\nContent-Length: 0\r\n" + w.headers + "\r\n"
		if got := orders.raw(8080, p.svid(t, id(w.caller)), request); got.status != w.status {
			t.Errorf("%s %s: %+v", w.method, w.path, got)
		}
	}
	for range 20 {
		orders.raw(8080, p.svid(t, id("shop/web")), "GET "+xds.HealthPath+" HTTP/1.1\r\nHost: "+ordersHost+"\r\nX-Request-Id: health\r\n\r\n")
	}
	for i, w := range wants {
		var e *accesslogv3.HTTPAccessLogEntry
		orders.until(func() bool { e = c.logged("d" + strconv.Itoa(i)); return e != nil })
		tls := e.GetCommonProperties().GetTlsProperties()
		if got := tls.GetPeerCertificateProperties().GetSubjectAltName(); len(got) != 1 || got[0].GetUri() != id(w.caller) {
			t.Errorf("%s %s: caller %v", w.method, w.path, got)
		}
		if w.key != "" && result(e, w.key) != w.value {
			t.Errorf("%s %s: %s is %q", w.method, w.path, w.key, result(e, w.key))
		}
		if got := e.GetResponse().GetResponseCodeDetails(); !strings.Contains(got, w.details) {
			t.Errorf("%s %s: details %q", w.method, w.path, got)
		}
	}
	if c.logged("health") != nil {
		t.Error("a health check is logged")
	}
}

// TestDecisionLogOfCalls: the caller's own proxy tells what it did not let leave,
// and waits for nobody who takes it.
func TestDecisionLogOfCalls(t *testing.T) {
	p := newPKI(t)
	c := newControl(t, p)
	conf := payConfig(newWeb(t, "x", outside()), newWeb(t, "x", outside()))
	conf.Destinations, conf.TCPCalls, conf.Egress = nil, nil, conf.Egress[:1]
	for _, host := range conf.Egress[0].Hosts {
		c.set("i-shop-web", xds.Endpoints(xds.ExternalCluster("shop/stripe", host), nil))
	}
	web := newProxy(t, p, c, conf)
	ask := func(host, id string) answer {
		conn, err := net.Dial("tcp", web.address(xds.EgressPort))
		check(t, err)
		defer conn.Close()
		check(t, conn.SetDeadline(time.Now().Add(patience)))
		return exchange(conn, "DELETE / HTTP/1.1\r\nHost: "+host+"\r\nX-Request-Id: "+id+"\r\n\r\n")
	}
	for id, host := range map[string]string{"nowhere": "evil.example", "refused": "api.stripe.example"} {
		if got := ask(host, id); got.status != 403 {
			t.Errorf("%s: %+v", host, got)
		}
		web.until(func() bool { return c.logged(id) != nil })
	}
	c.stop()
	for i := range 2000 {
		if got := ask("evil.example", strconv.Itoa(i)); got.status != 403 {
			t.Fatalf("without a control plane: %+v", got)
		}
	}
}

// TestCalledUpgrades: a WebSocket passes from the caller's proxy to the callee's where
// the ports and a rule say so, by that rule
// only, and nothing else is an upgrade.
func TestCalledUpgrades(t *testing.T) {
	app := newSocketApp(t)
	p := newPKI(t)
	c := newControl(t, p)
	config := func(upgrades ...string) *xds.Config {
		conf := ordersConfig(app, "127.0.0.1:1")
		conf.Inbound = conf.Inbound[:1]
		in := &conf.Inbound[0]
		in.Upgrades = upgrades
		any := xds.Callers{Any: true}
		in.Rules = []xds.Rule{
			{Grant: "shop/read", Callers: any, Methods: []string{"GET"}},
			{Grant: "shop/socket", Callers: any, Paths: []xds.Path{{Value: "/socket", Kind: xds.Exact}}, Upgrades: upgrades},
		}
		if upgrades == nil {
			in.Rules = in.Rules[:1]
		}
		return conf
	}
	orders := newProxy(t, p, c, config("websocket"))
	conf := webConfig()
	conf.Destinations, conf.TCPCalls = conf.Destinations[:1], nil
	conf.Destinations[0].Upgrades = []string{"websocket"}
	c.set("i-shop-web", endpoints(conf, orders.in.Address)...)
	web := newProxy(t, p, c, conf)
	web.until(func() bool { return web.call(ordersHost, "GET", "/x", false).status == 200 })

	upgrade := func(path, to string) string {
		return "GET " + path + " HTTP/1.1\r\nHost: " + ordersHost + "\r\nConnection: upgrade\r\nUpgrade: " + to + "\r\n\r\n"
	}
	dial := func(direct bool) net.Conn {
		if direct {
			conn, err := orders.dial(8080, p.svid(t, id("shop/web")), "http/1.1")
			check(t, err)
			return conn
		}
		conn, err := net.Dial("tcp", web.address(xds.EgressPort))
		check(t, err)
		return conn
	}
	for _, direct := range []bool{true, false} {
		for _, to := range []string{"websocket", "WebSocket"} {
			conn := dial(direct)
			_, err := io.WriteString(conn, upgrade("/socket", to))
			check(t, err)
			r := bufio.NewReader(conn)
			resp, err := http.ReadResponse(r, nil)
			check(t, err)
			if resp.StatusCode != http.StatusSwitchingProtocols {
				t.Fatalf("direct %v, %s: %d", direct, to, resp.StatusCode)
			}
			_, err = io.WriteString(conn, "ping\n")
			check(t, err)
			if got, err := r.ReadString('\n'); err != nil || got != "ping\n" {
				t.Errorf("direct %v: %q, %v", direct, got, err)
			}
			_ = conn.Close()
		}
		for name, tt := range map[string]struct {
			request string
			status  int
		}{
			"another path":       {upgrade("/x", "websocket"), 403},
			"another protocol":   {upgrade("/socket", "tls/1.0"), 403},
			"two protocols":      {upgrade("/socket", "websocket, h2c"), 403},
			"no upgrade":         {get("GET", ordersHost, "/socket"), 200},
			"no upgrade, a POST": {get("POST", ordersHost, "/socket"), 403},
			"CONNECT":            {"CONNECT " + ordersHost + ":80 HTTP/1.1\r\nHost: " + ordersHost + "\r\n\r\n", 0},
		} {
			conn := dial(direct)
			got := exchange(conn, tt.request)
			if tt.status == 0 && got.status >= 400 {
				got.status = 0
			}
			if got.status != tt.status {
				t.Errorf("direct %v, %s: %+v", direct, name, got)
			}
			_ = conn.Close()
		}
	}
	orders2 := newProxy(t, p, newControl(t, p), config())
	if got := orders2.raw(8080, p.svid(t, id("shop/web")), upgrade("/socket", "websocket")); got.status != 403 {
		t.Errorf("a port without upgrades: %+v", got)
	}
}

// newSocketApp switches protocols when it is asked to, and then echoes.
func newSocketApp(t *testing.T) (target string) {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") == "" {
			return
		}
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n")
		_, _ = io.Copy(conn, rw)
	}))
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}
