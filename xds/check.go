package xds

import (
	"net/netip"
	"slices"
	"strings"
	"time"
)

// What Validate says of rules, Blocks and conditions. Empty is not nil anywhere:
// "any" is only ever said by nil, so that a list that lost its last item cannot
// turn into a grant of everything.

// judged is everything that judges a port.
func (v *validation) judged(in *Inbound) {
	v.check(in.Protocol == TCP || !in.ServerFirst, "only a tcp port is server-first")
	v.check(in.Protocol.IsHTTP() || !in.EncodedPaths, "a tcp port has no paths")
	v.upgrades(in.Upgrades, in.Protocol)
	v.rules(in.Rules, in)
	if in.Shadow != nil {
		v.check(in.Protocol.IsHTTP(), "a tcp port has no shadow")
		v.rules(in.Shadow.Rules, in)
	}
	v.distinct(len(in.Blocks), func(i int) string { return in.Blocks[i].Name })
	for i := range in.Blocks {
		v.block(&in.Blocks[i], in.Protocol)
	}
}

func (v *validation) rules(rules []Rule, in *Inbound) {
	for i := range rules {
		r := &rules[i]
		v.rule(r)
		for _, u := range r.Upgrades {
			v.check(slices.Contains(in.Upgrades, u), "grant %s: the port does not take upgrades to %q", r.Grant, u)
		}
		if in.Protocol != TCP {
			continue
		}
		v.check(r.Methods == nil && r.Paths == nil && r.Upgrades == nil, "grant %s: a tcp port has no methods, paths or upgrades", r.Grant)
		v.check(r.Users == nil && r.Headers == nil && r.CEL == "", "grant %s: a tcp port has no users, headers or cel", r.Grant)
		v.check(!in.ServerFirst || r.unconditional(), "grant %s: a server-first port takes no conditions", r.Grant)
	}
}

func (v *validation) rule(r *Rule) {
	v.is(isRef(r.Grant), "grant %q is not namespace/name", r.Grant)
	v.callers("grant", r.Grant, &r.Callers)
	v.is(r.Callers.Domains == nil, "grant %s: trust domains stand in Blocks only", r.Grant)
	v.is(r.Methods == nil || len(r.Methods) > 0, "grant %s: an empty list of methods", r.Grant)
	v.is(r.Paths == nil || len(r.Paths) > 0, "grant %s: an empty list of paths", r.Grant)
	v.is(r.Upgrades == nil || len(r.Upgrades) > 0, "grant %s: an empty list of upgrades", r.Grant)
	for _, m := range r.Methods {
		v.is(isMethod(m), "grant %s: %q is not a method that can be granted", r.Grant, m)
	}
	for _, p := range r.Paths {
		v.is(p.valid(), "grant %s: path %q is not a canonical path of kind %q", r.Grant, p.Value, string(p.Kind))
	}
	if !r.unconditional() {
		v.conditions("grant "+r.Grant, &r.Conditions)
	}
}

func (v *validation) block(b *Block, p Protocol) {
	v.check(isRef(b.Name), "block %q is not namespace/name", b.Name)
	v.check(b.Callers == nil || b.Users == nil, "block %s: callers and users", b.Name)
	if b.Callers != nil {
		v.callers("block", b.Name, b.Callers)
	}
	if b.Users != nil {
		v.check(p.IsHTTP(), "block %s: a tcp port has no users", b.Name)
		v.users("block "+b.Name, b.Users)
	}
}

func (v *validation) callers(kind, name string, c *Callers) {
	v.is(c.Any || len(c.IDs)+len(c.Prefixes)+len(c.Domains) > 0, "%s %s: no callers", kind, name)
	for _, id := range c.IDs {
		v.is(v.isKnownID(id), "%s %s: caller %q is not of a known trust domain", kind, name, id)
	}
	for _, p := range c.Prefixes {
		v.is(v.isNamespace(p), "%s %s: caller prefix %q is not a namespace of trust domain %s", kind, name, p, v.td)
	}
	for _, td := range c.Domains {
		v.is(dnsName(td), "%s %s: %q is not a trust domain", kind, name, td)
	}
}

func (v *validation) conditions(of string, c *Conditions) {
	if c.Users != nil {
		v.users(of, c.Users)
	}
	v.check(c.Headers == nil || len(c.Headers) > 0, "%s: an empty list of headers", of)
	for _, h := range c.Headers {
		v.check(isHeader(h.Name), "%s: header %q is not a name in lower case", of, h.Name)
		// An absent header is no value, and an empty one looks the same to Envoy.
		v.check(len(h.Values) > 0 && !slices.Contains(h.Values, ""), "%s: header %s: no value, or an empty one", of, h.Name)
	}
	v.check(c.Windows == nil || len(c.Windows) > 0, "%s: an empty list of windows", of)
	for _, w := range c.Windows {
		v.check(w.valid(), "%s: %v is not a window", of, w)
	}
	v.check(c.Sources == nil || len(c.Sources) > 0, "%s: an empty list of sources", of)
	for _, s := range c.Sources {
		p, err := netip.ParsePrefix(s)
		v.check(err == nil && p == p.Masked() && p.String() == s, "%s: %q is not a canonical prefix", of, s)
	}
	if c.CEL != "" {
		_, err := parseCEL(c.CEL)
		v.check(err == nil, "%s: cel: %v", of, err)
	}
}

func (v *validation) users(of string, u *Users) {
	v.check(v.verifies[u.Provider], "%s: no provider %q verifies tokens here", of, u.Provider)
	v.check(u.Claims == nil || len(u.Claims) > 0, "%s: an empty list of claims", of)
	v.check(u.MaxAge >= 0 && u.MaxAge%time.Second == 0, "%s: max age %s is not in whole seconds", of, u.MaxAge)
	for _, c := range u.Claims {
		v.check(len(c.Path) > 0 && !slices.Contains(c.Path, ""), "%s: claim without a name", of)
		v.check(len(c.Values) > 0, "%s: claim %q: no value", of, c.Path)
		switch c.Kind {
		case StringClaim, ListClaim:
		case BooleanClaim:
			for _, s := range c.Values {
				v.check(s == "true" || s == "false", "%s: claim %q: %q is neither true nor false", of, c.Path, s)
			}
		default:
			v.check(false, "%s: claim %q is of no known kind, %q", of, c.Path, c.Kind)
		}
	}
}

// valid: a zone whose name can stand in an expression, known days, and minutes of
// one day. That the zone exists the spec has checked; where the proxy does not
// know it, the rule does not match.
func (w Window) valid() bool {
	for _, r := range []byte(w.Zone) {
		if !alnum(r) && !strings.ContainsRune("/_+-", rune(r)) {
			return false
		}
	}
	for _, d := range w.Days {
		if d < time.Sunday || d > time.Saturday {
			return false
		}
	}
	return w.Zone != "" && (w.Days == nil || len(w.Days) > 0) &&
		w.Start >= 0 && w.Start < 1440 && w.End >= 0 && w.End <= 1440 && w.Start != w.End
}

// isNamespace says whether p is the prefix of all workloads of one namespace, of
// the trust domain or of an alias.
func (v *validation) isNamespace(p string) bool {
	for _, prefix := range v.own {
		rest, ok := strings.CutPrefix(p, prefix)
		ns, ok2 := strings.CutSuffix(rest, "/sa/")
		if ok && ok2 && label(ns) {
			return true
		}
	}
	return false
}

// isKnownID says whether id is a workload of the trust domain or of an alias, or
// anybody of a federated one.
func (v *validation) isKnownID(id string) bool {
	for _, prefix := range v.own {
		if isWorkloadID(prefix, id) {
			return true
		}
	}
	return slices.ContainsFunc(v.foreign, func(prefix string) bool {
		path, ok := strings.CutPrefix(id, prefix)
		return ok && spiffePath(path)
	})
}

// spiffePath: the path of a SPIFFE ID without its first slash (SPIFFE-ID, section
// 2.2). Envoy joins several URI SANs with commas, so an id must not hold one; the
// characters of a path have none.
func spiffePath(p string) bool {
	for s := range strings.SplitSeq(p, "/") {
		if s == "" || s == "." || s == ".." {
			return false
		}
		for _, r := range []byte(s) {
			if !alnum(r) && !strings.ContainsRune("-._", rune(r)) {
				return false
			}
		}
	}
	return len(p) < 2048
}

func (p Path) valid() bool {
	if p.Kind == Pattern {
		return validPattern(p.Value)
	}
	if !canonicalPath(p.Value) {
		return false
	}
	switch p.Kind {
	case Exact:
		return true
	case Rest:
		return p.Value == "/" || !strings.HasSuffix(p.Value, "/")
	case OneSegment: // "/pkg.S/", see oneBelowExpr
		return strings.HasSuffix(p.Value, "/") && strings.Count(p.Value, "/") <= maxSegments
	case Pattern:
	}
	return false
}

// validPattern: a canonical path of which "*" may be a segment and "**" the last.
// A literal segment may hold "*" beside other characters; it is itself then.
func validPattern(p string) bool {
	body, rest := strings.CutSuffix(p, "/**")
	if body == "" && rest {
		return true
	}
	return canonicalPath(body) && strings.Count(p, "/") <= maxSegments &&
		!slices.Contains(strings.Split(body, "/"), "**") && !(rest && strings.HasSuffix(body, "/"))
}
