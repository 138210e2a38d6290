package xds

import (
	"fmt"

	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	networkrbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	typematcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"
)

// tcpPolicy judges a connection of a tcp port once, at the first bytes of the
// client and before the application is dialled. The gate stands before it.
//
// It is a matcher, flat in the number of callers. Only where a rule reads the
// clock it is Envoy's linear form, since a network matcher takes no CEL.
func (b *builder) tcpPolicy(in *Inbound) proto.Message {
	rbac := denyAllTCP()
	for i := range in.Rules {
		if in.Rules[i].clock() != "" {
			rbac.Rules.Policies = b.tcpPolicies(in)
			return rbac
		}
	}
	l, t := newLowering(b), newTree[leaf](b)
	for i := range in.Rules {
		r := &in.Rules[i]
		t.add(r.Callers, func(f *leaf) { f.add(r) })
	}
	below := func(f *leaf) *onMatch { return l.leaf(f, nil) }
	next := callers(b, t, below, b.action(ActionDefault, rbacv3.RBAC_DENY))
	rbac.Rules, rbac.Matcher = nil, root(b.blocked(in.Blocks, next))
	return rbac
}

// denyAllTCP is what the filter does before, and without, its resource.
func denyAllTCP() *networkrbacv3.RBAC {
	return &networkrbacv3.RBAC{Rules: &rbacv3.RBAC{Action: rbacv3.RBAC_ALLOW}, StatPrefix: "zt_tcp_"}
}

// tcpPolicies is one policy for each rule: its callers, less those whom a Block
// names, from its prefixes, while its expression is true. An expression that errs
// denies, since the action is ALLOW.
func (b *builder) tcpPolicies(in *Inbound) map[string]*rbacv3.Policy {
	var blocked []*rbacv3.Principal
	for _, k := range in.Blocks {
		if k.Callers == nil {
			return nil // everybody
		}
		blocked = append(blocked, b.principals(*k.Callers)...)
	}
	out := make(map[string]*rbacv3.Policy, len(in.Rules))
	for i := range in.Rules {
		r := &in.Rules[i]
		who := []*rbacv3.Principal{anyPrincipal(b.principals(r.Callers))}
		if r.Sources != nil {
			var from []*rbacv3.Principal
			for _, c := range ranges(r.Sources) {
				from = append(from, &rbacv3.Principal{Identifier: &rbacv3.Principal_DirectRemoteIp{DirectRemoteIp: c}})
			}
			who = append(who, anyPrincipal(from))
		}
		if blocked != nil {
			who = append(who, &rbacv3.Principal{Identifier: &rbacv3.Principal_NotId{NotId: anyPrincipal(blocked)}})
		}
		p := &rbacv3.Policy{
			Permissions: []*rbacv3.Permission{{Rule: &rbacv3.Permission_Any{Any: true}}},
			Principals:  []*rbacv3.Principal{{Identifier: &rbacv3.Principal_AndIds{AndIds: &rbacv3.Principal_Set{Ids: who}}}},
		}
		if clock := r.clock(); clock != "" {
			e, err := parseCEL(clock)
			if err != nil {
				b.errs = append(b.errs, fmt.Errorf("grant %s: %w", r.Grant, err))
				continue
			}
			p.Condition = e
		}
		name := actionGrant + r.Grant
		for n := 2; out[name] != nil; n++ { // several rules of one grant
			name = fmt.Sprintf("%s%s#%d", actionGrant, r.Grant, n)
		}
		out[name] = p
	}
	return out
}

// principals is each of the callers as a principal.
func (b *builder) principals(c Callers) []*rbacv3.Principal {
	var out []*rbacv3.Principal
	id := func(m *typematcherv3.StringMatcher) {
		out = append(out, &rbacv3.Principal{Identifier: &rbacv3.Principal_Authenticated_{
			Authenticated: &rbacv3.Principal_Authenticated{PrincipalName: m},
		}})
	}
	prefix := func(p string) {
		id(&typematcherv3.StringMatcher{MatchPattern: &typematcherv3.StringMatcher_Prefix{Prefix: p}})
	}
	for _, s := range c.IDs {
		id(&typematcherv3.StringMatcher{MatchPattern: &typematcherv3.StringMatcher_Exact{Exact: s}})
	}
	for _, p := range c.Prefixes {
		prefix(p)
	}
	for _, td := range c.Domains {
		prefix(domainPrefix(td))
	}
	if c.Any {
		for _, p := range b.everybody() {
			prefix(p)
		}
	}
	return out
}

func anyPrincipal(ids []*rbacv3.Principal) *rbacv3.Principal {
	return &rbacv3.Principal{Identifier: &rbacv3.Principal_OrIds{OrIds: &rbacv3.Principal_Set{Ids: ids}}}
}
