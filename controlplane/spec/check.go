package spec

import (
	"slices"
	"strings"

	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// Check is what SPEC.md refuses in docs together: the whole set as it would be
// after the change, what is stored and what is new. trustDomain is the cluster's;
// empty when it is not known, and then Mesh.trustDomain is not compared.
//
// It concludes nothing from those parts of documents that Parse has reported.
func Check(docs []*Document, trustDomain string) Problems {
	c := &checker{
		workloads: make(map[Ref]*Document), grants: make(map[Ref]bool),
		namespaces: make(map[string]bool), trustDomain: trustDomain,
	}
	seen := make(map[Key]bool, len(docs))
	var unique []*Document
	for _, d := range docs {
		if seen[d.Key()] {
			c.report(d, d.problem(codeDuplicateDocument, "", "", "%s stands twice", d.Key()))
			continue
		}
		seen[d.Key()] = true
		unique = append(unique, d)
		switch d.GetKind() {
		case KindWorkload:
			c.workloads[d.Ref()] = d
			c.namespaces[d.Ref().Namespace] = true
		case KindGrant:
			c.grants[d.Ref()] = true
		}
	}
	for _, d := range unique {
		if c.problems.full() {
			break
		}
		c.document(d)
	}
	return c.problems.capped()
}

type checker struct {
	workloads   map[Ref]*Document
	grants      map[Ref]bool
	namespaces  map[string]bool // those that have a workload
	mesh        *Document
	trustDomain string
	problems    Problems
}

// report adds p unless it only follows from what Parse has reported.
func (c *checker) report(d *Document, p Problem) {
	if !d.faulty(p.Path) {
		c.problems = append(c.problems, p)
	}
}

func (c *checker) document(d *Document) {
	switch {
	case d.GetMesh() != nil:
		if c.mesh != nil {
			written, other := d, c.mesh
			if d.spots == nil {
				written, other = other, written // point at what the user can change
			}
			c.report(written, written.problem(codeSecondMesh, "metadata.name", "", "there is %s already", other.Key()))
			return
		}
		c.mesh = d
		if td := d.GetMesh().GetTrustDomain(); c.trustDomain != "" && td != c.trustDomain {
			c.report(d, d.problem(codeTrustDomain, "spec.trustDomain", "", "the trust domain is %s, the cluster's is %s", show(td), show(c.trustDomain)))
		}
	case d.GetWorkload() != nil:
		for i, call := range d.GetWorkload().GetTcpCalls() {
			c.tcpCall(d, index("spec.tcpCalls", i)+".service", call.GetService())
		}
	case d.GetGrant() != nil:
		c.grant(d, d.GetGrant())
	case d.GetAssertion() != nil:
		for i, t := range d.GetAssertion().GetTests() {
			c.test(d, index("spec.tests", i), t)
		}
	}
}

// workload reports a reference to a workload that does not exist.
func (c *checker) workload(d *Document, path, s string) {
	ref, err := ParseRef(s, d.Ref().Namespace)
	if err != nil || c.workloads[ref] != nil {
		return
	}
	c.report(d, d.problem(codeNoWorkload, path, c.near(ref), "there is no workload %s", ref))
}

// service is the ports of the service ref. known is false when nothing can be
// said about them: there is no such service, which it reports, or what it serves
// has problems of its own.
func (c *checker) service(d *Document, path string, ref Ref) (ports []*ztv1.Port, known bool) {
	w := c.workloads[ref]
	switch {
	case w == nil:
		c.report(d, d.problem(codeNoService, path, c.near(ref), "there is no service %s", ref))
		return nil, false
	case w.faulty("spec.serves") || w.faulty("spec"):
		return nil, false
	case len(w.GetWorkload().GetServes()) == 0:
		c.report(d, d.problem(codeNoService, path, "", "the workload %s serves nothing", ref))
		return nil, false
	}
	return w.GetWorkload().GetServes(), true
}

// near is a hint with a workload of a similar name. It looks at all of them, so
// only the first problems get one.
func (c *checker) near(ref Ref) string {
	const enough = 20
	if len(c.problems) >= enough {
		return ""
	}
	var here, elsewhere []string
	for w := range c.workloads {
		switch {
		case w.Namespace == ref.Namespace:
			here = append(here, w.Name)
		case w.Name == ref.Name:
			elsewhere = append(elsewhere, w.String())
		}
	}
	slices.Sort(here)
	slices.Sort(elsewhere)
	if len(elsewhere) > 0 {
		return "Did you mean \"" + elsewhere[0] + "\"?"
	}
	return didYouMean(ref.Name, here)
}

func portNamed(ports []*ztv1.Port, name string) *ztv1.Port {
	for _, p := range ports {
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

func (c *checker) tcpCall(d *Document, path, s string) {
	ref, name, err := ParseServicePort(s, d.Ref().Namespace)
	if err != nil {
		return
	}
	ports, known := c.service(d, path, ref)
	if !known {
		return
	}
	if name != "" {
		switch p := portNamed(ports, name); {
		case p == nil:
			c.report(d, d.problem(codeNoPort, path, didYouMean(name, portNames(ports)), "the service %s has no port %s", ref, show(name)))
		case p.GetProtocol() != "tcp":
			c.report(d, d.problem(codeCallNotTCP, path, "", "the port %s of %s is %s", name, ref, p.GetProtocol()))
		}
		return
	}
	tcp := slices.DeleteFunc(slices.Clone(ports), func(p *ztv1.Port) bool { return p.GetProtocol() != "tcp" })
	switch {
	case len(tcp) == 0:
		c.report(d, d.problem(codeCallNotTCP, path, "", "the service %s has no tcp port", ref))
	case len(tcp) > 1:
		c.report(d, d.problem(codeCallPortRequired, path, "", "the service %s has the tcp ports %s", ref, strings.Join(portNames(tcp), ", ")))
	}
}

func (c *checker) grant(d *Document, g *ztv1.Grant) {
	for i, s := range g.GetFrom().GetWorkloads() {
		c.workload(d, index("spec.from.workloads", i), s)
	}
	for i, ns := range g.GetFrom().GetNamespaces() {
		if isLabel(ns) && !c.namespaces[ns] {
			c.report(d, d.problem(codeNoNamespace, index("spec.from.namespaces", i), "", "the namespace %s has no workload", ns))
		}
	}
	reached, complete := c.reached(d, g.GetTo())
	if !complete || len(reached) == 0 {
		return
	}
	methods, paths := g.GetTo().GetMethods(), g.GetTo().GetPaths()
	if len(methods) == 0 && len(paths) == 0 {
		return
	}
	field := "spec.to.methods"
	if len(methods) == 0 {
		field = "spec.to.paths"
	}
	class := family(reached[0])
	for _, p := range reached[1:] {
		if family(p) != class {
			c.report(d, d.problem(codeMixed, field, "", "the ports are %s and %s", class, family(p)))
			return
		}
	}
	switch class {
	case "tcp":
		c.report(d, d.problem(codeHTTPOnTCP, field, "", "the port is tcp"))
	case "grpc":
		c.methodsFit(d, methods, isGRPCMethod, "grpc")
		if len(paths) > 0 {
			c.report(d, d.problem(codePathsOnGRPC, "spec.to.paths", "", "the port is grpc"))
		}
	default:
		c.methodsFit(d, methods, isHTTPMethod, "http")
	}
}

// family is what makes ports alike for methods and paths.
func family(p *ztv1.Port) string {
	if p.GetProtocol() == "http2" {
		return "http"
	}
	return p.GetProtocol()
}

func (c *checker) methodsFit(d *Document, methods []string, fits func(string) bool, class string) {
	for i, m := range methods {
		if !fits(m) {
			c.report(d, d.problem(codeMethodKind, index("spec.to.methods", i), "", "the port is %s and %s is no %s method", class, show(m), class))
		}
	}
}

// reached is every port that the target names. complete is false when some of
// them are not known.
func (c *checker) reached(d *Document, to *ztv1.Target) (reached []*ztv1.Port, complete bool) {
	complete = true
	used := map[string]bool{}
	for i, s := range to.GetServices() {
		path := index("spec.to.services", i)
		ref, err := ParseRef(s, d.Ref().Namespace)
		if err != nil || ref.Namespace != d.Ref().Namespace {
			complete = false
			continue
		}
		ports, known := c.service(d, path, ref)
		switch {
		case !known:
			complete = false
		case len(to.GetPorts()) == 0 && len(ports) > 1:
			complete = false
			if !d.faulty("spec.to.ports") {
				c.report(d, d.problem(codePortsRequired, path, "", "the service %s has the ports %s", ref, strings.Join(portNames(ports), ", ")))
			}
		case len(to.GetPorts()) == 0:
			reached = append(reached, ports...)
		default:
			before := len(reached)
			for _, name := range to.GetPorts() {
				if p := portNamed(ports, name); p != nil {
					used[name] = true
					reached = append(reached, p)
				}
			}
			if len(reached) == before {
				c.report(d, d.problem(codeNoPort, path, "", "the service %s has none of the ports named; it has %s", ref, strings.Join(portNames(ports), ", ")))
			}
		}
	}
	for i, name := range to.GetPorts() {
		if complete && !used[name] {
			c.report(d, d.problem(codeNoPort, index("spec.to.ports", i), "", "no service of this grant has a port %s", show(name)))
		}
	}
	return reached, complete
}

func (c *checker) test(d *Document, path string, t *ztv1.Test) {
	namespace := d.Ref().Namespace
	c.workload(d, path+".as.workload", t.GetAs().GetWorkload())
	if by := t.GetBy(); by != "" {
		if ref, err := ParseRef(by, namespace); err == nil && !c.grants[ref] {
			c.report(d, d.problem(codeNoGrant, path+".by", "", "there is no grant %s", ref))
		}
	}
	path += ".request"
	r, err := ParseRequest(t.GetRequest(), namespace)
	if err != nil {
		return
	}
	ports, known := c.service(d, path, r.Service)
	if !known {
		return
	}
	if r.Port == "" && len(ports) > 1 {
		c.report(d, d.problem(codeRequestPort, path, "", "the service %s has the ports %s", r.Service, strings.Join(portNames(ports), ", ")))
		return
	}
	p := ports[0]
	if r.Port != "" {
		p = portNamed(ports, r.Port)
	}
	switch {
	case p == nil:
		c.report(d, d.problem(codeNoPort, path, didYouMean(r.Port, portNames(ports)), "the service %s has no port %s", r.Service, show(r.Port)))
	case r.TCP != (p.GetProtocol() == "tcp") || r.GRPC && p.GetProtocol() != "grpc":
		c.report(d, d.problem(codeRequestProtocol, path, "", "the port %s of %s is %s", p.GetName(), r.Service, p.GetProtocol()))
	}
}
