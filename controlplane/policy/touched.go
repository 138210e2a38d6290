package policy

import (
	"cmp"
	"slices"

	"github.com/ztmesh/ztmesh/controlplane/spec"
)

// Touched is the workloads whose own configuration differs between old and ix,
// sorted; changed are the keys in which the two differ. A workload that is new
// or gone is among them.
//
// What a workload's configuration depends on, and by which changed document it
// may differ:
//
//	its own document                            itself
//	the rules of its ports                      a grant to it
//	the gates of its ports                      a grant to it; a caller that comes or goes
//	what it may call, and those ports           a grant from it; the callee's ports
//	where its tcp calls lead                    the callee's ports
//	maxConnectionAge                            Mesh
//
// Each changed document yields candidates by the reverse index: workloads, and
// edges (caller, callee). A candidate is judged by comparing what the two
// indexes say of it, so an owner that is renamed or a grant that doubles another
// touches nobody.
func (ix *Index) Touched(old *Index, changed []spec.Key) []spec.Ref {
	d := newDelta(old, ix, changed)
	touched := map[spec.Ref]bool{}
	if old.Mesh().MaxConnectionAge != ix.Mesh().MaxConnectionAge || old.trustDomain != ix.trustDomain {
		for _, side := range []*Index{old, ix} {
			for _, ref := range side.expand(Callers{Any: true}) {
				touched[ref] = true
			}
		}
		return sortedRefs(touched)
	}
	for ref := range d.own {
		if !sameWorkload(old, ix, ref) {
			touched[ref] = true
		}
	}
	for ref := range d.callees {
		if !touched[ref] && !sameRules(old, ix, ref) {
			touched[ref] = true
		}
	}
	for e := range d.edges {
		if (!touched[e.caller] || !touched[e.callee]) && !slices.Equal(old.reach(e), ix.reach(e)) {
			touched[e.caller], touched[e.callee] = true, true
		}
	}
	for ref := range d.callers {
		if !touched[ref] && !slices.Equal(old.Calls(ref), ix.Calls(ref)) {
			touched[ref] = true
		}
	}
	// A grant may name who is declared on neither side: nobody is told.
	for ref := range touched {
		_, before := old.Workload(ref)
		_, after := ix.Workload(ref)
		if !before && !after {
			delete(touched, ref)
		}
	}
	return sortedRefs(touched)
}

// edge is a caller and a workload that it may call.
type edge struct{ caller, callee spec.Ref }

// delta is the candidates for a difference between two indexes.
type delta struct {
	old, now *Index
	own      map[spec.Ref]bool // workloads whose document changed
	callees  map[spec.Ref]bool // workloads whose rules may differ
	edges    map[edge]bool     // pairs that may reach one another differently
	callers  map[spec.Ref]bool // workloads whose tcp calls may lead elsewhere
}

func newDelta(old, now *Index, changed []spec.Key) *delta {
	d := &delta{
		old: old, now: now,
		own: map[spec.Ref]bool{}, callees: map[spec.Ref]bool{}, edges: map[edge]bool{}, callers: map[spec.Ref]bool{},
	}
	for _, k := range changed {
		ref := spec.Ref{Namespace: k.Namespace, Name: k.Name}
		switch k.Kind {
		case spec.KindWorkload:
			d.workload(ref)
		case spec.KindGrant:
			d.grant(ref)
		}
	}
	return d
}

// workload adds what may differ because a Workload changed.
func (d *delta) workload(ref spec.Ref) {
	d.own[ref] = true
	before, was := d.old.Workload(ref)
	after, is := d.now.Workload(ref)
	var portsBefore, portsAfter []Port
	if was {
		portsBefore = before.Ports
	}
	if is {
		portsAfter = after.Ports
	}
	for _, side := range []*Index{d.old, d.now} {
		if !slices.Equal(portsBefore, portsAfter) {
			d.callees[ref] = true
			walk(side.byService, key(ref), func(g *grant) bool {
				for _, caller := range side.expand(g.callers) {
					d.edges[edge{caller, ref}] = true
				}
				return true
			})
			walk(side.tcpCallers, key(ref), func(caller spec.Ref) bool {
				d.callers[caller] = true
				return true
			})
		}
		if was != is { // it may call, and be admitted, on one side only
			side.grantsFrom(ref, func(g *grant) {
				for _, s := range g.services {
					d.edges[edge{ref, s}] = true
				}
			})
		}
	}
}

// grant adds what may differ because a Grant changed. Edges are those of one
// side only, unless the services or ports differ too: editing methods and paths
// concerns the callee alone.
func (d *delta) grant(ref spec.Ref) {
	before, was := d.old.grants.Get(key(ref))
	after, is := d.now.grants.Get(key(ref))
	for _, g := range []*grant{before, after} {
		if g != nil {
			for _, s := range g.services {
				d.callees[s] = true
			}
		}
	}
	same := was && is && slices.Equal(before.services, after.services) && slices.Equal(before.ports, after.ports) &&
		before.http.ok == after.http.ok && before.grpc.ok == after.grpc.ok && before.tcp.ok == after.tcp.ok
	if same && before.callers.equal(after.callers) {
		return
	}
	callers := map[spec.Ref]int{}
	if was {
		for _, c := range d.old.expand(before.callers) {
			callers[c]++
		}
	}
	if is {
		for _, c := range d.now.expand(after.callers) {
			callers[c]++
		}
	}
	for caller, sides := range callers {
		if same && sides == 2 {
			continue
		}
		for _, g := range []*grant{before, after} {
			if g != nil {
				for _, s := range g.services {
					d.edges[edge{caller, s}] = true
				}
			}
		}
	}
}

// admittedOnlyBefore is the pairs of the edges that old admits and now does not.
func (d *delta) admittedOnlyBefore() []Pair {
	var out []Pair
	for e := range d.edges {
		w, ok := d.old.Workload(e.callee)
		if !ok {
			continue
		}
		for _, p := range w.Ports {
			if d.old.Admits(e.callee, p.Name, e.caller) && !d.now.Admits(e.callee, p.Name, e.caller) {
				out = append(out, Pair{Service: e.callee, Port: p.Name, Source: e.caller})
			}
		}
	}
	slices.SortFunc(out, func(a, b Pair) int {
		return cmp.Or(a.Service.Compare(b.Service), cmp.Compare(a.Port, b.Port), a.Source.Compare(b.Source))
	})
	return out
}

// reached is one port that a caller may call, as its proxy is told.
type reached struct {
	name, protocol, host string
	number               uint32
	plain                bool // the host without the port's name leads here too
}

// reach is what the caller of e may call of the callee.
func (ix *Index) reach(e edge) []reached {
	w, ok := ix.Workload(e.callee)
	if !ok {
		return nil
	}
	var out []reached
	for _, p := range w.Ports {
		if ix.Admits(e.callee, p.Name, e.caller) {
			hosts := w.Hosts(p.Name)
			out = append(out, reached{p.Name, p.Protocol, hosts[0], p.Number, len(hosts) > 1})
		}
	}
	return out
}

func sameWorkload(old, now *Index, ref spec.Ref) bool {
	before, was := old.Workload(ref)
	after, is := now.Workload(ref)
	if !was || !is {
		return was == is
	}
	return slices.Equal(before.Ports, after.Ports) && slices.Equal(old.Calls(ref), now.Calls(ref))
}

// sameRules tells whether the requests of every HTTP port are judged alike. A
// tcp port has its gate only, which the edges speak of.
func sameRules(old, now *Index, ref spec.Ref) bool {
	before, was := old.Workload(ref)
	after, is := now.Workload(ref)
	if !was || !is || !slices.Equal(before.Ports, after.Ports) {
		return was == is && !is
	}
	for _, p := range before.Ports {
		if p.Protocol == TCP {
			continue
		}
		if !slices.EqualFunc(old.Rules(ref, p.Name), now.Rules(ref, p.Name), Rule.equal) {
			return false
		}
	}
	return true
}

func (r Rule) equal(o Rule) bool {
	return r.Grant == o.Grant && r.Callers.equal(o.Callers) &&
		slices.Equal(r.Methods, o.Methods) && slices.Equal(r.Paths, o.Paths)
}
