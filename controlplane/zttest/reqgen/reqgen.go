// Package reqgen makes random requests to a random spec. It takes what a request
// is made of from the spec's own documents: callers, methods, paths, headers,
// users, addresses, the moments at which something begins or ends; puts together
// what a grant or a Block asks for; and then spoils some of it: by other values
// of the spec, and by the spellings that are known to lead servers astray.
//
// It knows no judge, and nothing of what the answer should be.
package reqgen

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/ztmesh/ztmesh/controlplane/policy"
	"github.com/ztmesh/ztmesh/controlplane/spec"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// Random is a source of chance: a number from 0 to n-1, n > 0. rand.IntN is one;
// so is rapid, which prefers small numbers: 0 is what is ordinary.
type Random func(n int) int

// Start is when requests begin if no document says anything of time.
var Start = time.Date(2026, time.March, 4, 12, 30, 0, 0, time.UTC)

// Request is a request as the evaluator is asked, and what of it differs as it is
// sent.
type Request struct {
	policy.Request
	// Target stands for Path in HTTP/1.1: an absolute URL. Empty: Path.
	Target string
	// Authorization is the lines of that header, whose meaning is Token. GoodToken
	// in it stands for a token of Token, BadToken for one that does not verify.
	Authorization []string
}

// What stands in Authorization for tokens; both are of the form of one.
const (
	GoodToken = "good.token.x"
	BadToken  = "bad.token.x"
)

// Of is a request that is sent as it is: its token in the usual way.
func Of(r policy.Request) Request {
	out := Request{Request: r}
	switch r.Token.State {
	case policy.TokenNone:
	case policy.TokenInvalid:
		out.Authorization = []string{"Bearer " + BadToken}
	case policy.TokenValid:
		out.Authorization = []string{"Bearer " + GoodToken}
	}
	return out
}

// Generator makes requests to one spec.
type Generator struct {
	trustDomain string
	workloads   []spec.Ref // declared
	services    []target
	externals   []target // only by name: their judges are proxies of their callers
	callers     []string // SPIFFE IDs
	grants      []*spec.Document
	blocks      []*spec.Document
	providers   map[string]*ztv1.IdentityProvider
	names       []string // of them
	paths       []string
	headers     []policy.Header
	addresses   []netip.Addr
	moments     []time.Time
	plaintext   map[string]bool // ports that an Exception opens, by namespace and subject
}

// target is a port at which requests are judged.
type target struct {
	service spec.Ref
	port    *ztv1.Port
	hosts   []string
	aliases []spec.Ref // Services that it is a member of
}

// New reads a spec. It needs no more than that the documents are well formed.
func New(trustDomain string, docs []*spec.Document) *Generator {
	members := map[spec.Ref][]string{}
	g := &Generator{
		trustDomain: trustDomain, providers: map[string]*ztv1.IdentityProvider{}, moments: []time.Time{Start},
		plaintext: map[string]bool{},
	}
	for _, d := range docs {
		ref := spec.Ref{Namespace: d.GetMetadata().GetNamespace(), Name: d.GetMetadata().GetName()}
		switch {
		case d.GetWorkload() != nil:
			g.workload(ref, d.GetWorkload())
		case d.GetGrant() != nil:
			g.grants = append(g.grants, d)
			g.grant(d.GetGrant())
		case d.GetBlock() != nil:
			g.blocks = append(g.blocks, d)
			g.around(d.GetBlock().GetUntil().AsTime(), d.GetBlock().GetUntil() != nil)
			g.callers = append(g.callers, d.GetBlock().GetSpiffeIds()...)
		case d.GetIdentityProvider() != nil:
			g.providers[ref.Name] = d.GetIdentityProvider()
			g.names = append(g.names, ref.Name)
		case d.GetException() != nil:
			g.around(d.GetException().GetUntil().AsTime(), d.GetException().GetUntil() != nil)
			g.ranges(d.GetException().GetPeers())
			if d.GetException().GetFinding() == spec.FindingPlaintext {
				g.plaintext[ref.Namespace+"/"+d.GetException().GetSubject()] = true
			}
		case d.GetService().GetExternal() != nil:
			e := d.GetService().GetExternal()
			port := &ztv1.Port{Name: spec.ExternalPort, Port: e.GetPort(), Protocol: cmp.Or(e.GetProtocol(), policy.HTTP)}
			g.externals = append(g.externals, target{service: ref, port: port, hosts: e.GetHosts()})
		case d.GetService() != nil:
			members[ref] = d.GetService().GetWorkloads()
		}
	}
	for i := range g.services {
		g.services[i].join(members)
	}
	g.callers = append(g.callers, policy.ID(trustDomain, spec.Ref{Namespace: "nowhere", Name: "nobody"}))
	g.addresses = append(g.addresses, netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("::1"))
	slices.Sort(g.names)
	return g
}

// join adds the names of the Services that the workload is a member of.
func (t *target) join(members map[spec.Ref][]string) {
	for ref, names := range members {
		if ref.Namespace == t.service.Namespace && slices.Contains(names, t.service.Name) {
			t.aliases = append(t.aliases, ref)
		}
	}
	slices.SortFunc(t.aliases, spec.Ref.Compare)
	for _, ref := range t.aliases {
		host := ref.Name + "." + ref.Namespace + ".mesh"
		t.hosts = append(t.hosts, host, t.port.GetName()+"."+host)
	}
}

func (g *Generator) workload(ref spec.Ref, w *ztv1.Workload) {
	g.workloads = append(g.workloads, ref)
	g.callers = append(g.callers, policy.ID(g.trustDomain, ref))
	host := ref.Name + "." + ref.Namespace + ".mesh"
	for _, p := range w.GetServes() {
		g.services = append(g.services, target{service: ref, port: p, hosts: []string{host, p.GetName() + "." + host}})
	}
}

func (g *Generator) grant(grant *ztv1.Grant) {
	g.callers = append(g.callers, grant.GetFrom().GetSpiffeIds()...)
	g.paths = append(g.paths, grant.GetTo().GetPaths()...)
	for _, m := range grant.GetTo().GetMethods() {
		if strings.Contains(m, "/") {
			g.paths = append(g.paths, "/"+m)
		}
	}
	g.around(grant.GetUntil().AsTime(), grant.GetUntil() != nil)
	when := grant.GetWhen()
	for name, values := range when.GetHeaders() {
		for _, v := range values.GetValues() {
			g.headers = append(g.headers, policy.Header{Name: name, Value: v})
		}
	}
	slices.SortFunc(g.headers, func(a, b policy.Header) int { return strings.Compare(a.Name+"\x00"+a.Value, b.Name+"\x00"+b.Value) })
	g.ranges(when.GetSourceCidrs())
	for _, w := range when.GetWindows() {
		g.window(w)
	}
}

// around adds the moments at which an end shows.
func (g *Generator) around(t time.Time, set bool) {
	if set {
		g.moments = append(g.moments, t.Add(-time.Second), t.Add(-time.Nanosecond), t, t.Add(time.Second), t.Add(time.Hour))
	}
}

// window adds the moments at which it begins and ends on some days, among them
// those on which clocks change in Europe and America.
func (g *Generator) window(w *ztv1.Window) {
	zone, err := time.LoadLocation(w.GetZone())
	if err != nil {
		return
	}
	for _, day := range []time.Time{
		Start, Start.AddDate(0, 0, 1), Start.AddDate(0, 0, 3),
		time.Date(2026, time.March, 8, 0, 0, 0, 0, time.UTC), time.Date(2026, time.March, 29, 0, 0, 0, 0, time.UTC),
		time.Date(2026, time.October, 25, 0, 0, 0, 0, time.UTC), time.Date(2026, time.November, 1, 0, 0, 0, 0, time.UTC),
	} {
		for _, clock := range []string{w.GetStart(), w.GetEnd()} {
			var hour, minute int
			if _, err := fmt.Sscanf(clock, "%d:%d", &hour, &minute); err != nil {
				continue
			}
			at := time.Date(day.Year(), day.Month(), day.Day(), hour, minute, 0, 0, zone)
			g.moments = append(g.moments, at.Add(-time.Second), at, at.Add(time.Minute), at.Add(time.Hour))
		}
	}
}

// ranges adds the first and the last address of each, and those beside them.
func (g *Generator) ranges(list []string) {
	for _, s := range list {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			continue
		}
		first := p.Masked().Addr()
		bytes := first.AsSlice()
		for bit := p.Bits(); bit < len(bytes)*8; bit++ {
			bytes[bit/8] |= 1 << (7 - bit%8)
		}
		last, _ := netip.AddrFromSlice(bytes)
		for _, a := range []netip.Addr{first, first.Prev(), last, last.Next()} {
			if a.IsValid() {
				g.addresses = append(g.addresses, a)
			}
		}
	}
}

// Services are the workloads to which requests can be made.
func (g *Generator) Services() []spec.Ref {
	var out []spec.Ref
	for _, t := range g.services {
		out = append(out, t.service)
	}
	slices.SortFunc(out, spec.Ref.Compare)
	return slices.Compact(out)
}

// To makes a request to some port of a workload, or to an external service, or, for
// the zero Ref, to any workload. It is false when there is none.
func (g *Generator) To(random Random, service spec.Ref) (Request, bool) {
	var ports []target
	for _, t := range g.services {
		if service == (spec.Ref{}) || t.service == service {
			ports = append(ports, t)
		}
	}
	for _, t := range g.externals {
		if t.service == service {
			ports = append(ports, t)
		}
	}
	if len(ports) == 0 {
		return Request{}, false
	}
	at := pick(random, g.granted(random, ports))
	r := Request{Request: policy.Request{Service: at.service, Port: at.port.GetName(), TCP: at.port.GetProtocol() == policy.TCP}}
	r.CallerID, r.Source, r.Time = pick(random, g.callers), pick(random, g.addresses), pick(random, g.moments)
	var grants []*spec.Document
	for _, d := range g.grants {
		if at.reachedBy(d) {
			grants = append(grants, d)
		}
	}
	if !r.TCP {
		r.Method, r.Path = pick(random, methods), g.somePath(random)
	}
	if len(grants) > 0 && !rarely(random, 8) {
		g.follow(random, &r, at, pick(random, grants))
	}
	if len(g.blocks) > 0 && rarely(random, 4) {
		g.provoke(random, &r, pick(random, g.blocks).GetBlock())
	}
	g.spoil(random, &r, at)
	if g.plaintext[at.service.String()+":"+r.Port] && rarely(random, 3) {
		r.Plaintext, r.CallerID = true, ""
	}
	return r, true
}

// granted are those of the ports that some grant speaks of, most often.
func (g *Generator) granted(random Random, ports []target) []target {
	var some []target
	for _, t := range ports {
		if slices.ContainsFunc(g.grants, t.reachedBy) {
			some = append(some, t)
		}
	}
	if len(some) == 0 || rarely(random, 8) {
		return ports
	}
	return some
}

// reachedBy is roughly whether a grant speaks of the port.
func (t target) reachedBy(d *spec.Document) bool {
	to := d.GetGrant().GetTo()
	if len(to.GetPorts()) > 0 && !slices.Contains(to.GetPorts(), t.port.GetName()) {
		return false
	}
	if to.GetAllServices() || slices.Contains(to.GetNamespaces(), t.service.Namespace) {
		return true
	}
	if d.GetMetadata().GetNamespace() != t.service.Namespace {
		return false
	}
	return slices.ContainsFunc(to.GetServices(), func(name string) bool {
		ref, err := spec.ParseRef(name, t.service.Namespace)
		return err == nil && (ref == t.service || slices.Contains(t.aliases, ref))
	})
}

// rarely is true once in n times, and with rapid less often.
func rarely(random Random, n int) bool { return random(n) == n-1 }

func pick[T any](random Random, list []T) T { return list[random(len(list))] }
