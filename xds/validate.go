package xds

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Validate reports everything that Build could not lower faithfully. A
// configuration that compile makes from a checked spec passes; one that does
// not is a mistake in the program, so the errors name fields, not files.
func (c *Config) Validate() error {
	v := &validation{td: c.TrustDomain, aliases: c.Aliases, federated: c.Federated, verifies: map[string]bool{}}
	for i := range c.Providers {
		v.verifies[c.Providers[i].Name] = true
	}
	v.check(dnsName(c.TrustDomain), "trust domain %q is not a DNS name", c.TrustDomain)
	v.check(isRef(c.Workload), "workload %q is not namespace/name", c.Workload)
	v.check(v.isID(c.ID), "id %q is not of trust domain %s", c.ID, c.TrustDomain)
	v.check(c.MaxConnectionAge > 0, "max connection age %s is not positive", c.MaxConnectionAge)

	names, ports := map[string]bool{}, map[uint32]bool{}
	for i := range c.Inbound {
		in := &c.Inbound[i]
		v.at = "inbound " + in.Name
		v.unique(names, in.Name)
		v.check(!ports[in.Port], "port %d appears twice", in.Port)
		ports[in.Port] = true
		v.inbound(in)
	}
	for _, h := range c.Strip {
		v.check(isHeader(h), "header %q is not a name in lower case", h)
	}
	v.providers(c.Providers)
	v.authorizer(c.Authorizer)
	v.destinations(c.Destinations)
	v.egress(c)
	v.tcpCalls(c)
	return errors.Join(v.errs...)
}

// Validate reports an instance that no Envoy could run as.
func (in Instance) Validate() error {
	v := &validation{at: "instance " + in.ID}
	v.check(in.ID != "", "id is empty")
	v.check(isAddr(in.Address), "address %q is not an IP address", in.Address)
	v.check(isAddr(in.Egress), "egress %q is not an IP address", in.Egress)
	v.check(in.Secrets == FromAgent || in.Secrets == FromADS, "secrets %q is neither %q nor %q", in.Secrets, FromAgent, FromADS)
	return errors.Join(v.errs...)
}

// validation collects problems; at says where.
type validation struct {
	td                 string
	aliases, federated []string
	verifies           map[string]bool // providers
	at                 string
	errs               []error
}

func (v *validation) check(ok bool, format string, args ...any) {
	if ok {
		return
	}
	err := fmt.Errorf(format, args...)
	if v.at != "" {
		err = fmt.Errorf("%s: %w", v.at, err)
	}
	v.errs = append(v.errs, err)
}

func (v *validation) unique(seen map[string]bool, name string) {
	v.check(!seen[name], "%q appears twice", name)
	seen[name] = true
}

func (v *validation) inbound(in *Inbound) {
	v.check(label(in.Name), "name is not a DNS label")
	v.check(in.Port > 0 && in.Port < 65536, "port %d is out of range", in.Port)
	v.check(in.Protocol.IsHTTP() || in.Protocol == TCP, "protocol %q is unknown", in.Protocol)
	v.check(isTarget(in.Target), "target %q is neither a loopback address with a port nor unix:/path", in.Target)
	if in.Protocol == TCP {
		v.check(len(in.Hosts) == 0, "a tcp port has no hosts")
	} else {
		v.check(len(in.Hosts) > 0, "no hosts")
	}
	hosts, ids, keys := map[string]bool{}, map[string]bool{}, map[string]bool{}
	for _, h := range in.Hosts {
		v.unique(hosts, h)
		v.check(dnsName(h), "host %q is not a DNS name", h)
	}
	for _, g := range in.Gate {
		v.unique(ids, g.ID)
		v.unique(keys, g.Key)
		v.check(v.isKnownID(g.ID), "gate of %q, which is not of a known trust domain", g.ID)
		v.check(strings.HasPrefix(g.Key, "zt."), "gate key %q does not begin with zt.", g.Key)
	}
	v.judged(in)
	v.plaintext(in)
}

func (v *validation) destinations(ds []Destination) {
	clusters, hosts := map[string]bool{}, map[string]bool{}
	for i := range ds {
		d := &ds[i]
		v.at = "destination " + d.Cluster()
		v.unique(clusters, d.Cluster())
		v.check(isRef(d.Service), "service %q is not namespace/name", d.Service)
		v.check(label(d.Port), "port %q is not a DNS label", d.Port)
		v.check((d.ID == "") == (len(d.IDs) > 0), "neither one identity nor several, or both")
		for _, id := range d.identities() {
			v.check(v.isID(id), "id %q is not of trust domain %s", id, v.td)
		}
		v.upgrades(d.Upgrades, d.Protocol)
		v.check(!d.ServerFirst || d.Protocol == TCP, "only a tcp port is server-first")
		v.check(d.Protocol.IsHTTP() || d.Protocol == TCP, "protocol %q is unknown", d.Protocol)
		v.check(d.Number > 0 && d.Number < 65536, "port number %d is out of range", d.Number)
		v.check(dnsName(d.Host), "host %q is not a DNS name", d.Host)
		v.check(d.Protocol.IsHTTP() || len(d.Aliases) == 0, "a tcp port has no aliases")
		if !d.Protocol.IsHTTP() {
			continue // its host is only the SNI
		}
		for _, h := range append([]string{d.Host}, d.Aliases...) {
			v.unique(hosts, h)
			v.check(dnsName(h), "host %q is not a DNS name", h)
		}
	}
	v.at = ""
}

func (v *validation) upgrades(list []string, p Protocol) {
	for _, u := range list {
		v.check(u == "websocket", "upgrade %q is unknown", u)
		v.check(p == HTTP, "a %s port has no upgrades", p)
	}
}

func (v *validation) tcpCalls(c *Config) {
	ports := map[uint32]bool{EgressPort: true}
	for _, t := range c.TCPCalls {
		v.at = "tcp call " + TCPListener(t.LocalPort)
		v.check(t.LocalPort > 0 && t.LocalPort < 65536, "local port is out of range")
		v.check(!ports[t.LocalPort], "local port is taken")
		ports[t.LocalPort] = true
		i := slices.IndexFunc(c.Destinations, func(d Destination) bool { return d.Service == t.Service && d.Port == t.Port })
		v.check(i < 0 || c.Destinations[i].Protocol == TCP, "%s %s is not a tcp port", t.Service, t.Port)
	}
	v.at = ""
}

// isID says whether id is a workload of the trust domain.
func (v *validation) isID(id string) bool { return isWorkloadID(v.td, id) }

// isWorkloadID says whether id is exactly the form of a workload of that trust
// domain. Envoy joins several URI SANs with commas, so an id must not hold one.
func isWorkloadID(td, id string) bool {
	rest, ok := strings.CutPrefix(id, domainPrefix(td)+"ns/")
	ns, name, ok2 := strings.Cut(rest, "/sa/")
	return ok && ok2 && label(ns) && label(name)
}

// canonicalPath says what pathExpr says: RFC 3986 path-absolute of pchar,
// without percent-encoding and without ";"; no empty or dot segments.
func canonicalPath(p string) bool {
	if !strings.HasPrefix(p, "/") || strings.Contains(p, "//") {
		return false
	}
	for _, r := range []byte(p) {
		if !alnum(r) && !strings.ContainsRune(pathMarks, rune(r)) {
			return false
		}
	}
	for seg := range strings.SplitSeq(p, "/") {
		if seg == "." || seg == ".." {
			return false
		}
	}
	return true
}

// isMethod: a token of RFC 9110 in upper case letters. CONNECT and TRACE are
// always refused by the form guard, so a rule that names them is a mistake.
func isMethod(m string) bool {
	if m == "" || m == "CONNECT" || m == "TRACE" {
		return false
	}
	for _, r := range []byte(m) {
		if (r < 'A' || r > 'Z') && r != '-' {
			return false
		}
	}
	return true
}

func isTarget(t string) bool {
	if path, ok := strings.CutPrefix(t, "unix:"); ok {
		return strings.HasPrefix(path, "/") && len(path) < 108
	}
	ap, err := netip.ParseAddrPort(t)
	return err == nil && ap.Addr().IsLoopback() && ap.Port() > 0
}

func isAddr(a string) bool {
	ip, err := netip.ParseAddr(a)
	return err == nil && ip.Zone() == ""
}

// isRef: "namespace/name".
func isRef(s string) bool {
	ns, name, ok := strings.Cut(s, "/")
	return ok && label(ns) && label(name)
}

// dnsName: lower-case labels joined by dots.
func dnsName(s string) bool {
	if s == "" || len(s) > 253 {
		return false
	}
	for l := range strings.SplitSeq(s, ".") {
		if !label(l) {
			return false
		}
	}
	return true
}

// label: RFC 1123.
func label(s string) bool {
	if s == "" || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for _, r := range []byte(s) {
		if (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' {
			return false
		}
	}
	return true
}

func alnum(r byte) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
}
