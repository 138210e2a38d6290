package xds

import (
	matcherv3 "github.com/cncf/xds/go/xds/type/matcher/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	httprbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	"google.golang.org/protobuf/proto"
)

// Names of the actions of a policy, as logs and answers show them. A grant's
// action is "grant:" and the grant, a Block's "block:" and the Block.
const (
	ActionDefault = "default-deny" // nothing matched
	ActionForm    = "form"         // the request is not of canonical form
	actionNoBlock = "no-block"
	actionGrant   = "grant:"
	actionBlock   = "block:"
	actionGate    = "gate"
)

// RBACStatPrefix stands before the metadata keys and counters of the policy
// filter, "zt_enforced_effective_policy_id", and of the shadow filter,
// "zt_shadow_effective_policy_id".
const RBACStatPrefix = "zt_"

// pathMarks are the bytes besides letters and digits that a canonical path may
// hold: pchar of RFC 3986 (section 3.3) without "%" and ";", and "/".
const pathMarks = "-._~!$&'()*+,=:@/"

// Fixed expressions; no expression ever comes from a user. Both match the whole
// input. pathExpr is canonicalPath for what Envoy has already normalised,
// encodedExpr what EncodedPaths leaves of it.
const (
	pathExpr    = `/[A-Za-z0-9\-._~!$&'()*+,=:@/]*`
	encodedExpr = `/(?:[A-Za-z0-9\-._~!$&'()*+,=:@/;]|%[0-9A-Fa-f]{2})*`
)

// ambiguous is what is refused even where EncodedPaths says that paths may be
// encoded, in whatever case: what applications take for a slash, a backslash, a
// dot segment or an end. Envoy has resolved dot segments before, those with
// parameters ("/..;x/") as well, and has refused "%2f", "%5c" and "%00"; it does
// not look again at what it has decoded.
func ambiguous() []string {
	return []string{
		"%00", "%2f", "%5c", "%2e", // what decoding has made of "%%32e", too
		"%2500", "%252f", "%255c", "%252e", // decoded twice
		"%c0", "%c1", "%e0%8", "%e0%9", "%f0%8", // ASCII in more bytes than UTF-8 allows
		"/;", "/.;", "/..;", "/%3b", "/.%3b", "/..%3b", // nothing and dots, with parameters
	}
}

// policy is what the rules of an HTTP port allow.
func (b *builder) policy(in *Inbound) proto.Message {
	return b.judge(needsOf(in.Rules), &httprbacv3.RBAC{Matcher: b.requests(in, in.Rules), RulesStatPrefix: RBACStatPrefix})
}

// shadow is what other rules would allow. It travels apart and judges apart:
// whatever is wrong with it, no verdict changes.
func (b *builder) shadow(in *Inbound) proto.Message {
	if in.Shadow == nil {
		return pass()
	}
	return b.judge(needsOf(in.Shadow.Rules), &httprbacv3.RBAC{
		ShadowMatcher:         b.requests(in, in.Shadow.Rules),
		ShadowRulesStatPrefix: RBACStatPrefix,
	})
}

// requests is form and rules. An upgrade is judged by the rules that speak of it,
// and by no other:
//
//	form guard          → DENY form
//	upgrade: websocket  → the rules with Upgrades, and then default-deny
//	upgrade: other      → DENY form
//	                    → the rules without, and then default-deny
func (b *builder) requests(in *Inbound, rules []Rule) *matcherv3.Matcher {
	var plain, upgrades []Rule
	for _, r := range rules {
		if r.Upgrades == nil {
			plain = append(plain, r)
		} else {
			upgrades = append(upgrades, r)
		}
	}
	form := b.action(ActionForm, rbacv3.RBAC_DENY)
	fields := []*fieldMatch{{Predicate: b.malformed(in.EncodedPaths), OnMatch: form}}
	if len(in.Upgrades) > 0 {
		fields = append(fields, &fieldMatch{
			Predicate: b.matches(b.headerInput("upgrade"), ignoringCase(equals("websocket"))),
			OnMatch:   b.lower(upgrades),
		})
	}
	fields = append(fields, &fieldMatch{Predicate: b.matches(b.headerInput("upgrade"), fullMatch(".+")), OnMatch: form})
	return list(b.lower(plain), fields...)
}

// malformed is what is not of canonical form, denied before anything is judged.
// Envoy has normalised the path by then; what is still encoded, or has a meaning
// that servers differ on (";", "\"), could be read by the application as another
// path than the one that is judged here. The path is tested by what it may be:
// without a path in the filter state the guard denies.
func (b *builder) malformed(encoded bool) *predicate {
	expr := pathExpr
	if encoded {
		expr = encodedExpr
	}
	some := []*predicate{
		not(b.matches(b.pathInput(), fullMatch(expr))),
		b.matches(b.headerInput(":authority"), contains(",")), // two Host headers
		b.matches(b.headerInput(":authority"), contains("@")), // user information
		b.matches(b.headerInput(":method"), equals("CONNECT")),
		b.matches(b.headerInput(":method"), equals("TRACE")),
	}
	if encoded {
		for _, s := range ambiguous() {
			some = append(some, b.matches(b.pathInput(), ignoringCase(contains(s))))
		}
	}
	return someOf(some...)
}

// denyAllHTTP is what a policy filter does before, and without, its policy.
// Rules without policies and action ALLOW deny everything.
func denyAllHTTP() *httprbacv3.RBAC {
	return &httprbacv3.RBAC{Rules: &rbacv3.RBAC{Action: rbacv3.RBAC_ALLOW}, RulesStatPrefix: RBACStatPrefix}
}
