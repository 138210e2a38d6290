package xds

import (
	"crypto/sha256"
	"encoding/base64"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	jwtauthnv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/jwt_authn/v3"
	typematcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// Of the keys of a provider.
const (
	jwksTimeout  = 5 * time.Second // one fetch
	jwksLifetime = 5 * time.Minute // keys are fetched anew after this
	jwksRetry    = time.Second     // after a fetch that failed
)

// payloadKey is where a verified token of a provider stands in the dynamic
// metadata of jwt_authn. Each provider has its own: in one key the claims of two
// would mix.
func payloadKey(provider string) string { return "p_" + provider }

// failureKey is where it stands why a token did not verify, beside the payloads.
const failureKey = "failed"

// jwt verifies the tokens of the workload's callers; it is the same on all of
// its HTTP ports. It says who the user is and nothing of what a user may do:
//
//	Authorization                                  → user
//	none, or any in which "bearer" does not occur  → nobody
//	exactly "Bearer <token>", which verifies       → its claims in the metadata
//	any other                                      → 401 (403 for a wrong audience)
//
// The second rule of the filter verifies, the first refuses every spelling that
// is not exactly that: Envoy would find "Bearer " anywhere in the value, so that
// "Basic x, Bearer <token>" bore a user, and would take "bearer <token>" for no
// token at all, where an application may not.
//
// A provider that only shadow rules name never rejects: if no other one is there,
// a token that does not verify is as none; beside enforced ones it is not asked,
// since a token of it would then have passed as a user of nobody.
func (b *builder) jwt() proto.Message {
	filter := &jwtauthnv3.JwtAuthentication{Providers: map[string]*jwtauthnv3.JwtProvider{}}
	var enforced, shadow []*jwtauthnv3.JwtRequirement
	for i := range b.c.Providers {
		p := &b.c.Providers[i]
		filter.Providers[p.Name] = b.provider(p)
		need := &jwtauthnv3.JwtRequirement{RequiresType: &jwtauthnv3.JwtRequirement_ProviderName{ProviderName: p.Name}}
		if p.Enforced {
			enforced = append(enforced, need)
		} else {
			shadow = append(shadow, need)
		}
	}
	switch {
	case len(enforced) > 0:
		filter.Providers[nobody] = keyless()
		filter.Rules = []*jwtauthnv3.RequirementRule{
			require(byNobody(), oddBearer()...),
			require(anyOf(append(enforced, &jwtauthnv3.JwtRequirement{
				RequiresType: &jwtauthnv3.JwtRequirement_AllowMissing{AllowMissing: &emptypb.Empty{}},
			}))),
		}
	case len(shadow) > 0:
		filter.Rules = []*jwtauthnv3.RequirementRule{require(&jwtauthnv3.JwtRequirement{
			RequiresType: &jwtauthnv3.JwtRequirement_AllowMissingOrFailed{AllowMissingOrFailed: &emptypb.Empty{}},
		})}
	}
	return filter
}

// nobody is the provider whose tokens nobody can make. No provider of a spec has
// its name, which is no DNS label.
const nobody = "_nobody"

// keyless has a public key, since Envoy refuses a provider without one. Nobody
// has its private key: it is the SHA-256 of "ztmesh: nobody has this key".
func keyless() *jwtauthnv3.JwtProvider {
	x := sha256.Sum256([]byte("ztmesh: nobody has this key"))
	return &jwtauthnv3.JwtProvider{
		Issuer: nobody,
		JwksSourceSpecifier: localKeys(`{"keys":[{"kty":"OKP","crv":"Ed25519","alg":"EdDSA","x":"` +
			base64.RawURLEncoding.EncodeToString(x[:]) + `"}]}`),
		FromHeaders: bearer(),
	}
}

func byNobody() *jwtauthnv3.JwtRequirement {
	return &jwtauthnv3.JwtRequirement{RequiresType: &jwtauthnv3.JwtRequirement_ProviderName{ProviderName: nobody}}
}

// oddBearer matches an Authorization that may be taken for a bearer token and is
// not exactly a JWT: Envoy reads a token up to the first byte that no JWT has, so
// that one with more behind it would be verified without that and passed on with
// it. Several headers reach it as one value, joined by commas; empty ones are gone.
func oddBearer() []*routev3.HeaderMatcher {
	value := func(m *typematcherv3.StringMatcher, invert bool) *routev3.HeaderMatcher {
		return &routev3.HeaderMatcher{
			Name:                 "authorization",
			InvertMatch:          invert,
			HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: m},
		}
	}
	return []*routev3.HeaderMatcher{
		value(&typematcherv3.StringMatcher{
			MatchPattern: &typematcherv3.StringMatcher_Contains{Contains: "bearer"}, IgnoreCase: true,
		}, false),
		value(&typematcherv3.StringMatcher{MatchPattern: &typematcherv3.StringMatcher_SafeRegex{
			SafeRegex: &typematcherv3.RegexMatcher{Regex: `Bearer [A-Za-z0-9_.\-]+`},
		}}, true),
	}
}

func (b *builder) provider(p *Provider) *jwtauthnv3.JwtProvider {
	out := &jwtauthnv3.JwtProvider{
		Issuer:            p.Issuer,
		Audiences:         p.Audiences,
		RequireExpiration: true,
		ClockSkewSeconds:  uint32(p.ClockSkew / time.Second), //nolint:gosec // Validate bounds it
		FromHeaders:       bearer(),
		PayloadInMetadata: payloadKey(p.Name),

		FailedStatusInMetadata: failureKey, // read by the decision log
		// Shadow changes nothing of what the application receives.
		Forward: p.KeepToken || !p.Enforced,
	}
	if p.Enforced {
		for _, h := range p.Headers {
			out.ClaimToHeaders = append(out.ClaimToHeaders, &jwtauthnv3.JwtClaimToHeader{
				HeaderName: h.Header, ClaimName: strings.Join(h.Path, "."),
			})
		}
	}
	if p.URI == "" {
		out.JwksSourceSpecifier = localKeys(p.Inline)
		return out
	}
	out.JwksSourceSpecifier = &jwtauthnv3.JwtProvider_RemoteJwks{RemoteJwks: &jwtauthnv3.RemoteJwks{
		HttpUri: &corev3.HttpUri{
			Uri:              p.URI,
			HttpUpstreamType: &corev3.HttpUri_Cluster{Cluster: JWKSCluster(p.Name)},
			Timeout:          durationpb.New(jwksTimeout),
		},
		CacheDuration: durationpb.New(jwksLifetime),
		// Keys are there before they are asked for, and nothing waits for them: a
		// provider that is away denies its own tokens and delays no policy.
		AsyncFetch:  &jwtauthnv3.JwksAsyncFetch{FastListener: true, FailedRefetchDuration: durationpb.New(jwksRetry)},
		RetryPolicy: &corev3.RetryPolicy{NumRetries: wrapperspb.UInt32(2)},
	}}
	return out
}

// bearer is the one place that a token may stand in. By default the query would
// be another.
func bearer() []*jwtauthnv3.JwtHeader {
	return []*jwtauthnv3.JwtHeader{{Name: "Authorization", ValuePrefix: "Bearer "}}
}

func localKeys(jwks string) *jwtauthnv3.JwtProvider_LocalJwks {
	return &jwtauthnv3.JwtProvider_LocalJwks{LocalJwks: &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: jwks}}}
}

// require asks r of requests with all of these headers.
func require(r *jwtauthnv3.JwtRequirement, headers ...*routev3.HeaderMatcher) *jwtauthnv3.RequirementRule {
	match := everyPath()
	match.Headers = headers
	return &jwtauthnv3.RequirementRule{
		Match:           match,
		RequirementType: &jwtauthnv3.RequirementRule_Requires{Requires: r},
	}
}

func anyOf(list []*jwtauthnv3.JwtRequirement) *jwtauthnv3.JwtRequirement {
	return &jwtauthnv3.JwtRequirement{RequiresType: &jwtauthnv3.JwtRequirement_RequiresAny{
		RequiresAny: &jwtauthnv3.JwtRequirementOrList{Requirements: list},
	}}
}

// keys is the cluster that a provider's keys are fetched from.
func (b *builder) keys(p *Provider) *clusterv3.Cluster {
	u, _ := url.Parse(p.URI) // Validate has parsed it
	e := origin{host: u.Hostname(), ca: p.CA, plaintext: u.Scheme == "http", protocol: HTTP}
	return b.external(JWKSCluster(p.Name), e)
}

func (v *validation) providers(ps []Provider) {
	v.distinct(len(ps), func(i int) string { return ps[i].Name })
	v.distinct(len(ps), func(i int) string { return ps[i].Issuer })
	for i := range ps {
		p := &ps[i]
		v.at = place{"provider", p.Name, ""}
		v.check(label(p.Name), "name is not a DNS label")
		v.check(p.Issuer != "", "no issuer")
		v.check(len(p.Audiences) > 0 && !slices.Contains(p.Audiences, ""), "no audience, or an empty one")
		v.check((p.Inline == "") != (p.URI == ""), "keys are neither inline nor by URI, or both")
		v.check(p.URI == "" || isKeysURI(p.URI), "uri %q is not https://host/path", p.URI)
		// 0 would be Envoy's default, a minute.
		v.check(p.ClockSkew >= time.Second && p.ClockSkew <= 5*time.Minute && p.ClockSkew%time.Second == 0,
			"clock skew %s is not 1s to 5m in whole seconds", p.ClockSkew)
		for _, h := range p.Headers {
			v.check(isHeader(h.Header), "header %q is not a name in lower case", h.Header)
			v.check(len(h.Path) > 0, "header %s: no claim", h.Header)
			for _, s := range h.Path {
				v.check(s != "" && !strings.Contains(s, "."), "header %s: claim %q cannot be told from a nested one", h.Header, s)
			}
		}
	}
	v.at = place{}
}

// isKeysURI: absolute, of a DNS name or an IP address, without user or fragment.
func isKeysURI(s string) bool {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.User != nil || u.Fragment != "" || u.Opaque != "" {
		return false
	}
	_, err = netip.ParseAddr(u.Hostname())
	return err == nil || dnsName(u.Hostname())
}

// isHeader: a field name of RFC 9110 that RE2 and Envoy take as it is.
func isHeader(s string) bool {
	if s == "" || len(s) > 256 {
		return false
	}
	for _, r := range []byte(s) {
		if (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' {
			return false
		}
	}
	return true
}
