package spec

import (
	"slices"
	"strings"

	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

func (c *checker) grant(d *Document, g *ztv1.Grant) {
	c.caller(d, "spec.from", g.GetFrom())
	if u := g.GetFrom().GetUsers(); u != nil {
		c.users(d, "spec.from.users", u)
	}
	for _, name := range sortedKeys(g.GetWhen().GetHeaders()) {
		if p := c.forwarded[name]; p != nil {
			c.say(d, codeForwardedHeader, key("spec.when.headers", name), "Name the claim in from.users.", "the header %s carries a verified claim of %s", show(name), p.Key())
		}
	}
	if text := g.GetWhen().GetCel(); text != "" && len(c.forwarded) > 0 {
		if e, err := ParseCEL(text); err == nil { // else it is reported as the document is read
			for _, name := range sortedKeys(c.forwarded) {
				if p := c.forwarded[name]; e.SpeaksOf(celHeaders + "." + name) {
					c.say(d, codeForwardedHeader, "spec.when.cel", "Name the claim in from.users.", "the header %s carries a verified claim of %s", show(name), p.Key())
				}
			}
		}
	}
	callers, known := []string(nil), false
	shapes, complete := c.target(d, "spec.to", g.GetTo(), func(path string, reached []shape) {
		if !known {
			callers, known = c.callerSegments(g.GetFrom(), d.Ref().Namespace), true
		}
		c.admitted(d, path, callers, reached)
	})
	for _, s := range shapes {
		c.conditions(d, g, s)
	}
	if complete {
		c.fits(d, "spec.to", g.GetTo(), shapes)
	}
}

// caller reports callers that do not exist.
func (c *checker) caller(d *Document, path string, from *ztv1.Caller) {
	for i, s := range from.GetWorkloads() {
		c.workloadRef(d, index(path+".workloads", i), s)
	}
	c.namespacesExist(d, path+".namespaces", from.GetNamespaces())
	for i, s := range from.GetSegments() {
		c.segmentRef(d, index(path+".segments", i), s)
	}
	for i, id := range from.GetSpiffeIds() {
		at := index(path+".spiffeIDs", i)
		if ref, ok := c.id(d, at, id); ok && c.workloads[ref] == nil {
			c.say(d, codeNoWorkload, at, c.near(ref, c.workloads), "there is no workload %s", ref)
		}
	}
}

// users reports a provider, or claims of it, that do not exist.
func (c *checker) users(d *Document, path string, u *ztv1.Users) {
	p := c.providerRef(d, path+".provider", u.GetProvider())
	if p == nil || p.faulty("spec.claims") {
		return
	}
	for _, name := range sortedKeys(u.GetClaims()) {
		at := key(path+".claims", name)
		claim := c.claim(d, at, p, name)
		if claim.GetKind() != "boolean" {
			continue
		}
		for i, v := range u.GetClaims()[name].GetValues() {
			c.boolean(d, index(at, i), name, v)
		}
	}
}

// claim is the claim name of the provider p; it reports that there is none.
func (c *checker) claim(d *Document, path string, p *Document, name string) *ztv1.Claim {
	declared := p.GetIdentityProvider().GetClaims()
	if i := slices.IndexFunc(declared, func(cl *ztv1.Claim) bool { return cl.GetName() == name }); i >= 0 {
		return declared[i]
	}
	hint := ""
	switch name {
	case "sub":
		hint = "Write \"subjects\" (in a test: \"subject\")."
	case "acr", "amr":
		hint = "Write \"" + name + "\" beside claims."
	default:
		names := make([]string, len(declared))
		for i, cl := range declared {
			names[i] = cl.GetName()
		}
		hint = didYouMean(name, names)
	}
	c.say(d, codeClaim, path, hint, "the provider %s declares no claim %s", p.Ref().Name, show(name))
	return nil
}

func (c *checker) boolean(d *Document, path, name, value string) {
	if value != "true" && value != "false" {
		c.say(d, codeClaimValue, path, "", "the claim %s is a boolean, and %s is none", show(name), show(value))
	}
}

// target is the shapes of every port that to names. complete is false when some
// of them are not known. A grant gives each, which is called with what every item
// reaches; it says which ports it means and names its own services. A statement
// gives none.
func (c *checker) target(d *Document, path string, to *ztv1.Target, each func(path string, reached []shape)) (reached []shape, complete bool) {
	if isWide(to) {
		return c.wideTarget(d, path, to, each)
	}
	strict := each != nil
	complete = true
	used := map[string]bool{}
	for i, s := range to.GetServices() {
		at := index(path+".services", i)
		ref, err := ParseRef(s, d.Ref().Namespace)
		if err != nil || strict && ref.Namespace != d.Ref().Namespace || strict && ref.Namespace == MeshNamespace {
			complete = false
			continue
		}
		called, known := c.serviceAt(d, at, ref)
		if !known {
			complete = false
			continue
		}
		ports := called.ports
		if len(to.GetPorts()) > 0 {
			ports = slices.DeleteFunc(slices.Clone(ports), func(p *ztv1.Port) bool { return !slices.Contains(to.GetPorts(), p.GetName()) })
		}
		switch {
		case strict && len(to.GetPorts()) == 0 && len(ports) > 1:
			complete = false
			if !d.faulty(path + ".ports") {
				c.say(d, codePortsRequired, at, "", "the service %s has the ports %s", ref, strings.Join(portNames(ports), ", "))
			}
			continue
		case len(ports) == 0:
			c.say(d, codeNoPort, at, "", "the service %s has none of the ports named; it has %s", ref, strings.Join(portNames(called.ports), ", "))
		}
		var here []shape
		for _, p := range ports {
			used[p.GetName()] = true
			here = c.shapes(called, p, here)
		}
		if strict {
			each(at, here)
		}
		for _, s := range here {
			reached = with(reached, s)
		}
	}
	for i, name := range to.GetPorts() {
		if complete && !used[name] {
			c.say(d, codeNoPort, index(path+".ports", i), "", "no service named here has a port %s", show(name))
		}
	}
	return reached, complete
}

// wideTarget is target of what reaches across services.
func (c *checker) wideTarget(d *Document, path string, to *ztv1.Target, each func(path string, reached []shape)) (reached []shape, complete bool) {
	c.namespacesExist(d, path+".namespaces", to.GetNamespaces())
	namespaces := to.GetNamespaces()
	if to.GetAllServices() {
		namespaces = []string{""}
	}
	for _, ns := range namespaces {
		if len(to.GetPorts()) == 0 {
			for _, name := range sortedKeys(c.wideOf(ns)) {
				reached = append(reached, c.wideOf(ns)[name]...)
			}
		}
	}
	for i, name := range to.GetPorts() {
		var here []shape
		for _, ns := range namespaces {
			for _, s := range c.wideOf(ns)[name] {
				here = with(here, s)
			}
		}
		if len(here) == 0 {
			c.say(d, codeNoPort, index(path+".ports", i), "", "no service in reach has a port %s", show(name))
		}
		for _, s := range here {
			reached = with(reached, s)
		}
	}
	slices.SortFunc(reached, shape.compare)
	if reached = slices.Compact(reached); each != nil {
		each(path, reached)
	}
	return reached, true
}

// conditions reports what cannot be judged on a port of the shape s.
func (c *checker) conditions(d *Document, g *ztv1.Grant, s shape) {
	w := g.GetWhen()
	given := func(code, why string, fields ...oneOf) {
		for _, f := range fields {
			if f.set {
				c.say(d, code, f.name, "", "%s", why)
			}
		}
	}
	if s.class == "tcp" {
		given(
			codeConditionOnTCP, "a tcp connection has none",
			oneOf{"spec.from.users", g.GetFrom().GetUsers() != nil}, oneOf{"spec.when.headers", len(w.GetHeaders()) > 0}, oneOf{"spec.when.cel", w.GetCel() != ""},
		)
	}
	if s.serverFirst {
		given(codeServerFirst, "the port is serverFirst", oneOf{"spec.when", w != nil}, oneOf{"spec.until", g.GetUntil() != nil})
	}
	if s.external {
		if e, err := ParseCEL(w.GetCel()); err == nil && e.SpeaksOf(celCaller) {
			c.say(d, codeExternalCondition, "spec.when.cel", "", "the service is external, and %s is not known there", celCaller)
		}
		given(
			codeExternalCondition, "the service is external",
			oneOf{"spec.from.users", g.GetFrom().GetUsers() != nil}, oneOf{"spec.when.sourceCIDRs", len(w.GetSourceCidrs()) > 0},
		)
	}
	if s.external && s.class == "tcp" {
		given(codeExternalCondition, "the service is external and tcp", oneOf{"spec.when", w != nil}, oneOf{"spec.until", g.GetUntil() != nil})
	}
	if provider := c.segments.requires(s.segment); s.class == "tcp" && provider != "" && g.GetFrom().GetUsers() == nil {
		given(codeUserOnTCP, "the segment "+s.segment+" requires a user of "+provider+", and the port is tcp", oneOf{"spec.to", true})
	}
}

// fits reports methods, paths and upgrades that the ports do not have.
func (c *checker) fits(d *Document, path string, to *ztv1.Target, shapes []shape) {
	if len(to.GetUpgrades()) > 0 && slices.ContainsFunc(shapes, func(s shape) bool { return !s.upgrades }) {
		c.say(d, codeUpgrade, path+".upgrades", "", "there is a port that takes no upgrades")
	}
	methods, paths := to.GetMethods(), to.GetPaths()
	if len(methods) == 0 && len(paths) == 0 || len(shapes) == 0 {
		return
	}
	field := path + ".methods"
	if len(methods) == 0 {
		field = path + ".paths"
	}
	class := shapes[0].class
	for _, s := range shapes[1:] {
		if s.class != class {
			c.say(d, codeMixed, field, "", "the ports are %s and %s", class, s.class)
			return
		}
	}
	switch class {
	case "tcp":
		c.say(d, codeHTTPOnTCP, field, "", "the port is tcp")
	case "grpc":
		c.methodsFit(d, path, methods, isGRPCMethod, "grpc")
		if len(paths) > 0 {
			c.say(d, codePathsOnGRPC, path+".paths", "", "the port is grpc")
		}
	default:
		c.methodsFit(d, path, methods, isHTTPMethod, "http")
	}
}

func (c *checker) methodsFit(d *Document, path string, methods []string, fits func(string) bool, class string) {
	for i, m := range methods {
		if !fits(m) {
			c.say(d, codeMethodKind, index(path+".methods", i), "", "the port is %s and %s is no %s method", class, show(m), class)
		}
	}
}
