package xds

import (
	"strconv"
	"time"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	grpclogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/grpc/v3"
	typematcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// Of the log that the control plane receives (ALS).
const (
	DecisionLog = "ztmesh.decisions" // its log_name

	decisionBuffer = 256 << 10 // what is not sent yet; beyond it entries are lost
	decisionFlush  = time.Second
	decisionShare  = 1                 // percent of the requests that nobody denied
	decisionKey    = "zt_log.decision" // runtime: another share
)

// rbacMetadata is where the filters of policies put their results.
const rbacMetadata = "envoy.filters.http.rbac"

// decisionLog tells the control plane of requests: those that the proxy denied,
// those that shadow rules would have denied, and a share of all others. What it
// cannot send it drops; no request waits for it.
func (b *builder) decisionLog() *accesslogv3.AccessLog {
	return &accesslogv3.AccessLog{
		Name: "envoy.access_loggers.http_grpc",
		Filter: allLogs(
			&accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_NotHealthCheckFilter{
				NotHealthCheckFilter: &accesslogv3.NotHealthCheckFilter{},
			}},
			anyLog(
				// Tokens: nothing but the details tells the proxy's 401 from the
				// application's, so both are told.
				status(401),
				allLogs(status(403), metadata(tokenMetadata, &typematcherv3.ValueMatcher{
					MatchPattern: &typematcherv3.ValueMatcher_PresentMatch{PresentMatch: true},
				}, failureKey, "message")),
				// The external authorizer.
				&accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_ResponseFlagFilter{
					ResponseFlagFilter: &accesslogv3.ResponseFlagFilter{Flags: []string{"UAEX"}},
				}},
				rbacResult(RBACStatPrefix+"enforced_engine_result", "denied"),
				rbacResult(blockStatPrefix+"enforced_engine_result", "denied"),
				rbacResult(userBlockStatPrefix+"enforced_engine_result", "denied"),
				rbacResult(RBACStatPrefix+"enforced_effective_policy_id", ReasonNoGrant),
				rbacResult(RBACStatPrefix+"shadow_engine_result", "denied"),
				&accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_RuntimeFilter{
					RuntimeFilter: &accesslogv3.RuntimeFilter{
						RuntimeKey:               decisionKey,
						PercentSampled:           &typev3.FractionalPercent{Numerator: decisionShare, Denominator: typev3.FractionalPercent_HUNDRED},
						UseIndependentRandomness: true,
					},
				}},
			),
		),
		ConfigType: &accesslogv3.AccessLog_TypedConfig{TypedConfig: b.any(&grpclogv3.HttpGrpcAccessLogConfig{
			CommonConfig: &grpclogv3.CommonGrpcAccessLogConfig{
				LogName:             DecisionLog,
				GrpcService:         grpcService(XDSCluster),
				TransportApiVersion: corev3.ApiVersion_V3,
				BufferFlushInterval: durationpb.New(decisionFlush),
				BufferSizeBytes:     wrapperspb.UInt32(decisionBuffer),
			},
		})},
	}
}

// rbacResult matches a request of which a policy filter has said value.
func rbacResult(key, value string) *accesslogv3.AccessLogFilter {
	return metadata(rbacMetadata, stringValue(value), key)
}

func metadata(filter string, value *typematcherv3.ValueMatcher, path ...string) *accesslogv3.AccessLogFilter {
	m := &typematcherv3.MetadataMatcher{Filter: filter, Value: value}
	for _, key := range path {
		m.Path = append(m.Path, &typematcherv3.MetadataMatcher_PathSegment{
			Segment: &typematcherv3.MetadataMatcher_PathSegment_Key{Key: key},
		})
	}
	return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_MetadataFilter{
		MetadataFilter: &accesslogv3.MetadataFilter{Matcher: m, MatchIfKeyNotFound: wrapperspb.Bool(false)},
	}}
}

func status(code uint32) *accesslogv3.AccessLogFilter {
	return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_StatusCodeFilter{
		StatusCodeFilter: &accesslogv3.StatusCodeFilter{Comparison: &accesslogv3.ComparisonFilter{
			Op:    accesslogv3.ComparisonFilter_EQ,
			Value: &corev3.RuntimeUInt32{DefaultValue: code, RuntimeKey: decisionKey + "." + strconv.Itoa(int(code))},
		}},
	}}
}

func allLogs(filters ...*accesslogv3.AccessLogFilter) *accesslogv3.AccessLogFilter {
	return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_AndFilter{
		AndFilter: &accesslogv3.AndFilter{Filters: filters},
	}}
}

func anyLog(filters ...*accesslogv3.AccessLogFilter) *accesslogv3.AccessLogFilter {
	return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_OrFilter{
		OrFilter: &accesslogv3.OrFilter{Filters: filters},
	}}
}
