package policy

import (
	"slices"
	"strings"
	"time"

	iradix "github.com/hashicorp/go-immutable-radix/v2"

	"github.com/ztmesh/ztmesh/controlplane/spec"
)

// Index is a set of documents, arranged for questions. It never changes; With
// makes another one that shares what is equal.
type Index struct {
	trustDomain string
	meshes      *iradix.Tree[MeshSettings] // by name; a checked spec has at most one
	workloads   *iradix.Tree[*Workload]    // by key(ref)
	grants      *iradix.Tree[*grant]       // by key(ref)
	byService   *iradix.Tree[*grant]       // by service and grant
	byCaller    *iradix.Tree[*grant]       // by caller term and grant
	tcpCallers  *iradix.Tree[spec.Ref]     // by callee and caller
}

// MeshSettings is what the Mesh document says, with the defaults filled in.
type MeshSettings struct {
	SVIDTTL          time.Duration
	MaxConnectionAge time.Duration
}

// New is the index of docs. Of two documents with one key the later counts;
// spec.Check refuses such a set.
func New(trustDomain string, docs []*spec.Document) *Index {
	empty := &Index{
		trustDomain: trustDomain,
		meshes:      iradix.New[MeshSettings](),
		workloads:   iradix.New[*Workload](),
		grants:      iradix.New[*grant](),
		byService:   iradix.New[*grant](),
		byCaller:    iradix.New[*grant](),
		tcpCallers:  iradix.New[spec.Ref](),
	}
	return empty.With(docs, nil)
}

// With is the index after a change: the keys in deletes are gone, then puts are
// added, each replacing the document of its key. It costs what changes.
func (ix *Index) With(puts []*spec.Document, deletes []spec.Key) *Index {
	c := &change{
		trustDomain: ix.trustDomain,
		meshes:      ix.meshes.Txn(),
		workloads:   ix.workloads.Txn(),
		grants:      ix.grants.Txn(),
		byService:   ix.byService.Txn(),
		byCaller:    ix.byCaller.Txn(),
		tcpCallers:  ix.tcpCallers.Txn(),
	}
	for _, k := range deletes {
		c.remove(k)
	}
	for _, d := range puts {
		c.remove(d.Key())
		c.put(d)
	}
	return &Index{
		trustDomain: ix.trustDomain,
		meshes:      c.meshes.Commit(),
		workloads:   c.workloads.Commit(),
		grants:      c.grants.Commit(),
		byService:   c.byService.Commit(),
		byCaller:    c.byCaller.Commit(),
		tcpCallers:  c.tcpCallers.Commit(),
	}
}

// TrustDomain is the trust domain of all workloads.
func (ix *Index) TrustDomain() string { return ix.trustDomain }

// Mesh is the fleet-wide settings.
func (ix *Index) Mesh() MeshSettings {
	if _, m, ok := ix.meshes.Root().Minimum(); ok {
		return m
	}
	return MeshSettings{SVIDTTL: spec.DefaultSVIDTTL, MaxConnectionAge: spec.DefaultMaxConnectionAge}
}

// Workload is the declared workload of that name. It must not be changed.
func (ix *Index) Workload(ref spec.Ref) (*Workload, bool) { return ix.workloads.Get(key(ref)) }

// Workloads calls f with every workload in order of Ref until f returns false.
func (ix *Index) Workloads(f func(*Workload) bool) {
	walk(ix.workloads, nil, f)
}

// Rules is what the grants that reach a port of a service allow, sorted by
// grant. nil when the service, the port or a grant to it does not exist.
func (ix *Index) Rules(ref spec.Ref, port string) []Rule {
	w, p := ix.port(ref, port)
	if p == nil {
		return nil
	}
	var rules []Rule
	walk(ix.byService, key(ref), func(g *grant) bool {
		if r, ok := g.rule(w, p); ok {
			rules = append(rules, r)
		}
		return true
	})
	return rules
}

// Callers is every declared workload that some rule of the port admits, sorted:
// the gate of the port.
func (ix *Index) Callers(ref spec.Ref, port string) []spec.Ref {
	rules := ix.Rules(ref, port)
	set := map[spec.Ref]bool{}
	for _, r := range rules {
		if r.Callers.Any {
			set = nil
			break
		}
	}
	if set == nil {
		return ix.expand(Callers{Any: true})
	}
	for _, r := range rules {
		for _, caller := range ix.expand(r.Callers) {
			set[caller] = true
		}
	}
	return sortedRefs(set)
}

// Admits tells whether some rule of the port admits caller, which must be
// declared: whether the gate of (service, port, caller) is open.
func (ix *Index) Admits(service spec.Ref, port string, caller spec.Ref) bool {
	w, p := ix.port(service, port)
	if p == nil {
		return false
	}
	if _, declared := ix.Workload(caller); !declared {
		return false
	}
	admitted := false
	walk(ix.byService, key(service), func(g *grant) bool {
		_, reaches := g.rule(w, p)
		admitted = reaches && g.callers.Has(caller)
		return !admitted
	})
	return admitted
}

// Destination is one port of a service that a workload may call.
type Destination struct {
	Service spec.Ref
	ID      string // of the callee
	Port    Port
	Hosts   []string // the names that lead to it; the first is the main one
}

// Destinations is every port that some grant lets caller call, sorted by service
// and name of the port. nil when caller is not declared.
func (ix *Index) Destinations(caller spec.Ref) []Destination {
	if _, declared := ix.Workload(caller); !declared {
		return nil
	}
	services := map[spec.Ref]map[string]bool{}
	ix.grantsFrom(caller, func(g *grant) {
		for _, s := range g.services {
			w, ok := ix.Workload(s)
			if !ok {
				continue
			}
			for i := range w.Ports {
				if _, ok := g.rule(w, &w.Ports[i]); ok {
					if services[s] == nil {
						services[s] = map[string]bool{}
					}
					services[s][w.Ports[i].Name] = true
				}
			}
		}
	})
	var out []Destination
	for _, s := range sortedKeys(services) {
		w, _ := ix.Workload(s)
		first := len(out)
		for _, p := range w.Ports {
			if services[s][p.Name] {
				out = append(out, Destination{Service: s, ID: w.ID, Port: p, Hosts: w.Hosts(p.Name)})
			}
		}
		slices.SortFunc(out[first:], func(a, b Destination) int { return strings.Compare(a.Port.Name, b.Port.Name) })
	}
	return out
}

// Calls is the tcp calls of caller that some grant lets it make, sorted by
// LocalPort, each with the port that it leads to: the one that it names, or else
// the only tcp port of the service. A call that leads nowhere is left out.
func (ix *Index) Calls(caller spec.Ref) []TCPCall {
	w, ok := ix.Workload(caller)
	if !ok {
		return nil
	}
	var out []TCPCall
	for _, c := range w.TCPCalls {
		if p := ix.callPort(c); p != nil && ix.Admits(c.Service, p.Name, caller) {
			c.Port = p.Name
			out = append(out, c)
		}
	}
	return out
}

func (ix *Index) callPort(c TCPCall) *Port {
	w, ok := ix.Workload(c.Service)
	if !ok {
		return nil
	}
	var found *Port
	for i, p := range w.Ports {
		if p.Protocol != TCP || c.Port != "" && c.Port != p.Name {
			continue
		}
		if found != nil {
			return nil
		}
		found = &w.Ports[i]
	}
	return found
}

// port finds a port by name; nil when there is none.
func (ix *Index) port(ref spec.Ref, name string) (*Workload, *Port) {
	w, ok := ix.Workload(ref)
	if !ok {
		return nil, nil
	}
	return w, w.port(name)
}

// expand is the declared workloads that c names, sorted.
func (ix *Index) expand(c Callers) []spec.Ref {
	var out []spec.Ref
	add := func(w *Workload) bool {
		out = append(out, w.Ref)
		return true
	}
	if c.Any {
		walk(ix.workloads, nil, add)
	}
	for _, ns := range c.Namespaces {
		walk(ix.workloads, []byte(ns+"\x00"), add)
	}
	for _, ref := range c.Workloads {
		if w, ok := ix.Workload(ref); ok {
			add(w)
		}
	}
	return out
}

// grantsFrom calls f with every grant that admits caller, each once: a grant
// has one kind of caller field and is listed once for each of its terms.
func (ix *Index) grantsFrom(caller spec.Ref, f func(*grant)) {
	for _, term := range []string{anyTerm, namespaceTerm(caller.Namespace), workloadTerm(caller)} {
		walk(ix.byCaller, []byte(term), func(g *grant) bool {
			f(g)
			return true
		})
	}
}

// change is an Index being made.
type change struct {
	trustDomain string
	meshes      *iradix.Txn[MeshSettings]
	workloads   *iradix.Txn[*Workload]
	grants      *iradix.Txn[*grant]
	byService   *iradix.Txn[*grant]
	byCaller    *iradix.Txn[*grant]
	tcpCallers  *iradix.Txn[spec.Ref]
}

func (c *change) put(d *spec.Document) {
	ref := d.Ref()
	if m := d.GetMesh(); m != nil {
		c.meshes.Insert(key(ref), meshSettings(m))
	}
	if w := d.GetWorkload(); w != nil {
		parsed := newWorkload(c.trustDomain, ref, w)
		c.workloads.Insert(key(ref), parsed)
		for _, call := range parsed.TCPCalls {
			c.tcpCallers.Insert(pairKey(key(call.Service), ref), ref)
		}
	}
	if g := d.GetGrant(); g != nil {
		parsed := newGrant(ref, g)
		c.grants.Insert(key(ref), parsed)
		for _, s := range parsed.services {
			c.byService.Insert(pairKey(key(s), ref), parsed)
		}
		for _, term := range parsed.callers.terms() {
			c.byCaller.Insert(pairKey([]byte(term), ref), parsed)
		}
	}
}

func (c *change) remove(k spec.Key) {
	ref := spec.Ref{Namespace: k.Namespace, Name: k.Name}
	switch k.Kind {
	case spec.KindMesh:
		c.meshes.Delete(key(ref))
	case spec.KindWorkload:
		if w, ok := c.workloads.Delete(key(ref)); ok {
			for _, call := range w.TCPCalls {
				c.tcpCallers.Delete(pairKey(key(call.Service), ref))
			}
		}
	case spec.KindGrant:
		if g, ok := c.grants.Delete(key(ref)); ok {
			for _, s := range g.services {
				c.byService.Delete(pairKey(key(s), ref))
			}
			for _, term := range g.callers.terms() {
				c.byCaller.Delete(pairKey([]byte(term), ref))
			}
		}
	}
}

// key is a Ref as a radix key. It ends in a zero byte, so that no key is a
// prefix of another and a namespace with its zero byte is a prefix of its own
// keys only.
func key(r spec.Ref) []byte {
	b := make([]byte, 0, len(r.Namespace)+len(r.Name)+2)
	return append(append(append(append(b, r.Namespace...), 0), r.Name...), 0)
}

func pairKey(prefix []byte, r spec.Ref) []byte {
	return append(slices.Clone(prefix), key(r)...)
}

// walk calls f with the values under prefix in order of their keys until f
// returns false.
func walk[T any](t *iradix.Tree[T], prefix []byte, f func(T) bool) {
	t.Root().WalkPrefix(prefix, func(_ []byte, v T) bool { return !f(v) })
}

func sortedRefs(set map[spec.Ref]bool) []spec.Ref { return sortedKeys(set) }

func sortedKeys[V any](m map[spec.Ref]V) []spec.Ref {
	out := make([]spec.Ref, 0, len(m))
	for ref := range m {
		out = append(out, ref)
	}
	slices.SortFunc(out, spec.Ref.Compare)
	return out
}
