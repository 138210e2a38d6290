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
	v := newValidation(c)
	v.check(dnsName(c.TrustDomain), "trust domain %q is not a DNS name", c.TrustDomain)
	v.check(isRef(c.Workload), "workload %q is not namespace/name", c.Workload)
	v.check(v.isID(c.ID), "id %q is not of trust domain %s", c.ID, c.TrustDomain)
	v.check(c.MaxConnectionAge > 0, "max connection age %s is not positive", c.MaxConnectionAge)

	v.distinct(len(c.Inbound), func(i int) string { return c.Inbound[i].Name })
	for i := range c.Inbound {
		in := &c.Inbound[i]
		v.at = place{"inbound", in.Name, ""}
		v.check(!slices.ContainsFunc(c.Inbound[:i], func(o Inbound) bool { return o.Port == in.Port }), "port %d appears twice", in.Port)
		v.inbound(in)
	}
	v.at = place{}
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
	v := &validation{at: place{"instance", in.ID, ""}}
	v.check(in.ID != "", "id is empty")
	v.check(isAddr(in.Address), "address %q is not an IP address", in.Address)
	v.check(isAddr(in.Egress), "egress %q is not an IP address", in.Egress)
	v.check(in.Secrets == FromAgent || in.Secrets == FromADS, "secrets %q is neither %q nor %q", in.Secrets, FromAgent, FromADS)
	return errors.Join(v.errs...)
}

// validation collects problems; at says where. A mesh has millions of gate entries
// and destinations, so nothing is put on the heap for one in which nothing is wrong.
type validation struct {
	td       string
	own      []string        // what identities of workloads begin with: "spiffe://shop.example/ns/", then aliases
	foreign  []string        // of the federated trust domains: "spiffe://bank.example/"
	verifies map[string]bool // providers
	hosts    map[string]bool // to which calls go
	at       place
	errs     []error
	seen     map[string]bool // of distinct
}

// place is what is looked at.
type place struct{ kind, name, port string }

func (p place) String() string {
	if p.port == "" {
		return p.kind + " " + p.name
	}
	return p.kind + " " + p.name + " " + p.port
}

func newValidation(c *Config) *validation {
	v := &validation{td: c.TrustDomain, own: make([]string, 0, 1+len(c.Aliases))}
	v.own = append(v.own, domainPrefix(c.TrustDomain)+"ns/")
	for _, td := range c.Aliases {
		v.own = append(v.own, domainPrefix(td)+"ns/")
	}
	for _, td := range c.Federated {
		v.foreign = append(v.foreign, domainPrefix(td))
	}
	if len(c.Providers) > 0 {
		v.verifies = map[string]bool{}
		for i := range c.Providers {
			v.verifies[c.Providers[i].Name] = true
		}
	}
	return v
}

func (v *validation) check(ok bool, format string, args ...any) {
	if ok {
		return
	}
	err := fmt.Errorf(format, args...)
	if v.at != (place{}) {
		err = fmt.Errorf("%s: %w", v.at, err)
	}
	v.errs = append(v.errs, err)
}

// is is check for what is said of texts. They stay where they are unless it fails.
func (v *validation) is(ok bool, format string, texts ...string) {
	if ok {
		return
	}
	args := make([]any, len(texts))
	for i, t := range texts {
		args[i] = t
	}
	v.check(false, format, args...)
}

func (v *validation) unique(seen map[string]bool, name string) {
	v.is(!seen[name], "%q appears twice", name)
	seen[name] = true
}

// distinct is unique for each of n names. Where they ascend, as most lists of
// compile do, it looks up none.
func (v *validation) distinct(n int, name func(i int) string) {
	ascend := true
	for i := 1; i < n && ascend; i++ {
		ascend = name(i-1) < name(i)
	}
	if ascend {
		return
	}
	if v.seen == nil {
		v.seen = map[string]bool{}
	}
	clear(v.seen)
	for i := range n {
		v.unique(v.seen, name(i))
	}
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
	v.distinct(len(in.Hosts), func(i int) string { return in.Hosts[i] })
	for _, h := range in.Hosts {
		v.is(dnsName(h), "host %q is not a DNS name", h)
	}
	v.distinct(len(in.Gate), func(i int) string { return in.Gate[i].ID })
	v.distinct(len(in.Gate), func(i int) string { return in.Gate[i].Key })
	for i := range in.Gate {
		g := &in.Gate[i]
		v.is(v.isKnownID(g.ID), "gate of %q, which is not of a known trust domain", g.ID)
		v.is(strings.HasPrefix(g.Key, "zt."), "gate key %q does not begin with zt.", g.Key)
	}
	v.check(in.HealthPath == "" || in.Protocol == HTTP || in.Protocol == HTTP2, "a %s port has no health path", in.Protocol)
	v.check(in.HealthPath == "" || strings.HasPrefix(in.HealthPath, "/"), "health path %q does not begin with /", in.HealthPath)
	v.judged(in)
	v.plaintext(in)
}

func (v *validation) destinations(ds []Destination) {
	ascend := true
	for i := 1; i < len(ds) && ascend; i++ {
		ascend = ds[i-1].before(&ds[i])
	}
	if !ascend {
		v.distinct(len(ds), func(i int) string { return ds[i].Cluster() })
	}
	v.hosts = make(map[string]bool, len(ds))
	for i := range ds {
		d := &ds[i]
		v.at = place{"destination", d.Service, d.Port}
		v.is(isRef(d.Service), "service %q is not namespace/name", d.Service)
		v.is(label(d.Port), "port %q is not a DNS label", d.Port)
		v.check((d.ID == "") == (len(d.IDs) > 0), "neither one identity nor several, or both")
		v.is(d.ID == "" || v.isID(d.ID), "id %q is not of trust domain %s", d.ID, v.td)
		for _, id := range d.IDs {
			v.is(v.isID(id), "id %q is not of trust domain %s", id, v.td)
		}
		v.upgrades(d.Upgrades, d.Protocol)
		v.check(!d.ServerFirst || d.Protocol == TCP, "only a tcp port is server-first")
		v.is(d.Protocol.IsHTTP() || d.Protocol == TCP, "protocol %q is unknown", string(d.Protocol))
		v.check(d.Number > 0 && d.Number < 65536, "its number is out of range")
		v.is(dnsName(d.Host), "host %q is not a DNS name", d.Host)
		v.check(d.Protocol.IsHTTP() || len(d.Aliases) == 0, "a tcp port has no aliases")
		if !d.Protocol.IsHTTP() {
			continue // its host is only the SNI
		}
		v.unique(v.hosts, d.Host)
		for _, h := range d.Aliases {
			v.unique(v.hosts, h)
			v.is(dnsName(h), "host %q is not a DNS name", h)
		}
	}
	v.at = place{}
}

// before orders by service and port, without making the names of clusters.
func (d *Destination) before(o *Destination) bool {
	return d.Service < o.Service || d.Service == o.Service && d.Port < o.Port
}

func (v *validation) upgrades(list []string, p Protocol) {
	for _, u := range list {
		v.check(u == "websocket", "upgrade %q is unknown", u)
		v.check(p == HTTP, "a %s port has no upgrades", p)
	}
}

func (v *validation) tcpCalls(c *Config) {
	if len(c.TCPCalls) == 0 {
		return
	}
	ports := map[uint32]bool{EgressPort: true}
	for _, t := range c.TCPCalls {
		v.at = place{"tcp call", TCPListener(t.LocalPort), ""}
		v.check(t.LocalPort > 0 && t.LocalPort < 65536, "local port is out of range")
		v.check(!ports[t.LocalPort], "local port is taken")
		ports[t.LocalPort] = true
		i := slices.IndexFunc(c.Destinations, func(d Destination) bool { return d.Service == t.Service && d.Port == t.Port })
		v.check(i < 0 || c.Destinations[i].Protocol == TCP, "%s %s is not a tcp port", t.Service, t.Port)
	}
	v.at = place{}
}

// isID says whether id is a workload of the trust domain.
func (v *validation) isID(id string) bool { return isWorkloadID(v.own[0], id) }

// isWorkloadID says whether id is exactly the form of a workload of the trust domain
// whose workloads begin with a prefix. Envoy joins several URI SANs with commas, so
// an id must not hold one.
func isWorkloadID(prefix, id string) bool {
	rest, ok := strings.CutPrefix(id, prefix)
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
