package xds

import (
	"fmt"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// HealthPath is the reserved path on which a proxy answers health checks of
// peers that its gate admits. It never reaches the application and no rule
// speaks of it.
const HealthPath = "/.well-known/ztmesh/health"

// EgressPort is where every proxy takes outbound HTTP calls of its workload,
// on the instance's egress address.
const EgressPort = 15001

// Config is the intermediate representation: everything that one workload's
// proxies are told, independent of the instance. It is a value: Build does not
// change it, and the order of its lists carries no meaning.
type Config struct {
	TrustDomain      string        `yaml:"trustDomain"`      // "shop.example"
	Workload         string        `yaml:"workload"`         // "shop/web"
	ID               string        `yaml:"id"`               // "spiffe://shop.example/ns/shop/sa/web"
	MaxConnectionAge time.Duration `yaml:"maxConnectionAge"` // bounds every inbound connection; > 0
	Inbound          []Inbound     `yaml:"inbound,omitempty"`
	Destinations     []Destination `yaml:"destinations,omitempty"`
	TCPCalls         []TCPCall     `yaml:"tcpCalls,omitempty"`
}

// Protocol is what a port speaks.
type Protocol string

// The protocols of a port. HTTP is HTTP/1.1 towards the application, HTTP2 and
// GRPC are HTTP/2; between proxies all three are HTTP/2.
const (
	HTTP  Protocol = "http"
	HTTP2 Protocol = "http2"
	GRPC  Protocol = "grpc"
	TCP   Protocol = "tcp"
)

// IsHTTP says whether requests of the port are judged one by one.
func (p Protocol) IsHTTP() bool { return p == HTTP || p == HTTP2 || p == GRPC }

// Inbound is one port that the workload serves.
type Inbound struct {
	Name     string      `yaml:"name"`            // the port's name, unique in the workload
	Port     uint32      `yaml:"port"`            // what peers dial
	Target   string      `yaml:"target"`          // the application: "127.0.0.1:8080"
	Protocol Protocol    `yaml:"protocol"`        //
	Hosts    []string    `yaml:"hosts,omitempty"` // the authorities it answers to, exact; HTTP only
	Gate     []GateEntry `yaml:"gate,omitempty"`  // who may connect at all; empty: nobody
	Rules    []Rule      `yaml:"rules,omitempty"` // what they may call; HTTP only
}

// GateEntry admits one identity while the runtime key is not closed. A key
// belongs to one (destination, source) pair for ever.
type GateEntry struct {
	ID  string `yaml:"id"`
	Key string `yaml:"key"`
}

// Rule allows a request if its caller, its method and its path match. Rules
// are a union: no order, no priority.
type Rule struct {
	Grant   string   `yaml:"grant"` // "shop/web-reads-orders": named in logs and answers
	Callers Callers  `yaml:"callers"`
	Methods []string `yaml:"methods,omitempty"` // nil: any, save CONNECT and TRACE
	Paths   []Path   `yaml:"paths,omitempty"`   // nil: any
}

// Callers is who a rule speaks of: a union of its fields, at least one of which
// is set.
type Callers struct {
	IDs      []string `yaml:"ids,omitempty"`      // exact identities
	Prefixes []string `yaml:"prefixes,omitempty"` // namespaces: "spiffe://shop.example/ns/shop/sa/"
	Any      bool     `yaml:"any,omitempty"`      // every identity of the trust domain
}

// Path is what a rule says of the path without its query.
type Path struct {
	Value string   `yaml:"value"`
	Kind  PathKind `yaml:"kind"`
}

// PathKind is how a Path's value is compared.
type PathKind string

// The kinds of Path.
const (
	Exact      PathKind = "exact"      // the value itself
	Rest       PathKind = "rest"       // "/a": /a, /a/ and all below it; "/" is everything
	OneSegment PathKind = "oneSegment" // "/pkg.S/": the value and exactly one non-empty segment
)

// Destination is one port of a service that the workload may call.
type Destination struct {
	Service  string   `yaml:"service"`           // "shop/orders"
	Port     string   `yaml:"port"`              // "http"
	ID       string   `yaml:"id"`                // the callee's identity, exact
	Protocol Protocol `yaml:"protocol"`          //
	Host     string   `yaml:"host"`              // "orders.shop.mesh": authority and SNI
	Aliases  []string `yaml:"aliases,omitempty"` // further authorities; HTTP only
	Number   uint32   `yaml:"number"`            // the port that the callee's proxies listen on
}

// Cluster is the name of the destination's cluster and of its endpoints.
func (d Destination) Cluster() string { return ClusterName(d.Service, d.Port) }

// TCPCall opens a port on the egress address that leads to one TCP port of a
// service. Without a matching Destination (no grant) there is no listener.
type TCPCall struct {
	LocalPort uint32 `yaml:"localPort"`
	Service   string `yaml:"service"` // "shop/db"
	Port      string `yaml:"port"`    // "pg"
}

// Instance is what tells one proxy of a workload from another.
type Instance struct {
	ID      string       `yaml:"id"`      // node.id; equals the instance id in its certificate
	Address string       `yaml:"address"` // where its Envoy listens for peers: an IP address
	Egress  string       `yaml:"egress"`  // where its Envoy listens for its workload: an IP address
	Secrets SecretSource `yaml:"secrets"`
}

// SecretSource is where a proxy takes its certificate and bundle from.
type SecretSource string

// The sources of secrets.
const (
	FromAgent SecretSource = "agent" // the agent's socket, static cluster AgentCluster
	FromADS   SecretSource = "ads"   // the control plane, on the ADS stream
)

// YAML renders the configuration for people and golden files.
func (c *Config) YAML() string {
	var b strings.Builder
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := enc.Encode(c); err != nil {
		return fmt.Sprintf("# %v\n", err) // unreachable: the types above always encode
	}
	return b.String()
}

// String is the YAML.
func (c *Config) String() string { return c.YAML() }
