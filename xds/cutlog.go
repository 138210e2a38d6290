package xds

import (
	"time"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	celv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/filters/cel/v3"
	grpclogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/grpc/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// Of the log of connections that a gate has ended.
const (
	CutLog = "ztmesh.cuts" // its log_name

	// CutDetails begins what Envoy says of why such a connection has ended.
	CutDetails = "rbac_access_denied_matched_policy["

	// CutByAgent is what an agent says of a connection that was open when its caller was
	// no longer admitted, and that did not end by the gate: the agent had the kernel end
	// it, or its age did, or its peer.
	CutByAgent = "ztmesh_caller_not_admitted"

	cutBuffer = 16 << 10 // what is not sent yet; beyond it entries are lost
	cutFlush  = 100 * time.Millisecond
)

// cutLog tells the control plane of connections that the gate, or the policy of a tcp
// port, has ended: one entry each, when it is over. All others end without one.
func (b *builder) cutLog() *accesslogv3.AccessLog {
	return &accesslogv3.AccessLog{
		Name: "envoy.access_loggers.tcp_grpc",
		Filter: &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_ExtensionFilter{
			ExtensionFilter: &accesslogv3.ExtensionFilter{
				Name: "envoy.access_loggers.extension_filters.cel",
				ConfigType: &accesslogv3.ExtensionFilter_TypedConfig{TypedConfig: b.any(&celv3.ExpressionFilter{
					Expression: `connection.termination_details.startsWith("` + CutDetails + `")`,
				})},
			},
		}},
		ConfigType: &accesslogv3.AccessLog_TypedConfig{TypedConfig: b.any(&grpclogv3.TcpGrpcAccessLogConfig{
			CommonConfig: &grpclogv3.CommonGrpcAccessLogConfig{
				LogName:             CutLog,
				GrpcService:         grpcService(XDSCluster),
				TransportApiVersion: corev3.ApiVersion_V3,
				BufferFlushInterval: durationpb.New(cutFlush),
				BufferSizeBytes:     wrapperspb.UInt32(cutBuffer),
			},
		})},
	}
}
