package xds

import (
	"time"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	accesslogdatav3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	grpclogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/grpc/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	"google.golang.org/protobuf/types/known/durationpb"
)

// Of the log that an agent receives (ALS): the tcp connections that its Envoy has open.
const (
	ConnectionLog = "ztmesh.connections" // its log_name

	// ConnectionLogEvery is how often an open connection is told again: an agent that
	// was started again knows all of them after this, and forgets those of which it
	// hears nothing for three times as long.
	ConnectionLogEvery = 20 * time.Second

	connectionFlush = 100 * time.Millisecond
)

// connectionLog tells the agent of connections while they are open. The gate judges a
// connection when its client says something; one of which the client only listens is
// the agent's to cut, and so it must know whose each is.
func (b *builder) connectionLog() []*accesslogv3.AccessLog {
	if b.secrets != FromAgent {
		return nil
	}
	return []*accesslogv3.AccessLog{{
		Name: "envoy.access_loggers.tcp_grpc",
		ConfigType: &accesslogv3.AccessLog_TypedConfig{TypedConfig: b.any(&grpclogv3.TcpGrpcAccessLogConfig{
			CommonConfig: &grpclogv3.CommonGrpcAccessLogConfig{
				LogName:             ConnectionLog,
				GrpcService:         grpcService(AgentCluster),
				TransportApiVersion: corev3.ApiVersion_V3,
				BufferFlushInterval: durationpb.New(connectionFlush),
			},
		})},
	}}
}

func (b *builder) connectionLogOptions() *tcpproxyv3.TcpProxy_TcpAccessLogOptions {
	if b.secrets != FromAgent {
		return nil
	}
	return &tcpproxyv3.TcpProxy_TcpAccessLogOptions{
		FlushAccessLogOnConnected: true,
		AccessLogFlushInterval:    durationpb.New(ConnectionLogEvery),
	}
}

// atEnd matches what is logged of a connection that is over.
func atEnd() *accesslogv3.AccessLogFilter {
	return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_LogTypeFilter{
		LogTypeFilter: &accesslogv3.LogTypeFilter{Types: []accesslogdatav3.AccessLogType{accesslogdatav3.AccessLogType_TcpConnectionEnd}},
	}}
}
