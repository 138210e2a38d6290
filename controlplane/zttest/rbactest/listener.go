package rbactest

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	networkrbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	netsetstatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/set_filter_state/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/proto"
)

// Inbound is what the proxy makes of a request, or a connection, to a port that
// its workload serves.
func (p *Proxy) Inbound(port uint32, r Request) (Verdict, error) {
	return p.ask(corev3.TrafficDirection_INBOUND, port, r)
}

// Outbound is what it makes of a call of its own workload, in plaintext.
func (p *Proxy) Outbound(port uint32, r Request) (Verdict, error) {
	return p.ask(corev3.TrafficDirection_OUTBOUND, port, r)
}

func (p *Proxy) ask(direction corev3.TrafficDirection, port uint32, r Request) (Verdict, error) {
	for _, l := range p.listeners {
		if l.GetTrafficDirection() != direction || l.GetAddress().GetSocketAddress().GetPortValue() != port {
			continue
		}
		if !r.Source.IsValid() {
			r.Source = netip.AddrFrom4([4]byte{127, 0, 0, 1})
		}
		v, err := p.connect(l, &stream{proxy: p, req: r, port: port, state: map[string]string{}, metadata: map[string]map[string]any{}})
		if err != nil {
			return v, fmt.Errorf("%s: %w", l.GetName(), err)
		}
		return v, nil
	}
	return Verdict{}, fmt.Errorf("nothing listens %s on %d", direction, port)
}

// connect finds the filter chain of a connection and runs its filters.
func (p *Proxy) connect(l *listenerv3.Listener, s *stream) (Verdict, error) {
	chain, err := p.chain(l, s)
	if err != nil || chain == nil {
		return Verdict{Filter: StageTLS}, err
	}
	if ok, err := p.handshake(chain, s); !ok || err != nil {
		return Verdict{Filter: StageTLS}, err
	}
	for _, f := range chain.GetFilters() {
		var m proto.Message
		if d := f.GetConfigDiscovery(); d != nil {
			m, err = p.discovered(f.GetName(), d)
		} else {
			m, err = p.decode(f.GetTypedConfig())
		}
		if err != nil {
			return Verdict{}, fmt.Errorf("filter %s: %w", f.GetName(), err)
		}
		switch m := m.(type) {
		case *networkrbacv3.RBAC:
			ok, policy, err := s.networkRBAC(m)
			if err != nil {
				return Verdict{}, fmt.Errorf("filter %s: %w", f.GetName(), err)
			}
			if !ok {
				return Verdict{Filter: f.GetName(), Policy: policy, Shadow: s.shadow}, nil
			}
			s.allowed = policy
		case *netsetstatev3.Config:
			if err := s.setState(m.GetOnNewConnection()); err != nil {
				return Verdict{}, err
			}
		case *tcpproxyv3.TcpProxy:
			if p.clusters[m.GetCluster()] == nil {
				return Verdict{}, fmt.Errorf("the cluster %s is missing", m.GetCluster())
			}
			return Verdict{Allowed: true, Filter: f.GetName(), Policy: s.allowed, Shadow: s.shadow, Cluster: m.GetCluster()}, nil
		case *hcmv3.HttpConnectionManager:
			s.http, s.allowed = true, ""
			return s.serve(m)
		default:
			return Verdict{}, fmt.Errorf("filter %s is a %T", f.GetName(), m)
		}
	}
	return Verdict{}, errors.New("a filter chain ends in nothing")
}

func (s *stream) networkRBAC(m *networkrbacv3.RBAC) (bool, string, error) {
	shadow := engine{m.GetShadowRules(), m.GetShadowMatcher()}
	if shadow != (engine{}) {
		_, policy, err := s.judge(shadow)
		if err != nil {
			return false, "", fmt.Errorf("shadow: %w", err)
		}
		s.shadow = policy
	}
	return s.judge(engine{m.GetRules(), m.GetMatcher()})
}

// chain is the one whose match is the most specific; of what a match can say only
// the transport protocol and the address of the TCP peer are known here.
func (p *Proxy) chain(l *listenerv3.Listener, s *stream) (*listenerv3.FilterChain, error) {
	sniffs := false
	for _, f := range l.GetListenerFilters() {
		sniffs = sniffs || strings.HasSuffix(f.GetTypedConfig().GetTypeUrl(), ".tls_inspector.v3.TlsInspector")
	}
	transport := "raw_buffer" // what Envoy takes every connection for that nobody looked into
	if s.req.TLS && sniffs {
		transport = "tls"
	}
	var best *listenerv3.FilterChain
	bits := -1
	for _, c := range l.GetFilterChains() {
		m := c.GetFilterChainMatch()
		if t := m.GetTransportProtocol(); t != "" && t != transport {
			continue
		}
		ranges := append(m.GetDirectSourcePrefixRanges(), m.GetSourcePrefixRanges()...)
		longest := -1
		for _, r := range ranges {
			if containsIP([]*corev3.CidrRange{r}, s.req.Source.String()) {
				longest = max(longest, int(r.GetPrefixLen().GetValue()))
			}
		}
		if len(ranges) > 0 && longest < 0 {
			continue
		}
		// Transport protocol comes before source ranges.
		rank := longest + 1
		if m.GetTransportProtocol() != "" {
			rank += 1000
		}
		if rank == bits {
			return nil, fmt.Errorf("two filter chains match alike: %s, %s", best.GetName(), c.GetName())
		}
		if rank > bits {
			best, bits = c, rank
		}
	}
	return best, nil
}

// handshake says whether the chain's transport lets the client in.
func (p *Proxy) handshake(c *listenerv3.FilterChain, s *stream) (bool, error) {
	if c.GetTransportSocket() == nil {
		if s.req.TLS {
			return false, nil // bytes of a handshake are no request
		}
		return true, nil
	}
	if !s.req.TLS {
		return false, nil
	}
	m, err := p.decode(c.GetTransportSocket().GetTypedConfig())
	if err != nil {
		return false, err
	}
	tls, ok := m.(*tlsv3.DownstreamTlsContext)
	if !ok {
		return false, fmt.Errorf("a transport socket is a %T", m)
	}
	if !tls.GetRequireClientCertificate().GetValue() {
		return false, errors.New("a client certificate is not required")
	}
	if s.req.Peer == "" {
		return false, nil
	}
	common := tls.GetCommonTlsContext()
	var contexts []*tlsv3.CertificateValidationContext
	var sds []*tlsv3.SdsSecretConfig
	if v := common.GetValidationContextSdsSecretConfig(); v != nil {
		sds = append(sds, v)
	}
	if v := common.GetCombinedValidationContext(); v != nil {
		contexts = append(contexts, v.GetDefaultValidationContext())
		sds = append(sds, v.GetValidationContextSdsSecretConfig())
	}
	for _, name := range sds {
		secret := p.secrets[name.GetName()]
		if secret == nil {
			return false, nil // a secret that never comes: closed
		}
		contexts = append(contexts, secret.GetValidationContext())
	}
	return p.verified(contexts, s.req.Peer)
}

// verified: some validator must know the trust domain, and every list of names
// must hold the peer.
func (p *Proxy) verified(contexts []*tlsv3.CertificateValidationContext, peer string) (bool, error) {
	validated := false
	for _, c := range contexts {
		if sans := c.GetMatchTypedSubjectAltNames(); len(sans) > 0 {
			ok, err := anyOf(sans, func(m *tlsv3.SubjectAltNameMatcher) (bool, error) {
				if m.GetSanType() != tlsv3.SubjectAltNameMatcher_URI {
					return false, fmt.Errorf("a name of type %s", m.GetSanType())
				}
				return p.matchEnvoyString(m.GetMatcher(), peer)
			})
			if !ok || err != nil {
				return false, err
			}
		}
		custom := c.GetCustomValidatorConfig()
		if custom == nil {
			continue
		}
		m, err := p.decode(custom.GetTypedConfig())
		if err != nil {
			return false, err
		}
		spiffe, ok := m.(*tlsv3.SPIFFECertValidatorConfig)
		if !ok {
			return false, fmt.Errorf("a validator is a %T", m)
		}
		domain, _, _ := strings.Cut(strings.TrimPrefix(peer, "spiffe://"), "/")
		known := false
		for _, td := range spiffe.GetTrustDomains() {
			known = known || strings.HasPrefix(peer, "spiffe://") && td.GetName() == domain
		}
		if !known {
			return false, nil
		}
		validated = true
	}
	if !validated {
		return false, errors.New("nothing verifies the client's certificate")
	}
	return true, nil
}
