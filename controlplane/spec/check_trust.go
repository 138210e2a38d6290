package spec

import (
	"net/netip"
	"slices"
	"strings"

	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// excuse is what an Exception is about.
type excuse struct {
	finding string
	subject Ref // a service, or in the namespace "mesh" a provider
}

func excuseOf(d *Document) excuse {
	ref, _, err := ParseServicePort(d.GetException().GetSubject(), d.Ref().Namespace)
	if err != nil {
		return excuse{}
	}
	return excuse{d.GetException().GetFinding(), ref}
}

// excused tells whether an Exception keeps finding of subject, at whatever time.
// Which addresses it accepts is not asked.
func (c *checker) excused(finding string, subject Ref) bool {
	return len(c.exceptions[excuse{finding, subject}]) > 0
}

// accepted tells whether an Exception for subject accepts the reserved address.
func (c *checker) accepted(addr netip.Addr, subject Ref) bool {
	return slices.ContainsFunc(c.exceptions[excuse{FindingReservedAddress, subject}], func(d *Document) bool {
		return slices.ContainsFunc(d.GetException().GetPeers(), func(s string) bool {
			p, err := ParseCIDR(s)
			return err == nil && p.Contains(addr.Unmap())
		})
	})
}

// exception reports an Exception that keeps nothing.
func (c *checker) exception(d *Document, e *ztv1.Exception) {
	ref, port, err := ParseServicePort(e.GetSubject(), d.Ref().Namespace)
	if err != nil || ref.Namespace != d.Ref().Namespace {
		return
	}
	const path = "spec.subject"
	useless := func(why string) { c.say(d, codeNoUse, path, "", "%s: the exception keeps nothing", why) }
	switch finding := e.GetFinding(); {
	case finding == FindingPlaintext:
		w := c.workloads[ref]
		switch {
		case c.services[ref] != nil && !serves(w):
			c.say(d, codeNoWorkload, path, "Name the workload that serves the port.", "%s is a Service, not a workload", ref)
		case w == nil:
			c.say(d, codeNoWorkload, path, c.near(ref, c.workloads), "there is no workload %s", ref)
		case !w.faulty("spec") && port != "":
			i := slices.IndexFunc(w.GetWorkload().GetServes(), func(p *ztv1.Port) bool { return p.GetName() == port })
			if i < 0 {
				c.say(d, codeNoPort, path, didYouMean(port, portNames(w.servesOf())), "the workload %s has no port %s", ref, show(port))
			} else if w.GetWorkload().GetServes()[i].GetServerFirst() {
				c.say(d, codeSubjectForm, path, "Keep TLS there, or let the client speak first.", "the port %s is serverFirst: who may connect is judged in the TLS handshake", show(e.GetSubject()))
			}
		}
	case d.Ref().Namespace == MeshNamespace && finding != FindingPlaintextEgress:
		provider := c.providerRef(d, path, ref.Name)
		if provider == nil || provider.faulty("spec.jwks") {
			return
		}
		switch p := provider.GetIdentityProvider(); {
		case finding == FindingPlaintextJWKS && !isPlain(p.GetJwks().GetUri()) && !isPlain(p.GetIssuer()):
			useless("neither its issuer nor its keys are at an http URL")
		case finding == FindingReservedAddress && p.GetJwks().GetUri() == "":
			useless("its keys are inline")
		}
	case finding == FindingPlaintextJWKS: // outside mesh, which is reported
	default:
		s := c.services[ref]
		switch {
		case s == nil:
			c.say(d, codeNoService, path, c.near(ref, c.services), "there is no external service %s", ref)
		case s.faulty("spec"):
		case s.GetService().GetExternal() == nil:
			useless(ref.String() + " is not external")
		case finding == FindingPlaintextEgress && !s.GetService().GetExternal().GetTls().GetDisabled():
			useless(ref.String() + " is called with TLS")
		}
	}
}

func isPlain(url string) bool { return strings.HasPrefix(url, "http:") }

// providerRef is the provider name; it reports that there is none.
func (c *checker) providerRef(d *Document, path, name string) *Document {
	p := c.providers[name]
	if p == nil && isLabel(name) {
		c.say(d, codeNoProvider, path, didYouMean(name, sortedKeys(c.providers)), "there is no identity provider %s", name)
	}
	return p
}

// provider reports trust in a provider that no Exception keeps.
func (c *checker) provider(d *Document, p *ztv1.IdentityProvider) {
	for _, at := range []struct{ path, url string }{{"spec.issuer", p.GetIssuer()}, {"spec.jwks.uri", p.GetJwks().GetUri()}} {
		if isPlain(at.url) && !c.excused(FindingPlaintextJWKS, d.Ref()) {
			c.say(d, codePlainURL, at.path, "", "%s is not https", show(at.url))
		}
	}
	u, err := parseURL(p.GetJwks().GetUri())
	if err != nil {
		return
	}
	host := u.Hostname()
	addr, err := netip.ParseAddr(host)
	switch {
	case isLocalName(host) && !c.excused(FindingReservedAddress, d.Ref()):
		c.say(d, codeReservedAddress, "spec.jwks.uri", "", "%s is this host", host)
	case err == nil && Reserved(addr) && !c.accepted(addr, d.Ref()):
		c.say(d, codeReservedAddress, "spec.jwks.uri", "", "%s is a reserved address", host)
	}
}

// block reports what a Block names and is not there. What the operator wrote may
// name what has gone since.
func (c *checker) block(d *Document, b *ztv1.Block) {
	namespace := d.Ref().Namespace
	if namespace != MeshNamespace && len(b.GetServices()) == 0 {
		for i, id := range b.GetSpiffeIds() {
			if td, _, err := ParseID(id); err == nil && c.own() != "" && td != c.own() {
				c.say(d, codeForeignBlock, index("spec.spiffeIDs", i), "", "%s is not of the namespace %s", show(id), namespace)
			}
		}
	}
	if d.Operator() {
		return
	}
	for i, s := range b.GetWorkloads() {
		c.workloadRef(d, index("spec.workloads", i), s)
	}
	c.namespacesExist(d, "spec.namespaces", b.GetNamespaces())
	for i, td := range b.GetTrustDomains() {
		if c.own() != "" && isTrustDomain(td) && td != c.own() && !c.aliases[td] && !c.federated[td] {
			c.say(d, codeNoTrustDomain, index("spec.trustDomains", i), didYouMean(td, sortedKeys(c.federated)), "there is no trust domain %s", td)
		}
	}
	for i, id := range b.GetSpiffeIds() {
		c.id(d, index("spec.spiffeIDs", i), id)
	}
	for i, s := range b.GetServices() {
		if ref, err := ParseRef(s, namespace); err == nil {
			c.serviceAt(d, index("spec.services", i), ref)
		}
	}
	if b.GetUsers() != nil {
		c.providerRef(d, "spec.users.provider", b.GetUsers().GetProvider())
	}
}

func (c *checker) assertion(d *Document, a *ztv1.Assertion) {
	for i, t := range a.GetTests() {
		c.test(d, index("spec.tests", i), t)
	}
	for i, s := range a.GetNever() {
		c.statement(d, index("spec.never", i), s)
	}
	for i, s := range a.GetAlways() {
		c.statement(d, index("spec.always", i), s)
	}
}

func (c *checker) statement(d *Document, path string, s *ztv1.Statement) {
	c.caller(d, path+".from", s.GetFrom())
	if shapes, complete := c.target(d, path+".to", s.GetTo(), nil); complete {
		c.fits(d, path+".to", s.GetTo(), shapes)
	}
}

func (c *checker) test(d *Document, path string, t *ztv1.Test) {
	namespace := d.Ref().Namespace
	c.workloadRef(d, path+".as.workload", t.GetAs().GetWorkload())
	if u := t.GetAs().GetUser(); u != nil {
		c.user(d, path+".as.user", u)
	}
	if by := t.GetBy(); by != "" {
		if ref, err := ParseRef(by, namespace); err == nil && !c.grants[ref] {
			c.say(d, codeNoGrant, path+".by", "", "there is no grant %s", ref)
		}
	}
	path += ".request"
	r, err := ParseRequest(t.GetRequest(), namespace)
	if err != nil {
		return
	}
	called, known := c.serviceAt(d, path, r.Service)
	if !known {
		return
	}
	if r.Port == "" && len(called.ports) > 1 {
		c.say(d, codeRequestPort, path, "", "the service %s has the ports %s", r.Service, strings.Join(portNames(called.ports), ", "))
		return
	}
	p := called.ports[0]
	if r.Port != "" {
		p = called.named(r.Port)
	}
	switch {
	case p == nil:
		c.say(d, codeNoPort, path, didYouMean(r.Port, portNames(called.ports)), "the service %s has no port %s", r.Service, show(r.Port))
	case r.TCP != (p.GetProtocol() == "tcp") || r.GRPC && p.GetProtocol() != "grpc":
		c.say(d, codeRequestProtocol, path, "", "the port %s of %s is %s", p.GetName(), r.Service, p.GetProtocol())
	}
}

// user reports claims that the provider's tokens do not have.
func (c *checker) user(d *Document, path string, u *ztv1.User) {
	p := c.providerRef(d, path+".provider", u.GetProvider())
	if p == nil || p.faulty("spec.claims") {
		return
	}
	for _, name := range sortedKeys(u.GetClaims()) {
		at, values := key(path+".claims", name), u.GetClaims()[name].GetValues()
		claim := c.claim(d, at, p, name)
		if claim == nil || claim.GetKind() == "list" {
			continue
		}
		if len(values) > 1 {
			c.say(d, codeClaimValue, at, "", "the claim %s has one value, not %d", show(name), len(values))
		}
		for i, v := range values {
			if claim.GetKind() == "boolean" {
				c.boolean(d, index(at, i), name, v)
			}
		}
	}
}
