package xds

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
)

// lowering turns rules into one matcher. It remembers what it has built of a rule,
// which stands in as many places as the rule has callers, paths and methods.
type lowering struct {
	b        *builder
	verdicts map[string]*onMatch    // by grant
	holds    map[*Rule][]*predicate // conditions
}

func newLowering(b *builder) *lowering {
	return &lowering{b: b, verdicts: map[string]*onMatch{}, holds: map[*Rule][]*predicate{}}
}

// lower turns rules into a matcher that allows what one of them allows and ends in
// default-deny. Its cost in the proxy is flat in the number of rules that differ
// in caller, path, method or a string claim: each of these is a map.
//
// Worked example. The rules
//
//	grant shop/a: web                       → GET /orders/**
//	grant shop/b: every workload of "shop"  → POST /orders
//	grant shop/c: web, as dept "ops"        → GET /users/*/mail
//
// become
//
//	caller = spiffe://td/ns/shop/sa/web
//	    path = /orders          method = GET    → ALLOW grant:shop/a
//	    path begins /orders/    method = GET    → ALLOW grant:shop/a
//	    first segment = users
//	        second segment is there
//	            then = /mail    method = GET
//	                dept = ops  and is a string → ALLOW grant:shop/c
//	caller begins spiffe://td/ns/shop/sa/
//	    path = /orders          method = POST   → ALLOW grant:shop/b
//	otherwise                                   → DENY  default-deny
//
// A subtree that fails falls on: from the exact path to the prefixes, from the
// longer prefix to the shorter, from the caller to its namespace, from there to
// any caller, and at last to default-deny. So rules are a union, whatever they
// have in common; POST /orders by web passes by shop/b. Nothing here widens: an
// ALLOW stands only at the end of a caller, a path, a method and conditions that
// one rule names together.
func (b *builder) lower(rules []Rule) *onMatch {
	l := newLowering(b)
	var flat []*Rule
	for i := range rules {
		flat = append(flat, &rules[i])
	}
	groups, flat := group(flat)
	t := newTree[pathTree](b)
	for _, r := range flat {
		t.add(r.Callers, func(p *pathTree) { p.add(r) })
	}
	next := callers(b, t, l.paths, b.action(ActionDefault, rbacv3.RBAC_DENY))
	fields := make([]*fieldMatch, 0, len(groups))
	for _, g := range groups {
		fields = append(fields, l.group(g))
	}
	if len(fields) == 0 {
		return next
	}
	return nest(list(next, fields...))
}

// callerTree is what each caller may do.
type callerTree[T any] struct {
	everybody []string
	exact     map[string]*T
	prefix    map[string]*T
}

func newTree[T any](b *builder) *callerTree[T] {
	return &callerTree[T]{everybody: b.everybody(), exact: map[string]*T{}, prefix: map[string]*T{}}
}

// everybody is the prefixes of Callers.Any: the trust domain and its aliases.
func (b *builder) everybody() []string {
	out := []string{domainPrefix(b.c.TrustDomain)}
	for _, td := range b.c.Aliases {
		out = append(out, domainPrefix(td))
	}
	return out
}

func domainPrefix(td string) string { return "spiffe://" + td + "/" }

// add calls f with what each of the callers may do.
func (t *callerTree[T]) add(c Callers, f func(*T)) {
	at := func(m map[string]*T, key string) {
		if m[key] == nil {
			m[key] = new(T)
		}
		f(m[key])
	}
	for _, id := range c.IDs {
		at(t.exact, id)
	}
	for _, p := range c.Prefixes {
		at(t.prefix, p)
	}
	for _, td := range c.Domains {
		at(t.prefix, domainPrefix(td))
	}
	if c.Any {
		for _, p := range t.everybody {
			at(t.prefix, p)
		}
	}
}

// callers: exact, then prefixes, the longest first, then next.
func callers[T any](b *builder, t *callerTree[T], below func(*T) *onMatch, next *onMatch) *onMatch {
	lowered := func(m map[string]*T) map[string]*onMatch {
		out := make(map[string]*onMatch, len(m))
		for key, sub := range m {
			out[key] = below(sub)
		}
		return out
	}
	next = b.byPrefix(b.callerInput(), lowered(t.prefix), next)
	return b.byExact(b.callerInput(), lowered(t.exact), next)
}

// pathTree is what one caller may do.
type pathTree struct {
	exact    map[string]*methodSet
	prefix   map[string]*methodSet // Rest: all below
	one      map[string]*methodSet // OneSegment: one segment below
	segments segment               // Pattern, and any path
}

func (t *pathTree) add(r *Rule) {
	if r.Paths == nil {
		t.segments.rest.add(r)
	}
	for _, p := range r.Paths {
		plain, ok := p.plain()
		if !ok {
			t.segments.add(r, newPattern(p.Value))
			continue
		}
		switch plain.Kind {
		case Exact:
			methods(&t.exact, plain.Value).add(r)
		case Rest:
			if plain.Value == "/" {
				methods(&t.prefix, "/").add(r)
				break
			}
			methods(&t.exact, plain.Value).add(r)
			methods(&t.prefix, plain.Value+"/").add(r)
		case OneSegment:
			methods(&t.one, plain.Value).add(r)
		case Pattern:
		}
	}
}

// paths: exact, then prefixes (longest first, then shorter), then patterns, then
// any path.
func (l *lowering) paths(t *pathTree) *onMatch {
	prefix := l.methodMap(t.prefix)
	for _, p := range slices.Sorted(maps.Keys(t.one)) {
		one := &fieldMatch{
			Predicate: l.b.matches(l.b.pathInput(), fullMatch(oneBelowExpr(p))),
			OnMatch:   l.methods(t.one[p]),
		}
		prefix[p] = nest(list(prefix[p], one)) // the rest of the same prefix comes second
	}
	next := l.b.byPrefix(l.b.pathInput(), prefix, l.segments(&t.segments, 0))
	return l.b.byExact(l.b.pathInput(), l.methodMap(t.exact), next)
}

// oneBelowExpr matches a path that has one segment, not empty, more than prefix.
// That it begins with prefix is already known.
func oneBelowExpr(prefix string) string {
	return fmt.Sprintf(`(?:/%s){%d}`, segmentBytes, strings.Count(prefix, "/"))
}

// methodSet is what may be done on one path.
type methodSet struct {
	named map[string]*leaf
	any   leaf
}

// methods is the set at key, which is made if it is not there.
func methods(m *map[string]*methodSet, key string) *methodSet {
	if *m == nil {
		*m = map[string]*methodSet{}
	}
	if (*m)[key] == nil {
		(*m)[key] = &methodSet{}
	}
	return (*m)[key]
}

func (s *methodSet) add(r *Rule) {
	if r.Methods == nil {
		s.any.add(r)
		return
	}
	for _, m := range r.Methods {
		if s.named == nil {
			s.named = map[string]*leaf{}
		}
		if s.named[m] == nil {
			s.named[m] = &leaf{}
		}
		s.named[m].add(r)
	}
}

func (l *lowering) methodMap(m map[string]*methodSet) map[string]*onMatch {
	out := make(map[string]*onMatch, len(m))
	for key, s := range m {
		out[key] = l.methods(s)
	}
	return out
}

// methods: nil if the set is empty.
func (l *lowering) methods(s *methodSet) *onMatch {
	named := make(map[string]*onMatch, len(s.named))
	for m, f := range s.named {
		named[m] = l.leaf(f, nil)
	}
	return l.b.byExact(l.b.headerInput(":method"), named, l.leaf(&s.any, nil))
}
