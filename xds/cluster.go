package xds

import (
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	upstreamhttpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// Bounds of clusters.
const (
	connectTimeout = 2 * time.Second
	maxConnections = 1024
	maxPending     = 1024
	maxRequests    = 8192
	maxRetries     = 3

	healthInterval  = 5 * time.Second // of an endpoint that is well
	recoverInterval = time.Second     // of one that is not, so that a new grant is usable soon
	healthTimeout   = 2 * time.Second
	appInterval     = 2 * time.Second // of the application, by its own proxy

	outlierInterval = time.Second
	outlierTime     = 10 * time.Second // times how often it was left out
	outlierFailures = 5                // in a row
)

// app is the application behind a served port.
func (b *builder) app(in *Inbound) *clusterv3.Cluster {
	name := AppCluster(in.Name)
	c := staticCluster(name, targetAddress(in.Target))
	c.CircuitBreakers = breakers()
	if in.HealthPath != "" {
		c.HealthChecks = []*corev3.HealthCheck{appCheck(in)}
	}
	switch in.Protocol {
	case HTTP:
		c.TypedExtensionProtocolOptions = b.httpOptions(http1())
	case HTTP2, GRPC:
		c.TypedExtensionProtocolOptions = b.httpOptions(http2(nil))
	case TCP:
	}
	return c
}

// service is the cluster of one destination: its instances by EDS, checked from
// here, and nobody else than the callee at the other end.
func (b *builder) service(d *Destination) *clusterv3.Cluster {
	c := &clusterv3.Cluster{
		Name:                 d.Cluster(),
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS},
		EdsClusterConfig:     &clusterv3.Cluster_EdsClusterConfig{EdsConfig: ads()},
		ConnectTimeout:       durationpb.New(connectTimeout),
		CircuitBreakers:      breakers(),
		// As long as one instance is well, no other is called. When none is, all are
		// tried: a check may have come before the callee's gate was opened for a new
		// caller, who would get 503 until the next. This opens nothing: the callee
		// judges every request.
		CommonLbConfig: &clusterv3.Cluster_CommonLbConfig{HealthyPanicThreshold: &typev3.Percent{Value: 1}},
		// An endpoint that is withdrawn is gone, even if it still answers.
		IgnoreHealthOnHostRemoval: true,
		HealthChecks:              []*corev3.HealthCheck{healthCheck(d)},
		OutlierDetection:          outliers(),
		TransportSocket:           b.clientTLS(d),
		UpstreamConnectionOptions: keepAlive(),
	}
	if d.Protocol.IsHTTP() {
		options := http2(nil)
		options.GetHttp2ProtocolOptions().AllowConnect = len(d.Upgrades) > 0
		c.TypedExtensionProtocolOptions = b.httpOptions(options)
	}
	return c
}

// healthCheck asks the peer's proxy, on the reserved path, over HTTP/2 as every
// call between proxies; for tcp a handshake is enough. It answers for the proxy:
// what the application returns is a matter of requests.
func healthCheck(d *Destination) *corev3.HealthCheck {
	hc := &corev3.HealthCheck{
		Timeout:               durationpb.New(healthTimeout),
		Interval:              durationpb.New(healthInterval),
		IntervalJitterPercent: 20,
		UnhealthyThreshold:    wrapperspb.UInt32(2),
		HealthyThreshold:      wrapperspb.UInt32(1),
		UnhealthyInterval:     durationpb.New(recoverInterval),
		// Clusters that were never called: the default of a minute would leave a
		// callee that came late unusable for as long.
		NoTrafficInterval:        durationpb.New(recoverInterval),
		NoTrafficHealthyInterval: durationpb.New(2 * healthInterval),
	}
	if !d.Protocol.IsHTTP() {
		hc.HealthChecker = &corev3.HealthCheck_TcpHealthCheck_{TcpHealthCheck: &corev3.HealthCheck_TcpHealthCheck{}}
		return hc
	}
	hc.HealthChecker = &corev3.HealthCheck_HttpHealthCheck_{HttpHealthCheck: &corev3.HealthCheck_HttpHealthCheck{
		Host:            d.Host,
		Path:            HealthPath,
		CodecClientType: typev3.CodecClientType_HTTP2,
	}}
	return hc
}

// appCheck asks the application itself, as often as peers ask the proxy: what it says
// is what they are told (healthFilter).
func appCheck(in *Inbound) *corev3.HealthCheck {
	codec := typev3.CodecClientType_HTTP1
	if in.Protocol == HTTP2 {
		codec = typev3.CodecClientType_HTTP2
	}
	hc := &corev3.HealthCheck{
		Timeout:               durationpb.New(healthTimeout),
		Interval:              durationpb.New(appInterval),
		UnhealthyThreshold:    wrapperspb.UInt32(2), // of timeouts; an answer other than 200 counts at once
		HealthyThreshold:      wrapperspb.UInt32(1),
		NoTrafficInterval:     durationpb.New(appInterval),
		IntervalJitterPercent: 20,
		HealthChecker: &corev3.HealthCheck_HttpHealthCheck_{HttpHealthCheck: &corev3.HealthCheck_HttpHealthCheck{
			Path: in.HealthPath, CodecClientType: codec,
		}},
	}
	if len(in.Hosts) > 0 {
		hc.GetHttpHealthCheck().Host = in.Hosts[0]
	}
	return hc
}

// outliers leaves out, for a while, an instance that peers cannot reach or whose
// proxy answers for an application that does not. What the application answers
// otherwise is its own matter: a service that answers 500 to one caller's requests
// is not taken from all others. At most half of the instances are left out so.
func outliers() *clusterv3.OutlierDetection {
	return &clusterv3.OutlierDetection{
		Interval:                           durationpb.New(outlierInterval),
		BaseEjectionTime:                   durationpb.New(outlierTime),
		MaxEjectionTime:                    durationpb.New(10 * outlierTime),
		MaxEjectionPercent:                 wrapperspb.UInt32(50),
		SplitExternalLocalOriginErrors:     true,
		ConsecutiveLocalOriginFailure:      wrapperspb.UInt32(outlierFailures), // no connection, no answer
		ConsecutiveGatewayFailure:          wrapperspb.UInt32(outlierFailures), // 502, 503, 504
		EnforcingConsecutiveGatewayFailure: wrapperspb.UInt32(100),
		EnforcingConsecutive_5Xx:           wrapperspb.UInt32(0),
		EnforcingSuccessRate:               wrapperspb.UInt32(0),
		EnforcingLocalOriginSuccessRate:    wrapperspb.UInt32(0),
		// The proxy that answers health checks is not the application that fails.
		SuccessfulActiveHealthCheckUnejectHost: wrapperspb.Bool(false),
	}
}

func keepAlive() *clusterv3.UpstreamConnectionOptions {
	return &clusterv3.UpstreamConnectionOptions{TcpKeepalive: &corev3.TcpKeepalive{
		KeepaliveTime: wrapperspb.UInt32(30), KeepaliveInterval: wrapperspb.UInt32(10), KeepaliveProbes: wrapperspb.UInt32(3),
	}}
}

func breakers() *clusterv3.CircuitBreakers {
	return &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{{
		MaxConnections:     wrapperspb.UInt32(maxConnections),
		MaxPendingRequests: wrapperspb.UInt32(maxPending),
		MaxRequests:        wrapperspb.UInt32(maxRequests),
		MaxRetries:         wrapperspb.UInt32(maxRetries),
	}}}
}

func staticCluster(name string, addresses ...*corev3.Address) *clusterv3.Cluster {
	group := &endpointv3.LocalityLbEndpoints{}
	for _, a := range addresses {
		group.LbEndpoints = append(group.LbEndpoints, lbEndpoint(a))
	}
	return &clusterv3.Cluster{
		Name:                 name,
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
		ConnectTimeout:       durationpb.New(connectTimeout),
		LoadAssignment: &endpointv3.ClusterLoadAssignment{
			ClusterName: name,
			Endpoints:   []*endpointv3.LocalityLbEndpoints{group},
		},
	}
}

func lbEndpoint(a *corev3.Address) *endpointv3.LbEndpoint {
	return &endpointv3.LbEndpoint{HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: a}}}
}

func http2(keepalive *corev3.KeepaliveSettings) *upstreamhttpv3.HttpProtocolOptions_ExplicitHttpConfig {
	return &upstreamhttpv3.HttpProtocolOptions_ExplicitHttpConfig{
		ProtocolConfig: &upstreamhttpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{
			Http2ProtocolOptions: &corev3.Http2ProtocolOptions{
				InitialStreamWindowSize:     wrapperspb.UInt32(streamWindow),
				InitialConnectionWindowSize: wrapperspb.UInt32(connWindow),
				ConnectionKeepalive:         keepalive,
			},
		},
	}
}

func (b *builder) httpOptions(explicit *upstreamhttpv3.HttpProtocolOptions_ExplicitHttpConfig) map[string]*anypb.Any {
	var m proto.Message = &upstreamhttpv3.HttpProtocolOptions{
		UpstreamProtocolOptions: &upstreamhttpv3.HttpProtocolOptions_ExplicitHttpConfig_{ExplicitHttpConfig: explicit},
	}
	return map[string]*anypb.Any{"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": b.any(m)}
}
