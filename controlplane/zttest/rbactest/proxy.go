package rbactest

import (
	"errors"
	"fmt"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ztmesh/ztmesh/xds"
)

// Proxy is one proxy with all that it was told. Its methods are for one
// goroutine at a time.
type Proxy struct {
	// Runtime is the keys of the runtime layer, as percent: a gate that is not
	// named is open.
	Runtime map[string]float64

	listeners  []*listenerv3.Listener
	routes     map[string]*routev3.RouteConfiguration
	clusters   map[string]*clusterv3.Cluster
	extensions map[string]*corev3.TypedExtensionConfig
	secrets    map[string]*tlsv3.Secret
	decoded    map[*anypb.Any]proto.Message
	compiled   map[any]any // of regular expressions and CEL, by their messages
}

// Load reads resources and the secrets that they name. It errs when they hold
// anything that this package cannot interpret.
func Load(r *xds.Resources, secrets ...*xds.Resource) (*Proxy, error) {
	p := &Proxy{
		Runtime:    map[string]float64{},
		routes:     map[string]*routev3.RouteConfiguration{},
		clusters:   map[string]*clusterv3.Cluster{},
		extensions: map[string]*corev3.TypedExtensionConfig{},
		secrets:    map[string]*tlsv3.Secret{},
		decoded:    map[*anypb.Any]proto.Message{},
		compiled:   map[any]any{},
	}
	for _, res := range append(r.All(), secrets...) {
		m, err := p.decode(res.Body)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", res.Name, err)
		}
		switch m := m.(type) {
		case *listenerv3.Listener:
			p.listeners = append(p.listeners, m)
		case *routev3.RouteConfiguration:
			p.routes[res.Name] = m
		case *corev3.TypedExtensionConfig:
			p.extensions[res.Name] = m
		case *tlsv3.Secret:
			p.secrets[res.Name] = m
		case *clusterv3.Cluster:
			p.clusters[res.Name] = m // where requests go is not judged here
			continue
		default:
			return nil, fmt.Errorf("%s: a %T is nothing that a proxy is told", res.Name, m)
		}
		if err := p.known(m.ProtoReflect(), res.Name); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// decode unmarshals once.
func (p *Proxy) decode(a *anypb.Any) (proto.Message, error) {
	if a == nil {
		return nil, errors.New("no configuration")
	}
	if m, ok := p.decoded[a]; ok {
		return m, nil
	}
	m, err := a.UnmarshalNew()
	if err != nil {
		return nil, err
	}
	p.decoded[a] = m
	return m, nil
}

// discovered is the configuration of a filter by ECDS: its resource, or the
// default while there is none.
func (p *Proxy) discovered(name string, d *corev3.ExtensionConfigSource) (proto.Message, error) {
	if ext, ok := p.extensions[name]; ok {
		typed := ext.GetTypedConfig()
		for _, t := range d.GetTypeUrls() {
			if t == typed.GetTypeUrl() {
				return p.decode(typed)
			}
		}
		return nil, fmt.Errorf("%s is a %s, which its filter does not take", name, typed.GetTypeUrl())
	}
	if !d.GetApplyDefaultConfigWithoutWarming() {
		return nil, fmt.Errorf("%s has no resource and waits for it", name)
	}
	return p.decode(d.GetDefaultConfig())
}
