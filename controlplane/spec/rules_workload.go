package spec

import (
	"net/netip"
	"slices"
	"strings"

	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

func (r *ruler) workload(w *ztv1.Workload) {
	names, numbers, targets := map[string]int{}, map[uint32]int{}, map[uint32]string{}
	for i, p := range w.GetServes() {
		path := index("spec.serves", i)
		if first, twice := names[p.GetName()]; twice && p.GetName() != "" {
			r.say(codePortNameTwice, path+".name", "", "the name %s is that of port %d already", show(p.GetName()), first+1)
		} else {
			names[p.GetName()] = i
		}
		if first, twice := numbers[p.GetPort()]; twice && p.GetPort() != 0 {
			r.say(codePortNumberTwice, path+".port", "", "the number %d is that of port %d already", p.GetPort(), first+1)
		} else {
			numbers[p.GetPort()] = i
		}
		if p.GetPort() == EgressPort {
			r.say(codeReservedPort, path+".port", "", "the port %d is reserved", EgressPort)
		}
		target, at := p.GetPort(), path+".port"
		r.port(path, p)
		if p.GetTarget() != "" {
			at = path + ".target"
			addr, ok := loopback(p.GetTarget())
			if !ok {
				r.say(codeTarget, at, "", "the target %s is not a loopback address and port", show(p.GetTarget()))
				continue
			}
			target = uint32(addr.Port())
			if target == EgressPort {
				r.say(codeReservedPort, at, "", "the port %d of the target is reserved", EgressPort)
			}
		}
		targets[target] = at
	}
	r.calls(w, targets)
	if a := w.GetExternalAuthorizer(); a != nil {
		r.authorizer(w, a)
	}
}

// calls are the tcpCalls; targets are the ports of applications that peers are
// led to, with where that is said.
func (r *ruler) calls(w *ztv1.Workload, targets map[uint32]string) {
	locals := map[uint32]int{}
	for i, c := range w.GetTcpCalls() {
		path := index("spec.tcpCalls", i)
		if _, _, err := ParseServicePort(c.GetService(), r.namespace); err != nil {
			r.say(codeReference, path+".service", "", "%v", err)
		}
		local := c.GetLocalPort()
		if first, twice := locals[local]; twice && local != 0 {
			r.say(codeLocalPortTwice, path+".localPort", "", "the port %d is that of call %d already", local, first+1)
		} else {
			locals[local] = i
		}
		if local == EgressPort {
			r.say(codeReservedPort, path+".localPort", "", "the port %d is reserved", EgressPort)
		}
		if at, clash := targets[local]; clash && local != 0 {
			r.say(codeTargetLoop, path+".localPort", "", "the port %d is where %s leads to", local, at)
		}
	}
}

// port is what a port of its protocol may say.
func (r *ruler) port(path string, p *ztv1.Port) {
	protocol := p.GetProtocol()
	unfit := func(field string) {
		r.say(codePortOption, path+"."+field, "", "%s is given for a port of protocol %s", field, show(protocol))
	}
	if p.GetHealthPath() != "" && protocol != "http" && protocol != "http2" {
		unfit("healthPath")
	} else if p.GetHealthPath() != "" && !isVisiblePath(p.GetHealthPath()) {
		r.say(codeHealthPath, path+".healthPath", "", "%s is not a path", show(p.GetHealthPath()))
	}
	r.websockets(path+".upgrades", p.GetUpgrades())
	if len(p.GetUpgrades()) > 0 && protocol != "http" {
		unfit("upgrades")
	}
	if p.GetServerFirst() && protocol != "tcp" {
		unfit("serverFirst")
	}
	if p.GetAllowEncodedPaths() && protocol != "http" && protocol != "http2" {
		unfit("allowEncodedPaths")
	}
}

// isVisiblePath tells whether s can stand in a request line as path and query.
func isVisiblePath(s string) bool {
	return strings.HasPrefix(s, "/") && strings.IndexFunc(s, func(c rune) bool { return c <= ' ' || c > '~' || c == '#' }) < 0
}

func (r *ruler) authorizer(w *ztv1.Workload, a *ztv1.ExternalAuthorizer) {
	const path = "spec.externalAuthorizer"
	if !slices.ContainsFunc(w.GetServes(), func(p *ztv1.Port) bool { return p.GetProtocol() != "tcp" }) {
		r.say(codeAuthorizer, path, "", "the workload serves no http, http2 or grpc port")
	}
	addr, ok := loopback(a.GetTarget())
	switch {
	case !ok:
		r.say(codeTarget, path+".target", "", "the target %s is not a loopback address and port", show(a.GetTarget()))
	case addr.Port() == EgressPort:
		r.say(codeReservedPort, path+".target", "", "the port %d of the target is reserved", EgressPort)
	case slices.ContainsFunc(w.GetTcpCalls(), func(c *ztv1.TCPCall) bool { return c.GetLocalPort() == uint32(addr.Port()) }):
		r.say(codeTargetLoop, path+".target", "", "the port %d is the localPort of a call", addr.Port())
	}
	for i, h := range a.GetHeaders() {
		if why := headerProblem(h, true); why != "" {
			r.say(codeHeader, index(path+".headers", i), "", "%s %s", show(h), why)
		}
	}
}

// loopback reads a loopback address and port in its one canonical spelling.
func loopback(s string) (addr netip.AddrPort, ok bool) {
	addr, err := netip.ParseAddrPort(s)
	ip := addr.Addr()
	return addr, err == nil && ip.IsLoopback() && !ip.Is4In6() && ip.Zone() == "" && addr.Port() != 0 && addr.String() == s
}

func (r *ruler) service(s *ztv1.Service) {
	r.exactly(codeServiceOne, "spec", false, oneOf{"workloads", len(s.GetWorkloads()) > 0}, oneOf{"external", s.GetExternal() != nil})
	for i, w := range s.GetWorkloads() {
		path := index("spec.workloads", i)
		ref, err := ParseRef(w, r.namespace)
		switch {
		case err != nil:
			r.say(codeReference, path, "", "%v", err)
		case ref.Namespace != r.namespace:
			r.say(codeForeignMember, path, "", "the workload %s is of another namespace", ref)
		}
	}
	if e := s.GetExternal(); e != nil {
		r.external(e)
	}
}

func (r *ruler) external(e *ztv1.External) {
	const path = "spec.external"
	seen := map[string]bool{}
	for i, h := range e.GetHosts() {
		if !isHost(h) {
			r.say(codeExternalHost, index(path+".hosts", i), "", "%s is not the name of an external host", show(h))
		} else if seen[h] {
			r.say(codeHostTwice, index(path+".hosts", i), "", "the host %s stands twice", h)
		}
		seen[h] = true
	}
	if e.GetProtocol() == "tcp" && len(seen) > 1 {
		r.say(codeExternalHost, path+".hosts", "Write one service for each host.", "the protocol is tcp, and there are %d hosts: a call names none", len(seen))
	}
	tls := e.GetTls()
	if tls.GetCa() != "" {
		r.ca(path+".tls.ca", tls.GetCa())
		if tls.GetDisabled() {
			r.say(codeNoUse, path+".tls.ca", "", "TLS is disabled, so that nothing is verified by ca")
		}
	}
}
