package policy_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/ztmesh/ztmesh/controlplane/policy"
	"github.com/ztmesh/ztmesh/controlplane/spec"
)

const shop = `
apiVersion: ztmesh.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: web}
spec: {}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: admin}
spec: {}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: orders}
spec:
  serves: [{name: http, port: 8080, protocol: http}]
---
apiVersion: ztmesh.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: multi}
spec:
  serves:
  - {name: rpc, port: 9000, protocol: grpc}
  - {name: raw, port: 9001, protocol: tcp}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Grant
metadata: {namespace: shop, name: web-reads-orders}
spec:
  from: {workloads: [web]}
  to: {services: [orders], methods: [GET], paths: [/orders/**]}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Grant
metadata: {namespace: shop, name: admin-any}
spec:
  from: {workloads: [admin]}
  to: {services: [orders]}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Grant
metadata: {namespace: shop, name: web-stock}
spec:
  from: {workloads: [web]}
  to: {services: [multi], ports: [rpc], methods: [s.Stock/Get, s.Stock/List]}
`

// parse reads a sound spec.
func parse(t testing.TB, text string) []*spec.Document {
	t.Helper()
	docs, problems := spec.Parse([]spec.File{{Name: "spec.yaml", Content: []byte(text)}})
	problems = append(problems, spec.Check(docs, "shop.example")...)
	if err := problems.Err(); err != nil {
		t.Fatal(err)
	}
	return docs
}

func TestHints(t *testing.T) {
	ix := policy.New("shop.example", parse(t, shop))
	for _, c := range []struct{ caller, request, want string }{
		{"web", "DELETE orders /orders/7", "grant shop/web-reads-orders allows GET, not DELETE: add DELETE to its methods"},
		{"web", "GET orders /x", "grant shop/web-reads-orders allows /orders/**, not /x: add /x to its paths"},
		{"web", "PUT orders /x", "grant shop/admin-any is for shop/admin, not shop/web: add shop/web to its callers"},
		{"ghost", "GET orders /x", "no workload shop/ghost is declared"},
		{"admin", "GRPC multi:rpc s.Stock/Get", "grant shop/web-stock is for shop/web, not shop/admin: add shop/admin to its callers"},
		{"web", "GRPC multi:rpc s.Stock/Put", "grant shop/web-stock allows s.Stock/Get, s.Stock/List, not s.Stock/Put: add s.Stock/Put to its methods"},
		{"web", "TCP multi:raw", "grant shop/web-stock is to rpc, not port raw: add raw to its ports"},
		{"web", "GRPC multi s.Stock/Get", "shop/multi has the ports rpc, raw; name one of them"},
		{"web", "GET multi:nope /", "shop/multi has no port nope; it has the ports rpc, raw"},
		{"web", "GET nobody /", "no workload shop/nobody is declared"},
		{"orders", "GET web /", "shop/web has no ports; name one of them"},
		{"web", "TRACE orders /orders/7", "TRACE is always refused"},
		{"web", "TCP orders", "the port http of shop/orders is http"},
		{"web", "GET orders /a%2fb", `the path "/a%2fb" is not canonical: it may hold letters, digits and -._~!$&'()*+,=:@/`},
	} {
		d, err := policy.Can(ix, "shop", asks(c.caller, c.request), noon)
		if err != nil || d.Allowed || len(d.Hints) == 0 || d.Hints[0] != c.want {
			t.Errorf("%s %s: got %+v, %v\nwant %s", c.caller, c.request, d, err, c.want)
		}
	}
}

// TestHintOfNoGrant: where nothing is near, the hint says what to write.
func TestHintOfNoGrant(t *testing.T) {
	docs := parse(t, shop)
	docs = slices.DeleteFunc(docs, func(d *spec.Document) bool { return d.GetGrant() != nil })
	d, err := policy.Can(policy.New("shop.example", docs), "shop", asks("web", "GET orders /"), noon)
	want := "no grant is to shop/orders: one in namespace shop, from shop/web to orders, would allow it"
	if err != nil || len(d.Hints) != 1 || d.Hints[0] != want {
		t.Errorf("got %+v, %v", d, err)
	}
}

// TestDocumentsThatCheckRefuses: each means less than it says, never more.
func TestDocumentsThatCheckRefuses(t *testing.T) {
	base := shop[:strings.Index(shop, "kind: Grant")]
	base = base[:strings.LastIndex(base, "---")]
	for name, grant := range map[string]string{
		"of another namespace":   "from: {workloads: [shop/web]}\n  to: {services: [shop/orders]}",
		"two callers":            "from: {workloads: [web], anyWorkload: true}\n  to: {services: [orders]}",
		"no caller":              "from: {}\n  to: {services: [orders]}",
		"gRPC on http":           "from: {workloads: [web]}\n  to: {services: [orders], methods: [s.Stock/Get]}",
		"no port of several":     "from: {workloads: [web]}\n  to: {services: [multi]}",
		"methods on tcp":         "from: {workloads: [web]}\n  to: {services: [multi], ports: [raw], methods: [GET]}",
		"paths on grpc":          "from: {workloads: [web]}\n  to: {services: [multi], ports: [rpc], paths: [/a]}",
		"http methods on grpc":   "from: {workloads: [web]}\n  to: {services: [multi], ports: [rpc], methods: [POST]}",
		"a port that is no port": "from: {workloads: [web]}\n  to: {services: [orders], ports: [nope]}",
	} {
		ns := "shop"
		if name == "of another namespace" {
			ns = "bank"
		}
		text := base + "---\napiVersion: ztmesh.dev/v1alpha1\nkind: Grant\nmetadata: {namespace: " + ns + ", name: g}\nspec:\n  " + grant + "\n"
		docs, _ := spec.Parse([]spec.File{{Name: "spec.yaml", Content: []byte(text)}})
		ix := policy.New("shop.example", docs)
		if _, ok := ix.Workload(spec.Ref{Namespace: "shop", Name: "orders"}); !ok || len(docs) != 5 {
			t.Fatalf("%s: read %d documents", name, len(docs))
		}
		for _, request := range []string{"GET orders /a", "GRPC orders s.Stock/Get", "TCP multi:raw", "GRPC multi:rpc s.Stock/Get", "GET multi:rpc /a", "POST multi:rpc /a"} {
			if d, err := policy.Can(ix, "shop", asks("web", request), noon); err != nil || d.Allowed {
				t.Errorf("%s: %s: %+v, %v", name, request, d, err)
			}
		}
		if to := ix.Destinations(spec.Ref{Namespace: "shop", Name: "web"}); to != nil {
			t.Errorf("%s: web may call %v", name, to)
		}
	}
}

func TestHosts(t *testing.T) {
	ix := policy.New("shop.example", parse(t, `
apiVersion: ztmesh.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: one}
spec:
  serves:
  - {name: raw, port: 1, protocol: tcp}
  - {name: http, port: 8080, protocol: http}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: two}
spec:
  serves:
  - {name: late, port: 9000, protocol: grpc}
  - {name: early, port: 8000, protocol: http2}
`))
	for _, c := range []struct{ workload, port, want string }{
		{"one", "http", "one.shop.mesh"},
		{"one", "raw", "one.shop.mesh"},
		{"two", "early", "early.two.shop.mesh two.shop.mesh"},
		{"two", "late", "late.two.shop.mesh"},
		{"two", "none", ""},
	} {
		w, _ := ix.Workload(spec.Ref{Namespace: "shop", Name: c.workload})
		if got := strings.Join(w.Hosts(c.port), " "); got != c.want {
			t.Errorf("%s:%s is %s, want %s", c.workload, c.port, got, c.want)
		}
	}
}
