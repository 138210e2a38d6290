package policy_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/ztmesh/ztmesh/controlplane/policy"
	"github.com/ztmesh/ztmesh/controlplane/spec"
	"github.com/ztmesh/ztmesh/controlplane/zttest/specgen"
)

const timedShop = shop + `---
apiVersion: ztmesh.dev/v1alpha1
kind: Grant
metadata: {namespace: shop, name: hours}
spec:
  from: {workloads: [admin]}
  to: {services: [multi], ports: [raw]}
  when: {windows: [{zone: UTC, start: "09:00", end: "17:00"}]}
  until: 2026-06-02T12:00:00Z
---
apiVersion: ztmesh.dev/v1alpha1
kind: Block
metadata: {namespace: shop, name: web}
spec: {workloads: [web], reason: a test, until: "2026-06-01T12:00:00Z"}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Exception
metadata: {namespace: shop, name: old}
spec:
  finding: plaintext
  subject: orders:http
  peers: [127.0.0.1/32]
  owner: shop
  reason: a test
  until: 2026-06-03T00:00:00Z
`

func at(t *testing.T, s string) time.Time {
	t.Helper()
	out, err := time.Parse(time.RFC3339, s)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func key(kind, name string) spec.Key { return spec.Key{Kind: kind, Namespace: "shop", Name: name} }

// TestClock walks from change to change.
func TestClock(t *testing.T) {
	ix := policy.New("shop.example", parse(t, timedShop))
	hours, block, old := key(spec.KindGrant, "hours"), key(spec.KindBlock, "web"), key(spec.KindException, "old")
	now := at(t, "2026-06-01T00:00:00Z")
	for _, step := range []struct {
		at      string
		changed spec.Key
		lifted  int
	}{
		{"2026-06-01T09:00:00Z", hours, 0},
		{"2026-06-01T12:00:00Z", block, 1},
		{"2026-06-01T17:00:00Z", hours, 1},
		{"2026-06-02T09:00:00Z", hours, 1},
		{"2026-06-02T12:00:00Z", hours, 1},
		{"2026-06-03T00:00:00Z", old, 2},
	} {
		next, ok := ix.NextChange(now)
		if !ok || !next.Equal(at(t, step.at)) {
			t.Fatalf("after %v comes %v, %v, want %s", now, next, ok, step.at)
		}
		if got := ix.TimeChanged(now, next); !slices.Equal(got, []spec.Key{step.changed}) {
			t.Errorf("%v: changed %v, want %v", next, got, step.changed)
		}
		if _, lifted := ix.Lift(next); len(lifted) != step.lifted {
			t.Errorf("%v: lifted %v", next, lifted)
		}
		now = next
	}
	if next, ok := ix.NextChange(now); ok {
		t.Errorf("there is %v still", next)
	}
}

func TestLift(t *testing.T) {
	docs := parse(t, timedShop)
	ix := policy.New("shop.example", docs)
	orders := spec.Ref{Namespace: "shop", Name: "orders"}
	if same, lifted := ix.Lift(at(t, "2026-06-01T11:59:59Z")); same != ix || lifted != nil {
		t.Errorf("lifted %v", lifted)
	}
	if len(ix.Blocks(orders, "http")) != 1 || len(ix.Plaintext(orders, "http")) != 1 {
		t.Errorf("%v and %v", ix.Blocks(orders, "http"), ix.Plaintext(orders, "http"))
	}
	got, lifted := ix.Lift(at(t, "2026-06-03T00:00:00Z"))
	if len(lifted) != 2 || got.Blocks(orders, "http") != nil || got.Plaintext(orders, "http") != nil {
		t.Errorf("lifted %v", lifted)
	}
}

// TestGatesOfBlocks: a Block closes what a grant still admits, and says so.
func TestGatesOfBlocks(t *testing.T) {
	ix := policy.New("shop.example", parse(t, timedShop))
	before, after := at(t, "2026-06-01T11:00:00Z"), at(t, "2026-06-01T12:00:00Z")
	const web = "spiffe://shop.example/ns/shop/sa/web"
	want := []policy.Pair{
		{Service: spec.Ref{Namespace: "shop", Name: "multi"}, Port: "rpc", SourceID: web, Blocked: true},
		{Service: spec.Ref{Namespace: "shop", Name: "orders"}, Port: "http", SourceID: web, Blocked: true},
	}
	bare := ix.With(nil, []spec.Key{key(spec.KindBlock, "web")})
	if got := ix.Closed(bare, []spec.Key{key(spec.KindBlock, "web")}, before, before); !slices.Equal(got, want) {
		t.Errorf("closed %v, want %v", got, want)
	}
	if got := ix.Opened(ix, nil, before, after); len(got) != 2 {
		t.Errorf("opened %v", got)
	}
	if got := ix.Closed(ix, nil, after, at(t, "2026-06-01T17:00:00Z")); len(got) != 1 || got[0].Blocked || got[0].Port != "raw" {
		t.Errorf("closed %v", got)
	}
	if ix.Admits(want[1].Service, "http", web, before) || !ix.Admits(want[1].Service, "http", web, after) {
		t.Error("the gate does not know the Block")
	}
}

// TestNextChange: between two changes nothing begins or ends.
func TestNextChange(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ix := policy.New(specgen.TrustDomain, specgen.Any(t))
		now := moment(t)
		next, ok := ix.NextChange(now)
		if !ok {
			next = now.Add(14 * 24 * time.Hour)
		}
		between := now.Add(time.Duration(rapid.Int64Range(0, int64(min(next.Sub(now), 365*24*time.Hour))-1).Draw(t, "between")))
		if keys := ix.TimeChanged(now, between); keys != nil {
			t.Fatalf("%v changed between %v and %v, before %v", keys, now, between, next)
		}
		if ok && ix.TimeChanged(now, next) == nil {
			t.Fatalf("nothing changed at %v", next)
		}
	})
}

// TestHintsOfTheRest: the field that fails, and the smallest change.
func TestHintsOfTheRest(t *testing.T) {
	ix := policy.New("shop.example", parse(t, hinted))
	web, orders := "spiffe://shop.example/ns/shop/sa/web", spec.Ref{Namespace: "shop", Name: "orders"}
	base := policy.Request{CallerID: web, Service: orders, Method: "GET", Time: at(t, "2026-06-01T12:00:00Z")}
	user := policy.Token{State: policy.TokenValid, Provider: "corp", Claims: map[string]any{"sub": "eve", "groups": []any{"dev"}}}
	for _, c := range []struct {
		path string
		edit func(*policy.Request)
		want string
	}{
		{"/user", nil, "grant shop/user needs a user of corp, the request bears none: send the token of such a user, or widen its users"},
		{"/user", func(r *policy.Request) { r.Token = user }, "grant shop/user needs a user of corp with groups in [sre], the token has [dev]: send the token of such a user, or widen its users"},
		{"/header", nil, "grant shop/header needs header x-env in [prod], the request has none: send such a header, or widen its headers"},
		{"/source", nil, "grant shop/source needs a peer in [10.0.0.0/8], not 127.0.0.1: add 127.0.0.1 to its sourceCIDRs"},
		{"/until", nil, "grant shop/until ended at 2026-01-01T00:00:00Z, before 2026-06-01T12:00:00Z: move its until"},
		{"/window", nil, "grant shop/window is for 00:00-01:00 UTC, not 2026-06-01T12:00:00Z: widen its windows"},
		{"/cel", nil, "grant shop/cel needs request.query == 'a': widen its cel"},
		{"/shadow", nil, "grant shop/shadow is in mode shadow: set its mode to enforce"},
		{"/live", nil, "grant shop/live is for upgrades to websocket only: write one without upgrades"},
		{"/plain", func(r *policy.Request) { r.Upgrade = "websocket" }, "grant shop/plain is for no upgrades: write one with upgrades: [websocket]"},
		{"/plain", func(r *policy.Request) { r.Upgrade = "h2c" }, "the port http of shop/orders takes no upgrade to h2c"},
		{"/plain", func(r *policy.Request) { r.Token.State = policy.TokenInvalid }, "the token does not verify; without one, grants that name no users may match"},
		{"/plain", func(r *policy.Request) { r.Token = policy.Token{State: policy.TokenValid, Provider: "other"} }, "tokens of other are not taken by shop/orders"},
		{"/plain", func(r *policy.Request) { r.Denied = true }, "the external authorizer of shop/orders denies it, or cannot answer"},
		{"/plain", func(r *policy.Request) { r.CallerID = "spiffe://shop.example/ns/shop/sa/lost" }, "block shop/lost denies shop/lost until 2099-01-01T00:00:00Z: its key is out"},
		{"/plain", func(r *policy.Request) {
			r.Token = policy.Token{State: policy.TokenValid, Provider: "corp", Claims: map[string]any{"sub": "mallory"}}
		}, "block shop/no-mallory denies mallory of corp: she has left"},
		{"/", func(r *policy.Request) { r.Service.Name = "pay" }, "grant shop/pay allows /v1/**, not /: add / to its paths"},
		{"/", func(r *policy.Request) { r.Service.Name = "both" }, "shop/both is a service of shop/orders; each of them judges"},
		{"/plain", func(r *policy.Request) { r.CallerID = ""; r.Plaintext = true }, "the caller at 127.0.0.1 has no identity, and no Exception plaintext of shop/orders:http is for it"},
	} {
		r := base
		r.Path = c.path
		if c.edit != nil {
			c.edit(&r)
		}
		if d := ix.Decide(r); d.Allowed || len(d.Hints) == 0 || d.Hints[0] != c.want {
			t.Errorf("%s: got %+v\nwant %s", c.path, d, c.want)
		}
	}
}

var hinted = strings.ReplaceAll(`
kind: Workload
metadata: {namespace: shop, name: web}
spec: {}
---
kind: Workload
metadata: {namespace: shop, name: lost}
spec: {}
---
kind: Workload
metadata: {namespace: shop, name: orders}
spec:
  serves: [{name: http, port: 8080, protocol: http, upgrades: [websocket]}]
  externalAuthorizer: {target: "127.0.0.1:9191"}
---
kind: Service
metadata: {namespace: shop, name: both}
spec: {workloads: [orders]}
---
kind: Service
metadata: {namespace: shop, name: pay}
spec: {external: {hosts: [pay.example], port: 443}}
---
kind: IdentityProvider
metadata: {namespace: mesh, name: corp}
spec:
  issuer: https://corp.example
  audiences: [shop]
  jwks: {uri: "https://corp.example/keys"}
  claims: [{name: groups, kind: list}]
---
kind: Grant
metadata: {namespace: shop, name: user}
spec:
  from: {workloads: [web], users: {provider: corp, claims: {groups: [sre]}}}
  to: {services: [orders], paths: [/user]}
---
kind: Grant
metadata: {namespace: shop, name: header}
spec:
  from: {workloads: [web]}
  to: {services: [orders], paths: [/header]}
  when: {headers: {x-env: [prod]}}
---
kind: Grant
metadata: {namespace: shop, name: source}
spec:
  from: {workloads: [web]}
  to: {services: [orders], paths: [/source]}
  when: {sourceCIDRs: [10.0.0.0/8]}
---
kind: Grant
metadata: {namespace: shop, name: until}
spec:
  from: {workloads: [web]}
  to: {services: [orders], paths: [/until]}
  until: 2026-01-01T00:00:00Z
---
kind: Grant
metadata: {namespace: shop, name: window}
spec:
  from: {workloads: [web]}
  to: {services: [orders], paths: [/window]}
  when: {windows: [{zone: UTC, start: "00:00", end: "01:00"}]}
---
kind: Grant
metadata: {namespace: shop, name: cel}
spec:
  from: {workloads: [web]}
  to: {services: [orders], paths: [/cel]}
  when: {cel: "request.query == 'a'"}
---
kind: Grant
metadata: {namespace: shop, name: shadow}
spec:
  from: {workloads: [web]}
  to: {services: [orders], paths: [/shadow]}
  mode: shadow
---
kind: Grant
metadata: {namespace: shop, name: live}
spec:
  from: {workloads: [web]}
  to: {services: [orders], paths: [/live], upgrades: [websocket]}
---
kind: Grant
metadata: {namespace: shop, name: plain}
spec:
  from: {anyWorkload: true}
  to: {services: [orders], paths: [/plain]}
---
kind: Grant
metadata: {namespace: shop, name: pay}
spec:
  from: {workloads: [web]}
  to: {services: [pay], paths: [/v1/**]}
---
kind: Block
metadata: {namespace: shop, name: lost}
spec: {workloads: [lost], reason: its key is out, until: "2099-01-01T00:00:00Z"}
---
kind: Block
metadata: {namespace: shop, name: no-mallory}
spec: {users: {provider: corp, subjects: [mallory]}, services: [orders], reason: she has left}
`, "\nkind:", "\napiVersion: ztmesh.dev/v1alpha1\nkind:")
