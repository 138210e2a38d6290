package policybench_test

import (
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"testing"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	httprbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	typematcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"

	"github.com/ztmesh/ztmesh/controlplane/compile"
	"github.com/ztmesh/ztmesh/controlplane/policy"
	"github.com/ztmesh/ztmesh/controlplane/spec"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
	"github.com/ztmesh/ztmesh/xds"
)

const (
	overheadRounds = 50
	callers        = 32 // connections of the application to its proxy
	deniedOf       = 100
)

// A variant of what the proxies of a caller and a callee are told.
const (
	byHand   = "by-hand"  // by hand, without ALS
	compiled = "compiled" // compiled, without ALS
	logging  = "logging"  // compiled, as it is
)

// pair is the proxies of a caller and a callee, and what the caller asks.
type pair struct {
	caller, callee *proxy
	requests       []request
}

// five grants, to web and others.
func five() []*ztv1.Grant {
	web := &ztv1.Caller{Workloads: []string{"web"}}
	return []*ztv1.Grant{
		{From: web, To: &ztv1.Target{Methods: []string{"GET"}, Paths: []string{"/orders/**"}}},
		{From: web, To: &ztv1.Target{Methods: []string{"POST"}, Paths: []string{"/orders"}}},
		{From: &ztv1.Caller{Workloads: []string{"cart"}}, To: &ztv1.Target{Methods: []string{"DELETE"}, Paths: []string{"/orders/**"}}},
		{From: &ztv1.Caller{Namespaces: []string{"ops"}}, To: &ztv1.Target{Methods: []string{"GET"}, Paths: []string{"/metrics"}}},
		{From: &ztv1.Caller{Workloads: []string{"web", "cart"}}, To: &ztv1.Target{Methods: []string{"GET", "PUT"}, Paths: []string{"/stock/**"}}},
	}
}

// pair starts two Envoys for a variant, whose workloads are in a namespace of its
// name.
func (d *bed) pair(variant string) *pair {
	d.b.Helper()
	docs := []*spec.Document{
		workload(variant, "web"), workload(variant, "cart"), workload("ops", "probe"),
		workload(variant, "orders", &ztv1.Port{Name: "http", Port: 8080, Target: d.app, Protocol: "http"}),
	}
	for i, g := range five() {
		g.To.Services = []string{"orders"}
		docs = append(docs, grant(variant, fmt.Sprintf("g%d", i), g))
	}
	ix := policy.New(trustDomain, docs)
	conf := func(name string) *xds.Config {
		c, err := compile.Workload(ix, nil, spec.Ref{Namespace: variant, Name: name})
		d.check(err)
		return c
	}
	orders, web := conf("orders"), conf("web")
	p := &pair{}
	p.callee = d.proxy(orders, func(r *xds.Resources) {
		d.edit(r, xds.InboundListener("http"), variant, func() []*hcmv3.HttpFilter { return d.handWritten(orders.Inbound[0].Rules) })
	})
	p.caller = d.proxy(web, func(r *xds.Resources) {
		d.edit(r, xds.OutboundHTTP, variant, func() []*hcmv3.HttpFilter { return nil })
	})
	host := orders.Inbound[0].Hosts[0]
	for i := range deniedOf {
		switch {
		case i == 0:
			p.requests = append(p.requests, wire(403, "DELETE", host, "/orders/7"))
		case i%3 == 0:
			p.requests = append(p.requests, wire(200, "GET", host, fmt.Sprintf("/stock/%d?page=2", i)))
		default:
			p.requests = append(p.requests, wire(200, "GET", host, fmt.Sprintf("/orders/%d?page=2", i)))
		}
	}
	return p
}

// edit changes the connection manager of a listener. Without ALS it loses that;
// by hand it has the filters of its own in the place of those that judge. All else
// is the same on both sides: mTLS, the gate, the hardening, health checks, the
// access log on standard output.
func (d *bed) edit(r *xds.Resources, listener, variant string, filters func() []*hcmv3.HttpFilter) {
	d.b.Helper()
	if variant == logging {
		return
	}
	l, hcm := &listenerv3.Listener{}, &hcmv3.HttpConnectionManager{}
	d.check(r.Get(xds.ListenerType, listener).Body.UnmarshalTo(l))
	chain := l.GetFilterChains()[0].GetFilters()
	last := chain[len(chain)-1]
	d.check(last.GetTypedConfig().UnmarshalTo(hcm))
	hcm.AccessLog = slices.DeleteFunc(hcm.AccessLog, func(a *accesslogv3.AccessLog) bool { return a.GetName() == "envoy.access_loggers.http_grpc" })
	if len(hcm.AccessLog) != 1 {
		d.b.Fatalf("%s: %d access logs", listener, len(hcm.AccessLog))
	}
	if variant == byHand {
		kept := []*hcmv3.HttpFilter{}
		for _, f := range hcm.GetHttpFilters() {
			if f.GetName() == "envoy.filters.http.health_check" {
				kept = append(kept, f)
			}
		}
		router := hcm.GetHttpFilters()[len(hcm.GetHttpFilters())-1]
		hcm.HttpFilters = append(append(kept, filters()...), router)
		// Nobody asks for these, so nobody would ACK them.
		maps.DeleteFunc((*r)[xds.ExtensionType], func(name string, _ *xds.Resource) bool {
			return !strings.HasPrefix(name, "gate/")
		})
	}
	last.ConfigType = &listenerv3.Filter_TypedConfig{TypedConfig: d.any(hcm)}
	d.replace(r, listener, l)
}

// handWritten is what one would write: a filter that denies what is not of
// canonical form, and one that has a policy for each rule.
func (d *bed) handWritten(rules []xds.Rule) []*hcmv3.HttpFilter {
	d.b.Helper()
	filter := func(name string, m *httprbacv3.RBAC) *hcmv3.HttpFilter {
		return &hcmv3.HttpFilter{Name: name, ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: d.any(m)}}
	}
	has := func(s string) *typematcherv3.StringMatcher {
		return &typematcherv3.StringMatcher{MatchPattern: &typematcherv3.StringMatcher_Contains{Contains: s}}
	}
	canonical := urlPath(&typematcherv3.StringMatcher{MatchPattern: &typematcherv3.StringMatcher_SafeRegex{
		SafeRegex: &typematcherv3.RegexMatcher{Regex: `/[A-Za-z0-9\-._~!$&'()*+,=:@/]*`},
	}})
	form := &rbacv3.Policy{
		Permissions: []*rbacv3.Permission{
			{Rule: &rbacv3.Permission_NotRule{NotRule: canonical}},
			header(":authority", has(",")), header(":authority", has("@")),
			header(":method", has("CONNECT")), header(":method", has("TRACE")),
		},
		Principals: []*rbacv3.Principal{{Identifier: &rbacv3.Principal_Any{Any: true}}},
	}
	return []*hcmv3.HttpFilter{
		filter("form", &httprbacv3.RBAC{Rules: &rbacv3.RBAC{Action: rbacv3.RBAC_DENY, Policies: map[string]*rbacv3.Policy{"form": form}}}),
		filter("policy", policies(rules)),
	}
}

// BenchmarkOverhead is the compiled configuration against a hand-written one:
// callers over HTTP/1.1 to their proxy, HTTP/2 and mTLS from there to the other.
// One request of a hundred is denied.
func BenchmarkOverhead(b *testing.B) {
	for b.Loop() {
		d := newBed(b)
		variants := []string{byHand, compiled, logging}
		pairs := map[string]*pair{}
		for _, v := range variants {
			pairs[v] = d.pair(v)
		}
		loads := make([]*variant, len(variants))
		for i, v := range variants {
			loads[i] = &variant{d.calls(pairs[v]), []*proxy{pairs[v].caller, pairs[v].callee}}
		}
		got := d.alternate(overheadRounds, loads)
		hand := got[0]
		for i, v := range variants {
			m := got[i]
			fmt.Printf("overhead-%s: %s requests/s; us of CPU per request: %s, caller's Envoy %s, callee's %s\n",
				v, m.rate, m.cpu, m.each[0], m.each[1])
			fmt.Printf("overhead-%s: over by hand: caller's Envoy %s, callee's %s\n",
				v, m.each[0].over(hand.each[0]), m.each[1].over(hand.each[1]))
			loads[i].load.close()
		}
		figure(os.Stdout, "compiled-over-hand-throughput", got[1].rate.over(hand.rate), ">=", 0.97)
		figure(os.Stdout, "compiled-over-hand-cpu", got[1].cpu.over(hand.cpu), "<=", 1.05)
		figure(os.Stdout, "compiled-with-als-over-hand-cpu", got[2].cpu.over(hand.cpu), "<=", 1.15)
	}
}

// calls are the connections of the caller's application to its proxy, once the
// callee can be reached.
func (d *bed) calls(p *pair) load {
	d.b.Helper()
	var l load
	for k := range callers {
		c, err := dial(net.JoinHostPort(p.caller.address, fmt.Sprint(xds.EgressPort)), nil, p.requests)
		d.check(err)
		c.next = 1 + k
		d.check(c.ask())
		l = append(l, c)
	}
	return l
}
