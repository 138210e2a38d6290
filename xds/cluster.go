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
)

// Endpoints is where a cluster's instances listen. An empty list is a cluster
// without instances. Addresses are IP addresses; who registers them has checked
// that. The order of eps carries no meaning.
func Endpoints(cluster string, eps []Endpoint) *Resource {
	cla := &endpointv3.ClusterLoadAssignment{ClusterName: cluster}
	if len(eps) > 0 {
		group := &endpointv3.LocalityLbEndpoints{}
		for _, e := range sortedEndpoints(eps) {
			group.LbEndpoints = append(group.LbEndpoints, lbEndpoint(socketAddress(e.Address, e.Port)))
		}
		cla.Endpoints = []*endpointv3.LocalityLbEndpoints{group}
	}
	return mustResource(cluster, cla)
}

// app is the application behind a served port.
func (b *builder) app(in *Inbound) *clusterv3.Cluster {
	name := AppCluster(in.Name)
	c := staticCluster(name, targetAddress(in.Target))
	c.CircuitBreakers = breakers()
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
