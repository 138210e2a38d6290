package policy

import (
	"cmp"
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

// Path is what a rule says of a canonical path.
type Path struct {
	Value string
	Kind  PathKind
}

// PathKind is how a Path's value is compared.
type PathKind uint8

// The kinds of Path.
const (
	Exact      PathKind = iota // the value itself
	Rest                       // "/a": /a, /a/ and all below it; "/": everything
	OneSegment                 // "/pkg.S/": the value and exactly one non-empty segment
)

// Matches tells whether the canonical path is one that p speaks of.
func (p Path) Matches(path string) bool {
	switch p.Kind {
	case Exact:
		return path == p.Value
	case Rest:
		return p.Value == "/" || path == p.Value || strings.HasPrefix(path, p.Value+"/")
	case OneSegment:
		segment, ok := strings.CutPrefix(path, p.Value)
		return ok && segment != "" && !strings.Contains(segment, "/")
	}
	return false
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
	for _, p := range set(paths) {
		if base, rest := strings.CutSuffix(p, "/**"); rest {
			r.Paths = append(r.Paths, Path{Value: orRoot(base), Kind: Rest})
		} else {
			r.Paths = append(r.Paths, Path{Value: p, Kind: Exact})
		}
	}
	sortPaths(r.Paths)
	return r, len(methods) == 0 || len(r.Methods) > 0
}

// grpcRule is the rule on a grpc port, where pkg.Service/Method is a POST to
// /pkg.Service/Method (gRPC over HTTP/2, section Requests). Paths do not fit.
func grpcRule(r Rule, methods, paths []string) (Rule, bool) {
	for _, m := range set(methods) {
		service, method, ok := strings.Cut(m, "/")
		switch {
		case !ok:
		case method == "*":
			r.Paths = append(r.Paths, Path{Value: "/" + service + "/", Kind: OneSegment})
		default:
			r.Paths = append(r.Paths, Path{Value: "/" + m, Kind: Exact})
		}
	}
	if r.Paths != nil {
		r.Methods = []string{"POST"}
	}
	sortPaths(r.Paths)
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

func orRoot(base string) string {
	if base == "" {
		return "/"
	}
	return base
}

func sortPaths(paths []Path) {
	slices.SortFunc(paths, func(a, b Path) int {
		return cmp.Or(cmp.Compare(a.Value, b.Value), cmp.Compare(a.Kind, b.Kind))
	})
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
