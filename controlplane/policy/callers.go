package policy

import (
	"fmt"
	"slices"
	"strings"

	"github.com/ztmesh/ztmesh/controlplane/spec"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// Callers is a set of callers: the union of its fields. Lists are sorted and hold
// nothing twice. The zero value is nobody.
type Callers struct {
	Workloads  []spec.Ref // under the trust domain and its aliases alike
	Namespaces []string   // every workload of these
	Any        bool       // every workload of the trust domain
	IDs        []string   // exact identities of federated trust domains
	Domains    []string   // every identity of these trust domains; of Blocks only
}

// principal is a verified identity. Those of one workload under the trust domain
// and under its aliases differ in domain only.
type principal struct {
	workload spec.Ref // zero: of a federated trust domain
	domain   string
	id       string // of a federated trust domain
}

func (p principal) own() bool { return p.id == "" }

// String is the workload, or the SPIFFE ID of somebody else's.
func (p principal) String() string {
	if p.own() {
		return p.workload.String()
	}
	return p.id
}

func (p principal) compare(o principal) int {
	if c := p.workload.Compare(o.workload); c != 0 {
		return c
	}
	if c := strings.Compare(p.domain, o.domain); c != 0 {
		return c
	}
	return strings.Compare(p.id, o.id)
}

// principal reads the identity of a certificate. It is false for one that no
// bundle of the mesh verifies, and for one of the mesh that is no workload's.
func (ix *Index) principal(id string) (principal, bool) {
	domain, ok := domainOf(id)
	if !ok {
		return principal{}, false
	}
	t := ix.trust()
	if domain == ix.trustDomain || slices.Contains(t.Aliases, domain) {
		ref, ok := parseID(domain, id)
		return principal{workload: ref, domain: domain}, ok
	}
	_, federated := slices.BinarySearch(t.Federated, domain)
	return principal{domain: domain, id: id}, federated
}

// ids are the SPIFFE IDs under which p connects.
func (ix *Index) ids(p principal) []string {
	if !p.own() {
		return []string{p.id}
	}
	ids := []string{ID(ix.trustDomain, p.workload)}
	for _, alias := range ix.trust().Aliases {
		ids = append(ids, ID(alias, p.workload))
	}
	return ids
}

// domainOf is the trust domain of a SPIFFE ID with a path, in its one spelling
// (SPIFFE-ID, section 2).
func domainOf(id string) (string, bool) {
	rest, ok := strings.CutPrefix(id, "spiffe://")
	if !ok || len(id) > 2048 {
		return "", false
	}
	domain, path, ok := strings.Cut(rest, "/")
	if !ok || domain == "" || strings.Trim(domain, "abcdefghijklmnopqrstuvwxyz0123456789-._") != "" {
		return "", false
	}
	for segment := range strings.SplitSeq(path, "/") {
		if segment == "" || segment == "." || segment == ".." {
			return "", false
		}
		for i := range len(segment) {
			if c := segment[i]; !unreserved(c) || c == '~' {
				return "", false
			}
		}
	}
	return domain, true
}

// has tells whether p is one of c, declared or not.
func (c Callers) has(p principal) bool {
	if _, found := slices.BinarySearch(c.Domains, p.domain); found {
		return true
	}
	if !p.own() {
		_, found := slices.BinarySearch(c.IDs, p.id)
		return found
	}
	if c.Any {
		return true
	}
	if _, found := slices.BinarySearch(c.Namespaces, p.workload.Namespace); found {
		return true
	}
	_, found := slices.BinarySearchFunc(c.Workloads, p.workload, spec.Ref.Compare)
	return found
}

func (c Callers) none() bool {
	return !c.Any && len(c.Namespaces) == 0 && len(c.Workloads) == 0 && len(c.IDs) == 0 && len(c.Domains) == 0
}

func (c Callers) equal(o Callers) bool {
	return c.Any == o.Any && slices.Equal(c.Namespaces, o.Namespaces) && slices.Equal(c.Workloads, o.Workloads) &&
		slices.Equal(c.IDs, o.IDs) && slices.Equal(c.Domains, o.Domains)
}

// union is who is of either.
func (c Callers) union(o Callers) Callers {
	return Callers{
		Any:        c.Any || o.Any,
		Workloads:  refSet(slices.Concat(c.Workloads, o.Workloads)),
		Namespaces: set(slices.Concat(c.Namespaces, o.Namespaces)),
		IDs:        set(slices.Concat(c.IDs, o.IDs)),
		Domains:    set(slices.Concat(c.Domains, o.Domains)),
	}
}

// intersect is who is of both, neither of which has Domains.
func (c Callers) intersect(o Callers) Callers {
	out := Callers{Any: c.Any && o.Any, IDs: common(c.IDs, o.IDs)}
	switch {
	case c.Any:
		out.Namespaces, out.Workloads = o.Namespaces, o.Workloads
	case o.Any:
		out.Namespaces, out.Workloads = c.Namespaces, c.Workloads
	default:
		out.Namespaces = common(c.Namespaces, o.Namespaces)
		for _, side := range [2][2]Callers{{c, o}, {o, c}} {
			for _, w := range side[0].Workloads {
				if side[1].has(principal{workload: w}) {
					out.Workloads = append(out.Workloads, w)
				}
			}
		}
		out.Workloads = refSet(out.Workloads)
	}
	return out
}

// meets tells whether somebody may be of both. domains tells of which trust
// domains an identity of the mesh may be.
func (c Callers) meets(o Callers, domains []string) bool {
	if c.Any && (o.Any || len(o.Namespaces) > 0 || len(o.Workloads) > 0) || o.Any && (len(c.Namespaces) > 0 || len(c.Workloads) > 0) {
		return true
	}
	if len(c.Namespaces) > 0 && len(o.Namespaces) > 0 && common(c.Namespaces, o.Namespaces) != nil || common(c.IDs, o.IDs) != nil {
		return true
	}
	if c.hasAny(o.Workloads) || o.hasAny(c.Workloads) {
		return true
	}
	for _, side := range [2][2]Callers{{c, o}, {o, c}} {
		for _, d := range side[0].Domains {
			of := side[1]
			if _, same := slices.BinarySearch(of.Domains, d); same {
				return true
			}
			if slices.Contains(domains, d) && (of.Any || len(of.Namespaces) > 0 || len(of.Workloads) > 0) {
				return true
			}
			if slices.ContainsFunc(of.IDs, func(id string) bool { return strings.HasPrefix(id, "spiffe://"+d+"/") }) {
				return true
			}
		}
	}
	return false
}

func (c Callers) hasAny(list []spec.Ref) bool {
	return slices.ContainsFunc(list, func(w spec.Ref) bool { return c.has(principal{workload: w}) })
}

// String is c as a grant would say it: "shop/web, shop/admin".
func (c Callers) String() string {
	if c.Any {
		return "any workload"
	}
	var parts []string
	if len(c.Namespaces) > 0 {
		parts = append(parts, "namespaces "+listed(c.Namespaces))
	}
	if len(c.Domains) > 0 {
		parts = append(parts, "trust domains "+listed(c.Domains))
	}
	if names := append(texts(c.Workloads, spec.Ref.String), c.IDs...); len(names) > 0 {
		parts = append(parts, listed(names))
	}
	if parts == nil {
		return "nobody"
	}
	return strings.Join(parts, ", ")
}

// named is the callers as a document names them: segments, aliases and federated
// trust domains are other documents' to say.
type named struct {
	Callers           // IDs may be of aliases, or of nobody
	segments []string // sorted
}

// newNamed reads a Caller. One that sets several fields, or none, is nobody.
func newNamed(trustDomain, namespace string, from *ztv1.Caller) named {
	var n named
	fields := 0
	for _, is := range []bool{
		from.GetAnyWorkload(), len(from.GetNamespaces()) > 0, len(from.GetWorkloads()) > 0,
		len(from.GetSegments()) > 0, len(from.GetSpiffeIds()) > 0,
	} {
		if is {
			fields++
		}
	}
	if fields != 1 {
		return named{}
	}
	n.Any = from.GetAnyWorkload()
	n.Namespaces = set(from.GetNamespaces())
	n.Workloads = references(from.GetWorkloads(), namespace)
	n.segments = set(from.GetSegments())
	n.identities(trustDomain, from.GetSpiffeIds())
	return n
}

// identities adds SPIFFE IDs. Those of the trust domain are workloads.
func (n *named) identities(trustDomain string, ids []string) {
	for _, id := range ids {
		if ref, ok := parseID(trustDomain, id); ok {
			n.Workloads = append(n.Workloads, ref)
		} else {
			n.IDs = append(n.IDs, id)
		}
	}
	n.Workloads, n.IDs = refSet(n.Workloads), set(n.IDs)
}

func (n named) equal(o named) bool {
	return n.Callers.equal(o.Callers) && slices.Equal(n.segments, o.segments)
}

// callers is who n means in this spec.
func (ix *Index) callers(n named) Callers {
	if n.segments == nil && n.IDs == nil {
		return n.Callers
	}
	c := n.Callers
	c.IDs = nil
	for _, id := range n.IDs {
		p, ok := ix.principal(id)
		switch {
		case !ok: // nobody bears it
		case p.own():
			c.Workloads = append(slices.Clip(c.Workloads), p.workload)
		default:
			c.IDs = append(c.IDs, id)
		}
	}
	c.Workloads = refSet(slices.Clone(c.Workloads))
	for _, name := range n.segments {
		c = c.union(ix.segments.members[name])
	}
	return c
}

// The terms under which Index.byCaller lists a grant. None is a prefix of
// another.
const anyTerm = "a\x00"

func namespaceTerm(ns string) string      { return "n\x00" + ns + "\x00" }
func workloadTerm(caller spec.Ref) string { return "w\x00" + string(key(caller)) }
func segmentTerm(name string) string      { return "s\x00" + name + "\x00" }
func idTerm(id string) string             { return "i\x00" + id + "\x00" }

func (n named) terms() []string {
	var terms []string
	if n.Any {
		terms = append(terms, anyTerm)
	}
	for _, ns := range n.Namespaces {
		terms = append(terms, namespaceTerm(ns))
	}
	for _, w := range n.Workloads {
		terms = append(terms, workloadTerm(w))
	}
	for _, s := range n.segments {
		terms = append(terms, segmentTerm(s))
	}
	for _, id := range n.IDs {
		terms = append(terms, idTerm(id))
	}
	return terms
}

// termsOf are the terms under which the grants of p may be listed.
func (ix *Index) termsOf(p principal) []string {
	if !p.own() {
		return []string{idTerm(p.id)}
	}
	terms := []string{anyTerm, namespaceTerm(p.workload.Namespace), workloadTerm(p.workload)}
	for _, s := range ix.segments.of(p.workload) {
		terms = append(terms, segmentTerm(s.ref.Name))
	}
	for _, id := range ix.ids(p) {
		terms = append(terms, idTerm(id))
	}
	return terms
}

// expand is the principals that c names, sorted: declared workloads, and
// identities of federated trust domains.
func (ix *Index) expand(c Callers) []principal {
	var out []principal
	add := func(w *Workload) bool {
		out = append(out, principal{workload: w.Ref, domain: ix.trustDomain})
		return true
	}
	if c.Any {
		walk(ix.workloads, nil, add)
	} else {
		for _, ns := range c.Namespaces {
			walk(ix.workloads, []byte(ns+"\x00"), add)
		}
		for _, ref := range c.Workloads {
			if w, ok := ix.Workload(ref); ok {
				add(w)
			}
		}
	}
	for _, id := range c.IDs {
		if p, ok := ix.principal(id); ok {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, principal.compare)
	return slices.Compact(out)
}

// declared tells whether p may connect at all: a workload of the mesh must be
// declared.
func (ix *Index) declared(p principal) bool {
	if !p.own() {
		return true
	}
	_, ok := ix.Workload(p.workload)
	return ok
}

// references reads a list of references; what is none names nothing.
func references(list []string, namespace string) []spec.Ref {
	var out []spec.Ref
	for _, s := range list {
		if ref, err := spec.ParseRef(s, namespace); err == nil {
			out = append(out, ref)
		}
	}
	return refSet(out)
}

// common is the items of both sorted lists; nil for none.
func common(a, b []string) []string {
	var out []string
	for _, s := range a {
		if _, found := slices.BinarySearch(b, s); found {
			out = append(out, s)
		}
	}
	return out
}

func (ix *Index) transportHint(id string) string {
	if id == "" {
		return "the caller has no identity"
	}
	return fmt.Sprintf("%q is not a workload of trust domain %s", id, ix.trustDomain)
}
