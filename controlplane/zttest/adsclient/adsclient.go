// Package adsclient is a small delta xDS client for tests: it says what it is
// told to say, ACKs and NACKs when it is told to, and remembers what it ACKed,
// so that it can come back as an Envoy does. It knows nothing of resources but
// their names and versions.
//
// A Client belongs to one goroutine.
package adsclient

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretservicev3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
)

// Client is one delta stream.
type Client struct {
	stream grpc.BidiStreamingClient[discoveryv3.DeltaDiscoveryRequest, discoveryv3.DeltaDiscoveryResponse]
	node   *corev3.Node // sent with the first request
	held   map[string]map[string]string
}

// Open opens an ADS stream that says it is node.
func Open(ctx context.Context, conn grpc.ClientConnInterface, node string) (*Client, error) {
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	return newClient(stream, node), err
}

// OpenSecrets opens an SDS stream that says it is node.
func OpenSecrets(ctx context.Context, conn grpc.ClientConnInterface, node string) (*Client, error) {
	stream, err := secretservicev3.NewSecretDiscoveryServiceClient(conn).DeltaSecrets(ctx)
	return newClient(stream, node), err
}

func newClient(stream grpc.BidiStreamingClient[discoveryv3.DeltaDiscoveryRequest, discoveryv3.DeltaDiscoveryResponse], node string) *Client {
	return &Client{stream: stream, node: &corev3.Node{Id: node}, held: map[string]map[string]string{}}
}

// Send sends a request as it is, with the node if it is the first.
func (c *Client) Send(r *discoveryv3.DeltaDiscoveryRequest) error {
	if c.node != nil {
		r.Node, c.node = c.node, nil
	}
	return c.stream.Send(r)
}

// Subscribe asks for names of a type; without names, the first time, for all.
func (c *Client) Subscribe(typeURL string, names ...string) error {
	return c.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: typeURL, ResourceNamesSubscribe: names})
}

// Resume is Subscribe on a new stream by a client that holds versions already.
func (c *Client) Resume(typeURL string, versions map[string]string, names ...string) error {
	c.held[typeURL] = maps.Clone(versions)
	return c.Send(&discoveryv3.DeltaDiscoveryRequest{
		TypeUrl: typeURL, ResourceNamesSubscribe: names, InitialResourceVersions: versions,
	})
}

// Unsubscribe takes names back and forgets what it held of them.
func (c *Client) Unsubscribe(typeURL string, names ...string) error {
	for _, name := range names {
		delete(c.held[typeURL], name)
	}
	return c.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: typeURL, ResourceNamesUnsubscribe: names})
}

// Recv returns the next response. It neither ACKs nor keeps it.
func (c *Client) Recv() (*discoveryv3.DeltaDiscoveryResponse, error) { return c.stream.Recv() }

// Ack accepts a response and keeps what it says.
func (c *Client) Ack(m *discoveryv3.DeltaDiscoveryResponse) error {
	held := c.held[m.GetTypeUrl()]
	if held == nil {
		held = map[string]string{}
		c.held[m.GetTypeUrl()] = held
	}
	for _, r := range m.GetResources() {
		held[r.GetName()] = r.GetVersion()
	}
	for _, name := range m.GetRemovedResources() {
		delete(held, name)
	}
	return c.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: m.GetTypeUrl(), ResponseNonce: m.GetNonce()})
}

// Nack refuses a response.
func (c *Client) Nack(m *discoveryv3.DeltaDiscoveryResponse, message string) error {
	return c.Send(&discoveryv3.DeltaDiscoveryRequest{
		TypeUrl: m.GetTypeUrl(), ResponseNonce: m.GetNonce(),
		ErrorDetail: &statuspb.Status{Code: int32(codes.Internal), Message: message},
	})
}

// Versions returns what it ACKed and still holds of a type: name → version.
func (c *Client) Versions(typeURL string) map[string]string { return maps.Clone(c.held[typeURL]) }

// Close ends the stream from this side and waits until the server has ended it.
// It returns what the server ended it with: io.EOF for OK.
func (c *Client) Close() error {
	if err := c.stream.CloseSend(); err != nil {
		return err
	}
	for {
		if _, err := c.stream.Recv(); err != nil {
			return err
		}
	}
}

// Says writes a response on one line: "+name@version" and "-name", sorted.
func Says(m *discoveryv3.DeltaDiscoveryResponse) string {
	var words []string
	for _, r := range m.GetResources() {
		words = append(words, fmt.Sprintf("+%s@%s", r.GetName(), r.GetVersion()))
	}
	for _, name := range m.GetRemovedResources() {
		words = append(words, "-"+name)
	}
	slices.Sort(words)
	if len(words) == 0 {
		return "nothing"
	}
	return strings.Join(words, " ")
}
