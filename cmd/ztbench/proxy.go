package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"github.com/ztmesh/ztmesh/controlplane"
	"github.com/ztmesh/ztmesh/xds"
)

// proxy is one simulated Envoy 1.40: delta ADS on a connection of its own, in the
// order in which Envoy asks: the runtime layer and clusters at first, their
// endpoints, then listeners and what these lead to. A change of clusters is ACKed
// when the endpoints that it needs are there, as Envoy does; everything else at
// once. What it is told it forgets, save names and versions.
//
// It belongs to the goroutine of run; what others may read is guarded by mu.
type proxy struct {
	id     string
	floor  bool // one resource is all that there is
	needs  *needsOf
	stream discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
	node   *corev3.Node // sent with the first request of a stream

	held     map[string]map[string]string          // type → name → version; outlives a stream
	wanted   map[string]map[string]needs           // type → name → what it makes the proxy ask for
	asked    map[string]map[string]bool            // type → names that it has subscribed to
	warming  []*discoveryv3.DeltaDiscoveryResponse // of clusters, not ACKed yet
	complete bool

	mu     sync.Mutex // guards what follows
	seen   counters   // since the last mark
	onDone func()     // called once when everything is there
}

// counters are what a proxy was told since it was asked last.
type counters struct {
	Responses int       `json:"responses"` // with resources in them, or removals
	Bytes     int       `json:"bytes"`
	Last      time.Time `json:"last"`
}

func (p *proxy) mark() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seen = counters{}
}

func (p *proxy) counters() counters {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.seen
}

// first are the types that an Envoy asks for before it knows anything, with the
// names; none is all of them.
var first = []struct{ typeURL, name string }{{xds.RuntimeType, xds.GatesName}, {xds.ClusterType, ""}}

// run is one life of the connection: until ctx ends, or the server ends it. It says
// whether the server has said anything. It connects when begin has room.
func (p *proxy) run(ctx context.Context, begin chan struct{}, server string, creds *tls.Config) (spoke bool, err error) {
	raw, err := connect(ctx, begin, server, creds)
	if err != nil {
		return false, err
	}
	how := metadata.MD{}
	if creds == nil {
		how = metadata.Pairs(controlplane.PlaintextInstance, p.id)
	}
	once := make(chan net.Conn, 1)
	once <- raw
	conn, err := grpc.NewClient("passthrough:///"+server, grpc.WithTransportCredentials(insecure.NewCredentials()), // TLS is raw's
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
			select {
			case c := <-once:
				return c, nil
			default:
				return nil, net.ErrClosed
			}
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: pingEvery, Timeout: pingEvery, PermitWithoutStream: true}),
		grpc.WithReadBufferSize(4<<10), grpc.WithWriteBufferSize(4<<10))
	if err != nil {
		return false, errors.Join(err, raw.Close())
	}
	defer raw.Close() // if nobody has taken it
	defer conn.Close()
	p.stream, err = discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(metadata.NewOutgoingContext(ctx, how))
	if err != nil {
		return false, err
	}
	p.node = nodeOf(p.id)
	p.asked, p.warming, p.complete = map[string]map[string]bool{}, nil, false
	if err := p.begin(); err != nil {
		return false, p.ended(err)
	}
	for {
		m, err := p.stream.Recv()
		if err != nil {
			return spoke, err
		}
		spoke = true
		if err := p.take(m); err != nil {
			return spoke, p.ended(err)
		}
	}
}

// connect is TCP and TLS, for which Envoy has one timeout. It begins when begin has
// room: what an Envoy waits for a processor of its own is not what the server lets it
// wait, and here thousands share two.
func connect(ctx context.Context, begin chan struct{}, server string, creds *tls.Config) (net.Conn, error) {
	select {
	case begin <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	begun := sync.OnceFunc(func() { <-begin })
	defer begun()
	ctx, cancel := context.WithTimeout(ctx, xds.ServerTimeout)
	defer cancel()
	var d net.Dialer
	raw, err := d.DialContext(ctx, "tcp", server)
	if err != nil || creds == nil {
		return raw, err
	}
	conn := tls.Client(&helloConn{raw, begun}, creds)
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(err, raw.Close())
	}
	return conn, nil
}

// helloConn calls said when its client has said hello and waits for an answer.
type helloConn struct {
	net.Conn
	said func()
}

func (c *helloConn) Read(b []byte) (int, error) {
	c.said()
	return c.Conn.Read(b)
}

// pingEvery is between the keepalives of a connection, as in the bootstrap of a
// large fleet.
const pingEvery = 10 * time.Second

// ended is why a stream ended that could not be written to.
func (p *proxy) ended(err error) error {
	if _, why := p.stream.Recv(); why != nil {
		return why
	}
	return err
}

// nodeOf is the node of an Envoy, with the fields that the real one fills in.
func nodeOf(id string) *corev3.Node {
	n := &corev3.Node{Id: id, Cluster: "ztmesh", UserAgentName: "envoy", UserAgentVersionType: &corev3.Node_UserAgentBuildVersion{
		UserAgentBuildVersion: &corev3.BuildVersion{},
	}}
	for i := range 60 { // an Envoy lists every extension that it has
		n.Extensions = append(n.Extensions, &corev3.Extension{
			Name: fmt.Sprintf("envoy.filters.http.extension_%02d", i), Category: "envoy.filters.http", TypeUrls: []string{"envoy.extensions.filters.http.v3.Extension"},
		})
	}
	return n
}

func (p *proxy) begin() error {
	if p.floor {
		return p.ask(xds.ClusterType)
	}
	for _, f := range first {
		var names []string
		if f.name != "" {
			names = []string{f.name}
		}
		if err := p.ask(f.typeURL, names...); err != nil {
			return err
		}
	}
	// What was held before a reconnect is asked for at once, with its versions.
	for _, typeURL := range []string{xds.EndpointType, xds.ListenerType, xds.RouteType, xds.ExtensionType, xds.SecretType} {
		if len(p.held[typeURL]) == 0 {
			continue
		}
		var names []string
		if typeURL != xds.ListenerType {
			names = slices.Sorted(maps.Keys(p.held[typeURL]))
		}
		if err := p.ask(typeURL, names...); err != nil {
			return err
		}
	}
	p.check()
	return nil
}

// ask subscribes to names, or to all of a type; with what is held the first time.
func (p *proxy) ask(typeURL string, names ...string) error {
	r := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: typeURL, ResourceNamesSubscribe: names}
	if p.asked[typeURL] == nil {
		p.asked[typeURL] = map[string]bool{}
		r.InitialResourceVersions = p.held[typeURL]
	}
	for _, n := range names {
		p.asked[typeURL][n] = true
	}
	return p.send(r)
}

func (p *proxy) send(r *discoveryv3.DeltaDiscoveryRequest) error {
	r.Node, p.node = p.node, nil
	return p.stream.Send(r)
}

// take is one response.
func (p *proxy) take(m *discoveryv3.DeltaDiscoveryResponse) error {
	p.mu.Lock()
	if len(m.GetResources())+len(m.GetRemovedResources()) > 0 {
		p.seen.Responses++
		p.seen.Bytes += proto.Size(m)
		p.seen.Last = time.Now()
	}
	p.mu.Unlock()

	typeURL := m.GetTypeUrl()
	if p.held[typeURL] == nil {
		p.held[typeURL], p.wanted[typeURL] = map[string]string{}, map[string]needs{}
	}
	for _, r := range m.GetResources() {
		p.held[typeURL][r.GetName()] = r.GetVersion()
		if p.floor {
			continue
		}
		want, err := p.needs.get(r.GetVersion(), r.GetResource())
		if err != nil {
			return fmt.Errorf("%s: %w", r.GetName(), err)
		}
		p.wanted[typeURL][r.GetName()] = want
	}
	for _, name := range m.GetRemovedResources() {
		delete(p.held[typeURL], name)
		delete(p.wanted[typeURL], name)
	}
	if err := p.follow(typeURL); err != nil {
		return err
	}
	p.warming = append(p.warming, m)
	if err := p.acknowledge(); err != nil {
		return err
	}
	p.check()
	return nil
}

// follow asks for what the resources of a type lead to and takes back what none
// leads to any more. Listeners are asked for when the first clusters are there.
func (p *proxy) follow(typeURL string) error {
	if p.floor || typeURL != xds.ClusterType && typeURL != xds.ListenerType {
		return nil
	}
	lead := map[string]map[string]bool{}
	for _, t := range []string{xds.ClusterType, xds.ListenerType} {
		for _, n := range p.wanted[t] {
			for to, names := range n {
				if lead[to] == nil {
					lead[to] = map[string]bool{}
				}
				for _, name := range names {
					lead[to][name] = true
				}
			}
		}
	}
	for _, to := range []string{xds.SecretType, xds.EndpointType, xds.ExtensionType, xds.RouteType} {
		var more, less []string
		for name := range lead[to] {
			if !p.asked[to][name] {
				more = append(more, name)
			}
		}
		for name := range p.asked[to] {
			if !lead[to][name] {
				less = append(less, name)
			}
		}
		if err := p.resubscribe(to, more, less); err != nil {
			return err
		}
	}
	if typeURL == xds.ClusterType && p.asked[xds.ListenerType] == nil {
		return p.ask(xds.ListenerType)
	}
	return nil
}

func (p *proxy) resubscribe(typeURL string, more, less []string) error {
	slices.Sort(more)
	slices.Sort(less)
	if len(less) > 0 {
		for _, name := range less {
			delete(p.asked[typeURL], name)
			delete(p.held[typeURL], name)
		}
		if err := p.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: typeURL, ResourceNamesUnsubscribe: less}); err != nil {
			return err
		}
	}
	if len(more) == 0 {
		return nil
	}
	return p.ask(typeURL, more...)
}

// acknowledge ACKs what may be: clusters wait for their endpoints.
func (p *proxy) acknowledge() error {
	var later []*discoveryv3.DeltaDiscoveryResponse
	for _, m := range p.warming {
		if m.GetTypeUrl() == xds.ClusterType && !p.has(xds.EndpointType) {
			later = append(later, m)
			continue
		}
		if err := p.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: m.GetTypeUrl(), ResponseNonce: m.GetNonce()}); err != nil {
			return err
		}
	}
	p.warming = later
	return nil
}

// has says whether all names of a type that were asked for are there.
func (p *proxy) has(typeURL string) bool {
	for name := range p.asked[typeURL] {
		if _, ok := p.held[typeURL][name]; !ok {
			return false
		}
	}
	return true
}

// check notes the moment at which everything is there for the first time.
func (p *proxy) check() {
	if p.complete {
		return
	}
	if p.floor {
		p.complete = len(p.held[xds.ClusterType]) > 0
	} else {
		p.complete = len(p.held[xds.ListenerType]) > 0 && len(p.warming) == 0
		for typeURL := range p.asked {
			p.complete = p.complete && p.has(typeURL)
		}
	}
	if p.complete {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.onDone != nil {
			p.onDone()
			p.onDone = nil
		}
	}
}
