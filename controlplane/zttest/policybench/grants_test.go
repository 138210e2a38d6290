package policybench_test

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"testing"

	"github.com/ztmesh/ztmesh/controlplane/compile"
	"github.com/ztmesh/ztmesh/controlplane/policy"
	"github.com/ztmesh/ztmesh/controlplane/spec"
	"github.com/ztmesh/ztmesh/controlplane/zttest/specgen"
	"github.com/ztmesh/ztmesh/identity"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
	"github.com/ztmesh/ztmesh/xds"
)

const (
	provider    = "corp"
	connections = 16
	pool        = 256 // requests that a connection asks in turn
)

// form is a way in which grants differ. Of n grants, the i-th admits what ask says.
type form struct {
	name   string
	goal   float64 // of the cost with 10,000 over that with 10; 0: none
	rounds int
	users  bool // a form of the workload whose callers' tokens are read
	peers  bool // lowered as a list of policies, as other meshes do it
	// callers is how many callers n grants speak of, in turn.
	callers func(n int) int
	grant   func(i, n int) *ztv1.Grant
	ask     func(i, n int) (method, path string, headers []string)
}

func forms() []form {
	// callers × paths × methods: n is their product.
	callers := func(n int) int { return map[int]int{10: 5, 100: 10, 1000: 25, 10_000: 100}[n] }
	of := func(i, n int) (method, path string) {
		i /= callers(n)
		return []string{"GET", "PUT"}[i%2], fmt.Sprintf("/api/v%d", i/2)
	}
	each := func(i, n int) *ztv1.Grant {
		method, path := of(i, n)
		return &ztv1.Grant{
			From: &ztv1.Caller{Workloads: []string{caller(i % callers(n))}},
			To:   &ztv1.Target{Methods: []string{method}, Paths: []string{path + "/**"}},
		}
	}
	asked := func(i, n int) (string, string, []string) {
		method, path := of(i, n)
		return method, path + "/items/7?page=2", nil
	}
	everybody := func(int) int { return 1 }
	clients := func(u *ztv1.Users) *ztv1.Caller { return &ztv1.Caller{Namespaces: []string{"clients"}, Users: u} }
	user := func(u *ztv1.Users) *ztv1.Grant {
		return &ztv1.Grant{From: clients(u), To: &ztv1.Target{Methods: []string{"GET"}, Paths: []string{"/mail/**"}}}
	}
	as := func(claims map[string]any) (string, string, []string) {
		return "GET", "/mail/7", []string{"Authorization: Bearer " + specgen.Token(provider, claims)}
	}
	return []form{
		{name: "paths", goal: 1.15, rounds: 15, callers: callers, grant: each, ask: asked},
		{
			name: "stars", goal: 1.15, rounds: 15, callers: everybody,
			grant: func(i, _ int) *ztv1.Grant {
				return &ztv1.Grant{From: clients(nil), To: &ztv1.Target{Methods: []string{"GET"}, Paths: []string{fmt.Sprintf("/tenants/*/v%d/items", i)}}}
			},
			ask: func(i, _ int) (string, string, []string) {
				return "GET", fmt.Sprintf("/tenants/t%d/v%d/items?page=2", i%7, i), nil
			},
		},
		{
			name: "string-claim", goal: 1.15, rounds: 15, users: true, callers: everybody,
			grant: func(i, _ int) *ztv1.Grant {
				return user(&ztv1.Users{Provider: provider, Subjects: []string{fmt.Sprintf("u%d", i)}})
			},
			ask: func(i, _ int) (string, string, []string) { return as(map[string]any{"sub": fmt.Sprintf("u%d", i)}) },
		},
		{
			name: "list-claim", rounds: 5, users: true, callers: everybody,
			grant: func(i, _ int) *ztv1.Grant {
				return user(&ztv1.Users{Provider: provider, Claims: map[string]*ztv1.Strings{"groups": {Values: []string{fmt.Sprintf("g%d", i)}}}})
			},
			ask: func(i, _ int) (string, string, []string) {
				return as(map[string]any{"sub": "u", "groups": []string{fmt.Sprintf("g%d", i)}})
			},
		},
		{name: "policies", rounds: 5, peers: true, callers: callers, grant: each, ask: asked},
	}
}

func caller(k int) string { return fmt.Sprintf("clients/c%d", k) }

func sizes() []int { return []int{10, 100, 1000, 10_000} }

func (f *form) port(n int) string { return fmt.Sprintf("%s-%d", f.name, n) }

// ref is the workload whose ports have the grants of a form, a port for each
// number of grants: one Envoy has all of them, so that nothing else differs.
func (f *form) ref() spec.Ref {
	if f.users {
		return spec.Ref{Namespace: "bench", Name: "mail"}
	}
	return spec.Ref{Namespace: "bench", Name: "orders"}
}

func document(kind, ns, name string, d *ztv1.Document) *spec.Document {
	d.ApiVersion, d.Kind, d.Metadata = spec.APIVersion, kind, &ztv1.Metadata{Namespace: ns, Name: name}
	return &spec.Document{Document: d}
}

func workload(ns, name string, ports ...*ztv1.Port) *spec.Document {
	return document(spec.KindWorkload, ns, name, &ztv1.Document{Spec: &ztv1.Document_Workload{Workload: &ztv1.Workload{Serves: ports}}})
}

func grant(ns, name string, g *ztv1.Grant) *spec.Document {
	return document(spec.KindGrant, ns, name, &ztv1.Document{Spec: &ztv1.Document_Grant{Grant: g}})
}

func documents(app string) []*spec.Document {
	var docs []*spec.Document
	for k := range 100 {
		docs = append(docs, workload("clients", fmt.Sprintf("c%d", k)))
	}
	docs = append(docs, document(spec.KindIdentityProvider, "mesh", provider, &ztv1.Document{
		Spec: &ztv1.Document_IdentityProvider{IdentityProvider: &ztv1.IdentityProvider{
			Issuer: specgen.Issuer(provider), Audiences: []string{specgen.Audience}, Jwks: &ztv1.JWKS{Inline: specgen.JWKS(provider)},
			Claims: []*ztv1.Claim{{Name: "groups", Kind: "list"}},
		}},
	}))
	ports := map[spec.Ref][]*ztv1.Port{}
	for _, f := range forms() {
		ref := f.ref()
		for _, n := range sizes() {
			number := 9000 + uint32(len(ports[ref])) //nolint:gosec // few
			ports[ref] = append(ports[ref], &ztv1.Port{Name: f.port(n), Port: number, Target: app, Protocol: "http"})
			for i := range n {
				g := f.grant(i, n)
				g.To.Services, g.To.Ports = []string{ref.Name}, []string{f.port(n)}
				docs = append(docs, grant(ref.Namespace, fmt.Sprintf("%s-g%d", f.port(n), i), g))
			}
		}
	}
	for ref, p := range ports {
		docs = append(docs, workload(ref.Namespace, ref.Name, p...))
	}
	return docs
}

// BenchmarkGrants is the CPU of a server's Envoy per request with 10 to 10,000
// grants. Each form of grants has a port for each number, which take turns.
func BenchmarkGrants(b *testing.B) {
	for b.Loop() {
		d := newBed(b)
		ix := policy.New(trustDomain, documents(d.app))
		proxies, configs := map[spec.Ref]*proxy{}, map[spec.Ref]*xds.Config{}
		for _, f := range forms() {
			ref := f.ref()
			if proxies[ref] == nil {
				conf, err := compile.Workload(ix, nil, ref)
				d.check(err)
				configs[ref] = conf
				proxies[ref] = d.proxy(conf, func(r *xds.Resources) { d.asPeers(r, conf) })
			}
		}
		certs := make([]*identity.KeyPair, connections)
		for k := range certs {
			certs[k] = d.certificate("spiffe://" + trustDomain + "/ns/clients/sa/c" + fmt.Sprint(k))
		}
		for _, f := range forms() {
			d.grants(&f, proxies[f.ref()], configs[f.ref()], certs)
		}
	}
}

// grants measures one form.
func (d *bed) grants(f *form, p *proxy, conf *xds.Config, certs []*identity.KeyPair) {
	random := rand.New(rand.NewPCG(3, 4)) //nolint:gosec // which requests, not secrets
	var variants []*variant
	for _, n := range sizes() {
		v := &variant{proxies: []*proxy{p}}
		for k, some := range f.requests(n, conf, random) {
			c, err := dial(net.JoinHostPort(p.address, fmt.Sprint(inbound(conf, f.port(n)).Port)), certs[k%f.identities(n)], some)
			d.check(err)
			d.check(c.ask()) // the handshake does not count
			v.load = append(v.load, c)
		}
		defer v.load.close()
		variants = append(variants, v)
	}
	got := d.alternate(f.rounds, variants)
	for i, n := range sizes() {
		policy := p.told.Get(xds.ExtensionType, xds.PolicyName(conf.Workload, f.port(n)))
		fmt.Printf("grants-%s-%d: %s us of CPU per request, policy of %d KiB\n", f.name, n, got[i].cpu, len(policy.Body.GetValue())>>10)
	}
	name := "grants-" + f.name + "-10000-over-10"
	ratio := got[len(got)-1].cpu.over(got[0].cpu)
	if f.goal > 0 {
		figure(os.Stdout, name, ratio, "<=", f.goal)
	} else {
		fmt.Printf("%s: %s over %d rounds\n", name, ratio, len(ratio))
	}
}

// identities is as how many callers the connections come.
func (f *form) identities(n int) int {
	if c := f.callers(n); c > 1 {
		return min(c, connections)
	}
	return connections
}

// requests are those of each connection, of grants at random.
func (f *form) requests(n int, conf *xds.Config, random *rand.Rand) [][]request {
	host := inbound(conf, f.port(n)).Hosts[0]
	made := map[int]request{}
	all := make([][]request, connections)
	for k := range all {
		c := f.callers(n)
		for range pool / connections {
			i := random.IntN(n/c)*c + k%f.identities(n)%c
			if _, ok := made[i]; !ok {
				method, path, headers := f.ask(i, n)
				made[i] = wire(200, method, host, path, headers...)
			}
			all[k] = append(all[k], made[i])
		}
	}
	return all
}

func inbound(conf *xds.Config, port string) *xds.Inbound {
	for i := range conf.Inbound {
		if conf.Inbound[i].Name == port {
			return &conf.Inbound[i]
		}
	}
	panic("no port " + port)
}
