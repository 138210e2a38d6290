package main

import (
	"fmt"
	"strconv"
	"strings"
)

// callersOf is how many services call a service, and how many it calls.
const callersOf = 5

// servedPort is the one port of every service.
const servedPort = 8080

// namespace is where the services of a workload are.
const namespace = "bench"

// workload is W(S,K): S services of K proxies each. Service i is called by the next
// five after it, round the circle.
type workload struct{ services, proxies int }

func parseWorkload(text string) (workload, error) {
	s, k, ok := strings.Cut(text, "x")
	services, err1 := strconv.Atoi(s)
	proxies, err2 := strconv.Atoi(k)
	if !ok || err1 != nil || err2 != nil || proxies < 1 || services < 2*callersOf {
		return workload{}, fmt.Errorf("workload %q is not SERVICESxPROXIES, with at least %d services", text, 2*callersOf)
	}
	return workload{services, proxies}, nil
}

func (w workload) String() string { return fmt.Sprintf("W(%d,%d)", w.services, w.proxies) }

func (w workload) total() int { return w.services * w.proxies }

func (w workload) name(i int) string { return fmt.Sprintf("s%05d", i%w.services) }

func (w workload) ref(i int) string { return namespace + "/" + w.name(i) }

// spec is the whole workload as documents.
func (w workload) spec() string {
	var b strings.Builder
	for i := range w.services {
		fmt.Fprintf(&b, `apiVersion: ztmesh.dev/v1alpha1
kind: Workload
metadata: {namespace: %s, name: %s}
spec: {serves: [{name: http, port: %d, protocol: http}]}
---
`, namespace, w.name(i), servedPort)
		b.WriteString(w.grant(i, callersOf))
	}
	return b.String()
}

// grant lets the next n services call service i.
func (w workload) grant(i, n int) string {
	callers := make([]string, n)
	for j := range callers {
		callers[j] = w.name(i + 1 + j)
	}
	return fmt.Sprintf(`apiVersion: ztmesh.dev/v1alpha1
kind: Grant
metadata: {namespace: %s, name: %s}
spec:
  from: {workloads: [%s]}
  to: {services: [%s], methods: [GET, POST], paths: [/api/**, /status]}
---
`, namespace, w.name(i), strings.Join(callers, ", "), w.name(i))
}

// everywhere is a grant of the mesh's owners to every service: it changes what each
// served port judges by.
func (w workload) everywhere(round int) string {
	return fmt.Sprintf(`apiVersion: ztmesh.dev/v1alpha1
kind: Grant
metadata: {namespace: mesh, name: everywhere}
spec:
  from: {workloads: [%s]}
  to: {allServices: true, ports: [http], methods: [GET], paths: [/round/%d]}
---
`, w.ref(0), round)
}
