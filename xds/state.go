package xds

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	setstatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/set_filter_state/v3"
	filterchainv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/filter_chain/v3"
	headertometadatav3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_to_metadata/v3"
	httprbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	httpsetstatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/set_filter_state/v3"
	"google.golang.org/protobuf/proto"
)

// pathState is the key of the filter state that holds the path without its
// query. The ":path" input of matchers includes the query, so "/admin?x" would
// miss an exact "/admin".
const pathState = "zt.path"

// tokenMetadata is where jwt_authn puts the payloads of verified tokens.
const tokenMetadata = "envoy.filters.http.jwt_authn"

// judgeType is a list of filters that is one filter, and so one resource. Every
// filter of requests that travels as a resource is one: without anything to judge
// it is an empty list, which costs a request next to nothing.
const judgeType = "type.googleapis.com/envoy.extensions.filters.http.filter_chain.v3.FilterChainConfig"

// needs is what a matcher reads from filter state. Envoy's maps take strings from
// there, and neither a header without its query nor dynamic metadata.
type needs struct {
	path     bool
	segments int // 1 to this
	tails    map[int]bool
	claims   map[claimKey]bool
}

// claimKey is one claim of one provider: "corp:realm:role". A path that holds a
// byte which Envoy's format strings could take for their own has no key: such
// claims are compared one by one.
type claimKey string

func newClaimKey(provider string, path []string) (claimKey, bool) {
	for _, s := range path {
		if s == "" || strings.Trim(s, claimBytes) != "" {
			return "", false
		}
	}
	return claimKey(provider + ":" + strings.Join(path, ":")), true
}

const claimBytes = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./@"

// state is the key of the filter state that holds the claim's text, "-" if the
// token has no such claim. Text alone proves nothing: 5 and "5" have one, and so
// have ["a"] and "[\"a\"]". Who finds it compares again, by type.
func (k claimKey) state() string { return "zt.claim:" + string(k) }

func (k claimKey) format() string {
	return "%DYNAMIC_METADATA(" + tokenMetadata + ":" + payloadKey("") + string(k) + ")%"
}

// needsOf is what the matcher of these rules reads.
func needsOf(rules []Rule) needs {
	n := needs{path: true, tails: map[int]bool{}, claims: map[claimKey]bool{}}
	for i := range rules {
		for _, p := range rules[i].Paths {
			if _, ok := p.plain(); ok {
				continue
			}
			pat := newPattern(p.Value)
			n.segments = max(n.segments, len(pat.segments))
			if !pat.rest || pat.tail != "" {
				n.tails[len(pat.segments)] = true
			}
		}
		for _, k := range rules[i].claimKeys() {
			n.claims[k.key] = true
		}
	}
	return n
}

// judge is a policy and all that it reads, as one filter and one resource: what
// reads and what is read change together, and without it nothing is open.
func (b *builder) judge(n needs, rbac *httprbacv3.RBAC) proto.Message {
	var filters []*corev3.TypedExtensionConfig
	if n.segments > 0 {
		filters = append(filters, b.link("segments", n.segmentFilter()))
	}
	if n.path || len(n.claims) > 0 {
		filters = append(filters, b.link("state", n.stateFilter()))
	}
	return chain(append(filters, b.link("rbac", rbac))...)
}

// tokens verifies tokens, if there is a provider.
func (b *builder) tokens() proto.Message {
	if len(b.c.Providers) == 0 {
		return pass()
	}
	return chain(b.link("jwt", b.jwt()))
}

func (b *builder) link(name string, m proto.Message) *corev3.TypedExtensionConfig {
	return &corev3.TypedExtensionConfig{Name: name, TypedConfig: b.any(m)}
}

func chain(filters ...*corev3.TypedExtensionConfig) proto.Message {
	return &filterchainv3.FilterChainConfig{DefaultFilterChain: &filterchainv3.FilterChain{Filters: filters}}
}

// denyAllJudge is what a filter does before, and without, its judge.
func (b *builder) denyAllJudge() proto.Message { return b.judge(needs{}, denyAllHTTP()) }

// pass judges nothing, explicitly: a resource that is missing denies.
func pass() proto.Message { return &filterchainv3.FilterChainConfig{} }

func (n needs) segmentFilter() proto.Message {
	m := &headertometadatav3.Config{}
	for i := 1; i <= n.segments; i++ {
		m.RequestRules = append(m.RequestRules, segmentRule(segmentState(i), segmentExpr(i)))
	}
	for _, i := range slices.Sorted(maps.Keys(n.tails)) {
		m.RequestRules = append(m.RequestRules, segmentRule(tailState(i), tailExpr(i)))
	}
	return m
}

// stateFilter: PATH alone would do something else than PATH(NQ:PATH): it prefers
// x-envoy-original-path, which a client can send.
func (n needs) stateFilter() proto.Message {
	m := &httpsetstatev3.Config{}
	set := func(key, format string) {
		m.OnRequestHeaders = append(m.OnRequestHeaders, &setstatev3.FilterStateValue{
			Key:        &setstatev3.FilterStateValue_ObjectKey{ObjectKey: key},
			FactoryKey: "envoy.string",
			Value: &setstatev3.FilterStateValue_FormatString{FormatString: &corev3.SubstitutionFormatString{
				Format: &corev3.SubstitutionFormatString_TextFormatSource{TextFormatSource: &corev3.DataSource{
					Specifier: &corev3.DataSource_InlineString{InlineString: format},
				}},
			}},
		})
	}
	if n.path {
		set(pathState, "%PATH(NQ:PATH)%")
	}
	fromPath := func(key string) { set(key, "%DYNAMIC_METADATA("+segmentMetadata+":"+key+")%") }
	for i := 1; i <= n.segments; i++ {
		fromPath(segmentState(i))
	}
	for _, i := range slices.Sorted(maps.Keys(n.tails)) {
		fromPath(tailState(i))
	}
	for _, k := range slices.Sorted(maps.Keys(n.claims)) {
		set(k.state(), k.format())
	}
	return m
}

// keyedClaim is a claim by which rules are looked up.
type keyedClaim struct {
	key    claimKey
	values []string
}

// claimKeys are the string claims by which a rule stands in maps, in order of
// their keys. Of those with several values only one, the one with most, is among
// them: a map of each combination could be huge. The others are compared one by
// one.
func (r *Rule) claimKeys() []keyedClaim {
	if r.Users == nil {
		return nil
	}
	var keys []keyedClaim
	for _, c := range r.Users.Claims {
		if k, ok := newClaimKey(r.Users.Provider, c.Path); ok && c.Kind == StringClaim {
			keys = append(keys, keyedClaim{k, c.Values})
		}
	}
	slices.SortFunc(keys, func(a, b keyedClaim) int {
		return cmp.Or(strings.Compare(string(a.key), string(b.key)), slices.Compare(a.values, b.values))
	})
	keys = slices.CompactFunc(keys, func(a, b keyedClaim) bool { return a.key == b.key })
	widest := 0
	for _, k := range keys {
		widest = max(widest, len(k.values))
	}
	taken := false
	return slices.DeleteFunc(keys, func(k keyedClaim) bool {
		if len(k.values) == 1 {
			return false
		}
		drop := taken || len(k.values) < widest
		taken = taken || !drop
		return drop
	})
}
