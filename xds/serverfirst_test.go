package xds_test

import (
	"bufio"
	"io"
	"net"
	"testing"
	"time"

	"github.com/ztmesh/ztmesh/identity"
	"github.com/ztmesh/ztmesh/xds"
)

// bundle is the roots of the tests' trust domain.
func (p *pki) bundle() map[string][]byte { return map[string][]byte{td: identity.EncodePEM(p.roots)} }

// greeterConfig serves one tcp port on which the application speaks first.
func greeterConfig(target string, callers ...string) *xds.Config {
	c := &xds.Config{
		TrustDomain: td, Workload: "shop/greeter", ID: id("shop/greeter"), MaxConnectionAge: 30 * time.Minute,
		Inbound: []xds.Inbound{{Name: "tcp", Port: 7000, Target: target, Protocol: xds.TCP, ServerFirst: true}},
	}
	in := &c.Inbound[0]
	for _, ref := range callers {
		in.Gate = append(in.Gate, xds.GateEntry{ID: id(ref), Key: "zt." + ref})
		in.Rules = append(in.Rules, xds.Rule{Grant: "shop/greets", Callers: xds.Callers{IDs: []string{id(ref)}}})
	}
	return c
}

// TestServerFirst: the first word is the server's, and only who may connect hears
// it. Whoever may not costs the application not even a connection, from the
// moment that it may no longer; nobody else notices the change.
func TestServerFirst(t *testing.T) {
	app := newTCPApp(t)
	p := newPKI(t)
	c := newControl(t, p)
	conf := greeterConfig(app.target, "shop/web", "shop/cart")
	c.set("i-shop-greeter", xds.Peers(conf, "tcp", p.bundle()))
	greeter := newProxy(t, p, c, conf)

	// hears dials, says nothing, and returns what it hears.
	hears := func(pair *identity.KeyPair) (net.Conn, string) {
		conn, err := greeter.dial(7000, pair)
		if err != nil {
			return nil, ""
		}
		word, _ := bufio.NewReader(conn).ReadString('\n')
		return conn, word
	}
	web, word := hears(p.svid(t, id("shop/web")))
	if word != "hello\n" {
		t.Fatalf("an allowed peer that is silent hears %q", word)
	}
	defer web.Close()
	before := app.accepted.Load()
	for name, pair := range map[string]*identity.KeyPair{
		"not admitted":         p.svid(t, id("far/stranger")),
		"no certificate":       nil,
		"of another CA":        newPKI(t).svid(t, id("shop/web")),
		"the greeter itself":   p.svid(t, id("shop/greeter")),
		"of the control plane": p.node(t, "i-1"),
	} {
		if _, word := hears(pair); word != "" {
			t.Errorf("%s hears %q", name, word)
		}
	}
	if got := app.accepted.Load(); got != before {
		t.Errorf("the application was dialled %d times for nobody", got-before)
	}

	// cart is taken from the list; web stays where it is.
	next := greeterConfig(app.target, "shop/web")
	greeter.apply(xds.Peers(next, "tcp", p.bundle()))
	if _, word := hears(p.svid(t, id("shop/cart"))); word != "" {
		t.Errorf("right after it was taken away, cart hears %q", word)
	}
	if got := app.accepted.Load(); got != before {
		t.Errorf("the application was dialled %d times for nobody", got-before)
	}
	_, err := io.WriteString(web, "still\n")
	check(t, err)
	if got, err := bufio.NewReader(web).ReadString('\n'); err != nil || got != "still\n" {
		t.Errorf("the connection of web: %q, %v", got, err)
	}
	for _, stat := range []string{"listener_manager.listener_modified", "listener_manager.total_filter_chains_draining"} {
		if n, err := greeter.Stat(t.Context(), stat); err != nil || n > 0 {
			t.Errorf("%s: %d, %v", stat, n, err)
		}
	}

	// Blocks, and nobody at all.
	blocked := greeterConfig(app.target, "shop/web")
	blocked.Inbound[0].Blocks = []xds.Block{{Name: "shop/stop", Callers: &xds.Callers{Prefixes: []string{sas("shop")}}}}
	before = app.accepted.Load()
	for _, conf := range []*xds.Config{blocked, greeterConfig(app.target)} {
		greeter.apply(xds.Peers(conf, "tcp", p.bundle()))
		if _, word := hears(p.svid(t, id("shop/web"))); word != "" {
			t.Errorf("blocked, or nobody is admitted: web hears %q", word)
		}
	}
	if got := app.accepted.Load(); got != before {
		t.Errorf("the application was dialled %d times for nobody", got-before)
	}
}

// TestServerFirstMissing: while nobody has said who may connect, nobody may.
func TestServerFirstMissing(t *testing.T) {
	app := newTCPApp(t)
	p := newPKI(t)
	c := newControl(t, p)
	conf := greeterConfig(app.target, "shop/web")
	serves := *conf
	conf.Inbound = nil
	greeter := newProxy(t, p, c, conf)
	conf = &serves
	resources := without(greeter.build(conf), nil)
	c.set(greeter.in.ID, resources...)
	greeter.until(func() bool {
		n, err := greeter.Stat(t.Context(), "listener_manager.total_listeners_warming")
		check(t, err)
		return n == 1
	})
	for range 3 {
		if conn, err := greeter.dial(7000, p.svid(t, id("shop/web"))); err == nil {
			if word, _ := bufio.NewReader(conn).ReadString('\n'); word != "" {
				t.Errorf("web hears %q", word)
			}
		}
	}
	if got := app.accepted.Load(); got != 0 {
		t.Errorf("the application was dialled %d times", got)
	}
	greeter.apply(append(resources, xds.Peers(conf, "tcp", p.bundle()))...)
	greeter.until(func() bool {
		conn, err := greeter.dial(7000, p.svid(t, id("shop/web")))
		if err != nil {
			return false
		}
		defer conn.Close()
		word, _ := bufio.NewReader(conn).ReadString('\n')
		return word == "hello\n"
	})
}

// TestFederation: the identities of another trust domain pass with its roots and
// while those are there, and no other CA speaks for it.
func TestFederation(t *testing.T) {
	p, theirs := newPKI(t), newPKIOf(t, "partner.example")
	c := newControl(t, p)
	conf := ordersConfig(newApp(t), "127.0.0.1:1")
	conf.Inbound = conf.Inbound[:1]
	conf.Federated = []string{"partner.example"}
	const foreign = "spiffe://partner.example/ns/shop/sa/web"
	conf.Inbound[0].Gate = append(conf.Inbound[0].Gate, xds.GateEntry{ID: foreign, Key: "zt.partner"})
	conf.Inbound[0].Rules = append(conf.Inbound[0].Rules, xds.Rule{Grant: "shop/partner", Callers: xds.Callers{IDs: []string{foreign}}})
	orders := newProxy(t, p, c, conf)
	request := get("GET", ordersHost, "/x")
	pair := theirs.svid(t, foreign)
	if got := orders.raw(8080, pair, request); got.status != 0 {
		t.Errorf("without its roots: %+v", got)
	}
	both := p.bundle()
	both["partner.example"] = identity.EncodePEM(theirs.roots)
	orders.apply(xds.Bundle(both))
	if got := orders.raw(8080, pair, request); got.status != 200 {
		t.Errorf("federated: %+v", got)
	}
	now := time.Now()
	for name, pair := range map[string]*identity.KeyPair{
		"its name by our CA": p.forge(t, now.Add(time.Hour), foreign),
		"our name by its CA": theirs.forge(t, now.Add(time.Hour), id("shop/web")),
		"another of its own": theirs.svid(t, "spiffe://partner.example/ns/shop/sa/other"),
	} {
		if got := orders.raw(8080, pair, request); got.status != 0 {
			t.Errorf("%s: %+v", name, got)
		}
	}
	orders.apply(xds.Bundle(p.bundle()))
	if got := orders.raw(8080, pair, request); got.status != 0 {
		t.Errorf("after its end: %+v", got)
	}
}

// TestSeveralWorkloads: a Service of several workloads is any of them, and nobody
// else.
func TestSeveralWorkloads(t *testing.T) {
	p := newPKI(t)
	c := newControl(t, p)
	var proxies []*proxy
	for _, name := range []string{"shop/orders", "shop/orders-b", "shop/mallory"} {
		conf := ordersConfig(newApp(t), "127.0.0.1:1")
		conf.Inbound = conf.Inbound[:1]
		conf.Workload, conf.ID = name, id(name)
		proxies = append(proxies, newProxy(t, p, c, conf))
	}
	conf := webConfig()
	conf.Destinations, conf.TCPCalls = conf.Destinations[:1], nil
	d := &conf.Destinations[0]
	d.ID, d.IDs = "", []string{id("shop/orders-b"), id("shop/orders")}
	c.set("i-shop-web", endpoints(conf, proxies[0].in.Address)...)
	web := newProxy(t, p, c, conf)
	for i, want := range []int{200, 200, 503} {
		web.apply(xds.Endpoints(d.Cluster(), []xds.Endpoint{{Address: proxies[i].in.Address, Port: d.Number}}))
		web.until(func() bool { return web.call(ordersHost, "GET", "/orders/7", false).status == want })
	}
}
