package xds

import (
	"slices"

	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	httprbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	"google.golang.org/protobuf/proto"
)

// The Blocks' filters count and log by names of their own, so that what they say
// does not pass for the policy's.
const (
	blockStatPrefix     = "zt_block_"
	userBlockStatPrefix = "zt_userblock_"
)

// block denies whom a Block names, before anything else is asked, and lets all
// others go on:
//
//	caller = spiffe://td/ns/shop/sa/web         → DENY  block:shop/web-is-compromised
//	caller begins spiffe://other.example/       → DENY  block:mesh/other
//	otherwise                                   → ALLOW no-block
//
// ALLOW is no verdict here: it is only not a denial. Without Blocks the resource
// says so by judging nothing; without its resource the filter denies everybody.
func (b *builder) block(in *Inbound) proto.Message {
	if !slices.ContainsFunc(in.Blocks, func(k Block) bool { return k.Users == nil }) {
		return pass()
	}
	next := b.blocked(in.Blocks, b.action(actionNoBlock, rbacv3.RBAC_ALLOW))
	return b.judge(needs{}, &httprbacv3.RBAC{Matcher: root(next), RulesStatPrefix: blockStatPrefix})
}

// blocked denies the callers of the Blocks without users; the rest goes to next.
func (b *builder) blocked(blocks []Block, next *onMatch) *onMatch {
	t := newTree[string](b)
	for _, k := range blocks {
		switch {
		case k.Users != nil:
		case k.Callers == nil:
			return b.deny(k.Name) // everybody
		default:
			t.add(*k.Callers, func(name *string) {
				if *name == "" {
					*name = k.Name
				}
			})
		}
	}
	return callers(b, t, func(name *string) *onMatch { return b.deny(*name) }, next)
}

func (b *builder) deny(block string) *onMatch {
	return b.action(actionBlock+block, rbacv3.RBAC_DENY)
}

// userBlock denies requests that bear a user whom a Block names. It stands behind
// what verifies tokens. Users are looked up by their claims as those of rules are.
func (b *builder) userBlock(in *Inbound) proto.Message {
	var rules []Rule
	l := newLowering(b)
	for _, k := range in.Blocks {
		if k.Users == nil {
			continue
		}
		rules = append(rules, Rule{Grant: k.Name, Conditions: Conditions{Users: k.Users}})
		l.verdicts[k.Name] = b.deny(k.Name)
	}
	if len(rules) == 0 {
		return pass()
	}
	var f leaf
	for i := range rules {
		f.add(&rules[i])
	}
	n := needsOf(rules)
	n.path = false
	next := l.leaf(&f, b.action(actionNoBlock, rbacv3.RBAC_ALLOW))
	return b.judge(n, &httprbacv3.RBAC{Matcher: root(next), RulesStatPrefix: userBlockStatPrefix})
}
