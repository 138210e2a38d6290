package spec

import (
	"cmp"
	"slices"
	"strings"

	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// service is what can be reached by one name.
type service struct {
	ref Ref
	// ports are distinct by name: of the workload, of all members, or the one of an
	// external service.
	ports    []*ztv1.Port
	external bool
	members  []Ref // workloads
}

// named is the port name of s, or nil.
func (s *service) named(name string) *ztv1.Port {
	for _, p := range s.ports {
		if p.GetName() == name {
			return p
		}
	}
	return nil
}

func portNames(ports []*ztv1.Port) []string {
	names := make([]string, len(ports))
	for i, p := range ports {
		names[i] = p.GetName()
	}
	return names
}

// resolve is the service ref. known is false when nothing can be said about it:
// there is no such service, or what it serves has problems of its own.
func (c *checker) resolve(ref Ref) (s *service, known bool) {
	if s, ok := c.reached[ref]; ok {
		return s, s != nil
	}
	s = c.lookUp(ref)
	c.reached[ref] = s
	return s, s != nil
}

func (c *checker) lookUp(ref Ref) *service {
	d := c.services[ref]
	if d == nil {
		w := c.workloads[ref]
		if !serves(w) {
			return nil
		}
		return &service{ref: ref, ports: w.GetWorkload().GetServes(), members: []Ref{ref}}
	}
	if d.faulty("spec") {
		return nil
	}
	if e := d.GetService().GetExternal(); e != nil {
		protocol := e.GetProtocol()
		if protocol == "" {
			protocol = "http"
		}
		return &service{ref: ref, external: true, ports: []*ztv1.Port{{Name: ExternalPort, Port: e.GetPort(), Protocol: protocol}}}
	}
	s := &service{ref: ref}
	for _, name := range d.GetService().GetWorkloads() {
		m := Ref{ref.Namespace, strings.TrimPrefix(name, ref.Namespace+"/")}
		if !serves(c.workloads[m]) {
			return nil
		}
		s.members = append(s.members, m)
		for _, p := range c.workloads[m].GetWorkload().GetServes() {
			if s.named(p.GetName()) == nil {
				s.ports = append(s.ports, p)
			}
		}
	}
	return s
}

// serves tells whether something is known of the ports of the workload w, which
// may be nil.
func serves(w *Document) bool {
	return w != nil && !w.faulty("spec") && len(w.GetWorkload().GetServes()) > 0
}

// serviceAt is the service ref, which d names at path. It reports that there is
// none.
func (c *checker) serviceAt(d *Document, path string, ref Ref) (s *service, known bool) {
	if s, known = c.resolve(ref); known {
		return s, true
	}
	w := c.workloads[ref]
	switch {
	case c.services[ref] != nil:
	case w == nil:
		c.say(d, codeNoService, path, c.near(ref, c.workloads, c.services), "there is no service %s", ref)
	case !w.faulty("spec"):
		c.say(d, codeNoService, path, "", "the workload %s serves nothing", ref)
	}
	return nil, false
}

// service is what must hold of a Service and others.
func (c *checker) service(d *Document, s *ztv1.Service) {
	if w := c.workloads[d.Ref()]; w != nil && len(w.GetWorkload().GetServes()) > 0 {
		guilty, kept := blame(d, w)
		c.say(guilty, codeServiceName, "metadata.name", "", "the name is that of %s, which serves ports", kept.Key())
	}
	c.externalTLS(d, s.GetExternal())
	ports := map[string]*ztv1.Port{}
	for i, name := range s.GetWorkloads() {
		path := index("spec.workloads", i)
		ref, err := ParseRef(name, d.Ref().Namespace)
		if err != nil || ref.Namespace != d.Ref().Namespace {
			continue
		}
		w := c.workloads[ref]
		switch {
		case w == nil:
			c.say(d, codeNoWorkload, path, c.near(ref, c.workloads), "there is no workload %s", ref)
		case w.faulty("spec"):
		case len(w.GetWorkload().GetServes()) == 0:
			c.say(d, codeNoService, path, "", "the workload %s serves nothing", ref)
		}
		for _, p := range w.servesOf() {
			other := ports[p.GetName()]
			if other == nil {
				ports[p.GetName()] = p
			} else if other.GetPort() != p.GetPort() || other.GetProtocol() != p.GetProtocol() || other.GetServerFirst() != p.GetServerFirst() {
				c.say(d, codeMemberPorts, path, "", "the port %s of %s is %d and %s, that of another member %d and %s",
					p.GetName(), ref, p.GetPort(), p.GetProtocol(), other.GetPort(), other.GetProtocol())
			}
		}
	}
}

// servesOf is the ports of the workload d, which may be nil.
func (d *Document) servesOf() []*ztv1.Port {
	if !serves(d) {
		return nil
	}
	return d.GetWorkload().GetServes()
}

// externalTLS reports trust in e that no Exception keeps.
func (c *checker) externalTLS(d *Document, e *ztv1.External) {
	if e.GetTls().GetDisabled() && !c.excused(FindingPlaintextEgress, d.Ref()) {
		c.say(d, codeExternalTLS, "spec.external.tls.disabled", "", "%s is called without TLS", d.Ref())
	}
	for i, h := range e.GetHosts() {
		if isHost(h) && isLocalName(h) && !c.excused(FindingReservedAddress, d.Ref()) {
			c.say(d, codeReservedAddress, index("spec.external.hosts", i), "", "%s is this host", h)
		}
	}
}

func (c *checker) tcpCall(d *Document, path, s string) {
	ref, name, err := ParseServicePort(s, d.Ref().Namespace)
	if err != nil {
		return
	}
	called, known := c.serviceAt(d, path, ref)
	if !known {
		return
	}
	if name != "" {
		switch p := called.named(name); {
		case p == nil:
			c.say(d, codeNoPort, path, didYouMean(name, portNames(called.ports)), "the service %s has no port %s", ref, show(name))
		case p.GetProtocol() != "tcp":
			c.say(d, codeCallNotTCP, path, "", "the port %s of %s is %s", name, ref, p.GetProtocol())
		}
		return
	}
	tcp := slices.DeleteFunc(slices.Clone(called.ports), func(p *ztv1.Port) bool { return p.GetProtocol() != "tcp" })
	switch {
	case len(tcp) == 0:
		c.say(d, codeCallNotTCP, path, "", "the service %s has no tcp port", ref)
	case len(tcp) > 1:
		c.say(d, codeCallPortRequired, path, "", "the service %s has the tcp ports %s", ref, strings.Join(portNames(tcp), ", "))
	}
}

// A shape is what matters of a port to a grant. Ports of one shape are judged once.
type shape struct {
	class       string // http, grpc or tcp
	upgrades    bool
	serverFirst bool
	external    bool
	segment     string // that its workload is in, or empty
}

func (s shape) compare(o shape) int {
	bit := func(a, b bool) int {
		switch {
		case a == b:
			return 0
		case a:
			return 1
		}
		return -1
	}
	return cmp.Or(cmp.Compare(s.class, o.class), cmp.Compare(s.segment, o.segment), bit(s.upgrades, o.upgrades),
		bit(s.serverFirst, o.serverFirst), bit(s.external, o.external))
}

// shapes are those of the port p of s: one for each segment of its members.
func (c *checker) shapes(s *service, p *ztv1.Port, to []shape) []shape {
	form := shape{class: family(p), upgrades: len(p.GetUpgrades()) > 0, serverFirst: p.GetServerFirst(), external: s.external}
	if s.external {
		return with(to, form)
	}
	for _, m := range s.members {
		// A member may lack the port, or differ in what it takes beside.
		if own := c.workloads[m].GetWorkload(); len(s.members) > 1 {
			i := slices.IndexFunc(own.GetServes(), func(o *ztv1.Port) bool { return o.GetName() == p.GetName() })
			if i < 0 {
				continue
			}
			form.upgrades = len(own.GetServes()[i].GetUpgrades()) > 0
		}
		form.segment = c.segments.of(m)
		to = with(to, form)
	}
	return to
}

func with(list []shape, s shape) []shape {
	if slices.Contains(list, s) {
		return list
	}
	return append(list, s)
}

// wideOf is the shapes of the ports of all workloads in namespace, or with "" of
// all, by the name of the port.
func (c *checker) wideOf(namespace string) map[string][]shape {
	if c.wide != nil {
		return c.wide[namespace]
	}
	c.wide = map[string]map[string][]shape{"": {}}
	for ref, w := range c.workloads {
		if c.wide[ref.Namespace] == nil {
			c.wide[ref.Namespace] = map[string][]shape{}
		}
		s := &service{ref: ref, members: []Ref{ref}}
		for _, p := range w.servesOf() {
			for _, ns := range []string{"", ref.Namespace} {
				c.wide[ns][p.GetName()] = c.shapes(s, p, c.wide[ns][p.GetName()])
			}
		}
	}
	return c.wide[namespace]
}

// family is what makes ports alike for methods and paths.
func family(p *ztv1.Port) string {
	if p.GetProtocol() == "http2" {
		return "http"
	}
	return p.GetProtocol()
}
