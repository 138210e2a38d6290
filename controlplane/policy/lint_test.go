package policy_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/ztmesh/ztmesh/controlplane/policy"
)

const linted = `
apiVersion: ztmesh.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: web}
spec: {}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: api}
spec:
  serves:
  - {name: http, port: 8080, protocol: http}
  - {name: old, port: 8081, protocol: http, allowEncodedPaths: true}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Workload
metadata: {namespace: ops, name: scraper}
spec: {serves: [{name: http, port: 8080, protocol: http}]}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Service
metadata: {namespace: shop, name: pay}
spec: {external: {hosts: [api.pay.example], port: 443}}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Service
metadata: {namespace: shop, name: unused}
spec: {external: {hosts: [unused.example], port: 443}}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Grant
metadata: {namespace: shop, name: pays}
spec: {from: {workloads: [web]}, to: {services: [pay]}}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Grant
metadata: {namespace: mesh, name: scrape}
spec: {from: {workloads: [ops/scraper]}, to: {allServices: true, ports: [http], methods: [GET], paths: [/metrics]}}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Grant
metadata: {namespace: shop, name: by-cel}
spec: {from: {workloads: [web]}, to: {services: [api], ports: [http]}, when: {cel: 'request.query == ""'}}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Exception
metadata: {namespace: shop, name: legacy}
spec: {finding: plaintext, subject: "api:old", peers: [10.0.0.0/8], owner: team, reason: legacy, until: 2030-01-01T00:00:00Z}
`

// conditional is n grants to one port that differ in a header only, and beside
// each one that differs in its path.
func conditional(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `
---
apiVersion: ztmesh.dev/v1alpha1
kind: Grant
metadata: {namespace: shop, name: header-%d}
spec: {from: {workloads: [web]}, to: {services: [api], ports: [http], methods: [GET], paths: [/a]}, when: {headers: {x-tenant: [t%d]}}}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Grant
metadata: {namespace: shop, name: path-%d}
spec: {from: {workloads: [web]}, to: {services: [api], ports: [http], methods: [GET], paths: [/%d]}, when: {headers: {x-tenant: [t]}}}
`, i, i, i, i)
	}
	return b.String()
}

func TestLint(t *testing.T) {
	want := []string{
		"Exception shop/legacy ZT3004 : plaintext is kept for shop/api:old until 2030-01-01T00:00:00Z",
		"Grant mesh/scrape ZT3002 spec.to: the grant opens ops/scraper:http, shop/api:http",
		"Grant shop/by-cel ZT3006 spec.when.cel: no analysis understands the expression: Assertions take it for one that may hold",
		"Service shop/pay ZT3005 spec.external: calls are judged in the caller's own proxy: what gets around it reaches api.pay.example unjudged",
		"Workload shop/api ZT3003 spec.serves: the port old takes encoded paths: grants by path hold for the application only if it reads them as the proxy does",
	}
	linear := "Workload shop/api ZT3001 spec.serves: 101 grants to the port http for shop/web, GET /a differ only in conditions that the proxy tries one by one"
	for n, want := range map[int][]string{0: want, 100: want, 101: slices.Concat(want[:4], []string{linear}, want[4:])} {
		var got []string
		for _, w := range policy.New("shop.example", parse(t, linted+conditional(n))).Lint() {
			got = append(got, fmt.Sprintf("%s %s %s: %s", w.Key, w.Code, w.Path, w.Message))
			if w.Hint == "" {
				t.Errorf("%s has no hint", w.Code)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%d: got\n%s\nwant\n%s", n, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
}
