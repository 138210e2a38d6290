package policy

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/ztmesh/ztmesh/controlplane/spec"
)

// maxHints bounds the hints of one denial, maxListed the items of a list in one.
const (
	maxHints  = 3
	maxListed = 4
)

// miss is how far a grant to the service is from allowing a request.
type miss struct {
	grant  spec.Ref
	failed []string // a text for each field that fails: "allows GET, not DELETE"
	change string   // the smallest change, when one field fails
	caller bool     // the caller is one of those that fail
}

// compare orders the nearest first: by the number of fields, and of those with
// one number the grants that are for the caller, since to widen what a caller
// may do is less than to admit another.
func (m miss) compare(o miss) int {
	strangers := func(m miss) int {
		if m.caller {
			return 1
		}
		return 0
	}
	return cmp.Or(cmp.Compare(len(m.failed), len(o.failed)), cmp.Compare(strangers(m), strangers(o)))
}

// hints names the grants that are nearest to allowing a request, and what of
// them fails:
//
//	grant shop/web-reads-orders allows GET, not DELETE: add DELETE to its methods
func (ix *Index) hints(caller spec.Ref, w *Workload, p *Port, r Request) []string {
	if _, declared := ix.Workload(caller); !declared {
		return []string{fmt.Sprintf("no workload %s is declared", caller)}
	}
	var misses []miss
	walk(ix.byService, key(w.Ref), func(g *grant) bool {
		if m := g.miss(caller, w, p, r); len(m.failed) > 0 {
			misses = append(misses, m)
		}
		return true
	})
	if len(misses) == 0 {
		return []string{fmt.Sprintf("no grant is to %s: one in namespace %s, from %s to %s, would allow it",
			w.Ref, w.Ref.Namespace, caller, w.Ref.Name)}
	}
	slices.SortStableFunc(misses, func(a, b miss) int {
		return cmp.Or(a.compare(b), a.grant.Compare(b.grant))
	})
	var hints []string
	for _, m := range misses {
		if len(hints) == maxHints || m.compare(misses[0]) > 0 {
			break
		}
		hint := fmt.Sprintf("grant %s %s", m.grant, strings.Join(m.failed, " and "))
		if len(m.failed) == 1 {
			hint += ": " + m.change
		}
		hints = append(hints, hint)
	}
	return hints
}

// miss compares the fields of g, which is to w, with a request to one of w's
// ports.
func (g *grant) miss(caller spec.Ref, w *Workload, p *Port, r Request) miss {
	m := miss{grant: g.ref}
	fail := func(what, change string) { m.failed, m.change = append(m.failed, what), change }
	if !g.callers.Has(caller) {
		m.caller = true
		fail(fmt.Sprintf("is for %s, not %s", g.callers, caller), fmt.Sprintf("add %s to its callers", caller))
	}
	rule, ok := g.rule(w, p)
	switch {
	case !g.names(w, p) && g.ports == nil:
		fail("names no port of several", fmt.Sprintf("add ports: [%s]", p.Name))
	case !g.names(w, p):
		fail(fmt.Sprintf("is to %s, not port %s", listed(g.ports), p.Name), fmt.Sprintf("add %s to its ports", p.Name))
	case !ok:
		if !g.callers.none() {
			fail(fmt.Sprintf("has methods or paths that a %s port does not have", p.Protocol), "correct them")
		}
	case r.TCP:
	case p.Protocol == GRPC && !rule.allows(r.Method, r.Path):
		called := strings.TrimPrefix(r.Path, "/")
		fail(fmt.Sprintf("allows %s, not %s", grpcMethods(rule.Paths), called), fmt.Sprintf("add %s to its methods", called))
	default:
		if !rule.method(r.Method) {
			fail(fmt.Sprintf("allows %s, not %s", listed(rule.Methods), r.Method), fmt.Sprintf("add %s to its methods", r.Method))
		}
		if !rule.path(r.Path) {
			fail(fmt.Sprintf("allows %s, not %s", pathList(rule.Paths), r.Path), fmt.Sprintf("add %s to its paths", r.Path))
		}
	}
	return m
}

// String is c as a grant would say it: "shop/web, shop/admin".
func (c Callers) String() string {
	switch {
	case c.Any:
		return "any workload"
	case len(c.Namespaces) > 0:
		return "namespaces " + listed(c.Namespaces)
	case len(c.Workloads) > 0:
		return listed(texts(c.Workloads, spec.Ref.String))
	}
	return "nobody"
}

func pathList(paths []Path) string { return listed(texts(paths, Path.String)) }

func grpcMethods(paths []Path) string {
	return listed(texts(paths, func(p Path) string { return strings.TrimPrefix(p.String(), "/") }))
}

func (w *Workload) portList() string {
	if len(w.Ports) == 0 {
		return "no ports"
	}
	return "the ports " + listed(texts(w.Ports, func(p Port) string { return p.Name }))
}

func texts[T any](list []T, text func(T) string) []string {
	out := make([]string, len(list))
	for i, v := range list {
		out[i] = text(v)
	}
	return out
}

// listed is a short list: "a, b, c, d and 3 more".
func listed(items []string) string {
	if len(items) <= maxListed {
		return strings.Join(items, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(items[:maxListed], ", "), len(items)-maxListed)
}

func transportHint(trustDomain, id string) string {
	if id == "" {
		return "the caller has no identity"
	}
	return fmt.Sprintf("%q is not a workload of trust domain %s", id, trustDomain)
}
