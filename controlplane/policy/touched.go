package policy

import (
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
//	its own document                    itself
//	rules and Blocks of its ports       a grant or Block that reaches it; the Segments; a provider
//	the gates of its ports              a grant to it; a caller that comes or goes
//	the hosts of its ports              a Service of which it is a member
//	what it may call                    a grant from it; the callee's ports; an external service and its Blocks
//	where its tcp calls lead            the callee's ports
//	how tokens are judged               grants and Blocks that name users; a provider
//	who may connect without TLS         an Exception
//	trust domains, ages                 Mesh; the Segments
//
// Each changed document yields candidates by the reverse index: workloads, and
// edges (caller, callee). A candidate is judged by comparing what the two
// indexes say of it, so an owner that is renamed or a grant that doubles another
// touches nobody.
func (ix *Index) Touched(old *Index, changed []spec.Key) []spec.Ref {
	touched := map[spec.Ref]bool{}
	if !sameTrust(old.trust(), ix.trust()) || old.trustDomain != ix.trustDomain {
		for _, side := range []*Index{old, ix} {
			walk(side.workloads, nil, func(w *Workload) bool {
				touched[w.Ref] = true
				return true
			})
		}
		return sortedKeys(touched)
	}
	d := newDelta(old, ix, changed, nil)
	for ref := range d.callees {
		if !sameInbound(old, ix, ref) {
			touched[ref] = true
		}
	}
	for ref := range d.callers {
		if !touched[ref] && !slices.Equal(old.Calls(ref), ix.Calls(ref)) {
			touched[ref] = true
		}
	}
	for e := range d.edges {
		if !touched[e.callee] && !sameGate(old, ix, e) {
			touched[e.callee] = true
		}
		if e.caller.own() && !touched[e.caller.workload] && !sameOutbound(old, ix, e) {
			touched[e.caller.workload] = true
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
	return sortedKeys(touched)
}

func sameTrust(a, b *Trust) bool {
	return slices.Equal(a.Aliases, b.Aliases) && slices.Equal(a.Federated, b.Federated)
}

// sameInbound tells whether requests to ref are judged alike, save for its gates.
func sameInbound(old, now *Index, ref spec.Ref) bool {
	before, was := old.site(ref)
	after, is := now.site(ref)
	if !was || !is {
		return was == is
	}
	if !slices.Equal(before.w.Ports, after.w.Ports) || !before.w.Authorizer.equal(after.w.Authorizer) ||
		old.Settings(ref).MaxConnectionAge != now.Settings(ref).MaxConnectionAge {
		return false
	}
	if len(after.w.Ports) > 0 && (!slices.Equal(old.Strip(), now.Strip()) ||
		!slices.EqualFunc(old.Providers(ref), now.Providers(ref), Provider.equal)) {
		return false
	}
	for i := range after.w.Ports {
		p := &after.w.Ports[i]
		requests := p.Protocol != TCP // a connection goes by no host, and has no shadow
		same := (!requests || slices.Equal(before.hosts(p.Name), after.hosts(p.Name))) &&
			sameRules(old, now, old.rules(before, p, requests), now.rules(after, p, requests)) &&
			slices.EqualFunc(old.Blocks(ref, p.Name), now.Blocks(ref, p.Name), Block.equal) &&
			slices.EqualFunc(old.Plaintext(ref, p.Name), now.Plaintext(ref, p.Name), Plaintext.equal)
		if !same {
			return false
		}
	}
	return true
}

// sameRules compares rules, and where the claims are that they name.
func sameRules(old, now *Index, before, after []Rule) bool {
	return slices.EqualFunc(before, after, func(a, b Rule) bool {
		if a.shadow != b.shadow || !a.equal(b) {
			return false
		}
		if a.Users == nil {
			return true
		}
		of, is := old.providerOf(a.Users), now.providerOf(b.Users)
		return !slices.ContainsFunc(a.Users.Claims, func(c OneOf) bool { return !of.Claims[c.Name].equal(is.Claims[c.Name]) })
	})
}

// sameGate tells whether the gates of the callee hold the caller alike.
func sameGate(old, now *Index, e edge) bool {
	before, was := old.site(e.callee)
	after, is := now.site(e.callee)
	if !was || !is {
		return true // there is no gate on one side, and sameInbound speaks of that
	}
	for i := range after.w.Ports {
		own := &after.w.Ports[i]
		p := before.w.port(own.Name)
		if p != nil && old.holds(before, p, e.caller) != now.holds(after, own, e.caller) {
			return false
		}
	}
	return true
}

// sameOutbound tells whether the caller may call the callee alike, as far as it is
// told.
func sameOutbound(old, now *Index, e edge) bool {
	if !old.declared(e.caller) || !now.declared(e.caller) {
		return false
	}
	if !slices.EqualFunc(old.destinationsOf(e), now.destinationsOf(e), Destination.equal) {
		return false
	}
	before, was := old.egress(e.caller, e.callee, false)
	after, is := now.egress(e.caller, e.callee, false)
	if !was || !is {
		return was == is
	}
	shadowBefore, _ := old.egress(e.caller, e.callee, true)
	shadowAfter, _ := now.egress(e.caller, e.callee, true)
	return before.equal(after) && shadowBefore.equal(shadowAfter)
}

// destinationsOf is what the caller of e is told of the callee.
func (ix *Index) destinationsOf(e edge) []Destination {
	var reached []reach
	note := func(g *grant) bool {
		reached = append(reached, reach{e.callee, g})
		return true
	}
	if s, ok := ix.serviceOf(e.callee); ok {
		walk(ix.byService, key(s.ref), note)
		walk(ix.wide, nil, note)
	} else if s, ok := ix.site(e.callee); ok {
		ix.grantsTo(s, note)
	}
	if reached == nil {
		return nil
	}
	return ix.destinations(nil, e.caller, &site{}, reached)
}

// edge is a caller and a workload or a service that it may call.
type edge struct {
	caller principal
	callee spec.Ref
}

// delta is the candidates for a difference between two indexes.
type delta struct {
	old, now *Index
	callees  map[spec.Ref]bool // workloads at which requests may be judged differently
	edges    map[edge]bool     // pairs that may reach one another differently
	callers  map[spec.Ref]bool // workloads whose tcp calls may lead elsewhere
	done     map[spec.Key]bool
	elapsed  map[spec.Key]bool // what is active at one of two moments only
}

func newDelta(old, now *Index, changed, elapsed []spec.Key) *delta {
	d := &delta{
		old: old, now: now,
		callees: map[spec.Ref]bool{}, edges: map[edge]bool{}, callers: map[spec.Ref]bool{}, done: map[spec.Key]bool{},
		elapsed: map[spec.Key]bool{},
	}
	for _, k := range elapsed {
		d.elapsed[k] = true
	}
	for _, k := range slices.Concat(changed, elapsed) {
		d.document(k)
	}
	return d
}

func (d *delta) sides() [2]*Index { return [2]*Index{d.old, d.now} }

func (d *delta) document(k spec.Key) {
	if d.done[k] {
		return
	}
	d.done[k] = true
	ref := spec.Ref{Namespace: k.Namespace, Name: k.Name}
	switch k.Kind {
	case spec.KindMesh:
		d.mesh()
	case spec.KindWorkload:
		d.workload(ref)
	case spec.KindService:
		d.service(ref)
	case spec.KindGrant:
		d.grant(ref)
	case spec.KindBlock:
		d.block(ref)
	case spec.KindIdentityProvider:
		if ref.Namespace == spec.MeshNamespace {
			d.provider(ref.Name)
		}
	case spec.KindSegment:
		d.segments()
	case spec.KindException:
		d.exception(ref)
	}
}

// all adds every workload, and with edges every pair.
func (d *delta) all(edges bool) {
	for _, side := range d.sides() {
		walk(side.workloads, nil, func(w *Workload) bool {
			d.callees[w.Ref] = true
			return true
		})
		if edges {
			walk(side.grants, nil, func(g *grant) bool {
				d.edgesOf(side, g, nil)
				return true
			})
		}
	}
}

func (d *delta) mesh() {
	if !sameTrust(d.old.trust(), d.now.trust()) {
		d.all(true)
	} else if d.old.Mesh().MaxConnectionAge != d.now.Mesh().MaxConnectionAge {
		d.all(false)
	}
}

// edgesOf adds every pair that g speaks of on one side, or those of the callees
// in only.
func (d *delta) edgesOf(side *Index, g *grant, only []spec.Ref) {
	callees := only
	if only == nil {
		callees = side.targets(g)
	}
	for _, caller := range side.expand(side.callers(g.callers)) {
		for _, callee := range callees {
			d.edges[edge{caller, callee}] = true
		}
	}
}

// callee adds a workload as one whose rules may differ, and all who call it or a
// Service of it.
func (d *delta) callee(ref spec.Ref) {
	d.callees[ref] = true
	for _, side := range d.sides() {
		if s, ok := side.site(ref); ok {
			side.grantsTo(s, func(g *grant) bool {
				d.edgesOf(side, g, append([]spec.Ref{ref}, s.names...))
				return true
			})
		}
	}
}

// workload adds what may differ because a Workload changed.
func (d *delta) workload(ref spec.Ref) {
	d.callees[ref], d.callers[ref] = true, true
	var ports [2][]Port
	var declared [2]bool
	for i, side := range d.sides() {
		if w, ok := side.Workload(ref); ok {
			declared[i] = true
			for _, p := range w.Ports {
				ports[i] = append(ports[i], p.reached())
			}
		}
	}
	if declared[0] != declared[1] {
		for _, side := range d.sides() { // it may call, and be admitted, on one side only
			p := principal{workload: ref, domain: side.trustDomain}
			for _, r := range side.reachable(p) {
				d.edges[edge{p, r.name}] = true
			}
		}
	}
	if declared[0] == declared[1] && slices.Equal(ports[0], ports[1]) {
		return
	}
	d.callee(ref)
	d.tcpCalls(ref)
	services := map[spec.Ref]bool{ref: true} // a Service of its name may come or go
	for _, side := range d.sides() {
		walk(side.memberships, key(ref), func(s *service) bool {
			services[s.ref] = true
			return true
		})
	}
	for s := range services {
		d.service(s)
	}
}

func (d *delta) tcpCalls(callee spec.Ref) {
	for _, side := range d.sides() {
		walk(side.tcpCallers, key(callee), func(caller spec.Ref) bool {
			d.callers[caller] = true
			return true
		})
	}
}

// service adds what may differ because a Service, or what it leads to, changed.
func (d *delta) service(ref spec.Ref) {
	k := spec.Key{Kind: spec.KindService, Namespace: ref.Namespace, Name: ref.Name}
	if d.done[k] && d.callers[ref] {
		return
	}
	any := false
	for _, side := range d.sides() {
		s, ok := side.services.Get(key(ref))
		if !ok {
			continue
		}
		any = true
		for _, m := range s.members {
			d.callee(m)
		}
		edges := func(g *grant) bool {
			d.edgesOf(side, g, []spec.Ref{ref})
			return true
		}
		walk(side.byService, key(ref), edges)
		walk(side.wide, nil, edges)
	}
	if any {
		d.callee(ref)
		d.tcpCalls(ref)
	}
}

// grant adds what may differ because a Grant, or whether it is active, changed.
// Edges are those of one side only, unless more than callers, methods and paths
// differs: what is edited most concerns the callee alone.
func (d *delta) grant(ref spec.Ref) {
	before, _ := d.old.grants.Get(key(ref))
	after, _ := d.now.grants.Get(key(ref))
	for _, side := range []struct {
		ix *Index
		g  *grant
	}{{d.old, before}, {d.now, after}} {
		if side.g != nil {
			for _, callee := range side.ix.targets(side.g) {
				d.callees[callee] = true
			}
		}
	}
	k := spec.Key{Kind: spec.KindGrant, Namespace: ref.Namespace, Name: ref.Name}
	if before == nil || after == nil || d.elapsed[k] || !before.sameReach(after) || d.leadsOut(before) || d.leadsOut(after) {
		if before != nil {
			d.edgesOf(d.old, before, nil)
			d.edgesOf(d.now, before, nil)
		}
		if after != nil {
			d.edgesOf(d.now, after, nil)
			d.edgesOf(d.old, after, nil)
		}
		return
	}
	if before.callers.equal(after.callers) {
		return
	}
	was := d.old.expand(d.old.callers(before.callers))
	is := d.now.expand(d.now.callers(after.callers))
	callees := append(d.old.targets(before), d.now.targets(after)...)
	for _, lists := range [2][2][]principal{{was, is}, {is, was}} {
		for _, caller := range lists[0] {
			if _, both := slices.BinarySearchFunc(lists[1], caller, principal.compare); both {
				continue
			}
			for _, callee := range callees {
				d.edges[edge{caller, callee}] = true
			}
		}
	}
}

// leadsOut tells whether g is to an external service, whose rules are the
// caller's to judge.
func (d *delta) leadsOut(g *grant) bool {
	return slices.ContainsFunc(g.services, func(ref spec.Ref) bool {
		_, before := d.old.externals(ref)
		_, after := d.now.externals(ref)
		return before || after
	})
}

// sameReach tells whether g and o open the same gates to a caller of both, at any
// one time.
func (g *grant) sameReach(o *grant) bool {
	return slices.Equal(g.services, o.services) && slices.Equal(g.namespaces, o.namespaces) && g.all == o.all &&
		slices.Equal(g.ports, o.ports) && g.shadow == o.shadow &&
		g.http.ok == o.http.ok && g.grpc.ok == o.grpc.ok && g.tcp.ok == o.tcp.ok &&
		slices.Equal(g.upgrades, o.upgrades) && g.conditions.equal(o.conditions)
}

// block adds what may differ because a Block changed.
func (d *delta) block(ref spec.Ref) {
	for _, side := range d.sides() {
		if b, ok := side.blocks.Get(key(ref)); ok {
			for _, s := range d.sides() {
				d.blocking(s, b)
			}
		}
	}
}

// blocking adds the callees that b may concern on a side, with the callers that it
// names.
func (d *delta) blocking(side *Index, b *block) {
	callers := side.callersOf(b)
	pairs := func(g *grant, only []spec.Ref) {
		for _, p := range side.expand(side.callers(g.callers)) {
			named := b.everyone || callers.has(p) || slices.ContainsFunc(side.ids(p), func(id string) bool {
				alias, ok := side.principal(id)
				return ok && callers.has(alias)
			})
			if named {
				for _, callee := range only {
					d.edges[edge{p, callee}] = true
				}
			}
		}
	}
	reach := func(ref spec.Ref) {
		if s, ok := side.site(ref); ok {
			d.callees[ref] = true
			side.grantsTo(s, func(g *grant) bool {
				pairs(g, []spec.Ref{ref})
				return true
			})
		} else if _, ok := side.externals(ref); ok {
			walk(side.byService, key(ref), func(g *grant) bool {
				pairs(g, []spec.Ref{ref})
				return true
			})
		}
	}
	if b.narrowed {
		for _, s := range b.services {
			for _, ref := range append(side.Resolve(s), s) {
				reach(ref)
			}
		}
		return
	}
	if !b.everyone && b.users == nil && !callers.Any && callers.Namespaces == nil && callers.Domains == nil {
		for _, w := range callers.Workloads {
			for _, r := range side.reachable(principal{workload: w, domain: side.trustDomain}) {
				reach(r.name)
			}
		}
		for _, id := range callers.IDs {
			if p, ok := side.principal(id); ok {
				for _, r := range side.reachable(p) {
					reach(r.name)
				}
			}
		}
		return
	}
	walk(side.workloads, nil, func(w *Workload) bool {
		reach(w.Ref)
		return true
	})
	walk(side.services, nil, func(s *service) bool {
		if s.external != nil {
			reach(s.ref)
		}
		return true
	})
}

// provider adds what may differ because an IdentityProvider changed.
func (d *delta) provider(name string) {
	if !slices.Equal(d.old.Strip(), d.now.Strip()) {
		d.all(false)
	}
	for _, side := range d.sides() {
		walk(side.byProvider, []byte(name+"\x00"), func(g *grant) bool {
			for _, ref := range side.targets(g) {
				d.callees[ref] = true
			}
			d.edgesOf(side, g, nil)
			return true
		})
		walk(side.segmentsByRef, nil, func(s *segment) bool {
			if s.settings.RequireUser == name {
				d.members(side, s)
			}
			return true
		})
		walk(side.blocks, nil, func(b *block) bool {
			if b.users != nil && b.users.Provider == name {
				d.blocking(side, b)
			}
			return true
		})
	}
}

// members adds the workloads of a segment as callees.
func (d *delta) members(side *Index, s *segment) {
	for _, p := range side.expand(Callers{Namespaces: s.namespaces, Workloads: s.workloads}) {
		d.callee(p.workload)
	}
}

// segments adds what may differ because a Segment changed: whatever is in one, and
// every grant from one. Whom one segment names decides who is of another, too.
func (d *delta) segments() {
	for _, side := range d.sides() {
		for _, s := range d.sides() {
			walk(s.segmentsByRef, nil, func(of *segment) bool {
				d.members(side, of)
				return true
			})
		}
		walk(side.byCaller, []byte("s\x00"), func(g *grant) bool {
			for _, ref := range side.targets(g) {
				d.callees[ref] = true
			}
			d.edgesOf(d.old, g, nil)
			d.edgesOf(d.now, g, nil)
			return true
		})
	}
}

// exception adds what may differ because an Exception changed. Addresses are no
// part of a workload's configuration.
func (d *delta) exception(ref spec.Ref) {
	for _, side := range d.sides() {
		e, ok := side.exceptionByRef.Get(key(ref))
		if !ok {
			continue
		}
		switch e.finding {
		case spec.FindingPlaintext:
			d.callees[e.subject] = true
		case spec.FindingPlaintextEgress:
			for _, s := range d.sides() {
				walk(s.byService, key(e.subject), func(g *grant) bool {
					d.edgesOf(s, g, []spec.Ref{e.subject})
					return true
				})
			}
		case spec.FindingPlaintextJWKS:
			d.provider(e.subject.Name)
		}
	}
}
