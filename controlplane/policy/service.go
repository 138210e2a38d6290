package policy

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/ztmesh/ztmesh/controlplane/spec"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// External is a service outside the mesh. Calls to it are judged in the caller's
// own proxy.
type External struct {
	Service   spec.Ref
	Hosts     []string // in lower case, sorted
	Port      uint32
	Protocol  string
	CA        string // PEM; empty: public roots
	Plaintext bool   // no TLS, by an Exception
	Rules     []Rule
	Blocks    []Block
}

// service is a Service document: exactly one of its fields is set.
type service struct {
	ref      spec.Ref
	members  []spec.Ref // of its own namespace, sorted
	external *External  // without Rules and Blocks
}

func newService(ref spec.Ref, d *ztv1.Service) *service {
	s := &service{ref: ref}
	e := d.GetExternal()
	if (e != nil) == (len(d.GetWorkloads()) > 0) {
		return s // it leads nowhere
	}
	for _, m := range references(d.GetWorkloads(), ref.Namespace) {
		if m.Namespace == ref.Namespace {
			s.members = append(s.members, m)
		}
	}
	if e != nil && len(e.GetHosts()) > 0 {
		s.external = &External{
			Service: ref, Port: e.GetPort(), Protocol: cmp.Or(e.GetProtocol(), HTTP),
			CA: e.GetTls().GetCa(), Plaintext: e.GetTls().GetDisabled(),
		}
		for _, h := range e.GetHosts() {
			s.external.Hosts = append(s.external.Hosts, strings.ToLower(h))
		}
		s.external.Hosts = set(s.external.Hosts)
	}
	return s
}

func (s *service) target() target { return target{ref: s.ref, names: []spec.Ref{s.ref}} }

// target is what is judged in one place, and every name that leads to it.
type target struct {
	ref   spec.Ref
	names []spec.Ref
}

func (t target) named(ref spec.Ref) bool { return slices.Contains(t.names, ref) }

// name is a name by which grants speak of a workload: its own, or that of a
// Service that it is a member of.
type name struct {
	ref   spec.Ref
	ports []Port // that the name leads to, of all its workloads
}

func portOf(ports []Port, name string) *Port {
	for i := range ports {
		if ports[i].Name == name {
			return &ports[i]
		}
	}
	return nil
}

// site is a workload as the place where requests are judged.
type site struct {
	target
	w        *Workload
	byName   []name   // sorted
	admitted *Callers // nil: its segment, if it is in one, admits everybody
	require  string   // the provider of which a user is required

	name [1]name // room for byName and names, which seldom have more
	ref1 [1]spec.Ref
}

func (s *site) hasHTTP() bool {
	return slices.ContainsFunc(s.w.Ports, func(p Port) bool { return p.Protocol != TCP })
}

// site is the workload ref as a callee; false when it is not declared.
func (ix *Index) site(ref spec.Ref) (*site, bool) {
	s := &site{}
	if !ix.visit(s, ref) {
		return nil, false
	}
	return s, true
}

// visit makes s the site of ref: for who looks at many, one after the other.
func (ix *Index) visit(s *site, ref spec.Ref) bool {
	w, ok := ix.Workload(ref)
	if !ok {
		return false
	}
	*s = site{w: w}
	s.ref, s.byName, s.names = ref, s.name[:0], s.ref1[:0]
	own := true
	if ix.services.Len() > 0 {
		k := key(ref)
		if _, taken := ix.services.Get(k); taken {
			own = false
		}
		walk(ix.memberships, k, func(of *service) bool {
			if ports := ix.portsOf(of); len(ports) > 0 {
				s.byName = append(s.byName, name{of.ref, ports})
			}
			return true
		})
	}
	if own {
		s.byName = append(s.byName, name{ref, w.Ports})
	}
	if len(s.byName) > 1 {
		slices.SortFunc(s.byName, func(a, b name) int { return a.ref.Compare(b.ref) })
	}
	for _, n := range s.byName {
		s.names = append(s.names, n.ref)
	}
	switch in := ix.segments.of(ref); len(in) {
	case 0:
	case 1:
		s.admitted, s.require = ix.segments.admitted[in[0]], in[0].settings.RequireUser
	default:
		s.admitted = &Callers{} // of two segments: nobody, since spec.Check refuses it
	}
	return true
}

// portsOf is the ports that a Service leads to, sorted by number: those on which
// all of its workloads that have one of that name agree. Nothing where a Workload
// that serves has its name, too.
func (ix *Index) portsOf(s *service) []Port {
	if w, ok := ix.Workload(s.ref); ok && len(w.Ports) > 0 {
		return nil
	}
	var out []Port
	differ := map[string]bool{}
	for _, m := range s.members {
		w, ok := ix.Workload(m)
		if !ok {
			continue
		}
		for _, p := range w.Ports {
			p.Target, p.EncodedPaths = "", false
			have := portOf(out, p.Name)
			if have == nil {
				out = append(out, p)
				continue
			}
			if have.Number != p.Number || have.Protocol != p.Protocol {
				differ[p.Name] = true
			}
			have.WebSocket = have.WebSocket && p.WebSocket
			have.ServerFirst = have.ServerFirst || p.ServerFirst
		}
	}
	out = slices.DeleteFunc(out, func(p Port) bool { return differ[p.Name] })
	slices.SortFunc(out, comparePorts)
	return out
}

// externals is the external service of that name.
func (ix *Index) externals(ref spec.Ref) (*service, bool) {
	s, ok := ix.serviceOf(ref)
	if !ok || s.external == nil {
		return nil, false
	}
	if w, ok := ix.Workload(ref); ok && len(w.Ports) > 0 {
		return nil, false
	}
	return s, true
}

// Resolve is where requests to a name are judged: at a workload, at each of those
// of a Service, or, for an external service, at every caller; then it is the
// service itself. Sorted; nil when the name leads nowhere.
func (ix *Index) Resolve(ref spec.Ref) []spec.Ref {
	s, ok := ix.serviceOf(ref)
	if !ok {
		if _, declared := ix.Workload(ref); declared {
			return []spec.Ref{ref}
		}
		return nil
	}
	if _, external := ix.externals(ref); external {
		return []spec.Ref{ref}
	}
	if len(ix.portsOf(s)) == 0 {
		return nil
	}
	var out []spec.Ref
	for _, m := range s.members {
		if _, ok := ix.Workload(m); ok {
			out = append(out, m)
		}
	}
	return out
}

func (s *site) hosts(port string) []string {
	out := s.w.Hosts(port)
	if out == nil {
		return nil
	}
	out = slices.Clip(out)
	for _, n := range s.byName {
		if n.ref != s.ref {
			out = append(out, hosts(n.ref, n.ports, port)...)
		}
	}
	return set(out)
}

// Destination is one port of a service that a workload may call.
type Destination struct {
	Service spec.Ref
	ID      string     // of the callee; empty: of one of Members
	Members []spec.Ref // the workloads of a Service that have the port; nil: Service is the workload
	Port    *Port      // must not be changed, as Hosts
	Hosts   []string   // the names that lead to it; the first is the main one
}

func (d Destination) equal(o Destination) bool {
	return d.Service == o.Service && d.ID == o.ID && slices.Equal(d.Members, o.Members) &&
		d.Port.reached() == o.Port.reached() && slices.Equal(d.Hosts, o.Hosts)
}

// Destinations is every port that some enforced grant lets caller call, of
// workloads and of Services, sorted by service and name of the port. nil when
// caller is not declared.
func (ix *Index) Destinations(caller spec.Ref) []Destination {
	p := principal{workload: caller, domain: ix.trustDomain}
	if !ix.declared(p) {
		return nil
	}
	reached := ix.reachable(p)
	if len(reached) == 0 {
		return nil
	}
	out := make([]Destination, 0, len(reached))
	at := &site{}
	for first := 0; first < len(reached); {
		next := first + 1
		for next < len(reached) && reached[next].name == reached[first].name {
			next++
		}
		out = ix.destinations(out, p, at, reached[first:next])
		first = next
	}
	if len(out) == 0 {
		return nil
	}
	return out
}

// destinations appends what a declared caller may call by one name; reached, of
// which there is at least one, is the grants that may let it. at is room.
func (ix *Index) destinations(out []Destination, p principal, at *site, reached []reach) []Destination {
	before, ref := len(out), reached[0].name
	if s, ok := ix.serviceOf(ref); ok {
		ports := ix.portsOf(s) // an external service has none
		for i := range ports {
			if members := ix.membersFor(p, s, ports[i].Name, reached); members != nil {
				out = append(out, Destination{
					Service: ref, Members: members, Port: &ports[i], Hosts: hosts(ref, ports, ports[i].Name),
				})
			}
		}
	} else if ix.visit(at, ref) {
		for i := range at.w.Ports {
			port := &at.w.Ports[i]
			if slices.ContainsFunc(reached, func(r reach) bool { return ix.lets(r.by, at, port, p) }) {
				out = append(out, Destination{Service: ref, ID: at.w.ID, Port: port, Hosts: at.w.hosts[i]})
			}
		}
	}
	if len(out) > before+1 {
		slices.SortFunc(out[before:], func(a, b Destination) int { return strings.Compare(a.Port.Name, b.Port.Name) })
	}
	return out
}

// membersFor is the workloads of a Service that have a port, if one of reached
// that names the Service, or is wide, lets p call one of them.
func (ix *Index) membersFor(p principal, s *service, port string, reached []reach) []spec.Ref {
	var members []spec.Ref
	called := false
	for _, m := range s.members {
		at, ok := ix.site(m)
		if !ok || at.w.port(port) == nil {
			continue
		}
		members = append(members, m)
		own := at.w.port(port)
		called = called || slices.ContainsFunc(reached, func(r reach) bool {
			return (r.by.wide() || slices.Contains(r.by.services, s.ref)) && ix.lets(r.by, at, own, p)
		})
	}
	if !called {
		return nil
	}
	return members
}

// reach is a name that somebody may be let reach, and the grant that may let it.
type reach struct {
	name spec.Ref
	by   *grant
}

// reachable is the names that the grants of p speak of, and those of the workloads
// behind a Service, each as often as there are grants that do; sorted by name.
func (ix *Index) reachable(p principal) []reach {
	out := make([]reach, 0, 16)
	ix.grantsFrom(p, func(g *grant) {
		for _, ref := range ix.targets(g) {
			out = append(out, reach{ref, g})
		}
	})
	slices.SortFunc(out, func(a, b reach) int { return a.name.Compare(b.name) })
	return out
}

// serviceOf is the Service of that name.
func (ix *Index) serviceOf(ref spec.Ref) (*service, bool) {
	if ix.services.Len() == 0 {
		return nil, false
	}
	var room [keyRoom]byte
	return ix.services.Get(appendKey(room[:0], ref))
}

// targets is the names that a grant speaks of, and the workloads behind them.
func (ix *Index) targets(g *grant) []spec.Ref {
	var out []spec.Ref
	if g.wide() {
		add := func(w *Workload) bool {
			if len(w.Ports) > 0 {
				out = append(out, w.Ref)
				walk(ix.memberships, key(w.Ref), func(s *service) bool {
					out = append(out, s.ref)
					return true
				})
			}
			return true
		}
		if g.all {
			walk(ix.workloads, nil, add)
		}
		for _, ns := range g.namespaces {
			walk(ix.workloads, []byte(ns+"\x00"), add)
		}
		return refSet(out)
	}
	if ix.services.Len() == 0 {
		return g.services
	}
	for _, ref := range g.services {
		out = append(out, ref)
		if s, ok := ix.serviceOf(ref); ok {
			out = append(out, s.members...)
		}
	}
	return refSet(out)
}

// Externals is the external services that some enforced grant lets the workload
// caller call, sorted.
func (ix *Index) Externals(caller spec.Ref) []External { return ix.egresses(caller, false) }

// ShadowExternals is Externals with shadow grants counted as enforced ones.
func (ix *Index) ShadowExternals(caller spec.Ref) []External { return ix.egresses(caller, true) }

func (ix *Index) egresses(caller spec.Ref, shadow bool) []External {
	p := principal{workload: caller, domain: ix.trustDomain}
	if !ix.declared(p) {
		return nil
	}
	var out []External
	for _, ref := range ix.outside(p) {
		if e, ok := ix.egress(p, ref, shadow); ok {
			out = append(out, e)
		}
	}
	return out
}

// outside is the external services that the grants of p speak of, sorted.
func (ix *Index) outside(p principal) []spec.Ref {
	var out []spec.Ref
	if ix.services.Len() == 0 {
		return nil
	}
	ix.grantsFrom(p, func(g *grant) {
		for _, ref := range g.services {
			if _, ok := ix.externals(ref); ok {
				out = append(out, ref)
			}
		}
	})
	return refSet(out)
}

// egress is an external service as the proxy of p is told of it: the rules that
// admit p and the Blocks that deny it.
func (ix *Index) egress(p principal, ref spec.Ref, shadow bool) (External, bool) {
	s, ok := ix.externals(ref)
	if !ok || s.external.Plaintext && !ix.excepted(spec.FindingPlaintextEgress, ref, "", time.Time{}) {
		return External{}, false
	}
	e := *s.external
	for _, r := range ix.externalRules(s, shadow) {
		if r.Callers.has(p) {
			r.Callers = Callers{Workloads: []spec.Ref{p.workload}}
			e.Rules = append(e.Rules, r)
		}
	}
	if e.Rules == nil {
		return External{}, false
	}
	for _, b := range ix.blocksOn(s.target()) {
		if b.Users == nil && b.denies(p) {
			b.Callers = nil
			e.Blocks = append(e.Blocks, b)
		}
	}
	return e, true
}

// equal compares what a proxy is told. On tcp, that the service may be called is
// all that rules say.
func (e External) equal(o External) bool {
	return e.Service == o.Service && slices.Equal(e.Hosts, o.Hosts) && e.Port == o.Port && e.Protocol == o.Protocol &&
		e.CA == o.CA && e.Plaintext == o.Plaintext && slices.EqualFunc(e.Blocks, o.Blocks, Block.equal) &&
		(e.Protocol == TCP || slices.EqualFunc(e.Rules, o.Rules, Rule.equal))
}

// ExternalHost is a host that the control plane resolves.
type ExternalHost struct {
	Subject spec.Key // the Service or IdentityProvider
	Host    string
	Port    uint32
	Allowed []netip.Prefix // reserved addresses that an Exception accepts; sorted
}

// Hosts is every host outside the mesh whose addresses proxies are told, sorted by
// Subject and Host. Literal addresses are among them.
func (ix *Index) Hosts() []ExternalHost {
	var out []ExternalHost
	add := func(subject spec.Key, host string, port uint32) {
		h := ExternalHost{Subject: subject, Host: host, Port: port}
		ref := spec.Ref{Namespace: subject.Namespace, Name: subject.Name}
		for _, e := range ix.exceptions(spec.FindingReservedAddress, ref, "", time.Time{}) {
			h.Allowed = append(h.Allowed, e.peers...)
		}
		slices.SortFunc(h.Allowed, comparePrefix)
		h.Allowed = slices.Compact(h.Allowed)
		out = append(out, h)
	}
	walk(ix.providers, nil, func(p *Provider) bool {
		subject := spec.Key{Kind: spec.KindIdentityProvider, Namespace: spec.MeshNamespace, Name: p.Name}
		if usable, ok := ix.Provider(p.Name); ok {
			if host, port, ok := usable.jwksHost(); ok {
				add(subject, host, port)
			}
		}
		return true
	})
	walk(ix.services, nil, func(s *service) bool {
		if e, ok := ix.externals(s.ref); ok {
			for _, host := range e.external.Hosts {
				add(spec.Key{Kind: spec.KindService, Namespace: s.ref.Namespace, Name: s.ref.Name}, host, e.external.Port)
			}
		}
		return true
	})
	return out
}
