package specgen

import (
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"pgregory.net/rapid"

	"github.com/ztmesh/ztmesh/controlplane/spec"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

func (m *maker) addGrant() {
	ref := m.ref(grants)
	to := &ztv1.Target{}
	var port *ztv1.Port
	if m.oneIn(8) {
		ref.Namespace = spec.MeshNamespace
		if m.oneIn(2) {
			to.AllServices = true
		} else {
			to.Namespaces = m.some(namespaces)
		}
		port = &ztv1.Port{Name: m.pick(portNames), Protocol: m.pick(protocols)}
		if len(m.called) > 0 {
			port = rapid.SampledFrom(m.ports[rapid.SampledFrom(m.called).Draw(m.t, "service")]).Draw(m.t, "port")
		}
		to.Ports = []string{port.Name}
	} else {
		port = m.services(ref.Namespace, to)
	}
	g := &ztv1.Grant{From: m.caller(), To: to}
	if m.oneIn(8) {
		g.Owner, g.Reason = m.pick(names), "because"
	}
	m.narrow(g, port, m.external[spec.Ref{Namespace: ref.Namespace, Name: slices.Concat(to.Services, []string{""})[0]}])
	if m.oneIn(6) {
		g.Mode = m.pick([]string{"enforce", "shadow", "shadow"})
	}
	m.add(spec.KindGrant, ref, &ztv1.Document{Spec: &ztv1.Document_Grant{Grant: g}})
}

// services names services of namespace that have a port alike, and is that port.
func (m *maker) services(namespace string, to *ztv1.Target) *ztv1.Port {
	var here []spec.Ref
	for _, ref := range m.called {
		if ref.Namespace == namespace {
			here = append(here, ref)
		}
	}
	if len(here) == 0 {
		to.Services = m.some(names)
		if m.oneIn(2) {
			to.Ports = m.some(portNames)
		}
		return &ztv1.Port{Protocol: m.pick(protocols)}
	}
	first := rapid.SampledFrom(here).Draw(m.t, "service")
	port := rapid.SampledFrom(m.ports[first]).Draw(m.t, "port")
	to.Services = []string{first.Name}
	several := len(m.ports[first]) > 1
	for _, other := range here {
		alike := slices.ContainsFunc(m.ports[other], func(p *ztv1.Port) bool {
			return p.GetName() == port.GetName() && p.GetProtocol() == port.GetProtocol() && p.GetServerFirst() == port.GetServerFirst() &&
				len(p.GetUpgrades()) == len(port.GetUpgrades())
		})
		if other != first && alike && m.oneIn(4) {
			to.Services = append(to.Services, other.Name)
			several = several || len(m.ports[other]) > 1
		}
	}
	if several || m.oneIn(3) {
		to.Ports = []string{port.GetName()}
	}
	return port
}

func (m *maker) caller() *ztv1.Caller {
	c := &ztv1.Caller{}
	switch from := rapid.IntRange(0, 11).Draw(m.t, "from"); {
	case from == 0 || len(m.workloads) == 0:
		c.AnyWorkload = true
	case from <= 2:
		c.Namespaces = m.some(namespaces)
	case from == 3 && len(m.segments) > 0:
		c.Segments = m.some(m.segments)
	case from == 4:
		c.SpiffeIds = slices.Clone(m.foreign)
		for _, w := range m.some(m.workloads) {
			ns, name, _ := strings.Cut(w, "/")
			c.SpiffeIds = append(c.SpiffeIds, "spiffe://"+TrustDomain+"/ns/"+ns+"/sa/"+name)
		}
		c.SpiffeIds = m.some(c.SpiffeIds)
	default:
		c.Workloads = m.some(m.workloads)
	}
	return c
}

// narrow gives g conditions that its port can be asked about.
func (m *maker) narrow(g *ztv1.Grant, port *ztv1.Port, external bool) {
	class := port.GetProtocol()
	if class != "tcp" {
		m.requests(g.To, class)
		if len(port.GetUpgrades()) > 0 && m.oneIn(3) {
			g.To.Upgrades, g.To.Methods = []string{"websocket"}, nil
		}
		if !external && len(m.providers) > 0 && m.oneIn(3) {
			g.From.Users = m.users()
		}
	}
	if class == "tcp" && (port.GetServerFirst() || external) {
		return
	}
	if m.oneIn(5) {
		g.Until = m.until()
	}
	if m.oneIn(3) {
		w := &ztv1.When{}
		if class != "tcp" && m.oneIn(3) {
			w.Headers = map[string]*ztv1.Strings{m.pick(headers): {Values: m.some(values)}}
		}
		if class != "tcp" && m.oneIn(4) {
			w.Cel = m.pick(Expressions())
		}
		if !external && m.oneIn(3) {
			w.SourceCidrs = m.some(cidrs)
		}
		if m.oneIn(3) || w.Headers == nil && w.Cel == "" && w.SourceCidrs == nil {
			w.Windows = m.windows()
		}
		g.When = w
	}
}

// requests names methods and paths of a class.
func (m *maker) requests(to *ztv1.Target, class string) {
	if class == "grpc" {
		if m.oneIn(2) {
			to.Methods = m.some(grpcCalls)
		}
		return
	}
	switch rapid.IntRange(0, 5).Draw(m.t, "to") {
	case 0:
		to.Methods = m.some(methods)
	case 1, 2:
		to.Paths = m.some(paths)
	case 3, 4:
		to.Methods, to.Paths = m.some(methods), m.some(paths)
	}
}

func (m *maker) windows() []*ztv1.Window {
	var list []*ztv1.Window
	for range rapid.IntRange(1, 2).Draw(m.t, "windows") {
		w := &ztv1.Window{Zone: m.pick(zones), Start: m.pick(clocks), End: m.pick(append(slices.Clone(clocks), "24:00"))}
		if w.Start == w.End {
			w.Start, w.End = "00:00", "24:00"
		}
		if m.oneIn(2) {
			w.Days = m.some(spec.Days())
		}
		list = append(list, w)
	}
	return list
}

func (m *maker) users() *ztv1.Users {
	u := &ztv1.Users{Provider: m.pick(m.providers)}
	if m.oneIn(3) {
		u.Subjects = m.some(subjects)
	}
	if m.oneIn(2) {
		u.Claims = map[string]*ztv1.Strings{}
		for range rapid.IntRange(1, 2).Draw(m.t, "claims") {
			c := rapid.SampledFrom(claims[u.Provider]).Draw(m.t, "claim")
			u.Claims[c.Name] = &ztv1.Strings{Values: m.some(ClaimValues(c.Kind))}
		}
	}
	if m.oneIn(6) {
		u.Acr = m.some([]string{"silver", "gold"})
	}
	if m.oneIn(6) {
		u.Amr = m.some([]string{"pwd", "hwk", "otp"})
	}
	if m.oneIn(6) {
		u.MaxAge = durationpb.New(time.Duration(rapid.IntRange(1, 10).Draw(m.t, "max age")) * time.Minute)
	}
	return u
}

func (m *maker) addBlock() {
	b, ref := &ztv1.Block{Reason: "it is compromised"}, m.ref(grants)
	if m.oneIn(2) {
		ref.Namespace = spec.MeshNamespace
		switch of := rapid.IntRange(0, 5).Draw(m.t, "of"); {
		case of == 0 || len(m.workloads) == 0:
			b.Namespaces = m.some(namespaces)
		case of == 1:
			b.TrustDomains = []string{m.pick([]string{Foreign, Alias})}
		case of == 2 && len(m.foreign) > 0:
			b.SpiffeIds = m.some(m.foreign)
		case of == 3 && len(m.providers) > 0:
			b.Users = &ztv1.BlockedUsers{Provider: m.pick(m.providers), Subjects: m.some(subjects)}
		default:
			b.Workloads = m.some(m.workloads)
		}
	} else if m.oneIn(2) {
		b.Workloads = []string{m.pick(names)}
	}
	if anybody := b.Workloads == nil && ref.Namespace != spec.MeshNamespace; anybody || m.oneIn(3) {
		namespace := ref.Namespace
		if namespace == spec.MeshNamespace {
			namespace = m.pick(namespaces)
		}
		to := &ztv1.Target{}
		m.services(namespace, to)
		for _, s := range to.Services {
			b.Services = append(b.Services, namespace+"/"+s)
		}
		if anybody && len(m.providers) > 0 && m.oneIn(3) {
			b.Users = &ztv1.BlockedUsers{Provider: m.pick(m.providers), Subjects: m.some(subjects)}
		}
	}
	if m.oneIn(3) {
		b.Until = m.until()
	}
	m.add(spec.KindBlock, ref, &ztv1.Document{Spec: &ztv1.Document_Block{Block: b}})
}
