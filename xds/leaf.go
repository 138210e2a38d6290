package xds

import (
	"maps"
	"net/netip"
	"slices"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	networkinputv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/matching/common_inputs/network/v3"
	ipv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/matching/input_matchers/ip/v3"
	typematcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// leaf is the rules that are left where caller, path and method have matched: a
// rule without conditions, or else those with some, by their string claims as far
// as these can be looked up and one after the other where they can not.
type leaf struct {
	free   *Rule
	claims map[string]*claimNode // by the keys of the claims
	rest   []*Rule
}

// claimNode is one level of a map by claims.
type claimNode struct {
	key    claimKey
	values map[string]*claimNode
	rules  []*Rule // below the last claim
}

func (f *leaf) add(r *Rule) {
	switch keys := r.claimKeys(); {
	case f.free != nil:
	case r.unconditional():
		*f = leaf{free: r} // whatever else there is, this one allows
	case len(keys) > 0:
		var name string
		for _, k := range keys {
			name += string(k.key) + " " // no key has a space
		}
		if f.claims == nil {
			f.claims = map[string]*claimNode{}
		}
		if f.claims[name] == nil {
			f.claims[name] = &claimNode{}
		}
		f.claims[name].add(r, keys)
	default:
		f.rest = once(f.rest, r)
	}
}

func (n *claimNode) add(r *Rule, keys []keyedClaim) {
	if len(keys) == 0 {
		n.rules = once(n.rules, r)
		return
	}
	if n.values == nil {
		n.key, n.values = keys[0].key, map[string]*claimNode{}
	}
	for _, v := range keys[0].values {
		if n.values[v] == nil {
			n.values[v] = &claimNode{}
		}
		n.values[v].add(r, keys[1:])
	}
}

// once appends r, which may come here by two of its own paths.
func once(rules []*Rule, r *Rule) []*Rule {
	if len(rules) > 0 && rules[len(rules)-1] == r {
		return rules
	}
	return append(rules, r)
}

func (c *Conditions) unconditional() bool {
	return c.Users == nil && c.Headers == nil && c.Windows == nil && c.Until.IsZero() && c.Sources == nil && c.CEL == ""
}

// leaf: next if there are no rules.
func (l *lowering) leaf(f *leaf, next *onMatch) *onMatch {
	if f.free != nil {
		return l.verdict(f.free)
	}
	next = l.oneOf(f.rest, next)
	for _, name := range slices.Backward(slices.Sorted(maps.Keys(f.claims))) {
		next = l.claim(f.claims[name], next)
	}
	return next
}

func (l *lowering) claim(n *claimNode, next *onMatch) *onMatch {
	if n.values == nil {
		return l.oneOf(n.rules, next)
	}
	values := make(map[string]*onMatch, len(n.values))
	for v, sub := range n.values {
		values[v] = l.claim(sub, nil)
	}
	return l.b.byExact(l.b.stateInput(n.key.state()), values, next)
}

// oneOf tries rules one after the other.
func (l *lowering) oneOf(rules []*Rule, next *onMatch) *onMatch {
	if len(rules) == 0 {
		return next
	}
	fields := make([]*fieldMatch, 0, len(rules))
	for _, r := range rules {
		fields = append(fields, &fieldMatch{Predicate: allOf(l.conditions(r)...), OnMatch: l.verdict(r)})
	}
	return nest(list(next, fields...))
}

// verdict is what a rule comes to when all of it matches.
func (l *lowering) verdict(r *Rule) *onMatch {
	if l.verdicts[r.Grant] == nil {
		l.verdicts[r.Grant] = l.b.action(actionGrant+r.Grant, rbacv3.RBAC_ALLOW)
	}
	return l.verdicts[r.Grant]
}

// conditions are the predicates of a rule, all of which must hold; cheap ones
// first. A rule that has conditions has at least one.
func (l *lowering) conditions(r *Rule) []*predicate {
	if l.holds[r] == nil {
		l.holds[r] = l.b.conditions(&r.Conditions)
	}
	return l.holds[r]
}

func (b *builder) conditions(c *Conditions) []*predicate {
	var all []*predicate
	if c.Sources != nil {
		all = append(all, b.from(c.Sources))
	}
	for _, h := range c.Headers {
		var some []*predicate
		for _, v := range h.Values {
			some = append(some, b.matches(b.headerInput(h.Name), equals(v)))
		}
		all = append(all, someOf(some...))
	}
	if c.Users != nil {
		all = append(all, b.user(c.Users)...)
	}
	if clock := c.clock(); clock != "" {
		all = append(all, b.cel(clock))
	}
	if c.CEL != "" {
		all = append(all, b.cel(c.CEL))
	}
	return all
}

// from is a test of the TCP peer, never of X-Forwarded-For.
func (b *builder) from(prefixes []string) *predicate {
	return b.custom(b.extension("peer", &networkinputv3.DirectSourceIPInput{}), "envoy.matching.matchers.ip",
		&ipv3.Ip{CidrRanges: ranges(prefixes), StatPrefix: "zt"})
}

func ranges(prefixes []string) []*corev3.CidrRange {
	var out []*corev3.CidrRange
	for _, s := range prefixes {
		p, _ := netip.ParsePrefix(s)     // Validate has parsed it
		bits := uint32(max(p.Bits(), 0)) //nolint:gosec // at most 128
		out = append(out, &corev3.CidrRange{AddressPrefix: p.Addr().String(), PrefixLen: wrapperspb.UInt32(bits)})
	}
	return out
}

// user is a test of the verified token of one provider. Every claim is compared
// by its type, those that were looked up by their text as well.
func (b *builder) user(u *Users) []*predicate {
	if len(u.Claims) == 0 {
		// Any user of it. Envoy has compared the issuer; without a token it is absent.
		return []*predicate{b.value(b.payloadInput(u.Provider, "iss"), stringValue(b.issuer(u.Provider)))}
	}
	var all []*predicate
	for _, c := range u.Claims {
		var some []*typematcherv3.ValueMatcher
		for _, v := range c.Values {
			some = append(some, claimValue(c.Kind, v))
		}
		all = append(all, b.value(b.payloadInput(u.Provider, c.Path...), someValue(some)))
	}
	return all
}

func (b *builder) issuer(provider string) string {
	i := slices.IndexFunc(b.c.Providers, func(p Provider) bool { return p.Name == provider })
	return b.c.Providers[i].Issuer // Validate has found it
}

func claimValue(kind ClaimKind, v string) *typematcherv3.ValueMatcher {
	switch kind {
	case BooleanClaim:
		return &typematcherv3.ValueMatcher{MatchPattern: &typematcherv3.ValueMatcher_BoolMatch{BoolMatch: v == "true"}}
	case ListClaim:
		return &typematcherv3.ValueMatcher{MatchPattern: &typematcherv3.ValueMatcher_ListMatch{ListMatch: &typematcherv3.ListMatcher{
			MatchPattern: &typematcherv3.ListMatcher_OneOf{OneOf: stringValue(v)},
		}}}
	case StringClaim:
	}
	return stringValue(v)
}

func stringValue(v string) *typematcherv3.ValueMatcher {
	return &typematcherv3.ValueMatcher{MatchPattern: &typematcherv3.ValueMatcher_StringMatch{StringMatch: &typematcherv3.StringMatcher{
		MatchPattern: &typematcherv3.StringMatcher_Exact{Exact: v},
	}}}
}

func someValue(ms []*typematcherv3.ValueMatcher) *typematcherv3.ValueMatcher {
	if len(ms) == 1 {
		return ms[0]
	}
	return &typematcherv3.ValueMatcher{MatchPattern: &typematcherv3.ValueMatcher_OrMatch{OrMatch: &typematcherv3.OrMatcher{ValueMatchers: ms}}}
}
