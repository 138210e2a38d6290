package xds

import (
	"net/netip"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	upstreamhttpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	typematcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/durationpb"
)

// origin is a server outside the mesh.
type origin struct {
	host      string // in the SNI and, exactly, in its certificate
	ca        string // PEM; empty: public roots of the proxy's host
	plaintext bool
	protocol  Protocol
}

// external is the cluster of a server outside the mesh. Where it is, the control
// plane resolves: a proxy that resolved by itself could be led to an address that
// nobody may reach.
func (b *builder) external(name string, o origin) *clusterv3.Cluster {
	c := &clusterv3.Cluster{
		Name:                      name,
		ClusterDiscoveryType:      &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS},
		EdsClusterConfig:          &clusterv3.Cluster_EdsClusterConfig{EdsConfig: ads()},
		ConnectTimeout:            durationpb.New(connectTimeout),
		CircuitBreakers:           breakers(),
		UpstreamConnectionOptions: keepAlive(),
	}
	switch o.protocol {
	case HTTP:
		c.TypedExtensionProtocolOptions = b.httpOptions(http1())
	case HTTP2, GRPC:
		c.TypedExtensionProtocolOptions = b.httpOptions(http2(nil))
	case TCP:
	}
	if !o.plaintext {
		c.TransportSocket = b.originTLS(o)
	}
	return c
}

// originTLS accepts a server that the roots vouch for and whose certificate names
// exactly the host.
func (b *builder) originTLS(o origin) *corev3.TransportSocket {
	san := &tlsv3.SubjectAltNameMatcher{
		SanType: tlsv3.SubjectAltNameMatcher_DNS,
		Matcher: &typematcherv3.StringMatcher{MatchPattern: &typematcherv3.StringMatcher_Exact{Exact: o.host}},
	}
	sni := o.host
	if _, err := netip.ParseAddr(o.host); err == nil {
		san.SanType, sni = tlsv3.SubjectAltNameMatcher_IP_ADDRESS, "" // RFC 6066, section 3: no address in the SNI
	}
	validation := &tlsv3.CertificateValidationContext{MatchTypedSubjectAltNames: []*tlsv3.SubjectAltNameMatcher{san}}
	if o.ca == "" {
		validation.SystemRootCerts = &tlsv3.CertificateValidationContext_SystemRootCerts{}
	} else {
		validation.TrustedCa = inline([]byte(o.ca))
	}
	common := &tlsv3.CommonTlsContext{
		TlsParams: &tlsv3.TlsParameters{
			TlsMinimumProtocolVersion: tlsv3.TlsParameters_TLSv1_2,
			TlsMaximumProtocolVersion: tlsv3.TlsParameters_TLSv1_3,
		},
		ValidationContextType: &tlsv3.CommonTlsContext_ValidationContext{ValidationContext: validation},
	}
	switch o.protocol {
	case HTTP:
		common.AlpnProtocols = []string{"http/1.1"}
	case HTTP2, GRPC:
		common.AlpnProtocols = []string{"h2"}
	case TCP:
	}
	return b.tlsSocket(&tlsv3.UpstreamTlsContext{CommonTlsContext: common, Sni: sni})
}

func http1() *upstreamhttpv3.HttpProtocolOptions_ExplicitHttpConfig {
	return &upstreamhttpv3.HttpProtocolOptions_ExplicitHttpConfig{
		ProtocolConfig: &upstreamhttpv3.HttpProtocolOptions_ExplicitHttpConfig_HttpProtocolOptions{
			HttpProtocolOptions: &corev3.Http1ProtocolOptions{},
		},
	}
}
