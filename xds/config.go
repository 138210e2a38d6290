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

	// Aliases are former names of the trust domain. An identity of an alias stands
	// in IDs and Prefixes of its own right.
	Aliases []string `yaml:"aliases,omitempty"`
	// Federated are the foreign trust domains whose identities may stand in gates
	// and rules.
	Federated []string `yaml:"federated,omitempty"`
	// Providers are those that verify tokens on every HTTP port of the workload,
	// sorted by name. Empty: tokens are not read.
	Providers []Provider `yaml:"providers,omitempty"`
	// Strip are the headers, in lower case, that are taken from every request of a
	// peer, since a provider forwards verified claims in them.
	Strip []string `yaml:"strip,omitempty"`
	// Authorizer is asked after a rule has allowed; nil: nobody.
	Authorizer *Authorizer `yaml:"authorizer,omitempty"`
	// Egress are the external destinations that some rule lets it call.
	Egress []Egress `yaml:"egress,omitempty"`
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
	Rules    []Rule      `yaml:"rules,omitempty"` // what they may call; of TCP, callers and Conditions only

	Blocks       []Block     `yaml:"blocks,omitempty"`       // over every rule
	Shadow       *Shadow     `yaml:"shadow,omitempty"`       // nil: no verdict would differ
	Upgrades     []string    `yaml:"upgrades,omitempty"`     // only "websocket"; HTTP only
	ServerFirst  bool        `yaml:"serverFirst,omitempty"`  // TCP only: who may connect is judged in the handshake
	EncodedPaths bool        `yaml:"encodedPaths,omitempty"` // the strict guard of paths is off
	Plaintext    []Plaintext `yaml:"plaintext,omitempty"`    // Exceptions

	// HealthPath is where the proxy asks its application whether it is ready; HTTP and
	// HTTP2 only. Empty: it is as ready as its proxy.
	HealthPath string `yaml:"healthPath,omitempty"`
}

// Shadow is the policy that would be: all its rules, not the difference.
type Shadow struct {
	Rules []Rule `yaml:"rules,omitempty"`
}

// Block denies the callers, or the users, that it names; with neither, everybody.
type Block struct {
	Name    string   `yaml:"name"` // "shop/web-is-compromised": named in logs and answers
	Callers *Callers `yaml:"callers,omitempty"`
	Users   *Users   `yaml:"users,omitempty"` // HTTP only; of one provider
}

// Plaintext lets peers of an address range connect without TLS and call anything.
type Plaintext struct {
	Exception string    `yaml:"exception"` // "shop/old-scraper"
	CIDRs     []string  `yaml:"cidrs"`     // canonical prefixes
	Until     time.Time `yaml:"until"`     // half-open; UTC
}

// Provider verifies tokens (JWT, RFC 7519).
type Provider struct {
	Name      string        `yaml:"name"` // a DNS label
	Issuer    string        `yaml:"issuer"`
	Audiences []string      `yaml:"audiences"`
	Inline    string        `yaml:"inline,omitempty"` // the JWK Set
	URI       string        `yaml:"uri,omitempty"`    // or where it is fetched
	CA        string        `yaml:"ca,omitempty"`     // PEM; empty: public roots of the proxy's host
	ClockSkew time.Duration `yaml:"clockSkew"`
	Enforced  bool          `yaml:"enforced,omitempty"` // a token that does not verify denies; false: only shadow rules name it
	KeepToken bool          `yaml:"keepToken,omitempty"`
	Headers   []ClaimHeader `yaml:"headers,omitempty"`
}

// ClaimHeader carries a verified claim to the application.
type ClaimHeader struct {
	Header string   `yaml:"header"` // lower case
	Path   []string `yaml:"path"`
}

// Authorizer is an external authorizer (envoy.service.auth.v3).
type Authorizer struct {
	Target       string        `yaml:"target"` // a loopback address and port, or unix:/path
	Timeout      time.Duration `yaml:"timeout"`
	MaxBodyBytes uint32        `yaml:"maxBodyBytes,omitempty"`
	Headers      []string      `yaml:"headers,omitempty"` // lower case; that it may set
}

// Egress is one external destination. Its rules are judged here, in the caller's
// own proxy; their Callers all are the workload itself.
type Egress struct {
	Service   string   `yaml:"service"` // "shop/stripe"
	Hosts     []string `yaml:"hosts"`   // exact; lower case
	Port      uint32   `yaml:"port"`
	Protocol  Protocol `yaml:"protocol"`
	CA        string   `yaml:"ca,omitempty"`        // PEM; empty: public roots of the proxy's host
	Plaintext bool     `yaml:"plaintext,omitempty"` // no TLS, by an Exception
	Rules     []Rule   `yaml:"rules,omitempty"`     // HTTP only
	Blocks    []Block  `yaml:"blocks,omitempty"`
	Shadow    *Shadow  `yaml:"shadow,omitempty"`
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

	// Upgrades nil: the rule is for requests that are no upgrade, else for upgrades
	// to one of these, and for them alone.
	Upgrades []string `yaml:"upgrades,omitempty"`
	// Conditions must all hold.
	Conditions `yaml:",inline"`
}

// Conditions narrow a rule. The zero value is none.
type Conditions struct {
	Users   *Users    `yaml:"users,omitempty"`
	Headers []Header  `yaml:"headers,omitempty"`
	Windows []Window  `yaml:"windows,omitempty"` // one of these; nil: always
	Until   time.Time `yaml:"until,omitempty"`   // half-open; UTC; zero: no end
	Sources []string  `yaml:"sources,omitempty"` // the TCP peer is in one of these prefixes; nil: any
	CEL     string    `yaml:"cel,omitempty"`     // is true; what errs is not
}

// Users is which verified tokens match: all of its claims do.
type Users struct {
	Provider string        `yaml:"provider"`
	Claims   []Claim       `yaml:"claims,omitempty"`
	MaxAge   time.Duration `yaml:"maxAge,omitempty"` // of auth_time; 0: any
}

// Claim is one claim and its accepted values. A claim of another kind does not
// match.
type Claim struct {
	Path   []string  `yaml:"path"`
	Kind   ClaimKind `yaml:"kind"`
	Values []string  `yaml:"values"` // one of these; booleans are "true" and "false"
}

// ClaimKind is the JSON type of a claim.
type ClaimKind string

// The kinds of claims. StringClaim is equality and costs nothing per rule;
// ListClaim is membership in a list of strings.
const (
	StringClaim  ClaimKind = "string"
	ListClaim    ClaimKind = "list"
	BooleanClaim ClaimKind = "boolean"
)

// Header is one request header and its accepted values.
type Header struct {
	Name   string   `yaml:"name"` // lower case
	Values []string `yaml:"values"`
}

// Window is a recurring span of local time, half-open. Where End is not after
// Start it crosses midnight.
type Window struct {
	Zone  string         `yaml:"zone"`           // IANA
	Days  []time.Weekday `yaml:"days,omitempty"` // on which it starts; nil: all
	Start int            `yaml:"start"`          // minutes from midnight
	End   int            `yaml:"end"`            // minutes; 1440 is midnight
}

// Callers is who a rule speaks of: a union of its fields, at least one of which
// is set.
type Callers struct {
	IDs      []string `yaml:"ids,omitempty"`      // exact identities
	Prefixes []string `yaml:"prefixes,omitempty"` // namespaces: "spiffe://shop.example/ns/shop/sa/"
	Any      bool     `yaml:"any,omitempty"`      // every identity of the trust domain and its aliases
	Domains  []string `yaml:"domains,omitempty"`  // every identity of these trust domains; of Blocks only
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
	Pattern    PathKind = "pattern"    // "/a/*/c": "*" is one non-empty segment; a last "**" is any rest
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

	IDs         []string `yaml:"ids,omitempty"`         // of a Service of several workloads: all their identities; ID is empty then
	Upgrades    []string `yaml:"upgrades,omitempty"`    // only "websocket"
	ServerFirst bool     `yaml:"serverFirst,omitempty"` // TCP
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
