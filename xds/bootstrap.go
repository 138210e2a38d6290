package xds

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	metricsv3 "github.com/envoyproxy/go-control-plane/envoy/config/metrics/v3"
	overloadv3 "github.com/envoyproxy/go-control-plane/envoy/config/overload/v3"
	downstreamv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/resource_monitors/downstream_connections/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	typematcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// DefaultMaxConnections bounds the downstream connections of one proxy.
const DefaultMaxConnections = 50_000

// How an Envoy calls the control plane. A server of it does not let a handshake wait
// for longer than makes sense by these.
const (
	// ServerTimeout is how long it waits for a server, for TCP and TLS together. A server
	// that is called by its whole fleet at once answers the last of them later than a
	// peer would; one that is dead is left at once, and costs it only whom it was to be
	// called by first.
	ServerTimeout = 5 * time.Second
	// ServerName is the name (SNI) that it calls a server by. It proves nothing; whoever
	// calls another may be less patient than ServerTimeout.
	ServerName = "proxy.ztmesh"
	// RetryBase and RetryMax bound its pauses: the first is a random part of RetryBase,
	// each further one of twice as much, at most of RetryMax.
	RetryBase = 250 * time.Millisecond
	RetryMax  = 3 * time.Second
)

// BootstrapConfig is what an Envoy is started with. The paths are those that
// the Envoy sees; nothing here is read or written.
type BootstrapConfig struct {
	TrustDomain string   `yaml:"trustDomain"` // of the mesh; the control plane is known by "control." and this
	Workload    string   `yaml:"workload"`    // "shop/web": node.cluster, for people
	Instance    Instance `yaml:"instance"`
	Servers     []string `yaml:"servers"`     // "host:port" of every server's node port
	Near        int      `yaml:"near"`        // the first so many of Servers are called while one of them answers
	AdminSocket string   `yaml:"adminSocket"` // Unix socket, made with mode 0600

	// With FromAgent: the agent's Unix socket. It serves SVIDSecret, BundleSecret,
	// NodeSecret and ControlBundleSecret by delta SDS.
	AgentSocket string `yaml:"agentSocket"`
	// With FromADS: a directory that holds NodeFile and ControlBundleFile, as File
	// renders them. It is watched: renewal is a rename into it.
	NodeDir string `yaml:"nodeDir"`

	// BindAddress: dial the control plane from the instance's address. The session
	// then proves that address, on hosts that have several.
	BindAddress bool `yaml:"bindAddress"`
	// PublicRoots is a PEM file of the CAs by which servers outside the mesh are
	// known that name no CA of their own. Empty: there are none, and the clusters of
	// such servers are refused.
	PublicRoots string `yaml:"publicRoots"`
	// MaxConnections is DefaultMaxConnections if zero.
	MaxConnections int64 `yaml:"maxConnections"`
}

// The files of BootstrapConfig.NodeDir.
const (
	NodeFile          = "node.json"
	ControlBundleFile = "control-bundle.json"
)

// Validate reports all that is missing or contradictory.
func (c *BootstrapConfig) Validate() error {
	v := &validation{at: place{"the", "bootstrap", ""}}
	v.check(dnsName(c.TrustDomain), "trust domain %q is not a DNS name", c.TrustDomain)
	v.check(isRef(c.Workload), "workload %q is not namespace/name", c.Workload)
	v.check(len(c.Servers) > 0, "no servers")
	for _, s := range c.Servers {
		_, _, err := splitServer(s)
		v.check(err == nil, "server %q is not host:port", s)
	}
	v.check(c.Near >= 0 && c.Near <= len(c.Servers), "%d of %d servers cannot be near", c.Near, len(c.Servers))
	v.check(strings.HasPrefix(c.AdminSocket, "/"), "admin socket %q is not an absolute path", c.AdminSocket)
	switch c.Instance.Secrets {
	case FromAgent:
		v.check(strings.HasPrefix(c.AgentSocket, "/"), "agent socket %q is not an absolute path", c.AgentSocket)
	case FromADS:
		v.check(strings.HasPrefix(c.NodeDir, "/"), "node directory %q is not an absolute path", c.NodeDir)
	}
	v.check(c.PublicRoots == "" || strings.HasPrefix(c.PublicRoots, "/"), "public roots %q are not an absolute path", c.PublicRoots)
	v.check(c.MaxConnections >= 0, "max connections %d is negative", c.MaxConnections)
	return errors.Join(append(v.errs, c.Instance.Validate())...)
}

// Bootstrap is the JSON that an Envoy is started with: who it is, where the
// control plane is and how to know it, and nothing that a spec says.
func Bootstrap(c BootstrapConfig) ([]byte, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	b := &builder{secrets: c.Instance.Secrets}
	bs := b.bootstrap(&c)
	if err := bs.ValidateAll(); err != nil {
		b.errs = append(b.errs, err)
	}
	if err := errors.Join(b.errs...); err != nil {
		return nil, fmt.Errorf("bootstrap: %w", err)
	}
	return renderJSON(bs)
}

func (b *builder) bootstrap(c *BootstrapConfig) *bootstrapv3.Bootstrap {
	static := []*clusterv3.Cluster{b.xdsCluster(c)}
	if c.Instance.Secrets == FromAgent {
		static = append(static, b.agentCluster(c.AgentSocket))
	}
	return &bootstrapv3.Bootstrap{
		Node: &corev3.Node{Id: c.Instance.ID, Cluster: c.Workload},
		Admin: &bootstrapv3.Admin{
			Address: &corev3.Address{Address: &corev3.Address_Pipe{Pipe: &corev3.Pipe{Path: c.AdminSocket, Mode: 0o600}}},
			// Who looks for why a proxy is full must still get in.
			IgnoreGlobalConnLimit: true,
		},
		StaticResources: &bootstrapv3.Bootstrap_StaticResources{Clusters: static, Secrets: c.publicRoots()},
		DynamicResources: &bootstrapv3.Bootstrap_DynamicResources{
			LdsConfig: ads(),
			CdsConfig: ads(),
			AdsConfig: &corev3.ApiConfigSource{
				ApiType:                   corev3.ApiConfigSource_DELTA_GRPC,
				TransportApiVersion:       corev3.ApiVersion_V3,
				GrpcServices:              []*corev3.GrpcService{grpcService(XDSCluster)},
				SetNodeOnFirstMessageOnly: true,
			},
		},
		// The gates are the only layer: there is no admin layer, so the admin socket
		// cannot open what the control plane has closed.
		LayeredRuntime: &bootstrapv3.LayeredRuntime{Layers: []*bootstrapv3.RuntimeLayer{{
			Name: GatesName,
			LayerSpecifier: &bootstrapv3.RuntimeLayer_RtdsLayer_{RtdsLayer: &bootstrapv3.RuntimeLayer_RtdsLayer{
				Name: GatesName, RtdsConfig: ads(),
			}},
		}}},
		OverloadManager: b.overload(c.MaxConnections),
		StatsConfig:     stats(),
	}
}

// grpcService reconnects within seconds: the default backs off to half a
// minute, during which a proxy has missed the revocation that it was down for.
func grpcService(cluster string) *corev3.GrpcService {
	return &corev3.GrpcService{TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{
		ClusterName: cluster,
		RetryPolicy: &corev3.RetryPolicy{RetryBackOff: &corev3.BackoffStrategy{
			BaseInterval: durationpb.New(RetryBase),
			MaxInterval:  durationpb.New(RetryMax),
		}},
	}}}
}

// xdsCluster is the control plane: all servers, and pings that notice a dead
// one within 3 s. A server proves itself by a SPIFFE ID below control.<td>/server/.
func (b *builder) xdsCluster(c *BootstrapConfig) *clusterv3.Cluster {
	var addresses []*corev3.Address
	discovery := clusterv3.Cluster_STATIC
	for _, s := range c.Servers {
		host, port, _ := splitServer(s) // Validate has split it
		if !isAddr(host) {
			discovery = clusterv3.Cluster_STRICT_DNS
		}
		addresses = append(addresses, socketAddress(host, port))
	}
	out := staticCluster(XDSCluster, addresses...)
	out.ConnectTimeout = durationpb.New(ServerTimeout)
	if len(addresses) > 1 {
		leaveDead(out)
	}
	if c.Near > 0 && c.Near < len(addresses) {
		behind(out, c.Near)
	}
	out.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: discovery}
	out.TypedExtensionProtocolOptions = b.httpOptions(http2(&corev3.KeepaliveSettings{
		Interval: durationpb.New(2 * time.Second),
		Timeout:  durationpb.New(time.Second),
	}))
	if c.BindAddress {
		out.UpstreamBindConfig = &corev3.BindConfig{SourceAddress: socketAddress(c.Instance.Address, 0).GetSocketAddress()}
	}
	tls := upstreamTLS(
		secret(NodeSecret, c.nodeSource(NodeFile)),
		secret(ControlBundleSecret, c.nodeSource(ControlBundleFile)),
		&typematcherv3.StringMatcher{MatchPattern: &typematcherv3.StringMatcher_Prefix{
			Prefix: "spiffe://control." + c.TrustDomain + "/server/",
		}},
	)
	tls.Sni = ServerName
	out.TransportSocket = b.tlsSocket(tls)
	return out
}

// leaveDead leaves a server out for a while that is not reached, whose connection breaks
// or does not answer pings, or that answers twice in a row that it is not available.
// Nobody else checks the health of a server. When all are left out, all are called.
func leaveDead(c *clusterv3.Cluster) {
	o := outliers()
	o.ConsecutiveLocalOriginFailure, o.ConsecutiveGatewayFailure = wrapperspb.UInt32(1), wrapperspb.UInt32(2)
	o.MaxEjectionPercent = wrapperspb.UInt32(100)
	c.OutlierDetection = o
	// By default one that is left out is called again as soon as half of them are.
	c.CommonLbConfig = &clusterv3.Cluster_CommonLbConfig{HealthyPanicThreshold: &typev3.Percent{Value: 1}}
}

// behind leaves the first endpoints of a cluster where they are, and puts the others
// behind them: when all of the first are left out, the others are called.
func behind(c *clusterv3.Cluster, first int) {
	near := c.LoadAssignment.Endpoints[0]
	far := &endpointv3.LocalityLbEndpoints{Priority: 1, LbEndpoints: near.LbEndpoints[first:]}
	near.LbEndpoints = near.LbEndpoints[:first]
	c.LoadAssignment.Endpoints = append(c.LoadAssignment.Endpoints, far)
}

// nodeSource is where the secrets of the ADS stream itself come from: they
// cannot come from ADS.
func (c *BootstrapConfig) nodeSource(file string) *corev3.ConfigSource {
	if c.Instance.Secrets == FromAgent {
		return agent()
	}
	dir := strings.TrimSuffix(c.NodeDir, "/")
	return &corev3.ConfigSource{
		ConfigSourceSpecifier: &corev3.ConfigSource_PathConfigSource{PathConfigSource: &corev3.PathConfigSource{
			Path:             dir + "/" + file,
			WatchedDirectory: &corev3.WatchedDirectory{Path: dir},
		}},
		ResourceApiVersion: corev3.ApiVersion_V3,
	}
}

func (c *BootstrapConfig) publicRoots() []*tlsv3.Secret {
	if c.PublicRoots == "" {
		return nil
	}
	return []*tlsv3.Secret{{
		Name: PublicRootsSecret,
		Type: &tlsv3.Secret_ValidationContext{ValidationContext: &tlsv3.CertificateValidationContext{
			TrustedCa: &corev3.DataSource{Specifier: &corev3.DataSource_Filename{Filename: c.PublicRoots}},
		}},
	}}
}

func (b *builder) agentCluster(socket string) *clusterv3.Cluster {
	out := staticCluster(AgentCluster, &corev3.Address{Address: &corev3.Address_Pipe{Pipe: &corev3.Pipe{Path: socket}}})
	out.TypedExtensionProtocolOptions = b.httpOptions(http2(nil))
	return out
}

// overload bounds the connections of all listeners together.
func (b *builder) overload(limit int64) *overloadv3.OverloadManager {
	if limit == 0 {
		limit = DefaultMaxConnections
	}
	return &overloadv3.OverloadManager{ResourceMonitors: []*overloadv3.ResourceMonitor{{
		Name: "envoy.resource_monitors.global_downstream_max_connections",
		ConfigType: &overloadv3.ResourceMonitor_TypedConfig{TypedConfig: b.any(&downstreamv3.DownstreamConnectionsConfig{
			MaxActiveDownstreamConnections: limit,
		})},
	}}}
}

// stats keeps what an operator of a fleet looks at: whether configuration
// arrives, whether policies refuse, and how calls fare.
func stats() *metricsv3.StatsConfig {
	keep := &typematcherv3.ListStringMatcher{}
	for _, p := range []string{
		"server.", "runtime.", "control_plane.", "listener_manager.", "cluster_manager.",
		"sds.", "cluster." + XDSCluster + ".", "extension_config_discovery.",
	} {
		keep.Patterns = append(keep.Patterns, &typematcherv3.StringMatcher{MatchPattern: &typematcherv3.StringMatcher_Prefix{Prefix: p}})
	}
	for _, s := range []string{
		"rbac.", "zt_gate_", ".upstream_rq_", ".upstream_cx_", ".downstream_rq_", ".downstream_cx_",
		".membership_", ".update_", ".ssl.",
	} {
		keep.Patterns = append(keep.Patterns, &typematcherv3.StringMatcher{MatchPattern: &typematcherv3.StringMatcher_Contains{Contains: s}})
	}
	return &metricsv3.StatsConfig{StatsMatcher: &metricsv3.StatsMatcher{
		StatsMatcher: &metricsv3.StatsMatcher_InclusionList{InclusionList: keep},
	}}
}

// splitServer parses "host:port"; the host is an IP address or a DNS name.
func splitServer(s string) (host string, port uint32, err error) {
	if ap, err := netip.ParseAddrPort(s); err == nil && ap.Port() > 0 {
		return ap.Addr().String(), uint32(ap.Port()), nil
	}
	host, p, ok := strings.Cut(s, ":")
	n, perr := strconv.ParseUint(p, 10, 16)
	if !ok || perr != nil || n == 0 || !dnsName(host) {
		return "", 0, fmt.Errorf("%q is not host:port", s)
	}
	return host, uint32(n), nil
}
