package xds_test

import (
	"io"
	"strings"
	"testing"
	"time"

	"github.com/ztmesh/ztmesh/xds"
)

// TestBlocks: a Block is over every rule, health and form, and names itself.
func TestBlocks(t *testing.T) {
	callers := func(c xds.Callers) *xds.Callers { return &c }
	conf := judged(newApp(t), xds.Rule{Grant: "shop/all", Callers: xds.Callers{Any: true}})
	free := conf.Inbound[0]
	conf.Inbound[0].Blocks = []xds.Block{
		{Name: "shop/web-is-bad", Callers: callers(xds.Callers{IDs: []string{id("shop/web")}})},
		{Name: "shop/far-is-bad", Callers: callers(xds.Callers{Prefixes: []string{sas("far")}})},
	}
	orders := judgeAll(t, conf, []judgeCase{
		{request: ask("GET", "/x"), want: "block web-is-bad"},
		{request: ask("GET", xds.HealthPath), want: "block web-is-bad"},
		{request: ask("GET", "/a;b"), want: "block web-is-bad"},
		{request: ask("GET", "/x", "Authorization: Bearer x"), want: "block web-is-bad"},
		{caller: "far/stranger", request: ask("GET", "/x"), want: "block far-is-bad"},
		{caller: "shop/cart", request: ask("GET", "/x"), want: "200"},
		{caller: "ops/probe", request: ask("GET", xds.HealthPath), want: "200"},
	})
	conn, err := orders.dial(8080, orders.p.svid(t, id("shop/cart")), "http/1.1")
	check(t, err)
	defer conn.Close()
	for _, tt := range []struct {
		block xds.Block
		want  string
	}{
		{xds.Block{Name: "shop/td", Callers: callers(xds.Callers{Domains: []string{td}})}, "block td"},
		{xds.Block{Name: "shop/other", Callers: callers(xds.Callers{Domains: []string{"other.example"}})}, "200"},
		{xds.Block{Name: "shop/everybody"}, "block everybody"},
		{xds.Block{Name: "shop/any", Callers: callers(xds.Callers{Any: true})}, "block any"},
	} {
		next := *conf
		next.Inbound = []xds.Inbound{free}
		next.Inbound[0].Blocks = []xds.Block{tt.block}
		orders.apply(orders.build(&next).All()...)
		// On a connection that is open: each request is judged anew.
		if got := orders.decided(exchange(conn, ask("GET", "/x"))); got != tt.want {
			t.Errorf("%s: got %s, want %s", tt.block.Name, got, tt.want)
		}
	}
}

// TestEncodedPaths: what a port that opts out of the guard still refuses.
func TestEncodedPaths(t *testing.T) {
	conf := judged(newApp(t), xds.Rule{Grant: "shop/a", Callers: byWeb(), Paths: []xds.Path{{Value: "/a", Kind: xds.Rest}, {Value: "/*/c", Kind: xds.Pattern}}})
	conf.Inbound[0].EncodedPaths = true
	var cases []judgeCase
	for want, paths := range map[string]string{
		// Envoy takes "." and ".." with parameters for dot segments, and resolves them.
		"200":          "/a/%20 /a/x%3By /a/b;v=1 /a/%25 /a/%c3%a4 /a/%E2%82%AC /a/%f0%9f%98%80 /a/%22%3C%3E /a/x%2ey /x/..;y/a /a/.;/b /%20/c /b;x/c /a/%2A /%2525/../a /a/x|y /a/{x} /a/...;/b",
		"default-deny": "/%20 /b/%20 /a%20 /a;x /%61dmin /a/%2e%2e/b /a/..;/b /a/b/..;x/../c",
		"form":         "/a/%%32e%%32e/b /a/%%32Ex /a/%%32fb /a/%%35cb /a/%2%65/b /a/%0%30 /a/%2e%2e;/b /a/%2E;/b /a/..%3b/b /a/.%3B/b /a/%3b/b /a/%3Bx /a/[x] /;a /a/%252fb /a/%255cb /a/%252e%252e/b /a/%252E%252E/b /a/%c0%ae /a/%C0%AF /a/%c1%9c /a/%e0%80%af /a/%E0%9F%BF /a/%f0%80%80%af /a/;/b /;/a /a/%2500 /a/% /a/%zz /a/%2",
		"400":          "/a/%2fb /a/%2Fb /a/%5cb /a/%5Cb /a/%00 /a/\xc3\xa4",
	} {
		for _, path := range strings.Fields(paths) {
			cases = append(cases, judgeCase{request: ask("GET", path), want: want})
		}
	}
	judgeAll(t, conf, cases)
}

// TestShadow: what would be is counted, and changes nothing; not even if it is
// missing.
func TestShadow(t *testing.T) {
	conf := judged(newApp(t), xds.Rule{Grant: "shop/a", Callers: byWeb(), Paths: []xds.Path{{Value: "/a", Kind: xds.Exact}}})
	conf.Inbound[0].Shadow = &xds.Shadow{Rules: []xds.Rule{
		{Grant: "shop/b", Callers: byWeb(), Paths: []xds.Path{{Value: "/*/b/c", Kind: xds.Pattern}}},
	}}
	cases := []judgeCase{
		{request: ask("GET", "/a"), want: "200"},
		{request: ask("GET", "/x/b/c"), want: "default-deny"},
		{request: ask("GET", "/x/b/d"), want: "default-deny"},
	}
	p := newPKI(t)
	c := newControl(t, p)
	orders := newProxy(t, p, c, conf, "shadow/")
	orders.judge(8080, cases)
	count := func(name string) int {
		n, err := orders.Stat(t.Context(), "http.in_http.rbac.zt_."+name)
		check(t, err)
		return int(n)
	}
	if n := count("shadow_allowed") + count("shadow_denied"); n != 0 {
		t.Errorf("%d shadow verdicts without a shadow policy", n)
	}
	orders.apply(orders.build(conf).Get(xds.ExtensionType, xds.ShadowName(conf.Workload, "http")))
	orders.judge(8080, cases)
	if a, d := count("shadow_allowed"), count("shadow_denied"); a != 1 || d != 2 {
		t.Errorf("shadow allowed %d and denied %d, want 1 and 2", a, d)
	}
	if a, d := count("allowed"), count("denied"); a != 2 || d != 4 {
		t.Errorf("allowed %d and denied %d, want 2 and 4", a, d)
	}
}

// TestEachMissing: without any one of the resources that judge, nothing passes.
func TestEachMissing(t *testing.T) {
	one := newSigner(t, "one")
	conf := judged(newApp(t), xds.Rule{Grant: "shop/all", Callers: xds.Callers{Any: true}})
	conf.Providers = []xds.Provider{provider("one", one.jwks())}
	conf.Inbound[0].Blocks = []xds.Block{{Name: "shop/mallory", Users: &xds.Users{Provider: "one", Claims: []xds.Claim{claim(xds.StringClaim, "sub", "mallory")}}}}
	names := []string{"block", "jwt", "userblock", "policy"}
	p := newPKI(t)
	c := newControl(t, p)
	var hold []string
	for _, n := range names {
		hold = append(hold, n+"/")
	}
	orders := newProxy(t, p, c, conf, hold...)
	pair := p.svid(t, id("shop/web"))
	requests := map[string]string{
		"without a token": ask("GET", "/x"),
		"with a token":    ask("GET", "/x", "Authorization: Bearer "+one.token(t, claims(), nil)),
	}
	all := orders.build(conf)
	resource := func(n string) *xds.Resource {
		return all.Get(xds.ExtensionType, n+"/shop/orders/http")
	}
	for i, n := range names {
		for with, r := range requests {
			if got := orders.raw(8080, pair, r); got.status != 403 && got.status != 401 {
				t.Errorf("without %v, %s: %+v", names[i:], with, got)
			}
		}
		orders.apply(resource(n))
	}
	for with, r := range requests {
		if got := orders.raw(8080, pair, r); got.status != 200 {
			t.Errorf("with all, %s: %+v", with, got)
		}
	}
	for _, n := range names {
		c.remove(orders.in.ID, xds.ExtensionType, resource(n).Name)
		orders.until(func() bool { return orders.raw(8080, pair, requests["without a token"]).status >= 400 })
		if got := orders.raw(8080, pair, requests["with a token"]); got.status != 403 && got.status != 401 {
			t.Errorf("after %s was removed: %+v", n, got)
		}
		orders.apply(resource(n))
		orders.until(func() bool { return orders.raw(8080, pair, requests["without a token"]).status == 200 })
	}
}

// TestTCPPolicy: a connection is judged once, by caller, address, time and Blocks,
// in both forms of Envoy's RBAC.
func TestTCPPolicy(t *testing.T) {
	now := time.Now()
	db := newTCPApp(t)
	rule := func(name, caller string, c xds.Conditions) xds.Rule {
		return xds.Rule{Grant: "shop/" + name, Callers: xds.Callers{IDs: []string{id(caller)}}, Conditions: c}
	}
	here, there := []string{"127.0.0.0/8"}, []string{"10.0.0.0/8", "2001:db8::/32"}
	flat := []xds.Rule{
		rule("a", "shop/web", xds.Conditions{}),
		rule("b", "shop/cart", xds.Conditions{Sources: there}),
		rule("c", "shop/here", xds.Conditions{Sources: here}),
		{Grant: "shop/d", Callers: xds.Callers{Prefixes: []string{sas("ops")}}},
	}
	window := func(w xds.Window) xds.Conditions { return xds.Conditions{Windows: []xds.Window{w}} }
	timed := []xds.Rule{
		rule("e", "shop/before", xds.Conditions{Until: now.Add(time.Hour), Sources: here}),
		rule("f", "shop/after", xds.Conditions{Until: now.Add(-time.Second)}),
		rule("g", "shop/now", window(around(t, "Europe/Berlin", now, time.Hour, true))),
		rule("g", "shop/later", window(around(t, "UTC", now.Add(5*time.Hour), time.Hour, false))),
		rule("h", "shop/mars", window(xds.Window{Zone: "Mars/Olympus", Start: 0, End: 1440})),
		rule("i", "shop/there", xds.Conditions{Until: now.Add(time.Hour), Sources: there}),
	}
	blocks := []xds.Block{
		{Name: "shop/probe-is-bad", Callers: &xds.Callers{IDs: []string{id("ops/probe")}}},
		{Name: "shop/far-is-bad", Callers: &xds.Callers{Prefixes: []string{sas("far")}}},
	}
	conf := judged(db.target)
	conf.Inbound = []xds.Inbound{{Name: "tcp", Port: 7000, Target: db.target, Protocol: xds.TCP, Rules: flat, Blocks: blocks}}
	for _, ref := range strings.Fields("shop/web shop/cart shop/here shop/before shop/after shop/now shop/later shop/mars shop/there ops/probe ops/other far/web shop/nobody") {
		conf.Inbound[0].Gate = append(conf.Inbound[0].Gate, xds.GateEntry{ID: id(ref), Key: "zt." + strings.ReplaceAll(ref, "/", "-")})
	}
	p := newPKI(t)
	c := newControl(t, p)
	orders := newProxy(t, p, c, conf, "tcppolicy/")
	admitted := func() string {
		var out []string
		for _, g := range conf.Inbound[0].Gate {
			if orders.greeted(g.ID) {
				out = append(out, strings.TrimPrefix(g.Key, "zt."))
			}
		}
		return strings.Join(out, " ")
	}
	if got := admitted(); got != "" {
		t.Errorf("without a policy: %s", got)
	}
	orders.apply(orders.build(conf).All()...)
	if got, want := admitted(), "shop-web shop-here ops-other"; got != want {
		t.Errorf("flat: got %s, want %s", got, want)
	}
	conf.Inbound[0].Rules = append(timed, flat...)
	orders.apply(orders.build(conf).All()...)
	if got, want := admitted(), "shop-web shop-here shop-before shop-now ops-other"; got != want {
		t.Errorf("timed: got %s, want %s", got, want)
	}
	conf.Inbound[0].Blocks = append(blocks, xds.Block{Name: "shop/everybody"})
	for _, rules := range [][]xds.Rule{flat, conf.Inbound[0].Rules} {
		conf.Inbound[0].Rules = rules
		orders.apply(orders.build(conf).All()...)
		if got := admitted(); got != "" {
			t.Errorf("all are blocked: %s", got)
		}
	}
	if n := db.accepted.Load(); n != 8 {
		t.Errorf("the application saw %d connections, want 8", n)
	}
}

// greeted says whether the application answers that identity.
func (p *proxy) greeted(id string) bool {
	p.t.Helper()
	conn, err := p.dial(7000, p.p.svid(p.t, id))
	if err != nil {
		return false
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "x"); err != nil {
		return false
	}
	b := make([]byte, len("hello\nx"))
	_, err = io.ReadFull(conn, b)
	if err != nil && !closed(err) {
		p.t.Fatal(err)
	}
	return err == nil && string(b) == "hello\nx"
}
