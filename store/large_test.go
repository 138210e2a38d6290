package store_test

import (
	"fmt"
	"strings"
)

// A large spec has so many workloads, in namespaces of ten, and grants to each.
const (
	largeWorkloads = 10_000
	grantsOfEach   = 5
	perNamespace   = 10
)

// largeSpec is workloads and five grants to each, as people write them: three from
// single workloads, one from a namespace, one of several paths. Of 10,000 it is
// 60,000 documents of more than 20 MB.
func largeSpec(workloads int) []byte {
	namespaces := max(workloads/perNamespace, 1)
	name := func(i int) (ns, n string) {
		i %= workloads
		return fmt.Sprintf("team-%d", i%namespaces), fmt.Sprintf("service-%d", i)
	}
	var b strings.Builder
	for i := range workloads {
		ns, w := name(i)
		fmt.Fprintf(&b, `---
apiVersion: ztmesh.dev/v1alpha1
kind: Workload
metadata:
  namespace: %s
  name: %s
  labels: {team: %s, tier: backend}
spec:
  serves:
    - name: http
      port: 8080
      protocol: http
`, ns, w, ns)
		for g := range grantsOfEach {
			callerNS, caller := name(i*7 + g*131 + 1)
			from := fmt.Sprintf("workloads: [%s/%s]", callerNS, caller)
			paths := fmt.Sprintf("[/v%d/**]", g)
			switch g {
			case 3:
				from = fmt.Sprintf("namespaces: [team-%d]", (i+1)%namespaces)
			case 4:
				paths = "[/a, /b/**, /c/d, /e]"
			}
			b.WriteString(grant(ns, fmt.Sprintf("%s-calls-%d", w, g), from, w, paths))
		}
	}
	return []byte(b.String())
}

func grant(namespace, name, from, service, paths string) string {
	return fmt.Sprintf(`---
apiVersion: ztmesh.dev/v1alpha1
kind: Grant
metadata:
  namespace: %s
  name: %s
  labels: {owner: %s, reviewed: "2026-11"}
  annotations: {ticket: "SEC-1234, reviewed by the owners of the service"}
spec:
  from:
    %s
  to:
    services: [%s]
    methods: [GET, POST]
    paths: %s
`, namespace, name, namespace, from, service, paths)
}
