package xds

import (
	"maps"
	"slices"

	xcorev3 "github.com/cncf/xds/go/xds/core/v3"
	matcherv3 "github.com/cncf/xds/go/xds/type/matcher/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	httprbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	networkinputv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/matching/common_inputs/network/v3"
	sslinputv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/matching/common_inputs/ssl/v3"
	typematcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"
)

// Names of the actions of a policy, as logs and answers show them. A grant's
// action is "grant:" and the grant.
const (
	ActionDefault = "default-deny" // nothing matched
	ActionForm    = "form"         // the request is not of canonical form
	actionGrant   = "grant:"
	actionGate    = "gate"
)

// RBACStatPrefix stands before the metadata keys and counters of the policy
// filter: "zt_enforced_effective_policy_id".
const RBACStatPrefix = "zt_"

// pathState is the key of the filter state that holds the path without its
// query. The ":path" input of matchers includes the query, so "/admin?x" would
// miss an exact "/admin".
const pathState = "zt.path"

// pathMarks are the bytes besides letters and digits that a canonical path may
// hold: pchar of RFC 3986 (section 3.3) without "%" and ";", and "/".
const pathMarks = "-._~!$&'()*+,=:@/"

// Fixed expressions; no expression ever comes from a user. Both match the whole
// input. pathExpr is canonicalPath for what Envoy has already normalised.
const (
	pathExpr    = `/[A-Za-z0-9\-._~!$&'()*+,=:@/]*`
	segmentExpr = `/[^/]+/[^/]+` // below a OneSegment prefix: exactly one more, not empty
)

// policy lowers the rules of an HTTP port to one matcher. Its cost in the proxy
// is flat in the number of rules: maps by caller, then path, then method.
//
// Worked example. The rules
//
//	grant shop/a: web                       → GET /orders/**
//	grant shop/b: every workload of "shop"  → POST /orders
//
// become
//
//	form guard                                  → DENY  form
//	caller = spiffe://td/ns/shop/sa/web
//	    path = /orders          method = GET    → ALLOW grant:shop/a
//	    path begins /orders/    method = GET    → ALLOW grant:shop/a
//	caller begins spiffe://td/ns/shop/sa/
//	    path = /orders          method = POST   → ALLOW grant:shop/b
//	otherwise                                   → DENY  default-deny
//
// A subtree that fails falls on: from the exact path to the prefixes, from the
// longer prefix to the shorter, from the caller to its namespace, from there to
// any caller, and at last to default-deny. So rules are a union, whatever they
// have in common; POST /orders by web passes by shop/b. Nothing here widens: an
// ALLOW stands only at the end of a caller, a path and a method that one rule
// names together.
func (b *builder) policy(in *Inbound) proto.Message {
	exact, prefixes := map[string]*pathTree{}, map[string]*pathTree{}
	for _, r := range in.Rules {
		for _, id := range r.Callers.IDs {
			tree(exact, id).add(r)
		}
		for _, p := range r.Callers.Prefixes {
			tree(prefixes, p).add(r)
		}
		if r.Callers.Any {
			tree(prefixes, "spiffe://"+b.c.TrustDomain+"/").add(r)
		}
	}
	next := b.action(ActionDefault, rbacv3.RBAC_DENY)
	next = b.byPrefix(b.callerInput(), b.subtrees(prefixes), next)
	next = b.byExact(b.callerInput(), b.subtrees(exact), next)
	return &httprbacv3.RBAC{Matcher: b.formGuard(next), RulesStatPrefix: RBACStatPrefix}
}

// denyAllHTTP is what a policy filter does before, and without, its policy.
// Rules without policies and action ALLOW deny everything.
func denyAllHTTP() proto.Message {
	return &httprbacv3.RBAC{Rules: &rbacv3.RBAC{Action: rbacv3.RBAC_ALLOW}, RulesStatPrefix: RBACStatPrefix}
}

// pathTree is what one caller may do.
type pathTree struct {
	exact    map[string]*methodSet
	prefix   map[string]*methodSet // Rest: all below
	segments map[string]*methodSet // OneSegment: one segment below
	any      methodSet
}

// methodSet maps a method to the grant that allows it. Where several do, the
// first in order of rules is named.
type methodSet struct {
	named map[string]string
	any   string
}

func tree(m map[string]*pathTree, key string) *pathTree {
	if m[key] == nil {
		m[key] = &pathTree{exact: map[string]*methodSet{}, prefix: map[string]*methodSet{}, segments: map[string]*methodSet{}}
	}
	return m[key]
}

func (t *pathTree) add(r Rule) {
	if r.Paths == nil {
		t.any.add(r)
	}
	for _, p := range r.Paths {
		switch p.Kind {
		case Exact:
			methods(t.exact, p.Value).add(r)
		case Rest:
			if p.Value == "/" {
				methods(t.prefix, "/").add(r)
				break
			}
			methods(t.exact, p.Value).add(r)
			methods(t.prefix, p.Value+"/").add(r)
		case OneSegment:
			methods(t.segments, p.Value).add(r)
		}
	}
}

func methods(m map[string]*methodSet, key string) *methodSet {
	if m[key] == nil {
		m[key] = &methodSet{}
	}
	return m[key]
}

func (s *methodSet) add(r Rule) {
	if r.Methods == nil {
		if s.any == "" {
			s.any = r.Grant
		}
		return
	}
	for _, m := range r.Methods {
		if s.named == nil {
			s.named = map[string]string{}
		}
		if s.named[m] == "" {
			s.named[m] = r.Grant
		}
	}
}

// subtrees lowers the trees of callers.
func (b *builder) subtrees(trees map[string]*pathTree) map[string]*matcherv3.Matcher_OnMatch {
	out := make(map[string]*matcherv3.Matcher_OnMatch, len(trees))
	for _, caller := range slices.Sorted(maps.Keys(trees)) {
		out[caller] = b.paths(trees[caller])
	}
	return out
}

// paths: exact, then prefixes (longest first, then shorter), then any path.
func (b *builder) paths(t *pathTree) *matcherv3.Matcher_OnMatch {
	exact, prefix := map[string]*matcherv3.Matcher_OnMatch{}, map[string]*matcherv3.Matcher_OnMatch{}
	for p, s := range t.exact {
		exact[p] = b.methods(s)
	}
	for p, s := range t.prefix {
		prefix[p] = b.methods(s)
	}
	for p, s := range t.segments {
		one := &matcherv3.Matcher_MatcherList_FieldMatcher{
			Predicate: b.predicate(b.pathInput(), fullMatch(segmentExpr)),
			OnMatch:   b.methods(s),
		}
		prefix[p] = nest(list(prefix[p], one)) // the rest of the same prefix comes second
	}
	next := b.methods(&t.any)
	next = b.byPrefix(b.pathInput(), prefix, next)
	return b.byExact(b.pathInput(), exact, next)
}

// methods: nil if the set is empty.
func (b *builder) methods(s *methodSet) *matcherv3.Matcher_OnMatch {
	var next *matcherv3.Matcher_OnMatch
	if s.any != "" {
		next = b.action(actionGrant+s.any, rbacv3.RBAC_ALLOW)
	}
	named := map[string]*matcherv3.Matcher_OnMatch{}
	for m, grant := range s.named {
		named[m] = b.action(actionGrant+grant, rbacv3.RBAC_ALLOW)
	}
	return b.byExact(b.headerInput(":method"), named, next)
}

// formGuard denies what is not of canonical form before anything is judged, and
// otherwise goes on with next. Envoy has normalised the path by then; what is
// still encoded, or has a meaning that servers differ on (";", "\"), could be
// read by the application as another path than the one that is judged here. The
// path is tested by what it may be: without a path in the filter state the
// guard denies.
func (b *builder) formGuard(next *matcherv3.Matcher_OnMatch) *matcherv3.Matcher {
	canonical := b.predicate(b.pathInput(), fullMatch(pathExpr))
	guard := &matcherv3.Matcher_MatcherList_Predicate{
		MatchType: &matcherv3.Matcher_MatcherList_Predicate_OrMatcher{
			OrMatcher: &matcherv3.Matcher_MatcherList_Predicate_PredicateList{
				Predicate: []*matcherv3.Matcher_MatcherList_Predicate{
					{MatchType: &matcherv3.Matcher_MatcherList_Predicate_NotMatcher{NotMatcher: canonical}},
					b.predicate(b.headerInput(":authority"), contains(",")), // two Host headers
					b.predicate(b.headerInput(":authority"), contains("@")), // user information
					b.predicate(b.headerInput(":method"), equals("CONNECT")),
					b.predicate(b.headerInput(":method"), equals("TRACE")),
				},
			},
		},
	}
	return list(next, &matcherv3.Matcher_MatcherList_FieldMatcher{
		Predicate: guard,
		OnMatch:   b.action(ActionForm, rbacv3.RBAC_DENY),
	})
}

// The inputs of matchers.

func (b *builder) callerInput() *xcorev3.TypedExtensionConfig {
	return b.extension("caller", &sslinputv3.UriSanInput{})
}

func (b *builder) pathInput() *xcorev3.TypedExtensionConfig {
	return b.extension("path", &networkinputv3.FilterStateInput{Key: pathState})
}

func (b *builder) headerInput(name string) *xcorev3.TypedExtensionConfig {
	return b.extension(name, &typematcherv3.HttpRequestHeaderMatchInput{HeaderName: name})
}

func (b *builder) extension(name string, m proto.Message) *xcorev3.TypedExtensionConfig {
	return &xcorev3.TypedExtensionConfig{Name: name, TypedConfig: b.any(m)}
}

// action ends a matcher with a verdict that has a name.
func (b *builder) action(name string, verdict rbacv3.RBAC_Action) *matcherv3.Matcher_OnMatch {
	return &matcherv3.Matcher_OnMatch{OnMatch: &matcherv3.Matcher_OnMatch_Action{
		Action: b.extension("action", &rbacv3.Action{Name: name, Action: verdict}),
	}}
}

// byExact looks the input up in a map; what is not there, and what fails below,
// goes to next. An empty map is next itself.
func (b *builder) byExact(input *xcorev3.TypedExtensionConfig, m map[string]*matcherv3.Matcher_OnMatch, next *matcherv3.Matcher_OnMatch) *matcherv3.Matcher_OnMatch {
	if len(m) == 0 {
		return next
	}
	return treeOf(&matcherv3.Matcher_MatcherTree{
		Input:    input,
		TreeType: &matcherv3.Matcher_MatcherTree_ExactMatchMap{ExactMatchMap: &matcherv3.Matcher_MatcherTree_MatchMap{Map: m}},
	}, next)
}

// byPrefix is byExact for prefixes, longest first.
func (b *builder) byPrefix(input *xcorev3.TypedExtensionConfig, m map[string]*matcherv3.Matcher_OnMatch, next *matcherv3.Matcher_OnMatch) *matcherv3.Matcher_OnMatch {
	if len(m) == 0 {
		return next
	}
	return treeOf(&matcherv3.Matcher_MatcherTree{
		Input:    input,
		TreeType: &matcherv3.Matcher_MatcherTree_PrefixMatchMap{PrefixMatchMap: &matcherv3.Matcher_MatcherTree_MatchMap{Map: m}},
	}, next)
}

func treeOf(t *matcherv3.Matcher_MatcherTree, next *matcherv3.Matcher_OnMatch) *matcherv3.Matcher_OnMatch {
	return nest(&matcherv3.Matcher{
		MatcherType: &matcherv3.Matcher_MatcherTree_{MatcherTree: t},
		OnNoMatch:   next,
	})
}

func list(next *matcherv3.Matcher_OnMatch, fields ...*matcherv3.Matcher_MatcherList_FieldMatcher) *matcherv3.Matcher {
	return &matcherv3.Matcher{
		MatcherType: &matcherv3.Matcher_MatcherList_{MatcherList: &matcherv3.Matcher_MatcherList{Matchers: fields}},
		OnNoMatch:   next,
	}
}

func nest(m *matcherv3.Matcher) *matcherv3.Matcher_OnMatch {
	return &matcherv3.Matcher_OnMatch{OnMatch: &matcherv3.Matcher_OnMatch_Matcher{Matcher: m}}
}

func (b *builder) predicate(input *xcorev3.TypedExtensionConfig, value *matcherv3.StringMatcher) *matcherv3.Matcher_MatcherList_Predicate {
	return &matcherv3.Matcher_MatcherList_Predicate{
		MatchType: &matcherv3.Matcher_MatcherList_Predicate_SinglePredicate_{
			SinglePredicate: &matcherv3.Matcher_MatcherList_Predicate_SinglePredicate{
				Input:   input,
				Matcher: &matcherv3.Matcher_MatcherList_Predicate_SinglePredicate_ValueMatch{ValueMatch: value},
			},
		},
	}
}

func fullMatch(expr string) *matcherv3.StringMatcher {
	return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{
		EngineType: &matcherv3.RegexMatcher_GoogleRe2{GoogleRe2: &matcherv3.RegexMatcher_GoogleRE2{}},
		Regex:      expr,
	}}}
}

func contains(s string) *matcherv3.StringMatcher {
	return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Contains{Contains: s}}
}

func equals(s string) *matcherv3.StringMatcher {
	return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: s}}
}
