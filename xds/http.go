package xds

import (
	"time"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	mutationv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	streamlogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/stream/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	earlymutationv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/http/early_header_mutation/header_mutation/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// Bounds of connections and streams.
const (
	headersTimeout   = 10 * time.Second // from the first byte of a request to the last of its headers
	handshakeTimeout = 10 * time.Second
	idleTimeout      = 5 * time.Minute // a connection without requests
	streamIdle       = 5 * time.Minute // a request on which neither side says anything
	grpcStreamIdle   = time.Hour       // the same for grpc, whose streams wait for events
	requestTimeout   = time.Minute     // a whole outbound request; grpc has none
	drainTime        = 5 * time.Second // from GOAWAY to the refusal of new streams

	maxStreams    = 256      // concurrent, on one HTTP/2 connection
	streamWindow  = 64 << 10 // HTTP/2 flow control
	connWindow    = 1 << 20  //
	bufferLimit   = 32 << 10 // per connection and direction
	maxHeaders    = 100      // in number
	maxHeadersKiB = 60       // in size
	pingInterval  = 2 * time.Second
	pingTimeout   = 5 * time.Second
)

// connectionManager is the hardened HTTP connection manager of both directions.
// Without each of the lines on paths, hosts and headers there is a known way
// around a rule that speaks of paths.
func (b *builder) connectionManager(statPrefix string, filters ...*hcmv3.HttpFilter) *hcmv3.HttpConnectionManager {
	return &hcmv3.HttpConnectionManager{
		CodecType:  hcmv3.HttpConnectionManager_AUTO,
		StatPrefix: statPrefix,
		// The router comes last; what it adds for itself stays inside.
		HttpFilters: append(filters, b.httpFilter("envoy.filters.http.router", &routerv3.Router{SuppressEnvoyHeaders: true})),

		// What is judged is what the application receives.
		NormalizePath:                wrapperspb.Bool(true),
		MergeSlashes:                 true,
		PathWithEscapedSlashesAction: hcmv3.HttpConnectionManager_REJECT_REQUEST,
		StripPortMode:                &hcmv3.HttpConnectionManager_StripAnyHostPort{StripAnyHostPort: true},
		StripTrailingHostDot:         true,

		// Nobody speaks in the proxy's name: x-envoy-* of clients is removed since
		// no address is internal, and the identity header is written anew.
		UseRemoteAddress:            wrapperspb.Bool(true),
		InternalAddressConfig:       nobodyInternal(),
		ForwardClientCertDetails:    hcmv3.HttpConnectionManager_SANITIZE_SET,
		SetCurrentClientCertDetails: &hcmv3.HttpConnectionManager_SetCurrentClientCertDetails{Uri: true},
		ServerName:                  "ztmesh",
		ServerHeaderTransformation:  hcmv3.HttpConnectionManager_OVERWRITE,
		// Both ends of a call log one id.
		PreserveExternalRequestId: true,

		MaxRequestHeadersKb:   wrapperspb.UInt32(maxHeadersKiB),
		RequestHeadersTimeout: durationpb.New(headersTimeout),
		StreamIdleTimeout:     durationpb.New(streamIdle),
		DrainTimeout:          durationpb.New(drainTime),
		CommonHttpProtocolOptions: &corev3.HttpProtocolOptions{
			IdleTimeout:                  durationpb.New(idleTimeout),
			MaxHeadersCount:              wrapperspb.UInt32(maxHeaders),
			HeadersWithUnderscoresAction: corev3.HttpProtocolOptions_REJECT_REQUEST,
		},
		// Envoy's limits on control frames, empty frames and resets stand beside
		// these; AllowConnect stays off, so no upgrade passes as a GET.
		Http2ProtocolOptions: &corev3.Http2ProtocolOptions{
			MaxConcurrentStreams:        wrapperspb.UInt32(maxStreams),
			InitialStreamWindowSize:     wrapperspb.UInt32(streamWindow),
			InitialConnectionWindowSize: wrapperspb.UInt32(connWindow),
		},
		AccessLog: append(b.accessLog("http"), b.decisionLog()),
	}
}

// nobodyInternal names an address that no connection can come from. An empty
// list would not do: Envoy then takes loopback and private addresses, which are
// those of most peers, for internal, and obeys their x-envoy-* headers (retries,
// timeouts) and passes them on to the application as its own.
func nobodyInternal() *hcmv3.HttpConnectionManager_InternalAddressConfig {
	return &hcmv3.HttpConnectionManager_InternalAddressConfig{CidrRanges: []*corev3.CidrRange{
		{AddressPrefix: "255.255.255.255", PrefixLen: wrapperspb.UInt32(32)},
	}}
}

func (b *builder) httpFilter(name string, m proto.Message) *hcmv3.HttpFilter {
	return &hcmv3.HttpFilter{Name: name, ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: b.any(m)}}
}

func (b *builder) networkFilter(name string, m proto.Message) *listenerv3.Filter {
	return &listenerv3.Filter{Name: name, ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: b.any(m)}}
}

// withUpgrades lets the upgrades that a port lists through to the policy, also as
// HTTP/2 extended CONNECT (RFC 8441). Without it every upgrade is refused.
func withUpgrades(hcm *hcmv3.HttpConnectionManager, upgrades []string) {
	for _, u := range upgrades {
		hcm.UpgradeConfigs = append(hcm.UpgradeConfigs, &hcmv3.HttpConnectionManager_UpgradeConfig{UpgradeType: u})
	}
	hcm.Http2ProtocolOptions.AllowConnect = len(upgrades) > 0
}

// stripped takes the headers that carry verified claims from every request, before
// anything reads it: only the proxy sets them.
func (b *builder) stripped() []*corev3.TypedExtensionConfig {
	if len(b.c.Strip) == 0 {
		return nil
	}
	m := &earlymutationv3.HeaderMutation{}
	for _, h := range b.c.Strip {
		m.Mutations = append(m.Mutations, &mutationv3.HeaderMutation{Action: &mutationv3.HeaderMutation_Remove{Remove: h}})
	}
	return []*corev3.TypedExtensionConfig{{
		Name:        "envoy.http.early_header_mutation.header_mutation",
		TypedConfig: b.any(m),
	}}
}

// accessLog writes one line of JSON per request or connection. The query is
// left out: it may carry what must not be logged. Health checks of peers, every
// few seconds each, are not logged.
func (b *builder) accessLog(kind string) []*accesslogv3.AccessLog {
	fields := map[string]*structpb.Value{
		"log":      structpb.NewStringValue("ztmesh.access." + kind),
		"time":     structpb.NewStringValue("%START_TIME%"),
		"listener": structpb.NewStringValue("%FILTER_CHAIN_NAME%"),
		"caller":   structpb.NewStringValue("%DOWNSTREAM_PEER_URI_SAN%"),
		"peer":     structpb.NewStringValue("%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%"),
		"upstream": structpb.NewStringValue("%UPSTREAM_CLUSTER%"),
		"flags":    structpb.NewStringValue("%RESPONSE_FLAGS%"),
		"duration": structpb.NewStringValue("%DURATION%"),
		"received": structpb.NewStringValue("%BYTES_RECEIVED%"),
		"sent":     structpb.NewStringValue("%BYTES_SENT%"),
		"ended":    structpb.NewStringValue("%CONNECTION_TERMINATION_DETAILS%"),
	}
	if kind == "http" {
		fields["method"] = structpb.NewStringValue("%REQ(:METHOD)%")
		fields["path"] = structpb.NewStringValue("%PATH(NQ:PATH)%")
		fields["authority"] = structpb.NewStringValue("%REQ(:AUTHORITY)%")
		fields["status"] = structpb.NewStringValue("%RESPONSE_CODE%")
		fields["details"] = structpb.NewStringValue("%RESPONSE_CODE_DETAILS%")
		fields["matched"] = structpb.NewStringValue("%DYNAMIC_METADATA(envoy.filters.http.rbac:" + RBACStatPrefix + "enforced_effective_policy_id)%")
		fields["requestId"] = structpb.NewStringValue("%REQ(X-REQUEST-ID)%")
	}
	filter := &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_NotHealthCheckFilter{
		NotHealthCheckFilter: &accesslogv3.NotHealthCheckFilter{},
	}}
	if kind == "tcp" {
		filter = atEnd()
	}
	return []*accesslogv3.AccessLog{{
		Name:   "envoy.access_loggers.stdout",
		Filter: filter,
		ConfigType: &accesslogv3.AccessLog_TypedConfig{TypedConfig: b.any(&streamlogv3.StdoutAccessLog{
			AccessLogFormat: &streamlogv3.StdoutAccessLog_LogFormat{LogFormat: &corev3.SubstitutionFormatString{
				Format: &corev3.SubstitutionFormatString_JsonFormat{JsonFormat: &structpb.Struct{Fields: fields}},
			}},
		})},
	}}
}
