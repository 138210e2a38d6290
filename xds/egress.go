package xds

import (
	"net/netip"
	"slices"
	"strconv"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	setstatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/set_filter_state/v3"
	httprbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	httpsetstatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/set_filter_state/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	upstreamhttpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	typematcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
)

// routeState is the key of the filter state that holds the name of the route that
// a call of the workload takes.
const routeState = "zt.route"

// actionMesh passes a call on to where it is judged: a call within the mesh to
// the callee's proxy, one to nowhere to the answer that says so.
const actionMesh = "mesh"

// egressFilters judge the calls of the workload to servers outside the mesh, which
// have no proxy that could. By the names of routes: what is judged is where the
// call goes, however its host was spelled. A call within the mesh passes, and its
// route leaves them out.
//
// They are the same for every workload, whatever it may call.
func (b *builder) egressFilters() []*hcmv3.HttpFilter {
	return []*hcmv3.HttpFilter{
		b.httpFilter(routeFilter, &httpsetstatev3.Config{
			OnRequestHeaders: []*setstatev3.FilterStateValue{stateValue(routeState, "%ROUTE_NAME%")},
		}),
		b.httpSlot(EgressBlocks, b.denyAllJudge()),
		b.httpSlot(EgressShadow, pass()),
		b.httpSlot(EgressPolicy, b.denyAllJudge()),
	}
}

// routeFilter is the name of the filter that puts the route's name into filter
// state.
const routeFilter = "envoy.filters.http.set_filter_state"

// calleeJudges leaves egressFilters out of a route to another proxy of the mesh,
// which judges the call by itself: they would only cost. It loosens nothing, since
// the policy lets such a route pass, and stands in no other route.
func (b *builder) calleeJudges() map[string]*anypb.Any {
	off := b.any(&routev3.FilterConfig{Disabled: true})
	return map[string]*anypb.Any{routeFilter: off, EgressBlocks: off, EgressShadow: off, EgressPolicy: off}
}

// egress makes the resources of egressFilters.
//
//	route = ext/shop/stripe       → its rules      → ALLOW grant:shop/web-pays
//	route begins svc/                              → ALLOW mesh
//	route begins no-grant                          → ALLOW no-grant
//	otherwise                                      → DENY  default-deny
func (b *builder) egress() {
	rules, shadow, blocks := map[string]*onMatch{}, map[string]*onMatch{}, map[string]*onMatch{}
	var all, shadowed []Rule
	for i := range b.c.Egress {
		e := &b.c.Egress[i]
		if !e.Protocol.IsHTTP() {
			continue
		}
		route := externalRoute(e.Service)
		rules[route] = b.externalCalls(e.Rules)
		all = append(all, e.Rules...)
		if e.Shadow != nil {
			shadow[route] = b.externalCalls(e.Shadow.Rules)
			shadowed = append(shadowed, e.Shadow.Rules...)
		}
		if name, ok := e.blocked(b.c); ok {
			blocks[route] = b.deny(name)
		}
	}
	mesh := b.action(actionMesh, rbacv3.RBAC_ALLOW)
	within := b.byPrefix(b.stateInput(routeState), map[string]*onMatch{
		"svc/":        mesh,
		ReasonNoGrant: b.action(ReasonNoGrant, rbacv3.RBAC_ALLOW),
	}, b.action(ActionDefault, rbacv3.RBAC_DENY))

	// What judges nothing costs nothing, and says so explicitly.
	block, would, reads := pass(), pass(), needs{}
	if len(blocks) > 0 {
		block = b.judge(needs{}, &httprbacv3.RBAC{
			Matcher:         root(b.byExact(b.stateInput(routeState), blocks, b.action(actionNoBlock, rbacv3.RBAC_ALLOW))),
			RulesStatPrefix: blockStatPrefix,
		})
	}
	if len(shadow) > 0 {
		would = b.judge(needsOf(shadowed), &httprbacv3.RBAC{
			ShadowMatcher:         root(b.byExact(b.stateInput(routeState), shadow, mesh)),
			ShadowRulesStatPrefix: RBACStatPrefix,
		})
	}
	if len(rules) > 0 {
		reads = needsOf(all)
	}
	b.extensionResource(EgressBlocks, block)
	b.extensionResource(EgressShadow, would)
	b.extensionResource(EgressPolicy, b.judge(reads, &httprbacv3.RBAC{
		Matcher:         root(b.byExact(b.stateInput(routeState), rules, within)),
		RulesStatPrefix: RBACStatPrefix,
	}))
}

// stateValue puts what a format says into filter state.
func stateValue(key, format string) *setstatev3.FilterStateValue {
	return &setstatev3.FilterStateValue{
		Key:        &setstatev3.FilterStateValue_ObjectKey{ObjectKey: key},
		FactoryKey: "envoy.string",
		Value: &setstatev3.FilterStateValue_FormatString{FormatString: &corev3.SubstitutionFormatString{
			Format: &corev3.SubstitutionFormatString_TextFormatSource{TextFormatSource: &corev3.DataSource{
				Specifier: &corev3.DataSource_InlineString{InlineString: format},
			}},
		}},
	}
}

// externalCalls lowers rules without their callers, who all are the workload
// itself. Upgrades are refused.
func (b *builder) externalCalls(rules []Rule) *onMatch {
	l, t := newLowering(b), &pathTree{}
	for i := range rules {
		t.add(&rules[i])
	}
	form := b.action(ActionForm, rbacv3.RBAC_DENY)
	next := l.paths(t)
	if next == nil {
		next = b.action(ActionDefault, rbacv3.RBAC_DENY)
	}
	return nest(list(next,
		&fieldMatch{Predicate: b.malformed(false), OnMatch: form},
		&fieldMatch{Predicate: b.matches(b.headerInput("upgrade"), fullMatch(".+")), OnMatch: form},
	))
}

// blocked says whether a Block denies the workload all calls, and which.
func (e *Egress) blocked(c *Config) (name string, ok bool) {
	for _, k := range e.Blocks {
		if k.Users == nil && (k.Callers == nil || k.Callers.include(c, c.ID)) {
			return k.Name, true
		}
	}
	return "", false
}

// externalRoute names the routes to an external service.
func externalRoute(service string) string { return "ext/" + service }

// externalHosts are the virtual hosts of an external service: plain HTTP from the
// application, by exact host. What speaks of the caller or of another request
// than the one judged does not leave the mesh.
func (e *Egress) externalHosts() []*routev3.VirtualHost {
	var out []*routev3.VirtualHost
	for _, host := range e.Hosts {
		action := &routev3.RouteAction{
			ClusterSpecifier:     &routev3.RouteAction_Cluster{Cluster: ExternalCluster(e.Service, host)},
			HostRewriteSpecifier: &routev3.RouteAction_HostRewriteLiteral{HostRewriteLiteral: e.authority(host)},
		}
		bound(action, e.Protocol)
		out = append(out, &routev3.VirtualHost{
			Name:                    ExternalCluster(e.Service, host),
			Domains:                 []string{host},
			Routes:                  []*routev3.Route{{Name: externalRoute(e.Service), Match: everyPath(), Action: &routev3.Route_Route{Route: action}}},
			RequestHeadersToRemove:  append(overrides(), "x-forwarded-for", "x-forwarded-proto", "x-request-id"),
			ResponseHeadersToRemove: []string{ReasonHeader},
		})
	}
	return out
}

// authority is what the server is asked for: without a port if it is the scheme's
// own (RFC 9110, section 4.2.3).
func (e *Egress) authority(host string) string {
	if e.Plaintext && e.Port == 80 || !e.Plaintext && e.Port == 443 {
		return host
	}
	return host + ":" + strconv.FormatUint(uint64(e.Port), 10)
}

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
	common := &tlsv3.CommonTlsContext{
		TlsParams: &tlsv3.TlsParameters{
			TlsMinimumProtocolVersion: tlsv3.TlsParameters_TLSv1_2,
			TlsMaximumProtocolVersion: tlsv3.TlsParameters_TLSv1_3,
		},
	}
	if o.ca != "" {
		validation.TrustedCa = inline([]byte(o.ca))
		common.ValidationContextType = &tlsv3.CommonTlsContext_ValidationContext{ValidationContext: validation}
	} else {
		// Envoy ignores system_root_certs, so the bootstrap says where they are. Where
		// it does not, Envoy refuses the cluster.
		common.ValidationContextType = &tlsv3.CommonTlsContext_CombinedValidationContext{
			CombinedValidationContext: &tlsv3.CommonTlsContext_CombinedCertificateValidationContext{
				DefaultValidationContext:         validation,
				ValidationContextSdsSecretConfig: secret(PublicRootsSecret, nil),
			},
		}
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

func (v *validation) egress(c *Config) {
	v.distinct(len(c.Egress), func(i int) string { return c.Egress[i].Service })
	for i := range c.Egress {
		e := &c.Egress[i]
		v.at = place{"egress", e.Service, ""}
		v.check(isRef(e.Service), "service is not namespace/name")
		v.check(e.Protocol.IsHTTP() || e.Protocol == TCP, "protocol %q is unknown", e.Protocol)
		v.check(e.Port > 0 && e.Port < 65536, "port %d is out of range", e.Port)
		v.check(!e.Plaintext || e.CA == "", "a CA without TLS")
		v.check(len(e.Hosts) > 0, "no hosts")
		for _, h := range e.Hosts {
			v.check(dnsName(h), "host %q is not a DNS name", h)
			if e.Protocol.IsHTTP() {
				v.unique(v.hosts, h)
			}
		}
		if e.Protocol == TCP {
			v.check(len(e.Hosts) == 1, "a tcp service has several hosts")
			v.check(len(e.Rules) == 0 && e.Shadow == nil, "a tcp service has no rules")
		}
		for _, k := range e.Blocks {
			v.check(k.Users == nil, "block %s: users are not known here", k.Name)
		}
		rules := e.Rules
		if e.Shadow != nil {
			rules = slices.Concat(e.Rules, e.Shadow.Rules)
		}
		for j := range rules {
			r := &rules[j]
			v.rule(r)
			v.check(r.Users == nil && r.Sources == nil && r.Upgrades == nil, "grant %s: users, sources and upgrades are not judged here", r.Grant)
			v.check(r.Callers.include(c, c.ID), "grant %s: is not for %s", r.Grant, c.Workload)
		}
	}
	v.at = place{}
}
