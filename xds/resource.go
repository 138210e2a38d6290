package xds

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// Resource is one xDS resource. It is immutable: it is shared by every proxy
// that is told the same, and read by many goroutines.
type Resource struct {
	Type    string // type URL
	Name    string
	Version string // hex hash of what Whole has: equal bytes, equal version, on every replica
	Body    *anypb.Any

	// tail is what follows in the bytes of Body.Value: what is one proxy's own, of a
	// resource that is shared otherwise. The fields of a message may come in any order.
	tail []byte
}

// Whole is the resource as it is sent. Of one that Build has made it is Body.
func (r *Resource) Whole() *anypb.Any {
	if len(r.tail) == 0 {
		return r.Body
	}
	return &anypb.Any{TypeUrl: r.Body.GetTypeUrl(), Value: slices.Concat(r.Body.GetValue(), r.tail)}
}

// Size is how many bytes Whole has.
func (r *Resource) Size() int { return len(r.Body.GetValue()) + len(r.tail) }

// Resources is all that Build makes for one proxy: type URL → name → resource.
// It holds listeners, clusters, routes and extensions, never endpoints, secrets
// or gates. It is immutable once built.
type Resources map[string]map[string]*Resource

// Get returns one resource, or nil. A nil receiver holds nothing.
func (r *Resources) Get(typeURL, name string) *Resource {
	if r == nil {
		return nil
	}
	return (*r)[typeURL][name]
}

// All returns every resource, sorted by type URL and name.
func (r *Resources) All() []*Resource {
	if r == nil {
		return nil
	}
	var all []*Resource
	for _, byName := range *r {
		for _, res := range byName {
			all = append(all, res)
		}
	}
	slices.SortFunc(all, func(a, b *Resource) int {
		return strings.Compare(a.Type+"\x00"+a.Name, b.Type+"\x00"+b.Name)
	})
	return all
}

// Endpoint is one address of a cluster.
type Endpoint struct {
	Address string // IP address
	Port    uint32
	Zone    string // where it runs; empty: not said
	Weight  uint32 // its share of the calls, against DefaultWeight; 0: DefaultWeight
}

// DefaultWeight is the weight of an instance that says none.
const DefaultWeight = 100

// version is the hash that stands for the bytes of a resource. 128 bits of
// SHA-256: a collision would leave a proxy on an old resource, and nobody can
// make one by choosing names.
func version(parts ...[]byte) string {
	sum := sha256.New()
	for _, b := range parts {
		sum.Write(b)
	}
	return hex.EncodeToString(sum.Sum(nil)[:16])
}

// validator is what protoc-gen-validate gives every Envoy message.
type validator interface{ ValidateAll() error }

// pack validates m and puts it in an Any, deterministically: anypb.New is not,
// and a listener whose bytes change without need drains its connections.
func pack(m proto.Message) (*anypb.Any, error) {
	if v, ok := m.(validator); ok {
		if err := v.ValidateAll(); err != nil {
			return nil, fmt.Errorf("%s: %w", m.ProtoReflect().Descriptor().FullName(), err)
		}
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return nil, err
	}
	return &anypb.Any{TypeUrl: typeURL(m), Value: b}, nil
}

// typeURL is that of a message. Of what most resources are it is not made anew for each.
func typeURL(m proto.Message) string {
	switch m.(type) {
	case *listenerv3.Listener:
		return ListenerType
	case *clusterv3.Cluster:
		return ClusterType
	case *corev3.TypedExtensionConfig:
		return ExtensionType
	case *endpointv3.ClusterLoadAssignment:
		return EndpointType
	}
	return "type.googleapis.com/" + string(m.ProtoReflect().Descriptor().FullName())
}

// newResource packs m as the resource of that name.
func newResource(name string, m proto.Message) (*Resource, error) {
	body, err := pack(m)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return &Resource{Type: body.GetTypeUrl(), Name: name, Version: version(body.GetValue()), Body: body}, nil
}

// mustResource is newResource for messages that are valid whatever the input:
// an error is a mistake in this package.
func mustResource(name string, m proto.Message) *Resource {
	r, err := newResource(name, m)
	if err != nil {
		panic("xds: " + err.Error())
	}
	return r
}

// builder collects resources and the problems of making them, so that the
// constructors of messages read without error handling.
type builder struct {
	c         *Config
	secrets   SecretSource
	listeners []*unbound // in the order of their making
	out       Resources  // all but these
	errs      []error
}

// addListener takes a listener that is not bound yet. Like all resources it is
// checked here; bound to an address it is as valid as that.
func (b *builder) addListener(l *listenerv3.Listener, port uint32, outbound bool) {
	r, err := newResource(l.GetName(), l)
	if err != nil {
		b.errs = append(b.errs, err)
		return
	}
	b.listeners = append(b.listeners, &unbound{r, port, outbound})
}

// unbound is a listener without an address.
type unbound struct {
	*Resource
	port     uint32
	outbound bool // it is bound to the egress address
}

// bind is the listener at an address.
func (u *unbound) bind(address string) (*Resource, error) {
	tail, err := proto.MarshalOptions{Deterministic: true}.Marshal(&listenerv3.Listener{Address: socketAddress(address, u.port)})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", u.Name, err)
	}
	return &Resource{Type: ListenerType, Name: u.Name, Version: version(u.Body.GetValue(), tail), Body: u.Body, tail: tail}, nil
}

// listenersVersion is one hash over listeners and where they are bound.
func listenersVersion(listeners []*unbound) string {
	sum := sha256.New()
	for _, u := range listeners {
		fmt.Fprintf(sum, "%d %t %s\n", u.port, u.outbound, u.Version)
	}
	return hex.EncodeToString(sum.Sum(nil)[:16])
}

// any packs a nested message.
func (b *builder) any(m proto.Message) *anypb.Any {
	a, err := pack(m)
	if err != nil {
		b.errs = append(b.errs, err)
		return &anypb.Any{}
	}
	return a
}

// add makes m a resource. Two resources of one name are a mistake in this
// package or in what Validate lets pass.
func (b *builder) add(name string, m proto.Message) {
	r, err := newResource(name, m)
	if err != nil {
		b.errs = append(b.errs, err)
		return
	}
	b.take(r)
}

func (b *builder) take(r *Resource) {
	byName := b.out[r.Type]
	if byName == nil {
		byName = map[string]*Resource{}
		b.out[r.Type] = byName
	}
	if byName[r.Name] != nil {
		b.errs = append(b.errs, fmt.Errorf("%s: built twice", r.Name))
		return
	}
	byName[r.Name] = r
}

func (b *builder) done() (*Resources, error) {
	if err := errors.Join(b.errs...); err != nil {
		return nil, err
	}
	return &b.out, nil
}
