package specgen

import (
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	"github.com/ztmesh/ztmesh/controlplane/spec"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// maker makes the documents of one spec. What it has made guides it, so that most
// of what it makes next fits.
type maker struct {
	t        *rapid.T
	docs     []*spec.Document
	ports    map[spec.Ref][]*ztv1.Port // of workloads that serve, and of services
	external map[spec.Ref]bool
	called   []spec.Ref // the keys of ports, in the order of their making

	// What references may lead to.
	workloads, providers, segments, foreign []string
}

// newMaker makes documents that refer to whatever there may be.
func newMaker(t *rapid.T) *maker {
	m := &maker{t: t, ports: map[spec.Ref][]*ztv1.Port{}, external: map[spec.Ref]bool{}}
	m.providers, m.segments, m.foreign = Providers(), segments, foreignIDs
	for _, ns := range namespaces {
		for _, name := range names {
			m.workloads = append(m.workloads, ns+"/"+name)
		}
	}
	return m
}

func (m *maker) oneIn(n int) bool          { return rapid.IntRange(1, n).Draw(m.t, "chance") == 1 }
func (m *maker) pick(list []string) string { return rapid.SampledFrom(list).Draw(m.t, "pick") }
func (m *maker) ref(names []string) spec.Ref {
	return spec.Ref{Namespace: m.pick(namespaces), Name: m.pick(names)}
}

func (m *maker) some(list []string) []string {
	return rapid.SliceOfNDistinct(rapid.SampledFrom(list), 1, min(3, len(list)), rapid.ID[string]).Draw(m.t, "some")
}

// add puts a document into the spec. Its kind is the name of its message.
func (m *maker) add(kind string, at spec.Ref, d *ztv1.Document) {
	d.ApiVersion, d.Kind, d.Metadata = spec.APIVersion, kind, &ztv1.Metadata{Namespace: at.Namespace, Name: at.Name}
	if m.oneIn(8) {
		d.Metadata.Labels = map[string]string{"team": m.pick(names)}
	}
	m.docs = append(m.docs, &spec.Document{Document: d})
}

// world makes everything but grants and Blocks, and lets references lead to it.
func (m *maker) world() {
	m.workloads, m.providers, m.segments, m.foreign = nil, nil, nil, nil
	for _, ns := range namespaces {
		for _, name := range names {
			if !m.oneIn(5) {
				m.addWorkload(spec.Ref{Namespace: ns, Name: name})
				m.workloads = append(m.workloads, ns+"/"+name)
			}
		}
	}
	if !m.oneIn(3) {
		m.addMesh()
	}
	for _, p := range Providers() {
		if m.oneIn(2) {
			m.providers = append(m.providers, p)
			m.addProvider(p)
		}
	}
	if m.oneIn(3) {
		m.segments = m.some(segments)
	}
	for _, s := range m.segments {
		m.addSegment(s)
	}
	for _, ns := range namespaces {
		if m.oneIn(3) {
			m.addService(ns)
		}
	}
	if m.oneIn(6) && len(m.called) > 0 {
		ref := rapid.SampledFrom(m.called).Draw(m.t, "plain")
		if !m.external[ref] {
			m.addException(ref, m.ports[ref][0].GetName())
		}
	}
}

func (m *maker) addMesh() {
	mesh := &ztv1.Mesh{TrustDomain: TrustDomain}
	if m.oneIn(2) {
		mesh.MaxConnectionAge = durationpb.New(time.Duration(rapid.IntRange(10, 12).Draw(m.t, "age")) * time.Second)
	}
	if m.oneIn(2) {
		mesh.SvidTtl = m.ttl()
	}
	if m.oneIn(3) {
		mesh.TrustDomainAliases = []string{Alias}
	}
	if m.oneIn(2) {
		bundle, _, _ := ForeignCA()
		mesh.Federation = []*ztv1.FederatedTrustDomain{{TrustDomain: Foreign, Bundle: bundle}}
		m.foreign = foreignIDs
	}
	m.add(spec.KindMesh, spec.Ref{Namespace: spec.MeshNamespace, Name: "mesh"}, &ztv1.Document{Spec: &ztv1.Document_Mesh{Mesh: mesh}})
}

func (m *maker) ttl() *durationpb.Duration {
	return durationpb.New(time.Duration(rapid.IntRange(1, 3).Draw(m.t, "ttl")) * time.Hour)
}

func (m *maker) addWorkload(ref spec.Ref) {
	w := &ztv1.Workload{}
	for i := range rapid.SampledFrom([]int{0, 1, 1, 1, 2, 3}).Draw(m.t, "ports") {
		p := &ztv1.Port{
			Name: portNames[i], Port: uint32(8000 + 10*rapid.IntRange(0, 1).Draw(m.t, "number") + i), Protocol: m.pick(protocols),
		}
		switch p.Protocol {
		case "http":
			if m.oneIn(3) {
				p.Upgrades = []string{"websocket"}
			}
			p.AllowEncodedPaths = m.oneIn(6)
		case "http2":
			p.AllowEncodedPaths = m.oneIn(6)
		case "tcp":
			p.ServerFirst = m.oneIn(4)
		}
		w.Serves = append(w.Serves, p)
	}
	for i := range rapid.SampledFrom([]int{0, 0, 1, 2}).Draw(m.t, "calls") {
		if to, ok := m.tcpService(); ok {
			w.TcpCalls = append(w.TcpCalls, &ztv1.TCPCall{Service: to, LocalPort: uint32(5000 + i)})
		}
	}
	if len(w.Serves) > 0 {
		m.serve(ref, w.Serves)
		if slices.ContainsFunc(w.Serves, func(p *ztv1.Port) bool { return p.GetProtocol() != "tcp" }) && m.oneIn(6) {
			w.ExternalAuthorizer = m.authorizer()
		}
	}
	m.add(spec.KindWorkload, ref, &ztv1.Document{Spec: &ztv1.Document_Workload{Workload: w}})
}

func (m *maker) authorizer() *ztv1.ExternalAuthorizer {
	a := &ztv1.ExternalAuthorizer{Target: "127.0.0.1:9191"}
	if m.oneIn(2) {
		a.Timeout = durationpb.New(time.Second)
		a.MaxBodyBytes, a.Headers = 1024, []string{"x-scope"}
	}
	return a
}

func (m *maker) serve(ref spec.Ref, ports []*ztv1.Port) {
	if m.ports[ref] == nil {
		m.called = append(m.called, ref)
	}
	m.ports[ref] = ports
}

// tcpService is a tcp port that a call may name.
func (m *maker) tcpService() (service string, ok bool) {
	var all []string
	for _, ref := range m.called {
		for _, p := range m.ports[ref] {
			if p.GetProtocol() == "tcp" {
				all = append(all, ref.String()+":"+p.GetName())
			}
		}
	}
	if len(all) == 0 {
		return "", false
	}
	return m.pick(all), true
}

// claims are those that each provider declares, with values; how they are in a
// token is Claim.path and kind.
var claims = map[string][]*ztv1.Claim{
	"corp": {
		{Name: "groups", Kind: "list"},
		{Name: "team"},
		{Name: "admin", Kind: "boolean"},
		{Name: "tier", Path: []string{"org", "tier"}, Kind: "string"},
	},
	"partner": {{Name: "roles", Kind: "list", Path: []string{"realm", "roles"}}, {Name: "team", Kind: "string"}},
}

// ClaimValues are the values that grants compare a claim of kind with.
func ClaimValues(kind string) []string {
	if kind == "boolean" {
		return []string{"true", "false"}
	}
	return []string{"red", "blue", "sre"}
}

func (m *maker) addProvider(name string) {
	p := &ztv1.IdentityProvider{
		Issuer: Issuer(name), Audiences: []string{Audience}, Jwks: &ztv1.JWKS{Inline: JWKS(name)}, Claims: claims[name],
	}
	if m.oneIn(3) {
		p.Audiences = append(p.Audiences, name)
	}
	if m.oneIn(2) {
		p.ClockSkew = durationpb.New(time.Duration(rapid.IntRange(1, 60).Draw(m.t, "skew")) * time.Second)
	}
	if m.oneIn(2) {
		p.Forward = &ztv1.Forward{Token: m.oneIn(2), Headers: map[string]string{"x-" + name + "-user": "sub", "x-" + name + "-team": "team"}}
	}
	m.add(spec.KindIdentityProvider, spec.Ref{Namespace: spec.MeshNamespace, Name: name}, &ztv1.Document{Spec: &ztv1.Document_IdentityProvider{IdentityProvider: p}})
}

func (m *maker) addSegment(name string) {
	s := &ztv1.Segment{}
	// Each segment has namespaces and workloads of its own, so that none is in two.
	i := slices.Index(segments, name)
	if m.oneIn(2) {
		s.Namespaces = []string{namespaces[i]}
	} else {
		for _, w := range []string{namespaces[2] + "/" + names[i], namespaces[2] + "/" + names[i+2]} {
			if slices.Contains(m.workloads, w) {
				s.Workloads = append(s.Workloads, w)
			}
		}
	}
	if !m.oneIn(3) {
		s.Admits = m.some(m.segments)
	}
	if m.oneIn(4) && len(m.providers) > 0 {
		s.RequireUser = m.pick(m.providers)
	}
	if m.oneIn(3) {
		s.SvidTtl = m.ttl()
	}
	if m.oneIn(3) {
		s.MaxConnectionAge = durationpb.New(time.Duration(rapid.IntRange(10, 12).Draw(m.t, "age")) * time.Second)
	}
	m.add(spec.KindSegment, spec.Ref{Namespace: spec.MeshNamespace, Name: name}, &ztv1.Document{Spec: &ztv1.Document_Segment{Segment: s}})
}

// addService makes a service of several workloads, or an external one; each
// namespace has a host of its own.
func (m *maker) addService(ns string) {
	if m.oneIn(2) {
		m.addExternal(ns)
		return
	}
	s, ref := &ztv1.Service{}, spec.Ref{Namespace: ns, Name: "all"}
	var ports []*ztv1.Port
	for _, name := range m.some(names) {
		own := m.ports[spec.Ref{Namespace: ns, Name: name}]
		fits := !slices.ContainsFunc(own, func(p *ztv1.Port) bool {
			i := slices.IndexFunc(ports, func(o *ztv1.Port) bool { return o.GetName() == p.GetName() })
			return i >= 0 && (ports[i].GetPort() != p.GetPort() || ports[i].GetProtocol() != p.GetProtocol() || ports[i].GetServerFirst() != p.GetServerFirst())
		})
		if len(m.called) > 0 && (len(own) == 0 || !fits) {
			continue
		}
		s.Workloads = append(s.Workloads, name)
		for _, p := range own {
			if !slices.ContainsFunc(ports, func(o *ztv1.Port) bool { return o.GetName() == p.GetName() }) {
				ports = append(ports, p)
			}
		}
	}
	if len(s.Workloads) == 0 {
		m.addExternal(ns)
		return
	}
	if len(ports) > 0 {
		m.serve(ref, ports)
	}
	m.add(spec.KindService, ref, &ztv1.Document{Spec: &ztv1.Document_Service{Service: s}})
}

func (m *maker) addExternal(ns string) {
	ref := spec.Ref{Namespace: ns, Name: "ext"}
	e := &ztv1.External{Hosts: []string{hosts[slices.Index(namespaces, ns)]}, Port: 8443, Protocol: m.pick([]string{"", "http", "http2", "grpc", "tcp"})}
	protocol := e.Protocol
	if protocol == "" {
		protocol = "http"
	}
	m.serve(ref, []*ztv1.Port{{Name: spec.ExternalPort, Port: e.Port, Protocol: protocol}})
	m.external[ref] = true
	m.add(spec.KindService, ref, &ztv1.Document{Spec: &ztv1.Document_Service{Service: &ztv1.Service{External: e}}})
}

func (m *maker) addException(ref spec.Ref, port string) {
	e := &ztv1.Exception{
		Finding: spec.FindingPlaintext, Subject: ref.Name + ":" + port, Peers: m.some(cidrs), Owner: "ops", Reason: "it cannot do TLS", Until: m.until(),
	}
	m.add(spec.KindException, spec.Ref{Namespace: ref.Namespace, Name: m.pick(grants)}, &ztv1.Document{Spec: &ztv1.Document_Exception{Exception: e}})
}

func (m *maker) until() *timestamppb.Timestamp {
	if m.oneIn(3) {
		return timestamppb.New(past)
	}
	return timestamppb.New(future)
}
