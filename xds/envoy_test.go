package xds_test

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ztmesh/ztmesh/xds"
)

func id(ref string) string {
	ns, name, _ := strings.Cut(ref, "/")
	return "spiffe://" + td + "/ns/" + ns + "/sa/" + name
}

func sas(ns string) string { return "spiffe://" + td + "/ns/" + ns + "/sa/" }

// ordersConfig is a callee whose rules overlap in every way that rules can.
func ordersConfig(target, tcpTarget string) *xds.Config {
	gate := []xds.GateEntry{}
	for _, ref := range []string{"shop/web", "shop/cart", "ops/probe", "far/stranger"} {
		gate = append(gate, xds.GateEntry{ID: id(ref), Key: "zt." + strings.ReplaceAll(ref, "/", "-")})
	}
	exact := func(p string) xds.Path { return xds.Path{Value: p, Kind: xds.Exact} }
	rest := func(p string) xds.Path { return xds.Path{Value: p, Kind: xds.Rest} }
	web := xds.Callers{IDs: []string{id("shop/web")}}
	shop := xds.Callers{Prefixes: []string{sas("shop")}}
	anyone := xds.Callers{Any: true}
	return &xds.Config{
		TrustDomain: td, Workload: "shop/orders", ID: id("shop/orders"), MaxConnectionAge: 30 * time.Minute,
		Inbound: []xds.Inbound{
			{Name: "http", Port: 8080, Target: target, Protocol: xds.HTTP, Hosts: []string{"orders.shop.mesh", "http.orders.shop.mesh"}, Gate: gate, Rules: []xds.Rule{
				{Grant: "shop/a-read", Callers: web, Methods: []string{"GET"}, Paths: []xds.Path{rest("/orders")}},
				{Grant: "shop/b-deep", Callers: web, Methods: []string{"PUT"}, Paths: []xds.Path{rest("/orders/deep"), exact("/one")}},
				{Grant: "shop/c-shop", Callers: shop, Methods: []string{"POST", "DELETE"}, Paths: []xds.Path{exact("/orders"), rest("/orders/deep")}},
				{Grant: "shop/d-public", Callers: anyone, Methods: []string{"GET"}, Paths: []xds.Path{exact("/public")}},
				{Grant: "shop/e-ops", Callers: xds.Callers{IDs: []string{id("ops/probe")}}},
				{Grant: "shop/f-patch", Callers: anyone, Methods: []string{"PATCH"}},
				{Grant: "shop/g-all", Callers: shop, Paths: []xds.Path{exact("/all")}},
			}},
			{Name: "grpc", Port: 9090, Target: target, Protocol: xds.GRPC, Hosts: []string{"grpc.orders.shop.mesh"}, Gate: gate, Rules: []xds.Rule{
				{Grant: "shop/h-grpc", Callers: web, Methods: []string{"POST"}, Paths: []xds.Path{{Value: "/pkg.S/", Kind: xds.OneSegment}}},
				{Grant: "shop/i-rest", Callers: web, Methods: []string{"PUT"}, Paths: []xds.Path{rest("/pkg.S")}},
			}},
			{Name: "tcp", Port: 7000, Target: tcpTarget, Protocol: xds.TCP, Gate: gate[:1], Rules: []xds.Rule{
				{Grant: "shop/t-tcp", Callers: web},
			}},
		},
	}
}

// decision is one request to orders and who must decide on it: a grant, the name
// of a denial, "health", or a bare status.
type decision struct{ caller, method, host, path, want string }

const (
	ordersHost = "orders.shop.mesh"
	grpcHost   = "grpc.orders.shop.mesh"
)

func decisions() []decision {
	const http, grpc = ordersHost, grpcHost
	return []decision{
		{"shop/web", "GET", http, "/orders", "a-read"},
		{"shop/web", "GET", http, "/orders/", "a-read"},
		{"shop/web", "GET", http, "/orders/7?x=%2F;\\", "a-read"},
		{"shop/web", "GET", http, "/orders/7/8", "a-read"},
		{"shop/web", "GET", http, "/ordersX", "default-deny"},
		{"shop/web", "GET", http, "/", "default-deny"},
		{"shop/web", "HEAD", http, "/orders", "default-deny"},
		{"shop/web", "OPTIONS", http, "/orders", "default-deny"},
		// A failed leaf falls on: shorter prefix, namespace, any caller.
		{"shop/web", "PUT", http, "/orders/deep", "b-deep"},
		{"shop/web", "PUT", http, "/orders/deep/x", "b-deep"},
		{"shop/web", "GET", http, "/orders/deep/x", "a-read"},
		{"shop/web", "POST", http, "/orders/deep/x", "c-shop"},
		{"shop/web", "POST", http, "/orders", "c-shop"},
		{"shop/web", "PATCH", http, "/orders/deep/x", "f-patch"},
		{"shop/web", "GET", http, "/public", "d-public"},
		{"shop/web", "PUT", http, "/one", "b-deep"},
		{"shop/web", "PUT", http, "/one/", "default-deny"},
		{"shop/web", "PUT", http, "/orders", "default-deny"},
		{"shop/web", "PURGE", http, "/all", "g-all"},
		{"shop/cart", "POST", http, "/orders", "c-shop"},
		{"shop/cart", "GET", http, "/orders", "default-deny"},
		{"shop/cart", "GET", http, "/public", "d-public"},
		{"ops/probe", "DELETE", http, "/anything/at/all", "e-ops"},
		{"far/stranger", "GET", http, "/public", "d-public"},
		{"far/stranger", "POST", http, "/orders", "default-deny"},
		{"far/stranger", "PATCH", http, "/x", "f-patch"},
		// Form: refused before any rule, even for who may do everything.
		{"ops/probe", "GET", http, "/a%3Bb", "form"},
		{"ops/probe", "GET", http, "/%2561", "form"},
		{"ops/probe", "GET", http, "/a;b", "form"},
		{"ops/probe", "GET", http, "/a\\b", "e-ops"}, // normalised to /a/b, and that is what is judged and sent
		{"ops/probe", "GET", http, "/%c0%ae", "form"},
		{"ops/probe", "TRACE", http, "/x", "form"},
		{"ops/probe", "GET", http + ",x", "/x", "form"},
		{"ops/probe", "GET", "u@" + http, "/x", "form"},
		{"ops/probe", "GET", http, "/a%2fb", "400"},
		{"ops/probe", "GET", http, "/a%5cb", "400"},
		{"ops/probe", "GET", "other.shop.mesh", "/x", "404"},
		// Normal form: what is judged is what is sent.
		{"shop/web", "GET", http, "/x/../orders", "a-read"},
		{"shop/web", "GET", http, "//orders", "a-read"},
		{"shop/web", "GET", http, "/orders/../admin", "default-deny"},
		{"shop/web", "GET", http, "/%6frders", "a-read"},
		{"shop/web", "GET", http + ":8080", "/orders", "a-read"},
		{"shop/web", "GET", http + ".", "/orders", "a-read"},
		{"shop/web", "GET", "HTTP.Orders.shop.mesh", "/orders", "a-read"},
		{"shop/web", "GET", http, "/ORDERS", "default-deny"},
		// One segment, not empty; the rest of the same prefix beside it.
		{"shop/web", "POST", grpc, "/pkg.S/M", "h-grpc"},
		{"shop/web", "POST", grpc, "/pkg.S/", "default-deny"},
		{"shop/web", "POST", grpc, "/pkg.S/M/N", "default-deny"},
		{"shop/web", "POST", grpc, "/pkg.S", "default-deny"},
		{"shop/web", "POST", grpc, "/pkg.SX/M", "default-deny"},
		{"shop/web", "PUT", grpc, "/pkg.S/M", "i-rest"},
		{"shop/web", "PUT", grpc, "/pkg.S/M/N", "i-rest"},
		{"shop/web", "GET", grpc, "/pkg.S/M", "default-deny"},
		{"shop/cart", "POST", grpc, "/pkg.S/M", "default-deny"},
		// Health: any admitted peer, this path only.
		{"far/stranger", "GET", http, xds.HealthPath, "health"},
		{"far/stranger", "GET", http, xds.HealthPath + "?x", "default-deny"},
	}
}

func TestDecisions(t *testing.T) {
	p := newPKI(t)
	c := newControl(t, p)
	db := newTCPApp(t)
	orders := newProxy(t, p, c, ordersConfig(newApp(t), db.target))

	decisions := decisions()
	var answers []answer
	for i, tt := range decisions {
		port := uint32(8080)
		if tt.host == grpcHost {
			port = 9090
		}
		request := strings.Replace(get(tt.method, tt.host, tt.path), "\r\n", "\r\nX-Request-Id: "+strconv.Itoa(i)+"\r\n", 1)
		answers = append(answers, orders.raw(port, p.svid(t, id(tt.caller)), request))
	}
	check(t, orders.Stop(patience)) // Envoy flushes its access log
	log := accessLog(t, orders.Log())
	for i, tt := range decisions {
		got, line := answers[i], log[strconv.Itoa(i)]
		name := fmt.Sprintf("%s %s %s%s", tt.caller, tt.method, tt.host, tt.path)
		if v := verdict(got, line); v != tt.want {
			t.Errorf("%s: got %s (%d %q %+v), want %s", name, v, got.status, got.reason, line, tt.want)
			continue
		}
		if got.status != 200 || tt.want == "health" {
			continue
		}
		// What was judged is what the application received.
		first, xfcc, _ := strings.Cut(got.body, "\n")
		path, _, _ := strings.Cut(strings.Fields(first)[1], "?")
		if path != line.Path || line.Caller != id(tt.caller) || !strings.HasSuffix(xfcc, ";URI="+id(tt.caller)) {
			t.Errorf("%s: the application got %q, the log says %+v", name, got.body, line)
		}
	}
}

// verdict says who decided and how: the grant without its namespace, the name
// of a denial, "health", or the bare status.
func verdict(a answer, line logLine) string {
	if a.status == 200 && a.body == "" && line == (logLine{}) {
		return "health" // answered by the proxy, and not logged
	}
	if name, ok := strings.CutPrefix(line.Matched, "grant:shop/"); ok && a.status == 200 && a.reason == "" {
		return name
	}
	if a.status == 403 && a.reason == "rbac_access_denied_matched_policy["+line.Matched+"]" {
		return line.Matched
	}
	return strconv.Itoa(a.status)
}

// logLine is what these tests read of an access log entry.
type logLine struct {
	Log, Caller, Path, Matched, RequestID string
}

// accessLog is the entries by request id.
func accessLog(t *testing.T, log string) map[string]logLine {
	t.Helper()
	out := map[string]logLine{}
	for l := range strings.Lines(log) {
		if !strings.HasPrefix(l, "{") {
			continue
		}
		var line logLine
		check(t, json.Unmarshal([]byte(l), &line))
		if line.Log != "ztmesh.access.http" {
			t.Errorf("an entry without its marker: %s", l)
		}
		out[line.RequestID] = line
	}
	return out
}
