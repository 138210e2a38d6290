package xds

import (
	"errors"
	"fmt"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	extauthzv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
)

// Consistent reports every reference of r to something that is not in it, and
// every resource that nothing in it refers to: Envoy asks for neither routes nor
// extensions that no listener names, so those would never be acknowledged. It
// also checks that each resource is filed under its own type, name and hash.
// A set that is not consistent must not be sent.
func Consistent(r *Resources) error {
	c := &consistency{r: r, used: map[string]bool{}}
	for typeURL, byName := range *r {
		for name, res := range byName {
			c.at = name
			c.filed(typeURL, name, res)
		}
	}
	for _, res := range r.All() {
		c.at = res.Name
		m, err := res.Whole().UnmarshalNew()
		if err != nil {
			c.fault("%w", err)
			continue
		}
		c.checkName(res, m)
		c.walk(m.ProtoReflect())
	}
	for _, res := range r.All() {
		if (res.Type == RouteType || res.Type == ExtensionType) && !c.used[res.Type+res.Name] {
			c.at = res.Name
			c.fault("no listener refers to it")
		}
	}
	return errors.Join(c.errs...)
}

type consistency struct {
	r    *Resources
	at   string
	used map[string]bool // type URL + name
	errs []error
}

func (c *consistency) fault(format string, args ...any) {
	c.errs = append(c.errs, fmt.Errorf("%s: %w", c.at, fmt.Errorf(format, args...)))
}

func (c *consistency) filed(typeURL, name string, res *Resource) {
	if res.Type != typeURL || res.Body.GetTypeUrl() != typeURL {
		c.fault("a %s is filed as %s", res.Body.GetTypeUrl(), typeURL)
	}
	if res.Name != name {
		c.fault("filed under another name than its own, %s", res.Name)
	}
	if v := version(res.Body.GetValue(), res.tail); v != res.Version {
		c.fault("version is %s, its bytes are %s", res.Version, v)
	}
	switch typeURL {
	case ListenerType, ClusterType, RouteType, ExtensionType:
	default:
		c.fault("%s does not belong here", typeURL)
	}
}

// checkName: Envoy knows a resource by the name in its body.
func (c *consistency) checkName(res *Resource, m proto.Message) {
	named, ok := m.(interface{ GetName() string })
	if !ok || named.GetName() != res.Name {
		c.fault("its body has another name")
	}
}

func (c *consistency) refer(typeURL, name string) {
	if c.r.Get(typeURL, name) == nil {
		c.fault("refers to %s, which is missing", name)
		return
	}
	c.used[typeURL+name] = true
}

// walk visits m and everything below it, through Any.
func (c *consistency) walk(m protoreflect.Message) {
	if a, ok := m.Interface().(*anypb.Any); ok {
		inner, err := a.UnmarshalNew()
		if err != nil {
			c.fault("%w", err)
			return
		}
		c.walk(inner.ProtoReflect())
		return
	}
	c.visit(m.Interface())
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case fd.IsMap():
			if fd.MapValue().Message() != nil {
				v.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool {
					c.walk(v.Message())
					return true
				})
			}
		case fd.Message() == nil:
		case fd.IsList():
			for i := range v.List().Len() {
				c.walk(v.List().Get(i).Message())
			}
		default:
			c.walk(v.Message())
		}
		return true
	})
}

// visit knows every kind of message by which Build refers to a resource.
func (c *consistency) visit(m proto.Message) {
	switch m := m.(type) {
	case *hcmv3.Rds:
		c.fromADS(m.GetConfigSource())
		c.refer(RouteType, m.GetRouteConfigName())
	case *hcmv3.HttpFilter:
		c.discovery(m.GetName(), m.GetConfigDiscovery())
	case *listenerv3.Filter:
		c.discovery(m.GetName(), m.GetConfigDiscovery())
	case *corev3.HttpUri: // of keys
		c.refer(ClusterType, m.GetCluster())
	case *extauthzv3.ExtAuthz:
		c.refer(ClusterType, m.GetGrpcService().GetEnvoyGrpc().GetClusterName())
	case *routev3.RouteAction:
		if m.GetCluster() == "" {
			c.fault("a route names no cluster")
			return
		}
		c.refer(ClusterType, m.GetCluster())
	case *tcpproxyv3.TcpProxy:
		if m.GetCluster() == "" {
			c.fault("a tcp proxy names no cluster")
			return
		}
		c.refer(ClusterType, m.GetCluster())
	case *clusterv3.Cluster:
		if m.GetType() == clusterv3.Cluster_EDS {
			c.fromADS(m.GetEdsClusterConfig().GetEdsConfig())
			if !isEndpointName(m.GetName()) || m.GetEdsClusterConfig().GetServiceName() != "" {
				c.fault("endpoints are not those of its own name")
			}
		}
	case *tlsv3.SdsSecretConfig:
		c.sds(m)
	}
}

func (c *consistency) discovery(name string, d *corev3.ExtensionConfigSource) {
	if d == nil {
		return
	}
	c.fromADS(d.GetConfigSource())
	if d.GetDefaultConfig() == nil || !d.GetApplyDefaultConfigWithoutWarming() {
		c.fault("%s is not closed while its resource is missing", name)
	}
	c.refer(ExtensionType, name)
	res := c.r.Get(ExtensionType, name)
	if res == nil {
		return
	}
	ext := &corev3.TypedExtensionConfig{}
	if err := res.Body.UnmarshalTo(ext); err != nil {
		c.fault("%s: %w", name, err)
		return
	}
	for _, t := range d.GetTypeUrls() {
		if t == ext.GetTypedConfig().GetTypeUrl() {
			return
		}
	}
	c.fault("%s is a %s, which the filter does not take", name, ext.GetTypedConfig().GetTypeUrl())
}

// sds: the certificate from ADS or from the agent; who is accepted, from ADS.
func (c *consistency) sds(s *tlsv3.SdsSecretConfig) {
	switch name := s.GetName(); {
	case name == SVIDSecret && proto.Equal(s.GetSdsConfig(), agent()):
		return
	case name == PublicRootsSecret && s.GetSdsConfig() == nil: // in the bootstrap
		return
	case name == SVIDSecret, name == BundleSecret, strings.HasPrefix(name, PeersSecret("")):
	default:
		c.fault("refers to secret %s, which nobody serves", name)
	}
	c.fromADS(s.GetSdsConfig())
}

func (c *consistency) fromADS(s *corev3.ConfigSource) {
	if !proto.Equal(s, ads()) {
		c.fault("takes configuration from elsewhere than ADS")
	}
}
