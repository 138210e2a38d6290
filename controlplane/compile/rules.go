package compile

import (
	"net/netip"
	"slices"

	"github.com/ztmesh/ztmesh/controlplane/policy"
	"github.com/ztmesh/ztmesh/xds"
)

var pathKinds = map[policy.PathKind]xds.PathKind{
	policy.Exact:   xds.Exact,
	policy.Rest:    xds.Rest,
	policy.Pattern: xds.Pattern,
}

func (c *compiler) rules(list []policy.Rule) []xds.Rule {
	if len(list) == 0 {
		return nil
	}
	out := make([]xds.Rule, 0, len(list))
	for i := range list {
		if r, ok := c.rule(&list[i]); ok {
			out = append(out, r)
		}
	}
	return out
}

// rule is false for one that nobody can match: of a provider that is not declared,
// or for upgrades by another method than GET.
func (c *compiler) rule(r *policy.Rule) (xds.Rule, bool) {
	out := xds.Rule{Grant: r.Grant.String(), Callers: c.callers(r.Callers), Methods: r.Methods, Upgrades: r.Upgrades}
	if r.Upgrades != nil {
		// An upgrade is a GET (RFC 6455, section 4.1); so is an extended CONNECT by
		// the time that it is judged.
		if r.Methods != nil && !slices.Contains(r.Methods, "GET") {
			return xds.Rule{}, false
		}
		out.Methods = []string{"GET"}
	}
	if len(r.Paths) > 0 {
		out.Paths = make([]xds.Path, len(r.Paths))
		for i, p := range r.Paths {
			out.Paths[i] = xds.Path{Value: p.Pattern, Kind: pathKinds[p.Kind]}
		}
	}
	out.Windows = windows(r.Windows)
	out.Until, out.Sources = r.Until, prefixes(r.Sources)
	for _, h := range r.Headers {
		out.Headers = append(out.Headers, xds.Header{Name: h.Name, Values: h.Values})
	}
	if r.CEL != nil {
		out.CEL = r.CEL.String()
	}
	if r.Users == nil {
		return out, true
	}
	users, ok := c.users(r.Users)
	out.Users = users
	return out, ok
}

// callers is the same set of identities, one for every trust domain that a
// workload may have its certificate from.
func (c *compiler) callers(from policy.Callers) xds.Callers {
	out := xds.Callers{Any: from.Any, Domains: from.Domains}
	domains := 1 + len(c.trust.Aliases)
	out.IDs = slices.Grow(out.IDs, len(from.Workloads)*domains+len(from.IDs))
	for i := range domains {
		td := c.ix.TrustDomain()
		if i > 0 {
			td = c.trust.Aliases[i-1]
		}
		for _, w := range from.Workloads {
			out.IDs = append(out.IDs, policy.ID(td, w))
		}
		for _, ns := range from.Namespaces {
			out.Prefixes = append(out.Prefixes, policy.IDPrefix(td, ns))
		}
	}
	out.IDs = append(out.IDs, from.IDs...)
	return out
}

// users is every claim by its place and type in the token, as the provider
// declares it.
func (c *compiler) users(u *policy.Users) (*xds.Users, bool) {
	p, ok := c.ix.Provider(u.Provider)
	if !ok {
		p, ok = c.proposed(u.Provider)
	}
	if !ok {
		return nil, false
	}
	out := &xds.Users{Provider: u.Provider, MaxAge: u.MaxAge}
	add := func(kind policy.ClaimKind, values []string, path ...string) {
		if values != nil {
			out.Claims = append(out.Claims, xds.Claim{Path: path, Kind: xds.ClaimKind(kind), Values: values})
		}
	}
	add(policy.StringClaim, u.Subjects, "sub")
	for _, claim := range u.Claims {
		declared, ok := p.Claims[claim.Name]
		if !ok {
			return nil, false
		}
		add(declared.Kind, claim.Values, declared.Path...)
	}
	add(policy.StringClaim, u.ACR, "acr")
	add(policy.ListClaim, u.AMR, "amr")
	return out, true
}

// proposed is a provider that only a proposal declares.
func (c *compiler) proposed(provider string) (*policy.Provider, bool) {
	if c.shadow == nil {
		return nil, false
	}
	return c.shadow.Provider(provider)
}

func (c *compiler) blocks(list []policy.Block) []xds.Block {
	var out []xds.Block
	for _, b := range list {
		to := xds.Block{Name: b.Name.String()}
		if b.Callers != nil {
			callers := c.callers(*b.Callers)
			to.Callers = &callers
		}
		if b.Users != nil {
			to.Users = &xds.Users{Provider: b.Users.Provider, Claims: []xds.Claim{
				{Path: []string{"sub"}, Kind: xds.StringClaim, Values: b.Users.Subjects},
			}}
		}
		out = append(out, to)
	}
	return out
}

func windows(list []policy.Window) []xds.Window {
	var out []xds.Window
	for _, w := range list {
		out = append(out, xds.Window{Zone: w.Zone, Days: w.Days, Start: w.Start, End: w.End})
	}
	return out
}

func prefixes(list []netip.Prefix) []string {
	var out []string
	for _, p := range list {
		out = append(out, p.String())
	}
	return out
}
