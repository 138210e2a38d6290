package xds

import (
	xcorev3 "github.com/cncf/xds/go/xds/core/v3"
	matcherv3 "github.com/cncf/xds/go/xds/type/matcher/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	networkinputv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/matching/common_inputs/network/v3"
	sslinputv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/matching/common_inputs/ssl/v3"
	metadatamatcherv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/matching/input_matchers/metadata/v3"
	typematcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"
)

// The words of matchers, shorter than the protobufs spell them.
type (
	onMatch    = matcherv3.Matcher_OnMatch
	predicate  = matcherv3.Matcher_MatcherList_Predicate
	fieldMatch = matcherv3.Matcher_MatcherList_FieldMatcher
	input      = xcorev3.TypedExtensionConfig
)

// The inputs of matchers.

func (b *builder) callerInput() *input {
	return b.extension("caller", &sslinputv3.UriSanInput{})
}

func (b *builder) stateInput(key string) *input {
	return b.extension("state", &networkinputv3.FilterStateInput{Key: key})
}

func (b *builder) pathInput() *input { return b.stateInput(pathState) }

func (b *builder) headerInput(name string) *input {
	return b.extension(name, &typematcherv3.HttpRequestHeaderMatchInput{HeaderName: name})
}

// payloadInput is a value of the dynamic metadata of verified tokens.
func (b *builder) payloadInput(provider string, path ...string) *input {
	in := &networkinputv3.DynamicMetadataInput{Filter: tokenMetadata}
	for _, key := range append([]string{payloadKey(provider)}, path...) {
		in.Path = append(in.Path, &networkinputv3.DynamicMetadataInput_PathSegment{
			Segment: &networkinputv3.DynamicMetadataInput_PathSegment_Key{Key: key},
		})
	}
	return b.extension("claim", in)
}

func (b *builder) extension(name string, m proto.Message) *xcorev3.TypedExtensionConfig {
	return &xcorev3.TypedExtensionConfig{Name: name, TypedConfig: b.any(m)}
}

// action ends a matcher with a verdict that has a name.
func (b *builder) action(name string, verdict rbacv3.RBAC_Action) *onMatch {
	return &onMatch{OnMatch: &matcherv3.Matcher_OnMatch_Action{
		Action: b.extension("action", &rbacv3.Action{Name: name, Action: verdict}),
	}}
}

// byExact looks the input up in a map; what is not there, and what fails below,
// goes to next. An empty map is next itself.
func (b *builder) byExact(in *input, m map[string]*onMatch, next *onMatch) *onMatch {
	if len(m) == 0 {
		return next
	}
	return treeOf(&matcherv3.Matcher_MatcherTree{
		Input:    in,
		TreeType: &matcherv3.Matcher_MatcherTree_ExactMatchMap{ExactMatchMap: &matcherv3.Matcher_MatcherTree_MatchMap{Map: m}},
	}, next)
}

// byPrefix is byExact for prefixes, longest first.
func (b *builder) byPrefix(in *input, m map[string]*onMatch, next *onMatch) *onMatch {
	if len(m) == 0 {
		return next
	}
	return treeOf(&matcherv3.Matcher_MatcherTree{
		Input:    in,
		TreeType: &matcherv3.Matcher_MatcherTree_PrefixMatchMap{PrefixMatchMap: &matcherv3.Matcher_MatcherTree_MatchMap{Map: m}},
	}, next)
}

func treeOf(t *matcherv3.Matcher_MatcherTree, next *onMatch) *onMatch {
	return nest(&matcherv3.Matcher{
		MatcherType: &matcherv3.Matcher_MatcherTree_{MatcherTree: t},
		OnNoMatch:   next,
	})
}

// list tries its fields in order; one that matches and then fails below is as one
// that does not match. Without fields it is next itself.
func list(next *onMatch, fields ...*fieldMatch) *matcherv3.Matcher {
	m := &matcherv3.Matcher{OnNoMatch: next}
	if len(fields) > 0 {
		m.MatcherType = &matcherv3.Matcher_MatcherList_{MatcherList: &matcherv3.Matcher_MatcherList{Matchers: fields}}
	}
	return m
}

func nest(m *matcherv3.Matcher) *onMatch {
	return &onMatch{OnMatch: &matcherv3.Matcher_OnMatch_Matcher{Matcher: m}}
}

// root is the matcher of what nest has wrapped. An action alone is a matcher that
// is only its no-match.
func root(m *onMatch) *matcherv3.Matcher {
	if inner := m.GetMatcher(); inner != nil {
		return inner
	}
	return &matcherv3.Matcher{OnNoMatch: m}
}

// Predicates. None of them is ever built from nothing: an empty list of
// predicates panics here rather than match everything in a proxy.

func (b *builder) matches(in *input, value *matcherv3.StringMatcher) *predicate {
	return single(&matcherv3.Matcher_MatcherList_Predicate_SinglePredicate{
		Input:   in,
		Matcher: &matcherv3.Matcher_MatcherList_Predicate_SinglePredicate_ValueMatch{ValueMatch: value},
	})
}

// custom is a predicate by an extension of Envoy.
func (b *builder) custom(in *input, name string, m proto.Message) *predicate {
	return single(&matcherv3.Matcher_MatcherList_Predicate_SinglePredicate{
		Input:   in,
		Matcher: &matcherv3.Matcher_MatcherList_Predicate_SinglePredicate_CustomMatch{CustomMatch: b.extension(name, m)},
	})
}

// value is a predicate on typed metadata: a value of another type does not match.
func (b *builder) value(in *input, m *typematcherv3.ValueMatcher) *predicate {
	return b.custom(in, "envoy.matching.matchers.metadata_matcher", &metadatamatcherv3.Metadata{Value: m})
}

func single(p *matcherv3.Matcher_MatcherList_Predicate_SinglePredicate) *predicate {
	return &predicate{MatchType: &matcherv3.Matcher_MatcherList_Predicate_SinglePredicate_{SinglePredicate: p}}
}

func allOf(ps ...*predicate) *predicate {
	if len(ps) == 1 {
		return ps[0]
	}
	return &predicate{MatchType: &matcherv3.Matcher_MatcherList_Predicate_AndMatcher{AndMatcher: predicates(ps)}}
}

func someOf(ps ...*predicate) *predicate {
	if len(ps) == 1 {
		return ps[0]
	}
	return &predicate{MatchType: &matcherv3.Matcher_MatcherList_Predicate_OrMatcher{OrMatcher: predicates(ps)}}
}

// not never stands over CEL: an expression that errs would match.
func not(p *predicate) *predicate {
	return &predicate{MatchType: &matcherv3.Matcher_MatcherList_Predicate_NotMatcher{NotMatcher: p}}
}

func predicates(ps []*predicate) *matcherv3.Matcher_MatcherList_Predicate_PredicateList {
	if len(ps) == 0 {
		panic("xds: a predicate of nothing")
	}
	return &matcherv3.Matcher_MatcherList_Predicate_PredicateList{Predicate: ps}
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

func beginsWith(s string) *matcherv3.StringMatcher {
	return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: s}}
}

func ignoringCase(m *matcherv3.StringMatcher) *matcherv3.StringMatcher {
	m.IgnoreCase = true
	return m
}
