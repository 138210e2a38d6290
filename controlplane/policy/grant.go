package policy

import (
	"slices"
	"strings"

	"github.com/ztmesh/ztmesh/controlplane/spec"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// Rule is what one grant allows on one port: a request passes if its caller, its
// method, its path and all conditions match.
type Rule struct {
	Grant   spec.Ref
	Callers Callers
	Methods []string // sorted; nil: any, save CONNECT and TRACE
	Paths   []Path   // sorted; nil: any
	// Upgrades nil: the rule is for requests that are no upgrade; else for upgrades
	// to one of these, and for them alone.
	Upgrades []string
	// Conditions name the claims of users as their provider, which is declared,
	// declares them: see Index.Provider.
	Conditions

	shadow bool // it is of a grant of mode shadow
}

// grant is a Grant, understood. A grant that spec.Check would refuse is
// understood as less than it says, never as more.
type grant struct {
	ref      spec.Ref
	services []spec.Ref // sorted; nil: it is wide
	ports    []string   // sorted; nil: the only port of the service
	callers  named
	shadow   bool

	// Of a wide grant: all services, or those of these namespaces.
	all        bool
	namespaces []string

	upgrades   []string // as in Rule
	conditions Conditions

	// What it means on a port of each family.
	http, grpc, tcp fit
}

// fit is the methods and paths of a grant on the ports of one family. ok is false
// where its methods, paths, upgrades or conditions do not fit the family.
type fit struct {
	methods []string
	paths   []Path
	ok      bool
}

// wide grants reach across namespaces.
func (g *grant) wide() bool { return g.all || g.namespaces != nil }

// newGrant reads a Grant; nil for one that allows nothing.
func newGrant(trustDomain string, ref spec.Ref, d *ztv1.Grant) *grant {
	to := d.GetTo()
	g := &grant{
		ref: ref, ports: set(to.GetPorts()), callers: newNamed(trustDomain, ref.Namespace, d.GetFrom()),
		shadow: d.GetMode() == "shadow", all: to.GetAllServices(), namespaces: set(to.GetNamespaces()),
	}
	for _, s := range references(to.GetServices(), ref.Namespace) {
		// The callee's owner decides: a service of another namespace is left out.
		if s.Namespace == ref.Namespace {
			g.services = append(g.services, s)
		}
	}
	targets := 0
	for _, is := range []bool{len(to.GetServices()) > 0, g.all, g.namespaces != nil} {
		if is {
			targets++
		}
	}
	conditions, ok := newConditions(d.GetFrom(), d.GetWhen(), d.GetUntil())
	switch {
	case !ok, targets != 1, !g.wide() && g.services == nil, !slices.Contains([]string{"", "enforce", "shadow"}, d.GetMode()):
		return nil
	case g.wide() && (ref.Namespace != spec.MeshNamespace || g.ports == nil):
		return nil
	case g.callers.Callers.none() && g.callers.segments == nil:
		return nil
	}
	g.conditions, g.upgrades = conditions, set(to.GetUpgrades())
	methods, paths := set(to.GetMethods()), to.GetPaths()
	g.http = httpFit(methods, paths)
	g.grpc = grpcFit(methods)
	g.grpc.ok = g.grpc.ok && len(paths) == 0 && g.upgrades == nil
	g.tcp.ok = len(methods) == 0 && len(paths) == 0 && g.upgrades == nil && conditions.fitTCP()
	return g
}

// httpFit is for an http or http2 port. A gRPC method does not fit and is dropped,
// which narrows; a list that loses its last item is no rule.
func httpFit(methods, paths []string) fit {
	f := fit{methods: methods, paths: newPaths(paths)}
	if slices.ContainsFunc(methods, isCall) {
		f.methods = slices.DeleteFunc(slices.Clone(methods), isCall)
	}
	f.ok = len(methods) == 0 || len(f.methods) > 0
	return f
}

// grpcFit is for a grpc port, where pkg.Service/Method is a POST to
// /pkg.Service/Method (gRPC over HTTP/2, section Requests). Paths and upgrades do
// not fit.
func grpcFit(methods []string) fit {
	var f fit
	var called []string
	for _, m := range methods {
		if isCall(m) {
			called = append(called, "/"+m)
		}
	}
	if f.paths = newPaths(called); f.paths != nil {
		f.methods = []string{"POST"}
	}
	f.ok = len(methods) == 0 || len(f.paths) > 0
	return f
}

// isCall tells a gRPC method, "pkg.Service/Method", from one of HTTP.
func isCall(method string) bool { return strings.Contains(method, "/") }

// fitTCP tells whether a tcp port can judge c.
func (c Conditions) fitTCP() bool {
	c.Windows, c.Until, c.Sources = nil, Conditions{}.Until, nil
	return c.none()
}

// narrowing tells whether c has anything but users.
func (c Conditions) narrowing() bool {
	c.Users = nil
	return !c.none()
}

// fitOf is what g means on a port.
func (g *grant) fitOf(p *Port) fit {
	f := fit{}
	switch p.Protocol {
	case HTTP, HTTP2:
		f = g.http
	case GRPC:
		f = g.grpc
	case TCP:
		f = g.tcp
		f.ok = f.ok && !(p.ServerFirst && g.conditions.narrowing())
	}
	f.ok = f.ok && (g.upgrades == nil || p.WebSocket && slices.Equal(g.upgrades, []string{webSocket}))
	return f
}

// names tells whether g speaks of a port of a site.
func (g *grant) names(s *site, p *Port) bool {
	if g.wide() {
		return slices.Contains(g.ports, p.Name) && (g.all || slices.Contains(g.namespaces, s.ref.Namespace))
	}
	for _, n := range s.byName {
		if _, is := slices.BinarySearchFunc(g.services, n.ref, spec.Ref.Compare); is && g.namesPort(n.ports, p.Name) {
			return true
		}
	}
	return false
}

// namesPort: a grant that names no port is for a service with one port only.
func (g *grant) namesPort(ports []Port, port string) bool {
	if portOf(ports, port) == nil {
		return false
	}
	if g.ports == nil {
		return len(ports) == 1
	}
	_, is := slices.BinarySearch(g.ports, port)
	return is
}

// rule is what g allows where it means f, to the callers that it names.
func (ix *Index) rule(g *grant, f fit) Rule {
	return Rule{
		Grant: g.ref, Callers: ix.callers(g.callers), Methods: f.methods, Paths: f.paths, Upgrades: g.upgrades,
		Conditions: g.conditions, shadow: g.shadow,
	}
}

// fits tells whether g allows anything on a port of a site, to those of its callers
// whom the site admits.
func (ix *Index) fits(g *grant, s *site, p *Port) (fit, bool) {
	f := g.fitOf(p)
	if !f.ok || !g.names(s, p) {
		return fit{}, false
	}
	if u := s.users(g); u != nil && (p.Protocol == TCP || !ix.understands(u)) {
		return fit{}, false
	}
	return f, true
}

// users is whom g requires at a site; nil for nobody.
func (s *site) users(g *grant) *Users {
	if g.conditions.Users == nil && s.require != "" {
		return &Users{Provider: s.require}
	}
	return g.conditions.Users
}

// ruleOf is what g allows on a port of a site; false if nothing.
func (ix *Index) ruleOf(g *grant, s *site, p *Port) (Rule, bool) {
	f, ok := ix.fits(g, s, p)
	if !ok {
		return Rule{}, false
	}
	r := ix.rule(g, f)
	if s.admitted != nil {
		r.Callers = r.Callers.intersect(*s.admitted)
	}
	r.Users = s.users(g)
	return r, !r.Callers.none()
}

// lets tells whether g, enforced, lets one caller connect to a port of a site:
// whether ruleOf names it.
func (ix *Index) lets(g *grant, s *site, p *Port, of principal) bool {
	if g.shadow {
		return false
	}
	_, ok := ix.fits(g, s, p)
	return ok && ix.callers(g.callers).has(of) && (s.admitted == nil || s.admitted.has(of))
}

// understands tells whether the provider of u declares what u names.
func (ix *Index) understands(u *Users) bool {
	p, ok := ix.providers.Get([]byte(u.Provider))
	return ok && !slices.ContainsFunc(u.Claims, func(c OneOf) bool {
		_, declared := p.Claims[c.Name]
		return !declared
	})
}

// grantsTo calls f with every grant that may reach a site, until f is false: each
// once, and in order of its name unless it reaches the site by several names.
func (ix *Index) grantsTo(s *site, f func(*grant) bool) {
	if len(s.byName) == 1 && ix.wide.Len() == 0 {
		walk(ix.byService, key(s.byName[0].ref), f)
		return
	}
	var all []*grant
	for _, n := range s.byName {
		walk(ix.byService, key(n.ref), func(g *grant) bool {
			all = append(all, g)
			return true
		})
	}
	walk(ix.wide, nil, func(g *grant) bool {
		if g.all || slices.Contains(g.namespaces, s.ref.Namespace) {
			all = append(all, g)
		}
		return true
	})
	slices.SortFunc(all, func(a, b *grant) int { return a.ref.Compare(b.ref) })
	for _, g := range slices.Compact(all) {
		if !f(g) {
			return
		}
	}
}

// rules is what the grants that reach a port of a site allow, sorted by grant; nil
// for nothing.
func (ix *Index) rules(s *site, p *Port, shadow bool) []Rule {
	var room [8]*grant
	fitting := room[:0] // so that the rules, which are large, are put into a list that does not grow
	ix.grantsTo(s, func(g *grant) bool {
		if _, ok := ix.fits(g, s, p); ok && (shadow || !g.shadow) {
			fitting = append(fitting, g)
		}
		return true
	})
	if len(fitting) == 0 {
		return nil
	}
	out := make([]Rule, 0, len(fitting))
	for _, g := range fitting {
		if r, ok := ix.ruleOf(g, s, p); ok {
			out = append(out, r)
		}
	}
	if len(out) == 0 {
		return nil
	}
	return out
}

// externalRules is what the grants to an external service allow. Users, source
// addresses and, on tcp, time do not fit, and such a grant is left out.
func (ix *Index) externalRules(s *service, shadow bool) []Rule {
	var out []Rule
	p := externalPort(s.external)
	walk(ix.byService, key(s.ref), func(g *grant) bool {
		f := g.fitOf(p)
		r := ix.rule(g, f)
		r.Callers.IDs = nil // only workloads of the mesh have a proxy that judges
		if f.ok && g.namesPort([]Port{*p}, p.Name) && r.Users == nil && r.Sources == nil && !r.Callers.none() && (shadow || !g.shadow) {
			out = append(out, r)
		}
		return true
	})
	return out
}

// externalPort is the one port of an external service. On tcp its rules take no
// condition, as where the server speaks first.
func externalPort(e *External) *Port {
	return &Port{Name: spec.ExternalPort, Number: e.Port, Protocol: e.Protocol, ServerFirst: e.Protocol == TCP}
}

// equal compares what a proxy is told.
func (r Rule) equal(o Rule) bool {
	return r.Grant == o.Grant && r.Callers.equal(o.Callers) && slices.Equal(r.Methods, o.Methods) &&
		slices.Equal(r.Paths, o.Paths) && slices.Equal(r.Upgrades, o.Upgrades) && r.Conditions.equal(o.Conditions)
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
