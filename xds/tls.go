package xds

import (
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	typematcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// ads is the ADS stream as a source. Envoy waits for the first answer without
// limit: nothing ever starts half configured.
func ads() *corev3.ConfigSource {
	return &corev3.ConfigSource{
		ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
		InitialFetchTimeout:   durationpb.New(0),
		ResourceApiVersion:    corev3.ApiVersion_V3,
	}
}

// agent is the agent's socket as a source of secrets. It speaks delta SDS, as
// the control plane does.
func agent() *corev3.ConfigSource {
	return &corev3.ConfigSource{
		ConfigSourceSpecifier: &corev3.ConfigSource_ApiConfigSource{ApiConfigSource: &corev3.ApiConfigSource{
			ApiType:                   corev3.ApiConfigSource_DELTA_GRPC,
			TransportApiVersion:       corev3.ApiVersion_V3,
			GrpcServices:              []*corev3.GrpcService{grpcService(AgentCluster)},
			SetNodeOnFirstMessageOnly: true,
		}},
		InitialFetchTimeout: durationpb.New(0),
		ResourceApiVersion:  corev3.ApiVersion_V3,
	}
}

func (s SecretSource) source() *corev3.ConfigSource {
	if s == FromAgent {
		return agent()
	}
	return ads()
}

func secret(name string, from *corev3.ConfigSource) *tlsv3.SdsSecretConfig {
	return &tlsv3.SdsSecretConfig{Name: name, SdsConfig: from}
}

// tls13 fixes the version at both ends: the client side would stop at 1.2 by
// default.
func tls13() *tlsv3.TlsParameters {
	return &tlsv3.TlsParameters{
		TlsMinimumProtocolVersion: tlsv3.TlsParameters_TLSv1_3,
		TlsMaximumProtocolVersion: tlsv3.TlsParameters_TLSv1_3,
	}
}

// serverTLS is the inbound end: a client certificate of the mesh or nothing. On a
// server-first port it is one of those that may connect, or nothing.
// Both kinds of session resumption are off, since a resumed session outlives
// the certificate that it was opened with.
func (b *builder) serverTLS(in *Inbound) *corev3.TransportSocket {
	peers := BundleSecret
	if in.ServerFirst {
		peers = PeersSecret(in.Name)
	}
	common := &tlsv3.CommonTlsContext{
		TlsParams:                      tls13(),
		TlsCertificateSdsSecretConfigs: []*tlsv3.SdsSecretConfig{secret(SVIDSecret, b.secrets.source())},
		ValidationContextType: &tlsv3.CommonTlsContext_ValidationContextSdsSecretConfig{
			ValidationContextSdsSecretConfig: secret(peers, ads()),
		},
	}
	if in.Protocol.IsHTTP() {
		common.AlpnProtocols = []string{"h2", "http/1.1"}
	}
	return b.tlsSocket(&tlsv3.DownstreamTlsContext{
		CommonTlsContext:                 common,
		RequireClientCertificate:         wrapperspb.Bool(true),
		SessionTicketKeysType:            &tlsv3.DownstreamTlsContext_DisableStatelessSessionResumption{DisableStatelessSessionResumption: true},
		DisableStatefulSessionResumption: true,
	})
}

// clientTLS is the outbound end. A bundle alone would accept any workload of
// the mesh as the server, so the callee's identity is asked for beside it; of a
// Service of several workloads, one of theirs.
func (b *builder) clientTLS(d *Destination) *corev3.TransportSocket {
	u := upstreamTLS(
		secret(SVIDSecret, b.secrets.source()),
		secret(BundleSecret, ads()),
		exactly(d.identities()...)...,
	)
	u.Sni = d.Host
	if d.Protocol.IsHTTP() {
		u.CommonTlsContext.AlpnProtocols = []string{"h2"}
	}
	return b.tlsSocket(u)
}

// identities are those that the callee may show.
func (d *Destination) identities() []string {
	if d.ID != "" {
		return []string{d.ID}
	}
	return d.IDs
}

func exactly(ids ...string) []*typematcherv3.StringMatcher {
	var out []*typematcherv3.StringMatcher
	for _, id := range ids {
		out = append(out, &typematcherv3.StringMatcher{MatchPattern: &typematcherv3.StringMatcher_Exact{Exact: id}})
	}
	return out
}

// upstreamTLS presents cert, and accepts a server whose only URI SAN is as one of
// servers says, of which there is at least one, and whose chain the bundle
// verifies.
func upstreamTLS(cert, bundle *tlsv3.SdsSecretConfig, servers ...*typematcherv3.StringMatcher) *tlsv3.UpstreamTlsContext {
	var sans []*tlsv3.SubjectAltNameMatcher
	for _, s := range servers {
		sans = append(sans, &tlsv3.SubjectAltNameMatcher{SanType: tlsv3.SubjectAltNameMatcher_URI, Matcher: s})
	}
	return &tlsv3.UpstreamTlsContext{
		CommonTlsContext: &tlsv3.CommonTlsContext{
			TlsParams:                      tls13(),
			TlsCertificateSdsSecretConfigs: []*tlsv3.SdsSecretConfig{cert},
			ValidationContextType: &tlsv3.CommonTlsContext_CombinedValidationContext{
				CombinedValidationContext: &tlsv3.CommonTlsContext_CombinedCertificateValidationContext{
					DefaultValidationContext:         &tlsv3.CertificateValidationContext{MatchTypedSubjectAltNames: sans},
					ValidationContextSdsSecretConfig: bundle,
				},
			},
		},
		MaxSessionKeys: wrapperspb.UInt32(0), // no resumption on this side either
	}
}

func (b *builder) tlsSocket(ctx proto.Message) *corev3.TransportSocket {
	return &corev3.TransportSocket{
		Name:       "envoy.transport_sockets.tls",
		ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: b.any(ctx)},
	}
}
