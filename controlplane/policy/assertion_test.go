package policy_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/ztmesh/ztmesh/controlplane/policy"
	"github.com/ztmesh/ztmesh/controlplane/spec"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// asks is a test of a request by a workload.
func asks(caller, request string) *ztv1.Test {
	return &ztv1.Test{As: &ztv1.Subject{Workload: caller}, Request: request}
}

const tests = `
---
apiVersion: ztmesh.dev/v1alpha1
kind: Assertion
metadata: {namespace: shop, name: safety}
spec:
  tests:
  - {as: {workload: web}, request: GET orders /orders/7, want: allow, by: web-reads-orders}
  - {as: {workload: web}, request: DELETE orders /orders/7, want: deny}
  - {as: {workload: web}, request: DELETE orders /orders/7, want: allow}
  - {as: {workload: admin}, request: GET orders /x, want: deny}
  - {as: {workload: web}, request: GET orders /orders/7, want: allow, by: admin-any}
  - {as: {workload: shop/web}, request: "GRPC shop/multi:rpc s.Stock/Get", want: allow, by: shop/web-stock}
`

func TestRunTests(t *testing.T) {
	docs := parse(t, shop+tests)
	ix := policy.New("shop.example", docs)
	results := policy.RunTests(ix, docs, noon)
	failed := policy.TestProblems(results)
	var got []string
	for _, p := range failed {
		got = append(got, p.Error())
	}
	want := []string{
		`spec.yaml:55:5: ZT2001 spec.tests[2]: DELETE orders /orders/7 by web gets deny (default), not allow (grant shop/web-reads-orders allows GET, not DELETE: add DELETE to its methods)`,
		`spec.yaml:56:5: ZT2001 spec.tests[3]: GET orders /x by admin gets allow (grant:shop/admin-any), not deny`,
		`spec.yaml:57:5: ZT2001 spec.tests[4]: GET orders /orders/7 by web is allowed by shop/web-reads-orders, not by shop/admin-any`,
	}
	if len(results) != 6 || len(got) != len(want) {
		t.Fatalf("%d results, failed: %q", len(results), got)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("got  %s\nwant %s", got[i], want[i])
		}
	}
	// A document from the log has no place in a file; the problem names it.
	for i, d := range docs {
		stored, err := spec.Decode(spec.Canonical(d))
		if err != nil {
			t.Fatal(err)
		}
		docs[i] = stored
	}
	if p := policy.TestProblems(policy.RunTests(ix, docs, noon)); len(p) != 3 || p[0].File != "Assertion shop/safety" || p[0].Line != 0 {
		t.Errorf("got %v", p)
	}
}

func TestCanRefuses(t *testing.T) {
	ix := policy.New("shop.example", nil)
	for _, c := range [][2]string{{"WEB", "GET orders /"}, {"web", "get orders /"}, {"web", "GET orders"}, {"a/b/c", "TCP db"}} {
		if d, err := policy.Can(ix, "shop", asks(c[0], c[1]), noon); err == nil {
			t.Errorf("%v: %+v", c, d)
		}
	}
}

const contexts = `
apiVersion: ztmesh.dev/v1alpha1
kind: Mesh
metadata: {namespace: mesh, name: mesh}
spec:
  trustDomain: shop.example
  federation: [{trustDomain: partner.example, bundle: "BUNDLE"}]
---
apiVersion: ztmesh.dev/v1alpha1
kind: IdentityProvider
metadata: {namespace: mesh, name: corp}
spec:
  issuer: https://corp.example
  audiences: [mesh]
  jwks: {uri: https://corp.example/keys}
  claims:
  - {name: groups, kind: list}
  - {name: team, path: [org, team]}
  - {name: staff, kind: boolean}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: web}
spec: {}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: one}
spec: {serves: [{name: http, port: 8080, protocol: http, upgrades: [websocket]}]}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: two}
spec: {serves: [{name: http, port: 8080, protocol: http, upgrades: [websocket]}]}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Service
metadata: {namespace: shop, name: both}
spec: {workloads: [one, two]}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Grant
metadata: {namespace: shop, name: users}
spec:
  from:
    workloads: [web]
    users: {provider: corp, subjects: [ann], claims: {groups: [sre], team: [a], staff: ["true"]}, acr: ["2"], amr: [mfa], maxAge: 1h}
  to: {services: [both], paths: [/users/*]}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Grant
metadata: {namespace: shop, name: context}
spec:
  from: {workloads: [web]}
  to: {services: [both], paths: [/context]}
  when:
    headers: {x-env: [prod]}
    sourceCIDRs: [10.0.0.0/8]
    windows: [{zone: Europe/Berlin, start: "09:00", end: "17:00"}]
  until: 2027-01-01T00:00:00Z
---
apiVersion: ztmesh.dev/v1alpha1
kind: Grant
metadata: {namespace: shop, name: live}
spec:
  from: {workloads: [web]}
  to: {services: [one], paths: [/live], upgrades: [websocket]}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Grant
metadata: {namespace: shop, name: partner}
spec:
  from: {spiffeIDs: ["spiffe://partner.example/app"]}
  to: {services: [one], paths: [/partner]}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Grant
metadata: {namespace: shop, name: open}
spec:
  from: {workloads: [web]}
  to: {services: [both], methods: [GET], paths: [/open/**]}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Assertion
metadata: {namespace: shop, name: context}
spec:
  tests:
  - {as: {workload: web, user: {provider: corp, subject: ann, claims: {groups: [x, sre], team: [a], staff: ["true"]}, acr: "2", amr: [mfa], authTime: 2026-03-30T11:30:00Z}}, request: GET both /users/7, want: allow, by: users}
  - {as: {workload: web, user: {provider: corp, subject: bob, claims: {groups: [x, sre], team: [a], staff: ["true"]}, acr: "2", amr: [mfa], authTime: 2026-03-30T11:30:00Z}}, request: GET both /users/7, want: deny}
  - {as: {workload: web}, request: GET both /users/7, want: deny}
  - {as: {workload: web}, request: GET both /context, want: allow, by: context, source: 10.1.1.1, headers: {x-env: prod}}
  - {as: {workload: web}, request: GET both /context, want: deny, source: 10.1.1.1, headers: {x-env: prod}, at: 2026-03-30T15:00:00Z}
  - {as: {workload: web}, request: GET both /context, want: deny, source: 10.1.1.1, headers: {x-env: prod}, at: 2027-01-01T10:00:00Z}
  - {as: {workload: web}, request: GET both /context, want: deny, headers: {x-env: prod}}
  - {as: {workload: web}, request: GET both /context, want: deny, source: 10.1.1.1}
  - {as: {workload: web}, request: WS one /live, want: allow, by: live}
  - {as: {workload: web}, request: GET one /live, want: deny}
  - {as: {spiffeID: "spiffe://partner.example/app"}, request: GET one /partner, want: allow}
  - {as: {spiffeID: "spiffe://partner.example/other"}, request: GET one /partner, want: deny}
  - {as: {workload: web}, request: WS both /live, want: allow}
  - {as: {workload: web, user: {provider: corp, claims: {team: [a, b]}}}, request: GET one /x, want: deny}
  never:
  - {from: {anyWorkload: true}, to: {services: [both], paths: [/secret/**]}}
  - {from: {anyWorkload: true}, to: {services: [both], paths: ["/*"]}}
  - {from: {workloads: [one]}, to: {allServices: true}}
  - {from: {spiffeIDs: ["spiffe://partner.example/app"]}, to: {services: [one], methods: [POST]}}
  - {from: {workloads: [web]}, to: {services: [one], upgrades: [websocket], paths: [/open/**]}}
  always:
  - {from: {workloads: [web]}, to: {services: [both], methods: [GET], paths: ["/open/{id}", /open]}}
  - {from: {workloads: [web]}, to: {services: [both], paths: [/open]}}
  - {from: {workloads: [web]}, to: {services: [both], methods: [GET], paths: [/context]}}
  - {from: {workloads: [web]}, to: {services: [one], paths: [/live], upgrades: [websocket]}}
`

// TestContexts goes through all that a test may say, and statements beside it.
func TestContexts(t *testing.T) {
	docs, problems := spec.Parse([]spec.File{{Name: "spec.yaml", Content: []byte(contexts)}})
	// The bundle is no certificate; nothing here reads it.
	for _, p := range append(problems, spec.Check(docs, "shop.example")...) {
		if !strings.Contains(p.Path, "bundle") && !strings.Contains(p.Path, "team") {
			t.Error(p)
		}
	}
	results := policy.RunTests(policy.New("shop.example", docs), docs, noon)
	want := map[string]string{
		"tests[12]": "ZT2001: WS both /live by web gets deny (default) at shop/two, not allow",
		"tests[13]": "ZT2001: user: the claim team is not one string",
		"never[1]":  "ZT2002: GET shop/one:http /context by shop/web is allowed by grant shop/context when its conditions hold, and others by shop/live, shop/open",
		"never[3]":  "ZT2002: POST shop/one:http /partner by spiffe://partner.example/app is allowed by grant shop/partner",
		"always[1]": "ZT2003: POST shop/one:http /open by shop/web is not allowed by grants without conditions",
		"always[2]": "ZT2003: GET shop/one:http /context by shop/web is not allowed by grants without conditions",
	}
	if len(results) != 23 {
		t.Errorf("%d results", len(results))
	}
	for _, r := range results {
		at, got := fmt.Sprintf("%s[%d]", r.List, r.Index), ""
		if r.Problem != nil {
			got = r.Problem.Code + ": " + r.Problem.Message
			if r.Problem.Path != "spec."+at || r.Problem.Line == 0 {
				t.Errorf("%s: at %s, line %d", at, r.Problem.Path, r.Problem.Line)
			}
		}
		if got != want[at] {
			t.Errorf("%s: got %q, want %q", at, got, want[at])
		}
	}
}

// TestStatementsOfNothing: what speaks of nothing does not hold.
func TestStatementsOfNothing(t *testing.T) {
	docs := parse(t, shop)
	web := &ztv1.Caller{Workloads: []string{"web"}}
	for want, st := range map[string]*ztv1.Statement{
		"it speaks of no caller":                                  {To: &ztv1.Target{AllServices: true}},
		"it speaks of no port of shop/nobody":                     {From: web, To: &ztv1.Target{Services: []string{"orders", "nobody"}}},
		"it speaks of no port admin":                              {From: web, To: &ztv1.Target{AllServices: true, Ports: []string{"http", "admin"}}},
		"it speaks of no port":                                    {From: web, To: &ztv1.Target{Services: []string{"multi"}, Ports: []string{"raw"}, Methods: []string{"GET"}}},
		"it speaks of no request: upgrades are GET requests":      {From: web, To: &ztv1.Target{Services: []string{"orders"}, Methods: []string{"PUT"}, Upgrades: []string{"websocket"}}},
		"\"a/b/c\" is not a name or namespace/name of DNS labels": {From: web, To: &ztv1.Target{Services: []string{"a/b/c"}}},
	} {
		a := &spec.Document{Document: &ztv1.Document{
			Kind: spec.KindAssertion, Metadata: &ztv1.Metadata{Namespace: "shop", Name: "a"},
			Spec: &ztv1.Document_Assertion{Assertion: &ztv1.Assertion{Never: []*ztv1.Statement{st}, Always: []*ztv1.Statement{st}}},
		}}
		failed := policy.TestProblems(policy.RunTests(policy.New("shop.example", docs), []*spec.Document{a}, noon))
		if len(failed) != 2 || failed[0].Code != policy.CodeUndecided || failed[0].Message != want || failed[1].Message != want {
			t.Errorf("%v: got %v, want %s", st, failed, want)
		}
	}
}
