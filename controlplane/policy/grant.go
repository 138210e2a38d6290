package policy

import (
	"slices"
	"strings"

	"github.com/ztmesh/ztmesh/controlplane/spec"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// Rule is what one grant allows on one port: a request passes if its caller, its
// method and its path all match.
type Rule struct {
	Grant   spec.Ref
	Callers Callers
	Methods []string // sorted; nil: any, save CONNECT and TRACE
	Paths   []Path   // sorted; nil: any
}

// Callers is who a grant is for: exactly one of its fields is set. Lists are
// sorted and hold nothing twice.
type Callers struct {
	Workloads  []spec.Ref
	Namespaces []string
	Any        bool // every workload of the trust domain
}

// Has tells whether the caller is one of c, declared or not.
func (c Callers) Has(caller spec.Ref) bool {
	if c.Any || slices.Contains(c.Namespaces, caller.Namespace) {
		return true
	}
	_, found := slices.BinarySearchFunc(c.Workloads, caller, spec.Ref.Compare)
	return found
}

func (c Callers) equal(o Callers) bool {
	return c.Any == o.Any && slices.Equal(c.Namespaces, o.Namespaces) && slices.Equal(c.Workloads, o.Workloads)
}

// The terms under which Index.byCaller lists a grant. None is a prefix of
// another.
const anyTerm = "a\x00"

func namespaceTerm(ns string) string      { return "n\x00" + ns + "\x00" }
func workloadTerm(caller spec.Ref) string { return "w\x00" + string(key(caller)) }

func (c Callers) terms() []string {
	var terms []string
	if c.Any {
		terms = append(terms, anyTerm)
	}
	for _, ns := range c.Namespaces {
		terms = append(terms, namespaceTerm(ns))
	}
	for _, w := range c.Workloads {
		terms = append(terms, workloadTerm(w))
	}
	return terms
}

// grant is a Grant, understood. A grant that spec.Check would refuse is
// understood as less than it says, never as more.
type grant struct {
	ref      spec.Ref
	services []spec.Ref // sorted
	ports    []string   // sorted; nil: the only port of the service
	callers  Callers

	// What it means on a port of each family; ok is false where its methods or
	// paths do not fit the family.
	http, grpc, tcp struct {
		rule Rule
		ok   bool
	}
}

func newGrant(ref spec.Ref, d *ztv1.Grant) *grant {
	g := &grant{ref: ref, ports: set(d.GetTo().GetPorts())}
	for _, s := range d.GetTo().GetServices() {
		// The callee's owner decides: a service of another namespace is left out.
		if service, err := spec.ParseRef(s, ref.Namespace); err == nil && service.Namespace == ref.Namespace {
			g.services = append(g.services, service)
		}
	}
	g.services = refSet(g.services)
	g.callers = newCallers(ref, d.GetFrom())

	methods, paths := d.GetTo().GetMethods(), d.GetTo().GetPaths()
	rule := Rule{Grant: ref, Callers: g.callers}
	g.tcp.rule, g.tcp.ok = rule, len(methods) == 0 && len(paths) == 0
	g.http.rule, g.http.ok = httpRule(rule, methods, paths)
	g.grpc.rule, g.grpc.ok = grpcRule(rule, methods, paths)
	return g
}

// newCallers reads a Caller. One that sets several fields, or none, is nobody.
func newCallers(ref spec.Ref, from *ztv1.Caller) Callers {
	var c Callers
	fields := 0
	if from.GetAnyWorkload() {
		fields++
		c.Any = true
	}
	if len(from.GetNamespaces()) > 0 {
		fields++
		c.Namespaces = set(from.GetNamespaces())
	}
	if len(from.GetWorkloads()) > 0 {
		fields++
		for _, s := range from.GetWorkloads() {
			if w, err := spec.ParseRef(s, ref.Namespace); err == nil {
				c.Workloads = append(c.Workloads, w)
			}
		}
		c.Workloads = refSet(c.Workloads)
	}
	if fields != 1 {
		return Callers{}
	}
	return c
}

// httpRule is the rule on an http or http2 port. A gRPC method does not fit and
// is dropped, which narrows; a list that loses its last item is no rule.
func httpRule(r Rule, methods, paths []string) (Rule, bool) {
	for _, m := range set(methods) {
		if !strings.Contains(m, "/") {
			r.Methods = append(r.Methods, m)
		}
	}
	r.Paths = newPaths(paths)
	return r, len(methods) == 0 || len(r.Methods) > 0
}

// grpcRule is the rule on a grpc port, where pkg.Service/Method is a POST to
// /pkg.Service/Method (gRPC over HTTP/2, section Requests). Paths do not fit.
func grpcRule(r Rule, methods, paths []string) (Rule, bool) {
	var called []string
	for _, m := range set(methods) {
		if strings.Contains(m, "/") {
			called = append(called, "/"+m)
		}
	}
	if r.Paths = newPaths(called); r.Paths != nil {
		r.Methods = []string{"POST"}
	}
	return r, len(paths) == 0 && (len(methods) == 0 || len(r.Paths) > 0)
}

// rule is what g allows on a port of w; false if nothing. A grant that names no
// port is for a service with one port only.
func (g *grant) rule(w *Workload, p *Port) (Rule, bool) {
	if g.callers.none() || !g.names(w, p) {
		return Rule{}, false
	}
	switch p.Protocol {
	case HTTP, HTTP2:
		return g.http.rule, g.http.ok
	case GRPC:
		return g.grpc.rule, g.grpc.ok
	case TCP:
		return g.tcp.rule, g.tcp.ok
	}
	return Rule{}, false
}

func (g *grant) names(w *Workload, p *Port) bool {
	if g.ports == nil {
		return len(w.Ports) == 1
	}
	return slices.Contains(g.ports, p.Name)
}

// set is list sorted, without duplicates; nil for an empty list.
func set(list []string) []string {
	if len(list) == 0 {
		return nil
	}
	list = slices.Clone(list)
	slices.Sort(list)
	return slices.Compact(list)
}

func refSet(refs []spec.Ref) []spec.Ref {
	slices.SortFunc(refs, spec.Ref.Compare)
	return slices.Compact(refs)
}

func (c Callers) none() bool { return !c.Any && len(c.Namespaces) == 0 && len(c.Workloads) == 0 }
