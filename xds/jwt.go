package xds

import (
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	jwtauthnv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/jwt_authn/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const jwtAuthnType = "type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication"

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

// jwt verifies the tokens of the workload's callers; it is the same on all of
// its HTTP ports. It says who the user is and nothing of what a user may do:
//
//	Authorization: Bearer, of an enforced provider  → its claims in the metadata
//	none                                            → no user
//	a token that does not verify                    → 401
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
		filter.Rules = everyRequest(anyOf(append(enforced, &jwtauthnv3.JwtRequirement{
			RequiresType: &jwtauthnv3.JwtRequirement_AllowMissing{AllowMissing: &emptypb.Empty{}},
		})))
	case len(shadow) > 0:
		filter.Rules = everyRequest(&jwtauthnv3.JwtRequirement{
			RequiresType: &jwtauthnv3.JwtRequirement_AllowMissingOrFailed{AllowMissingOrFailed: &emptypb.Empty{}},
		})
	}
	return filter
}

// denyAllJWT is what the filter does before, and without, its resource: it asks
// for a token that nobody can have, of a provider without keys.
func denyAllJWT() proto.Message {
	return &jwtauthnv3.JwtAuthentication{
		Providers: map[string]*jwtauthnv3.JwtProvider{"nobody": {
			Issuer:              "nobody",
			JwksSourceSpecifier: localKeys(`{"keys":[]}`),
			FromHeaders:         bearer(),
		}},
		Rules: everyRequest(&jwtauthnv3.JwtRequirement{
			RequiresType: &jwtauthnv3.JwtRequirement_ProviderName{ProviderName: "nobody"},
		}),
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

func everyRequest(r *jwtauthnv3.JwtRequirement) []*jwtauthnv3.RequirementRule {
	return []*jwtauthnv3.RequirementRule{{
		Match:           &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}},
		RequirementType: &jwtauthnv3.RequirementRule_Requires{Requires: r},
	}}
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
	names, issuers := map[string]bool{}, map[string]bool{}
	for i := range ps {
		p := &ps[i]
		v.at = "provider " + p.Name
		v.unique(names, p.Name)
		v.unique(issuers, p.Issuer)
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
	v.at = ""
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
