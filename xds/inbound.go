package xds

import (
	"strconv"
	"strings"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	healthcheckv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/health_check/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	typematcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// ReasonHeader tells a caller why it got a 403.
const ReasonHeader = "x-ztmesh-reason"

// inbound is the listener of one served port: mTLS, the gate, and then requests
// one by one or the connection as a whole.
func (b *builder) inbound(in *Inbound) *listenerv3.Listener {
	// The gate stands first: what it refuses reaches no parser of requests, not even
	// the health check, and what it closes is cut whatever it was doing.
	filters := []*listenerv3.Filter{b.networkSlot(GateName(b.c.Workload, in.Name), denyAllNetwork())}
	if in.Protocol.IsHTTP() {
		filters = append(filters, b.inboundHTTP(in))
	} else {
		filters = append(filters, b.networkSlot(TCPPolicyName(b.c.Workload, in.Name), denyAllTCP()), b.inboundTCP(in))
	}
	name := InboundListener(in.Name)
	l := listener(name)
	l.TrafficDirection = corev3.TrafficDirection_INBOUND
	l.AccessLog = []*accesslogv3.AccessLog{b.cutLog()}
	l.FilterChains = []*listenerv3.FilterChain{{
		Name:                          name,
		TransportSocket:               b.serverTLS(in),
		TransportSocketConnectTimeout: durationpb.New(handshakeTimeout),
		Filters:                       filters,
	}}
	if len(in.Plaintext) > 0 {
		b.inspect(l)
		l.FilterChains = append(l.FilterChains, b.plaintext(in))
	}
	return l
}

// listener is one that is not bound yet: Prepared.For does that. It will be bound
// without SO_REUSEPORT: two Envoys of one user that are given the same address must
// fail to start. With it, the kernel would hand calls of one workload to the proxy
// of the other.
func listener(name string) *listenerv3.Listener {
	return &listenerv3.Listener{
		Name:                          name,
		EnableReusePort:               wrapperspb.Bool(false),
		PerConnectionBufferLimitBytes: wrapperspb.UInt32(bufferLimit),
	}
}

// inboundHTTP judges requests. The order of its filters:
//
//  1. Blocks of callers: over everything, whatever else is wrong or missing;
//  2. health check: peers that the gate admits may ask for health, whatever
//     their rules; it answers by itself and never reaches the application;
//  3. tokens: who the user is;
//  4. Blocks of users;
//  5. shadow: what another policy would say; it passes everything on;
//  6. the policy;
//  7. the external authorizer, of what the policy allows;
//  8. the router.
//
// Nothing changes the path between what judges it and the application. 1 and 3 to
// 6 are resources of their own, which are always there, so that no edit of a
// policy changes the listener. Each but shadow denies while it is missing.
func (b *builder) inboundHTTP(in *Inbound) *listenerv3.Filter {
	w := b.c.Workload
	filters := []*hcmv3.HttpFilter{
		b.httpSlot(BlockName(w, in.Name), b.denyAllJudge()),
		b.healthFilter(in),
		b.httpSlot(TokensName(w, in.Name), b.denyAllJudge()),
		b.httpSlot(UserBlockName(w, in.Name), b.denyAllJudge()),
		b.httpSlot(ShadowName(w, in.Name), pass()),
		b.httpSlot(PolicyName(w, in.Name), b.denyAllJudge()),
	}
	return b.inboundManager(in, filters)
}

// inboundManager runs filters, the external authorizer and the router.
func (b *builder) inboundManager(in *Inbound, filters []*hcmv3.HttpFilter) *listenerv3.Filter {
	if b.c.Authorizer != nil {
		filters = append(filters, b.authorizerFilters()...)
	}
	hcm := b.connectionManager("in_"+in.Name, filters...)
	hcm.EarlyHeaderMutationExtensions = b.stripped()
	withUpgrades(hcm, in.Upgrades)
	age := durationpb.New(b.c.MaxConnectionAge)
	// A connection takes no new streams after its age, and a stream ends after
	// the same time: a client that only receives sends the gate nothing to judge.
	// The pings make it send, so that a closed gate cuts it within their interval.
	hcm.CommonHttpProtocolOptions.MaxConnectionDuration = age
	hcm.CommonHttpProtocolOptions.MaxStreamDuration = age
	hcm.Http2ProtocolOptions.ConnectionKeepalive = &corev3.KeepaliveSettings{
		Interval: durationpb.New(pingInterval),
		Timeout:  durationpb.New(pingTimeout),
	}
	if in.Protocol == GRPC {
		hcm.StreamIdleTimeout = durationpb.New(grpcStreamIdle)
	}
	hcm.LocalReplyConfig = explainDenial()
	hcm.RouteSpecifier = &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: b.inboundRoutes(in)}
	return b.networkFilter("envoy.filters.network.http_connection_manager", hcm)
}

// healthFilter answers peers that ask for health: 200, or 503 while the application
// says that it is not ready.
func (b *builder) healthFilter(in *Inbound) *hcmv3.HttpFilter {
	m := &healthcheckv3.HealthCheck{
		PassThroughMode: wrapperspb.Bool(false),
		Headers: []*routev3.HeaderMatcher{{
			Name: ":path",
			HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: &typematcherv3.StringMatcher{
				MatchPattern: &typematcherv3.StringMatcher_Exact{Exact: HealthPath},
			}},
		}},
	}
	if in.HealthPath != "" {
		m.ClusterMinHealthyPercentages = map[string]*typev3.Percent{AppCluster(in.Name): {Value: 100}}
	}
	return b.httpFilter("envoy.filters.http.health_check", m)
}

// explainDenial lets a 403 of the proxy carry its reason: a caller sees
// "rbac_access_denied_matched_policy[default-deny]" and knows that it reached
// the service and what it lacks. Callers are authenticated peers of the mesh.
func explainDenial() *hcmv3.LocalReplyConfig {
	return &hcmv3.LocalReplyConfig{Mappers: []*hcmv3.ResponseMapper{{
		Filter: &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_StatusCodeFilter{
			StatusCodeFilter: &accesslogv3.StatusCodeFilter{Comparison: &accesslogv3.ComparisonFilter{
				Op:    accesslogv3.ComparisonFilter_EQ,
				Value: &corev3.RuntimeUInt32{DefaultValue: 403, RuntimeKey: "zt.reason_status"},
			}},
		}},
		HeadersToAdd: []*corev3.HeaderValueOption{{
			Header:       &corev3.HeaderValue{Key: ReasonHeader, Value: "%RESPONSE_CODE_DETAILS%"},
			AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
		}},
	}}}
}

// inboundRoutes leads the port's own hosts to the application; any other host
// is not found. The reason is the proxy's to give, so the application's is
// removed; so are headers that speak of another request than the one judged.
func (b *builder) inboundRoutes(in *Inbound) *routev3.RouteConfiguration {
	return &routev3.RouteConfiguration{
		Name:                    InboundListener(in.Name),
		ResponseHeadersToRemove: []string{ReasonHeader},
		RequestHeadersToRemove:  overrides(),
		VirtualHosts: []*routev3.VirtualHost{{
			Name:    in.Name,
			Domains: in.Hosts,
			Routes: []*routev3.Route{{
				Match: everyPath(),
				Action: &routev3.Route_Route{Route: &routev3.RouteAction{
					ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: AppCluster(in.Name)},
					Timeout:          durationpb.New(0), // the caller's proxy bounds a request; streams have the connection manager's bound
				}},
			}},
		}},
	}
}

// overrides are headers by which a framework may take another path or method than
// those of the request, which are the ones that were judged.
func overrides() []string {
	return []string{
		"x-http-method", "x-http-method-override", "x-method-override",
		"x-original-url", "x-rewrite-url",
	}
}

func everyPath() *routev3.RouteMatch {
	return &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}}
}

// inboundTCP hands the connection to the application once the gate and the policy
// have let its first bytes pass: until then nothing is dialled. Where the server
// speaks first there are no such bytes, and the application is dialled once the
// handshake is done, which admits only those who may connect (Peers).
func (b *builder) inboundTCP(in *Inbound) *listenerv3.Filter {
	mode := tcpproxyv3.UpstreamConnectMode_ON_DOWNSTREAM_DATA
	if in.ServerFirst {
		mode = tcpproxyv3.UpstreamConnectMode_ON_DOWNSTREAM_TLS_HANDSHAKE
	}
	return b.networkFilter("envoy.filters.network.tcp_proxy", &tcpproxyv3.TcpProxy{
		StatPrefix:                      "in_" + in.Name,
		ClusterSpecifier:                &tcpproxyv3.TcpProxy_Cluster{Cluster: AppCluster(in.Name)},
		UpstreamConnectMode:             mode,
		MaxEarlyDataBytes:               wrapperspb.UInt32(bufferLimit),
		MaxDownstreamConnectionDuration: durationpb.New(b.c.MaxConnectionAge),
		AccessLog:                       append(b.accessLog("tcp"), b.connectionLog()...),
		AccessLogOptions:                b.connectionLogOptions(),
	})
}

func socketAddress(address string, port uint32) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address:       address,
		PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: port},
	}}}
}

// targetAddress is the address of an application: "127.0.0.1:8080" or
// "unix:/path". Validate has seen it.
func targetAddress(target string) *corev3.Address {
	if path, ok := strings.CutPrefix(target, "unix:"); ok {
		return &corev3.Address{Address: &corev3.Address_Pipe{Pipe: &corev3.Pipe{Path: path}}}
	}
	i := strings.LastIndexByte(target, ':')
	port, _ := strconv.ParseUint(target[i+1:], 10, 16) // Validate has parsed it
	return socketAddress(strings.Trim(target[:i], "[]"), uint32(port))
}
