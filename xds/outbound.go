package xds

import (
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	"google.golang.org/protobuf/types/known/durationpb"
)

// ReasonNoGrant is the reason that the caller's own proxy gives.
const ReasonNoGrant = "no-grant"

// outboundHTTP takes the workload's calls and routes them by host. It says
// nothing of the workload, so callers with one egress address share its bytes.
// It is always there: a workload without grants gets an answer that says so.
func (b *builder) outboundHTTP() *listenerv3.Listener {
	hcm := b.connectionManager("out_http", b.egressFilters()...)
	// Which calls may be upgraded, their routes say.
	hcm.Http2ProtocolOptions.AllowConnect = true
	hcm.LocalReplyConfig = explainDenial()
	// That there is no grant, its route says better.
	hcm.LocalReplyConfig.Mappers[0].HeadersToAdd[0].AppendAction = corev3.HeaderValueOption_ADD_IF_ABSENT
	hcm.RouteSpecifier = &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{
		ConfigSource:    ads(),
		RouteConfigName: OutboundHTTP,
	}}
	l := listener(OutboundHTTP)
	l.TrafficDirection = corev3.TrafficDirection_OUTBOUND
	l.FilterChains = []*listenerv3.FilterChain{{
		Name:    OutboundHTTP,
		Filters: []*listenerv3.Filter{b.networkFilter("envoy.filters.network.http_connection_manager", hcm)},
	}}
	return l
}

// outboundRoutes has one virtual host per destination, by exact name, and a
// last one for every other host. That "*" is the one exception to exact virtual
// hosts: it never routes, it only answers 403, so that no form of a host name
// can lead anywhere through it. Without it the answer would be a bare 404, which
// tells nobody that a grant is missing.
func (b *builder) outboundRoutes() *routev3.RouteConfiguration {
	rc := &routev3.RouteConfiguration{Name: OutboundHTTP}
	for i := range b.c.Destinations {
		d := &b.c.Destinations[i]
		if !d.Protocol.IsHTTP() {
			continue
		}
		action := &routev3.RouteAction{ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: d.Cluster()}}
		bound(action, d.Protocol)
		for _, u := range d.Upgrades {
			action.UpgradeConfigs = append(action.UpgradeConfigs, &routev3.RouteAction_UpgradeConfig{UpgradeType: u})
		}
		rc.VirtualHosts = append(rc.VirtualHosts, &routev3.VirtualHost{
			Name:    d.Cluster(),
			Domains: append([]string{d.Host}, d.Aliases...),
			Routes: []*routev3.Route{{
				Name: d.Cluster(), Match: everyPath(), Action: &routev3.Route_Route{Route: action},
				TypedPerFilterConfig: b.calleeJudges(),
			}},
		})
	}
	for i := range b.c.Egress {
		if e := &b.c.Egress[i]; e.Protocol.IsHTTP() {
			rc.VirtualHosts = append(rc.VirtualHosts, e.externalHosts()...)
		}
	}
	rc.VirtualHosts = append(rc.VirtualHosts, &routev3.VirtualHost{
		Name:    ReasonNoGrant,
		Domains: []string{"*"},
		Routes: []*routev3.Route{{
			Name:  ReasonNoGrant,
			Match: everyPath(),
			Action: &routev3.Route_DirectResponse{DirectResponse: &routev3.DirectResponseAction{
				Status: 403,
				Body: &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{
					InlineString: "no grant lets " + b.c.Workload + " call this\n",
				}},
			}},
			ResponseHeadersToAdd: []*corev3.HeaderValueOption{{
				Header:       &corev3.HeaderValue{Key: ReasonHeader, Value: ReasonNoGrant},
				AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
			}},
		}},
	})
	return rc
}

// bound limits how long a call takes. An upgraded one is bounded by the callee.
func bound(action *routev3.RouteAction, p Protocol) {
	action.Timeout = durationpb.New(requestTimeout)
	if p == GRPC {
		action.Timeout = durationpb.New(0)
		action.IdleTimeout = durationpb.New(grpcStreamIdle)
	}
}

// outboundTCP leads a local port to one destination.
func (b *builder) outboundTCP(t TCPCall, cluster string) *listenerv3.Listener {
	name := TCPListener(t.LocalPort)
	l := listener(name)
	l.TrafficDirection = corev3.TrafficDirection_OUTBOUND
	l.FilterChains = []*listenerv3.FilterChain{{
		Name: name,
		Filters: []*listenerv3.Filter{b.networkFilter("envoy.filters.network.tcp_proxy", &tcpproxyv3.TcpProxy{
			StatPrefix:       "out_tcp",
			ClusterSpecifier: &tcpproxyv3.TcpProxy_Cluster{Cluster: cluster},
			AccessLog:        b.accessLog("tcp"),
		})},
	}}
	return l
}
