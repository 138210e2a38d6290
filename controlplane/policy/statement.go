package policy

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/ztmesh/ztmesh/controlplane/spec"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// The codes of problems that are statements of an Assertion.
const (
	CodeNever     = "ZT2002" // a request that must never be allowed is
	CodeAlways    = "ZT2003" // a request that must always be allowed is not
	CodeUndecided = "ZT2004" // it cannot be told whether the statement holds
)

// A statement speaks of requests: of a set of callers, at some ports, with some
// methods and paths. It is judged by sets, never by trying requests:
//
//	never   at each port, no rule has callers, a method and a path in common with it
//	always  at each port, for each of its callers and methods, the paths of the rules
//	        that are without conditions cover its own
//
// A condition, which may hold or not, may hold for never, and does not for always.
// A statement that does not say upgrades speaks of them all the same where it says
// never, and where it says always does not. An external authorizer is asked after a
// grant has matched: a statement is about grants.
type statement struct {
	callers Callers
	places  []place
	parts   []part
	upgrade bool // upgrades alone
}

// place is a port at which requests are judged.
type place struct {
	ref   spec.Ref // a workload or an external service
	port  *Port
	rules []Rule
	asks  bool // an external authorizer, after a grant has matched
}

// part is methods and paths, each with each.
type part struct {
	methods []string // nil: any
	paths   []Path   // nil: any
}

// newStatement reads a statement of an Assertion of the namespace. It errs when
// it speaks of nothing.
func (ix *Index) newStatement(namespace string, st *ztv1.Statement) (*statement, error) {
	s := &statement{callers: ix.callers(newNamed(ix.trustDomain, namespace, st.GetFrom())), upgrade: len(st.GetTo().GetUpgrades()) > 0}
	if s.callers.none() {
		return nil, errors.New("it speaks of no caller")
	}
	s.parts = newParts(st.GetTo().GetMethods(), newPaths(st.GetTo().GetPaths()))
	var err error
	if s.places, err = ix.places(namespace, st.GetTo()); err != nil {
		return nil, err
	}
	narrow := s.upgrade || s.parts[0].methods != nil || s.parts[0].paths != nil
	s.places = slices.DeleteFunc(s.places, func(p place) bool {
		return narrow && p.port.Protocol == TCP
	})
	if len(s.places) == 0 {
		return nil, errors.New("it speaks of no port")
	}
	if s.upgrade {
		s.parts = slices.DeleteFunc(s.parts, func(p part) bool { return p.methods != nil && !slices.Contains(p.methods, "GET") })
	}
	if len(s.parts) == 0 {
		return nil, errors.New("it speaks of no request: upgrades are GET requests")
	}
	return s, nil
}

// newParts: pkg.Service/Method is a POST to /pkg.Service/Method.
func newParts(methods []string, paths []Path) []part {
	if len(methods) == 0 {
		return []part{{nil, paths}}
	}
	var plain, called []string
	for _, m := range methods {
		if strings.Contains(m, "/") {
			called = append(called, "/"+m)
		} else {
			plain = append(plain, m)
		}
	}
	var out []part
	if plain != nil {
		out = append(out, part{set(plain), paths})
	}
	if called != nil {
		out = append(out, part{[]string{"POST"}, newPaths(called)})
	}
	return out
}

// places is the ports of a target, which may be of any namespace. Without names of
// ports it is all of them. Wide targets do not reach external services, as wide
// grants do not.
func (ix *Index) places(namespace string, to *ztv1.Target) ([]place, error) {
	var out []place
	named := map[string]bool{}
	add := func(ref spec.Ref, ports []Port, asks bool) {
		for i := range ports {
			p := &ports[i]
			if len(to.GetPorts()) == 0 || slices.Contains(to.GetPorts(), p.Name) {
				named[p.Name] = true
				out = append(out, place{ref, p, ix.Rules(ref, p.Name), asks && p.Protocol != TCP})
			}
		}
	}
	for _, text := range to.GetServices() {
		name, err := spec.ParseRef(text, namespace)
		if err != nil {
			return nil, err
		}
		before := len(out)
		for _, ref := range ix.Resolve(name) {
			if e, external := ix.externals(ref); external {
				add(ref, []Port{*externalPort(e.external)}, false)
			} else if s, ok := ix.site(ref); ok {
				for _, n := range s.byName {
					if n.ref == name {
						add(ref, n.ports, s.w.Authorizer != nil)
					}
				}
			}
		}
		if len(out) == before {
			return nil, fmt.Errorf("it speaks of no port of %s", name)
		}
	}
	ix.Workloads(func(w *Workload) bool {
		if to.GetAllServices() || slices.Contains(to.GetNamespaces(), w.Ref.Namespace) {
			add(w.Ref, w.Ports, w.Authorizer != nil)
		}
		return true
	})
	for _, p := range to.GetPorts() {
		if !named[p] {
			return nil, fmt.Errorf("it speaks of no port %s", p)
		}
	}
	slices.SortStableFunc(out, func(a, b place) int { return cmp.Or(a.ref.Compare(b.ref), cmp.Compare(a.port.Number, b.port.Number)) })
	return slices.CompactFunc(out, func(a, b place) bool { return a.ref == b.ref && a.port.Name == b.port.Name }), nil
}

// example is a request that shows that a statement does not hold.
type example struct {
	caller       string
	at           place
	method, path string
	upgrade      bool
	grant        spec.Ref // that allows it
	conditional  bool     // if its conditions hold
}

// request is the example as spec.ParseRequest reads it.
func (e example) request() string {
	to := e.at.ref.String() + ":" + e.at.port.Name
	switch {
	case e.at.port.Protocol == TCP:
		return "TCP " + to
	case e.upgrade:
		return "WS " + to + " " + e.path
	case e.at.port.Protocol == GRPC && e.method == "POST":
		call := "GRPC " + to + " " + e.path[1:]
		if _, err := spec.ParseRequest(call, ""); err == nil {
			return call
		}
	}
	return e.method + " " + to + " " + e.path
}

// allowed is a request of s that some rule allows, for each grant that does one,
// in the order of places.
func (ix *Index) allowed(s *statement) []example {
	var out []example
	seen := map[spec.Ref]bool{}
	for _, at := range s.places {
		for _, r := range at.rules {
			if seen[r.Grant] {
				continue
			}
			callers := ix.expand(s.callers.intersect(r.Callers))
			if len(callers) == 0 {
				continue
			}
			if e, ok := s.common(at, r); ok {
				e.caller, e.grant, e.conditional = callers[0].String(), r.Grant, !r.none()
				out, seen[r.Grant] = append(out, e), true
			}
		}
	}
	return out
}

// common is a method and a path of s that r allows.
func (s *statement) common(at place, r Rule) (example, bool) {
	e := example{at: at, upgrade: r.Upgrades != nil}
	if at.port.Protocol == TCP {
		return e, true
	}
	if s.upgrade && !e.upgrade {
		return e, false
	}
	methods := r.Methods
	if e.upgrade {
		if !r.method("GET") {
			return e, false
		}
		methods = []string{"GET"}
	}
	for _, p := range s.parts {
		method, ok := commonMethod(p.methods, methods)
		if !ok {
			continue
		}
		for _, a := range anyPath(p.paths) {
			for _, b := range anyPath(r.Paths) {
				if path, ok := commonPath(a, b); ok {
					e.method, e.path = method, path
					return e, true
				}
			}
		}
	}
	return e, false
}

// commonMethod is a method of both lists, of which nil is any.
func commonMethod(a, b []string) (string, bool) {
	switch {
	case a == nil && b == nil:
		return "GET", true
	case a == nil:
		return b[0], true
	case b == nil:
		return a[0], true
	}
	if both := common(a, b); both != nil {
		return both[0], true
	}
	return "", false
}

// anyPath is paths, or for nil the path that is any.
func anyPath(paths []Path) []Path {
	if paths == nil {
		return []Path{{"/", Rest}}
	}
	return paths
}

// denied is a request of s that the rules without conditions do not allow.
func (ix *Index) denied(s *statement) (e example, found bool, err error) {
	callers := ix.expand(s.callers)
	for _, at := range s.places {
		rules := slices.DeleteFunc(slices.Clone(at.rules), func(r Rule) bool {
			return !r.none() || (r.Upgrades != nil) != s.upgrade || s.upgrade && !r.method("GET")
		})
		// Callers that the same rules admit are alike.
		judged := map[string]bool{}
		for _, caller := range callers {
			var which []byte
			var own []Rule
			for i, r := range rules {
				if r.Callers.has(caller) {
					own, which = append(own, r), fmt.Appendf(which, "%d,", i)
				}
			}
			if judged[string(which)] {
				continue
			}
			judged[string(which)] = true
			if e, found, err := s.gap(at, own); found || err != nil {
				e.caller = caller.String()
				return e, found, err
			}
		}
	}
	return example{}, false, nil
}

// gap is a request of s at a place that none of rules allows, all of which are for
// its caller.
func (s *statement) gap(at place, rules []Rule) (e example, found bool, err error) {
	e = example{at: at, upgrade: s.upgrade}
	if at.port.Protocol == TCP {
		return e, len(rules) == 0, nil
	}
	for _, p := range s.parts {
		methods := p.methods
		if s.upgrade {
			methods = []string{"GET"}
		} else if methods == nil {
			methods = telling(rules)
		}
		for _, method := range methods {
			var paths []Path
			for _, r := range rules {
				if r.method(method) {
					paths = append(paths, anyPath(r.Paths)...)
				}
			}
			for _, target := range anyPath(p.paths) {
				e.method = method
				if e.path, found, err = uncovered(target, paths); found || err != nil {
					return e, found, err
				}
			}
		}
	}
	return e, false, nil
}

// telling is methods that stand for all: those that rules name, and one that none
// of them does.
func telling(rules []Rule) []string {
	var names []string
	for _, r := range rules {
		names = append(names, r.Methods...)
	}
	names = set(names)
	for _, m := range []string{"GET", "POST", "PUT", "DELETE"} {
		if !slices.Contains(names, m) {
			return append(names, m)
		}
	}
	return append(names, strings.ToUpper(unnamed(lower(names))))
}

func lower(list []string) []string { return texts(list, strings.ToLower) }

// never is why the statement does not hold that nobody may; code is empty when it
// does.
func (ix *Index) never(namespace string, st *ztv1.Statement) (code, failure string) {
	s, err := ix.newStatement(namespace, st)
	if err != nil {
		return CodeUndecided, err.Error()
	}
	found := ix.allowed(s)
	if len(found) == 0 {
		return "", ""
	}
	e := found[0]
	failure = fmt.Sprintf("%s by %s is allowed by grant %s", e.request(), e.caller, e.grant)
	if e.conditional {
		failure += " when its conditions hold"
	}
	if others := found[1:]; len(others) > 0 {
		failure += ", and others by " + listed(texts(others, func(e example) string { return e.grant.String() }))
	}
	return CodeNever, failure
}

// always is why the statement does not hold that everybody may; code is empty when
// it does. notes is what it leaves open.
func (ix *Index) always(namespace string, st *ztv1.Statement) (code, failure string, notes []string) {
	s, err := ix.newStatement(namespace, st)
	if err != nil {
		return CodeUndecided, err.Error(), nil
	}
	e, found, err := ix.denied(s)
	switch {
	case err != nil:
		return CodeUndecided, fmt.Sprintf("%s:%s: %s", e.at.ref, e.at.port.Name, err), nil
	case found:
		return CodeAlways, fmt.Sprintf("%s by %s is not allowed by grants without conditions", e.request(), e.caller), nil
	}
	for _, at := range s.places {
		if at.asks {
			notes = append(notes, fmt.Sprintf("the external authorizer of %s may still deny", at.ref))
		}
	}
	return "", "", set(notes)
}
