package policy

import (
	"slices"
	"strings"

	iradix "github.com/hashicorp/go-immutable-radix/v2"

	"github.com/ztmesh/ztmesh/controlplane/spec"
)

// Index is a set of documents, arranged for questions. It never changes; With
// makes another one that shares what is equal.
type Index struct {
	trustDomain string
	mesh        *mesh         // the first of meshes, or the defaults
	segments    *segmentation // of segmentsByRef

	meshes         *iradix.Tree[*mesh]      // by key(ref), as all that has no other key
	workloads      *iradix.Tree[*Workload]  //
	services       *iradix.Tree[*service]   //
	grants         *iradix.Tree[*grant]     //
	blocks         *iradix.Tree[*block]     //
	providers      *iradix.Tree[*Provider]  // by name; those of the namespace "mesh"
	segmentsByRef  *iradix.Tree[*segment]   //
	exceptionByRef *iradix.Tree[*exception] //

	byService   *iradix.Tree[*grant]     // by service named and grant
	wide        *iradix.Tree[*grant]     // those that reach across namespaces
	shadows     *iradix.Tree[*grant]     // those of mode shadow
	byCaller    *iradix.Tree[*grant]     // by caller term and grant
	byProvider  *iradix.Tree[*grant]     // by provider named and grant
	memberships *iradix.Tree[*service]   // by workload and Service
	tcpCallers  *iradix.Tree[spec.Ref]   // by callee named and caller
	bySubject   *iradix.Tree[*exception] // by exceptionKey and exception
	timed       *iradix.Tree[timed]      // by key(ref) and kind: what time begins or ends
}

// New is the index of docs. Of two documents with one key the later counts;
// spec.Check refuses such a set.
func New(trustDomain string, docs []*spec.Document) *Index {
	empty := &Index{
		trustDomain:    trustDomain,
		meshes:         iradix.New[*mesh](),
		workloads:      iradix.New[*Workload](),
		services:       iradix.New[*service](),
		grants:         iradix.New[*grant](),
		blocks:         iradix.New[*block](),
		providers:      iradix.New[*Provider](),
		segmentsByRef:  iradix.New[*segment](),
		exceptionByRef: iradix.New[*exception](),
		byService:      iradix.New[*grant](),
		wide:           iradix.New[*grant](),
		shadows:        iradix.New[*grant](),
		byCaller:       iradix.New[*grant](),
		byProvider:     iradix.New[*grant](),
		memberships:    iradix.New[*service](),
		tcpCallers:     iradix.New[spec.Ref](),
		bySubject:      iradix.New[*exception](),
		timed:          iradix.New[timed](),
	}
	return empty.With(docs, nil)
}

// With is the index after a change: the keys in deletes are gone, then puts are
// added, each replacing the document of its key. It costs what changes; a change
// of a Segment costs all Segments.
func (ix *Index) With(puts []*spec.Document, deletes []spec.Key) *Index {
	c := ix.change()
	for _, k := range deletes {
		c.remove(k)
	}
	for _, d := range puts {
		c.remove(d.Key())
		c.put(d)
	}
	next := c.commit()
	next.mesh = newMesh(ix.trustDomain, nil)
	if _, m, ok := next.meshes.Root().Minimum(); ok {
		next.mesh = m
	}
	next.segments = ix.segments
	if next.segments == nil || next.segmentsByRef != ix.segmentsByRef {
		next.segments = newSegmentation(next.segmentsByRef)
	}
	return next
}

// TrustDomain is the trust domain of all workloads.
func (ix *Index) TrustDomain() string { return ix.trustDomain }

// Workload is the declared workload of that name. It must not be changed.
func (ix *Index) Workload(ref spec.Ref) (*Workload, bool) {
	var room [keyRoom]byte
	return ix.workloads.Get(appendKey(room[:0], ref))
}

// Workloads calls f with every workload in order of Ref until f returns false.
func (ix *Index) Workloads(f func(*Workload) bool) { walk(ix.workloads, nil, f) }

// Rules is what the enforced grants that reach a port of the workload, or the
// external service, ref allow, sorted by grant. What the callee's Segment demands
// is in them. nil when the service, the port or a grant to it does not exist.
func (ix *Index) Rules(ref spec.Ref, port string) []Rule { return ix.rulesAt(ref, port, false) }

// ShadowRules is Rules with shadow grants counted as enforced ones.
func (ix *Index) ShadowRules(ref spec.Ref, port string) []Rule { return ix.rulesAt(ref, port, true) }

func (ix *Index) rulesAt(ref spec.Ref, port string, shadow bool) []Rule {
	if s, p := ix.port(ref, port); p != nil {
		return ix.rules(s, p, shadow)
	}
	if e, ok := ix.externals(ref); ok && port == spec.ExternalPort {
		return ix.externalRules(e, shadow)
	}
	return nil
}

// Inbound is how requests to one port of a workload are judged, and who may
// connect: what Rules, Callers, Blocks, Plaintext and HostsOf say one by one.
type Inbound struct {
	Rules     []Rule
	Callers   []string
	Blocks    []Block
	Plaintext []Plaintext
	Hosts     []string
}

// Inbound is zero when the workload or the port does not exist.
func (ix *Index) Inbound(ref spec.Ref, port string) Inbound {
	s, p := ix.port(ref, port)
	if p == nil {
		return Inbound{}
	}
	rules := ix.rules(s, p, false)
	in := Inbound{Rules: rules, Callers: ix.callersOfRules(rules), Plaintext: ix.Plaintext(ref, port), Hosts: s.hosts(port)}
	if ix.blocks.Len() > 0 {
		in.Blocks = ix.blocksOf(s.target, rules, p.Protocol)
	}
	return in
}

// HasShadow tells whether a shadow grant reaches some port of the workload ref, or
// an external service that it calls.
func (ix *Index) HasShadow(ref spec.Ref) bool {
	if ix.shadows.Len() == 0 {
		return false
	}
	s, ok := ix.site(ref)
	if !ok {
		return false
	}
	shadows := func(r Rule) bool { return r.shadow }
	for i := range s.w.Ports {
		if slices.ContainsFunc(ix.rules(s, &s.w.Ports[i], true), shadows) {
			return true
		}
	}
	caller := principal{workload: ref, domain: ix.trustDomain}
	found := false
	ix.grantsFrom(caller, func(g *grant) {
		found = found || g.shadow && slices.ContainsFunc(g.services, func(s spec.Ref) bool {
			e, ok := ix.externals(s)
			return ok && slices.ContainsFunc(ix.externalRules(e, true), func(r Rule) bool {
				return r.shadow && r.Callers.has(caller)
			})
		})
	})
	return found
}

// Authorizer is who is asked after a grant has matched on an HTTP port of ref.
func (ix *Index) Authorizer(ref spec.Ref) (*Authorizer, bool) {
	w, ok := ix.Workload(ref)
	if !ok || w.Authorizer == nil {
		return nil, false
	}
	return w.Authorizer, true
}

// Calls is the tcp calls of caller that some grant lets it make, sorted by
// LocalPort, each with the port that it leads to: the one that it names, or else
// the only tcp port of the service. A call that leads nowhere is left out.
func (ix *Index) Calls(caller spec.Ref) []TCPCall {
	w, ok := ix.Workload(caller)
	if !ok {
		return nil
	}
	p := principal{workload: caller, domain: ix.trustDomain}
	var out []TCPCall
	for _, c := range w.TCPCalls {
		var ports []string
		for _, d := range ix.destinationsOf(edge{p, c.Service}) {
			if d.Port.Protocol == TCP {
				ports = append(ports, d.Port.Name)
			}
		}
		if e, ok := ix.egress(p, c.Service, false); ok && e.Protocol == TCP {
			ports = append(ports, spec.ExternalPort)
		}
		if c.Port == "" {
			c.Port = ix.onlyTCP(c.Service)
		}
		if slices.Contains(ports, c.Port) {
			out = append(out, c)
		}
	}
	return out
}

// onlyTCP is the one tcp port of a service; empty when it has none or several.
func (ix *Index) onlyTCP(ref spec.Ref) string {
	var ports []Port
	if s, ok := ix.serviceOf(ref); ok {
		ports = ix.portsOf(s)
		if e, ok := ix.externals(ref); ok {
			ports = []Port{*externalPort(e.external)}
		}
	} else if w, ok := ix.Workload(ref); ok {
		ports = w.Ports
	}
	found := ""
	for _, p := range ports {
		if p.Protocol == TCP {
			if found != "" {
				return ""
			}
			found = p.Name
		}
	}
	return found
}

// port finds a port of a workload by name; nil when there is none.
func (ix *Index) port(ref spec.Ref, name string) (*site, *Port) {
	s, ok := ix.site(ref)
	if !ok {
		return nil, nil
	}
	return s, s.w.port(name)
}

// grantsFrom calls f with every grant that may admit p, each once.
func (ix *Index) grantsFrom(p principal, f func(*grant)) {
	terms := ix.termsOf(p)
	if len(terms) == 4 { // of one kind each: a grant stands under one of them
		for _, term := range terms {
			walk(ix.byCaller, []byte(term), func(g *grant) bool {
				f(g)
				return true
			})
		}
		return
	}
	seen := map[*grant]bool{}
	for _, term := range terms {
		walk(ix.byCaller, []byte(term), func(g *grant) bool {
			if !seen[g] {
				seen[g] = true
				f(g)
			}
			return true
		})
	}
}

// change is an Index being made.
type change struct {
	trustDomain string
	meshes      *iradix.Txn[*mesh]
	workloads   *iradix.Txn[*Workload]
	services    *iradix.Txn[*service]
	grants      *iradix.Txn[*grant]
	blocks      *iradix.Txn[*block]
	providers   *iradix.Txn[*Provider]
	segments    *iradix.Txn[*segment]
	exceptions  *iradix.Txn[*exception]
	byService   *iradix.Txn[*grant]
	wide        *iradix.Txn[*grant]
	shadows     *iradix.Txn[*grant]
	byCaller    *iradix.Txn[*grant]
	byProvider  *iradix.Txn[*grant]
	memberships *iradix.Txn[*service]
	tcpCallers  *iradix.Txn[spec.Ref]
	bySubject   *iradix.Txn[*exception]
	timed       *iradix.Txn[timed]
}

func (ix *Index) change() *change {
	return &change{
		ix.trustDomain, ix.meshes.Txn(), ix.workloads.Txn(), ix.services.Txn(), ix.grants.Txn(), ix.blocks.Txn(),
		ix.providers.Txn(), ix.segmentsByRef.Txn(), ix.exceptionByRef.Txn(), ix.byService.Txn(), ix.wide.Txn(), ix.shadows.Txn(), ix.byCaller.Txn(),
		ix.byProvider.Txn(), ix.memberships.Txn(), ix.tcpCallers.Txn(), ix.bySubject.Txn(), ix.timed.Txn(),
	}
}

func (c *change) commit() *Index {
	return &Index{
		c.trustDomain, nil, nil, c.meshes.Commit(), c.workloads.Commit(), c.services.Commit(), c.grants.Commit(), c.blocks.Commit(),
		c.providers.Commit(), c.segments.Commit(), c.exceptions.Commit(), c.byService.Commit(), c.wide.Commit(), c.shadows.Commit(), c.byCaller.Commit(),
		c.byProvider.Commit(), c.memberships.Commit(), c.tcpCallers.Commit(), c.bySubject.Commit(), c.timed.Commit(),
	}
}

func (c *change) put(d *spec.Document) {
	ref := d.Ref()
	k := key(ref)
	switch {
	case d.GetMesh() != nil:
		c.meshes.Insert(k, newMesh(c.trustDomain, d.GetMesh()))
	case d.GetWorkload() != nil:
		w := newWorkload(c.trustDomain, ref, d.GetWorkload())
		c.workloads.Insert(k, w)
		for _, call := range w.TCPCalls {
			c.tcpCallers.Insert(pairKey(key(call.Service), ref), ref)
		}
	case d.GetService() != nil:
		s := newService(ref, d.GetService())
		c.services.Insert(k, s)
		for _, m := range s.members {
			c.memberships.Insert(pairKey(key(m), ref), s)
		}
	case d.GetGrant() != nil:
		if g := newGrant(c.trustDomain, ref, d.GetGrant()); g != nil {
			c.grant(g)
		}
	case d.GetBlock() != nil:
		b := newBlock(c.trustDomain, ref, d.GetBlock())
		c.blocks.Insert(k, b)
		c.time(d.Key(), Conditions{Until: b.until})
	case d.GetIdentityProvider() != nil && ref.Namespace == spec.MeshNamespace:
		c.providers.Insert([]byte(ref.Name), newProvider(ref, d.GetIdentityProvider()))
	case d.GetSegment() != nil:
		c.segments.Insert(k, newSegment(ref, d.GetSegment()))
	case d.GetException() != nil:
		if e := newException(ref, d.GetException()); e != nil {
			c.exceptions.Insert(k, e)
			c.bySubject.Insert(pairKey(exceptionKey(e.finding, e.subject, e.port), ref), e)
			c.time(d.Key(), Conditions{Until: e.until})
		}
	}
}

func (c *change) grant(g *grant) {
	c.grants.Insert(key(g.ref), g)
	for _, s := range g.services {
		c.byService.Insert(pairKey(key(s), g.ref), g)
	}
	if g.wide() {
		c.wide.Insert(key(g.ref), g)
	}
	if g.shadow {
		c.shadows.Insert(key(g.ref), g)
	}
	for _, term := range g.callers.terms() {
		c.byCaller.Insert(pairKey(term, g.ref), g)
	}
	if u := g.conditions.Users; u != nil {
		c.byProvider.Insert(pairKey(u.Provider+"\x00", g.ref), g)
	}
	c.time(spec.Key{Kind: spec.KindGrant, Namespace: g.ref.Namespace, Name: g.ref.Name}, g.conditions)
}

// time notes what the time begins or ends.
func (c *change) time(k spec.Key, when Conditions) {
	if !when.Until.IsZero() || when.Windows != nil {
		c.timed.Insert(timedKey(k), timed{k, when})
	}
}

func timedKey(k spec.Key) []byte {
	return append(key(spec.Ref{Namespace: k.Namespace, Name: k.Name}), k.Kind...)
}

func (c *change) remove(k spec.Key) {
	ref := spec.Ref{Namespace: k.Namespace, Name: k.Name}
	at := key(ref)
	switch k.Kind {
	case spec.KindMesh:
		c.meshes.Delete(at)
	case spec.KindWorkload:
		if w, ok := c.workloads.Delete(at); ok {
			for _, call := range w.TCPCalls {
				c.tcpCallers.Delete(pairKey(key(call.Service), ref))
			}
		}
	case spec.KindService:
		if s, ok := c.services.Delete(at); ok {
			for _, m := range s.members {
				c.memberships.Delete(pairKey(key(m), ref))
			}
		}
	case spec.KindGrant:
		if g, ok := c.grants.Delete(at); ok {
			c.removeGrant(g)
			c.timed.Delete(timedKey(k))
		}
	case spec.KindBlock:
		c.blocks.Delete(at)
		c.timed.Delete(timedKey(k))
	case spec.KindIdentityProvider:
		if ref.Namespace == spec.MeshNamespace {
			c.providers.Delete([]byte(ref.Name))
		}
	case spec.KindSegment:
		c.segments.Delete(at)
	case spec.KindException:
		if e, ok := c.exceptions.Delete(at); ok {
			c.bySubject.Delete(pairKey(exceptionKey(e.finding, e.subject, e.port), ref))
			c.timed.Delete(timedKey(k))
		}
	}
}

func (c *change) removeGrant(g *grant) {
	for _, s := range g.services {
		c.byService.Delete(pairKey(key(s), g.ref))
	}
	c.wide.Delete(key(g.ref))
	c.shadows.Delete(key(g.ref))
	for _, term := range g.callers.terms() {
		c.byCaller.Delete(pairKey(term, g.ref))
	}
	if u := g.conditions.Users; u != nil {
		c.byProvider.Delete(pairKey(u.Provider+"\x00", g.ref))
	}
}

// key is a Ref as a radix key. It ends in a zero byte, so that no key is a
// prefix of another and a namespace with its zero byte is a prefix of its own
// keys only.
func key(r spec.Ref) []byte { return appendKey(make([]byte, 0, keySize(r)), r) }

func appendKey(b []byte, r spec.Ref) []byte {
	return append(append(append(append(b, r.Namespace...), 0), r.Name...), 0)
}

func keySize(r spec.Ref) int { return len(r.Namespace) + len(r.Name) + 2 }

// keyRoom is enough for a key of DNS labels, so that one that is only looked up
// needs no memory of its own.
const keyRoom = 128

// pairKey is the key of r below a prefix: a term, or key.
func pairKey[P ~string | ~[]byte](prefix P, r spec.Ref) []byte {
	b := make([]byte, 0, len(prefix)+keySize(r))
	return appendKey(append(b, prefix...), r)
}

// walk calls f with the values under prefix in order of their keys until f
// returns false.
func walk[T any](t *iradix.Tree[T], prefix []byte, f func(T) bool) {
	t.Root().WalkPrefix(prefix, func(_ []byte, v T) bool { return !f(v) })
}

func sortedKeys[V any](m map[spec.Ref]V) []spec.Ref {
	out := make([]spec.Ref, 0, len(m))
	for ref := range m {
		out = append(out, ref)
	}
	slices.SortFunc(out, spec.Ref.Compare)
	return out
}

func comparePorts(a, b Port) int {
	if a.Number != b.Number {
		return int(a.Number) - int(b.Number)
	}
	return strings.Compare(a.Name, b.Name)
}
