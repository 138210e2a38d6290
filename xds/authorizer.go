package xds

import (
	"slices"
	"strings"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	mutationv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	extauthzv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	headertometadatav3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_to_metadata/v3"
	httprbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	typematcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// askedMetadata is where the path stands, with its query, that the authorizer was
// asked about.
const askedMetadata = "zt.asked"

// ActionExternal denies what the authorizer has made another request of.
const ActionExternal = "external"

// authorizerFilters ask the authorizer, and hold the request to what it was asked
// about. The rules of ext_authz bound the headers of its answer, and not the
// parameters that it may set in the query or remove from it: a rule whose cel reads
// the query would have judged another request than the application gets. A path
// of more than 8 KiB is not noted, and so denied.
func (b *builder) authorizerFilters() []*hcmv3.HttpFilter {
	asked := &headertometadatav3.Config{RequestRules: []*headertometadatav3.Config_Rule{{
		Header: ":path",
		OnHeaderPresent: &headertometadatav3.Config_KeyValuePair{
			MetadataNamespace: askedMetadata, Key: "path", Type: headertometadatav3.Config_STRING,
		},
	}}}
	same := &httprbacv3.RBAC{
		Matcher: list(b.action(ActionExternal, rbacv3.RBAC_DENY), &fieldMatch{
			Predicate: b.cel(`request.path == metadata.filter_metadata["` + askedMetadata + `"]["path"]`), // an error is a no
			OnMatch:   b.action("asked", rbacv3.RBAC_ALLOW),
		}),
		RulesStatPrefix: "zt_asked_",
	}
	return []*hcmv3.HttpFilter{
		b.httpFilter("envoy.filters.http.header_to_metadata", asked),
		b.authorizerFilter(),
		b.httpFilter("envoy.filters.http.rbac", same),
	}
}

// authorizerFilter asks the workload's external authorizer about what a grant has
// allowed. It can only narrow: no answer in time is a no, and an answer that
// would change the request (its method, path or host, or a header that the
// authorizer has not declared) is one as well.
func (b *builder) authorizerFilter() *hcmv3.HttpFilter {
	a := b.c.Authorizer
	grpc := grpcService(AuthorizerCluster)
	grpc.Timeout = durationpb.New(a.Timeout)
	filter := &extauthzv3.ExtAuthz{
		Services:                  &extauthzv3.ExtAuthz_GrpcService{GrpcService: grpc},
		TransportApiVersion:       corev3.ApiVersion_V3,
		FailureModeAllow:          false,
		StatusOnError:             &typev3.HttpStatus{Code: typev3.StatusCode_Forbidden},
		ValidateMutations:         true,
		IncludePeerCertificate:    false,
		MetadataContextNamespaces: []string{"envoy.filters.http.jwt_authn"},
		StatPrefix:                "zt",
		DecoderHeaderMutationRules: &mutationv3.HeaderMutationRules{
			DisallowSystem:  wrapperspb.Bool(true),
			DisallowAll:     wrapperspb.Bool(true),
			DisallowIsError: wrapperspb.Bool(true),
			AllowExpression: oneOf(a.Headers),
		},
		EnableDynamicMetadataIngestion: wrapperspb.Bool(false),
	}
	if a.MaxBodyBytes > 0 {
		// A longer body is a 413: what the authorizer has not seen does not pass.
		filter.WithRequestBody = &extauthzv3.BufferSettings{MaxRequestBytes: a.MaxBodyBytes, PackAsBytes: true}
	}
	return b.httpFilter("envoy.filters.http.ext_authz", filter)
}

// oneOf matches exactly the given header names, or nil for none.
func oneOf(headers []string) *typematcherv3.RegexMatcher {
	if len(headers) == 0 {
		return nil
	}
	return &typematcherv3.RegexMatcher{Regex: strings.Join(set(headers), "|")} // isHeader: nothing in them is an operator
}

func (b *builder) authorizer() *clusterv3.Cluster {
	c := staticCluster(AuthorizerCluster, targetAddress(b.c.Authorizer.Target))
	c.CircuitBreakers = breakers()
	c.TypedExtensionProtocolOptions = b.httpOptions(http2(nil))
	return c
}

func (v *validation) authorizer(a *Authorizer) {
	if a == nil {
		return
	}
	v.at = place{"the", "authorizer", ""}
	v.check(isTarget(a.Target), "target %q is neither a loopback address with a port nor unix:/path", a.Target)
	v.check(a.Timeout > 0 && a.Timeout <= 10*time.Second, "timeout %s is not in (0s, 10s]", a.Timeout)
	for _, h := range a.Headers {
		v.check(isHeader(h), "header %q is not a name in lower case", h)
		v.check(!slices.Contains(overrides(), h), "header %q speaks of another request", h)
	}
	v.at = place{}
}
