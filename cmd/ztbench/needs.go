package main

import (
	"slices"
	"sync"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ztmesh/ztmesh/xds"
)

// needs is what a resource makes an Envoy ask for: type URL → names.
type needs map[string][]string

// needsOf reads it out of a resource. What was read once is kept by version, since
// many proxies are told the same: a simulated proxy must cost little.
type needsOf struct {
	mu    sync.Mutex // guards known
	known map[string]needs
}

func (n *needsOf) get(version string, body *anypb.Any) (needs, error) {
	key := body.GetTypeUrl() + " " + version
	n.mu.Lock()
	defer n.mu.Unlock()
	if found, ok := n.known[key]; ok {
		return found, nil
	}
	found := needs{}
	if err := found.walk(body.ProtoReflect()); err != nil {
		return nil, err
	}
	for _, names := range found {
		slices.Sort(names)
	}
	n.known[key] = found
	return found, nil
}

// walk visits m and everything below it, through Any.
func (n needs) walk(m protoreflect.Message) error {
	if a, ok := m.Interface().(*anypb.Any); ok {
		inner, err := a.UnmarshalNew()
		if err != nil {
			return err
		}
		return n.walk(inner.ProtoReflect())
	}
	n.visit(m.Interface())
	var failed error
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case fd.Message() == nil, fd.IsMap():
		case fd.IsList():
			for i := range v.List().Len() {
				if failed = n.walk(v.List().Get(i).Message()); failed != nil {
					break
				}
			}
		default:
			failed = n.walk(v.Message())
		}
		return failed == nil
	})
	return failed
}

func (n needs) visit(m proto.Message) {
	add := func(typeURL, name string) {
		if !slices.Contains(n[typeURL], name) {
			n[typeURL] = append(n[typeURL], name)
		}
	}
	switch m := m.(type) {
	case *clusterv3.Cluster:
		if m.GetType() == clusterv3.Cluster_EDS {
			add(xds.EndpointType, m.GetName())
		}
	case *hcmv3.Rds:
		add(xds.RouteType, m.GetRouteConfigName())
	case *hcmv3.HttpFilter:
		if m.GetConfigDiscovery() != nil {
			add(xds.ExtensionType, m.GetName())
		}
	case *listenerv3.Filter:
		if m.GetConfigDiscovery() != nil {
			add(xds.ExtensionType, m.GetName())
		}
	case *tlsv3.SdsSecretConfig:
		if m.GetSdsConfig().GetAds() != nil {
			add(xds.SecretType, m.GetName())
		}
	}
}
