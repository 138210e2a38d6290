package xds

import (
	"cmp"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	runtimev3 "github.com/envoyproxy/go-control-plane/envoy/service/runtime/v3"
	"google.golang.org/protobuf/types/known/structpb"
)

// Build makes everything that one proxy is told, save endpoints, secrets and
// gates, which come from elsewhere and change on their own. It returns an error
// if the configuration or the instance is not valid; it never returns a part.
func Build(c *Config, in Instance) (*Resources, error) {
	p, err := Prepare(c, in.Secrets)
	if err != nil {
		return nil, err
	}
	r, err := p.For(in)
	if err != nil {
		return nil, err
	}
	for _, l := range (*r)[ListenerType] {
		l.Body, l.tail = l.Whole(), nil
	}
	return r, nil
}

// Prepared is what the proxies of one configuration have in common: all but the
// addresses that their listeners are bound to. It never changes.
type Prepared struct {
	c         *Config
	secrets   SecretSource
	shared    Resources // clusters, routes and extensions
	listeners []unbound
	version   string // hash of the listeners
	outbound  part
}

// part is what was made of a part of a configuration.
type part struct {
	resources []*Resource
	listeners []unbound
}

// Prepare makes what is common to the proxies of c that take their certificate from
// secrets; For completes it for each. Its errors are those of Build.
func Prepare(c *Config, secrets SecretSource) (*Prepared, error) { return prepare(c, secrets, nil) }

// Again is what Prepare would make of c and the same secrets. What leads outward is taken
// from p where that has not changed: a changed grant costs the callees what judges.
func (p *Prepared) Again(c *Config) (*Prepared, error) { return prepare(c, p.secrets, p) }

func prepare(c *Config, secrets SecretSource, was *Prepared) (*Prepared, error) {
	if err := c.Validate(); err != nil {
		return nil, fmt.Errorf("%s: %w", c.Workload, err)
	}
	b := &builder{c: c.sorted(), secrets: secrets, out: Resources{}}
	for i := range b.c.Inbound {
		port := &b.c.Inbound[i]
		b.addListener(b.inbound(port), port.Port, false)
		b.add(AppCluster(port.Name), b.app(port))
		b.extensionResource(GateName(b.c.Workload, port.Name), b.gate(port))
		b.judges(port)
	}
	for i := range b.c.Providers {
		if p := &b.c.Providers[i]; p.URI != "" {
			b.add(JWKSCluster(p.Name), b.keys(p))
		}
	}
	if b.c.Authorizer != nil {
		b.add(AuthorizerCluster, b.authorizer())
	}
	var out part
	if was != nil && reflect.DeepEqual(outward(b.c), outward(was.c)) {
		out = was.outbound
	} else {
		o := &builder{c: outward(b.c), secrets: secrets, out: Resources{}}
		o.outbound()
		b.errs = append(b.errs, o.errs...)
		out = part{o.out.All(), o.listeners}
	}
	for _, r := range out.resources {
		b.take(r)
	}
	p := &Prepared{c: b.c, secrets: secrets, outbound: out, listeners: append(b.listeners, out.listeners...)}
	p.version = listenersVersion(p.listeners)
	shared, err := b.done()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.Workload, err)
	}
	p.shared = *shared
	return p, nil
}

// outward is all of a configuration that says something of calls that leave.
func outward(c *Config) *Config {
	out := *c
	out.Inbound = nil
	return &out
}

// Listeners stands for the listeners, whatever they are bound to: equal for two that
// give equal listeners to an instance.
func (p *Prepared) Listeners() string { return p.version }

// For is everything that one of the proxies is told. What it has in common with the
// others is the same value, and most of its listeners' bytes (see Resource.Whole). The
// instance must take its certificate from where Prepare was told.
func (p *Prepared) For(in Instance) (*Resources, error) {
	if err := in.Validate(); err != nil {
		return nil, fmt.Errorf("%s: %w", p.c.Workload, err)
	}
	if in.Secrets != p.secrets {
		return nil, fmt.Errorf("%s: instance %s takes secrets from %q, not from %q", p.c.Workload, in.ID, in.Secrets, p.secrets)
	}
	b := &builder{out: Resources{}}
	for i := range p.listeners {
		l, address := &p.listeners[i], in.Address
		if l.outbound {
			address = in.Egress
		}
		r, err := l.bind(address)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p.c.Workload, err)
		}
		b.take(r)
	}
	own, err := b.done()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", p.c.Workload, err)
	}
	return p.With((*own)[ListenerType]), nil
}

// With is what a proxy is told whose listeners were made by For of an equal
// Listeners and the same instance.
func (p *Prepared) With(listeners map[string]*Resource) *Resources {
	out := maps.Clone(p.shared) // by type
	if len(listeners) > 0 {
		out[ListenerType] = listeners
	}
	return &out
}

// judges are the resources that judge requests, or connections, to a port.
func (b *builder) judges(in *Inbound) {
	w := b.c.Workload
	if !in.Protocol.IsHTTP() {
		b.extensionResource(TCPPolicyName(w, in.Name), b.tcpPolicy(in))
		return
	}
	b.extensionResource(BlockName(w, in.Name), b.block(in))
	if len(in.Plaintext) > 0 {
		b.extensionResource(PlaintextBlockName(w, in.Name), b.plaintextBlock(in))
	}
	b.extensionResource(TokensName(w, in.Name), b.tokens())
	b.extensionResource(UserBlockName(w, in.Name), b.userBlock(in))
	b.extensionResource(ShadowName(w, in.Name), b.shadow(in))
	b.extensionResource(PolicyName(w, in.Name), b.policy(in))
}

// outbound is what the workload calls.
func (b *builder) outbound() {
	b.addListener(b.outboundHTTP(), EgressPort, true)
	b.add(OutboundHTTP, b.outboundRoutes())
	b.egress()
	tcp := map[string]string{} // service and port → cluster
	for i := range b.c.Destinations {
		d := &b.c.Destinations[i]
		b.add(d.Cluster(), b.service(d))
		tcp[d.Service+" "+d.Port] = d.Cluster()
	}
	for i := range b.c.Egress {
		e := &b.c.Egress[i]
		for _, host := range e.Hosts {
			cluster := ExternalCluster(e.Service, host)
			b.add(cluster, b.external(cluster, origin{host: host, ca: e.CA, plaintext: e.Plaintext, protocol: e.Protocol}))
			if _, blocked := e.blocked(b.c); e.Protocol == TCP && !blocked {
				tcp[e.Service+" "+ExternalPort] = cluster
			}
		}
	}
	for _, t := range b.c.TCPCalls {
		if cluster, ok := tcp[t.Service+" "+t.Port]; ok {
			b.addListener(b.outboundTCP(t, cluster), t.LocalPort, true)
		}
	}
}

// Gates is the runtime layer that closes gates: each key's share of connections
// is 0. A key that is not named is open, so the layer holds closed keys only.
func Gates(closed []string) *Resource {
	fields := make(map[string]*structpb.Value, len(closed))
	for _, key := range closed {
		fields[key] = structpb.NewNumberValue(0)
	}
	return mustResource(GatesName, &runtimev3.Runtime{Name: GatesName, Layer: &structpb.Struct{Fields: fields}})
}

// sorted is a copy of c in canonical order, without duplicates in the lists that
// are sets.
func (c *Config) sorted() *Config {
	s := *c
	s.Inbound = slices.SortedFunc(slices.Values(c.Inbound), func(a, b Inbound) int { return strings.Compare(a.Name, b.Name) })
	for i := range s.Inbound {
		in := &s.Inbound[i]
		in.Hosts = set(in.Hosts)
		in.Rules = sortedRules(in.Rules)
		in.Blocks = sortedBlocks(in.Blocks)
		in.Shadow = in.Shadow.sorted()
	}
	s.Destinations = slices.SortedFunc(slices.Values(c.Destinations), func(a, b Destination) int {
		return strings.Compare(a.Cluster(), b.Cluster())
	})
	for i := range s.Destinations {
		d := &s.Destinations[i]
		d.Aliases, d.IDs, d.Upgrades = set(d.Aliases), set(d.IDs), set(d.Upgrades)
	}
	s.Egress = slices.SortedFunc(slices.Values(c.Egress), func(a, b Egress) int { return strings.Compare(a.Service, b.Service) })
	for i := range s.Egress {
		e := &s.Egress[i]
		e.Hosts, e.Rules = set(e.Hosts), sortedRules(e.Rules)
		e.Blocks, e.Shadow = sortedBlocks(e.Blocks), e.Shadow.sorted()
	}
	s.Providers = slices.SortedFunc(slices.Values(c.Providers), func(a, b Provider) int { return strings.Compare(a.Name, b.Name) })
	for i := range s.Providers {
		p := &s.Providers[i]
		p.Audiences = set(p.Audiences)
		p.Headers = slices.SortedFunc(slices.Values(p.Headers), func(a, b ClaimHeader) int { return strings.Compare(a.Header, b.Header) })
	}
	s.Aliases, s.Federated, s.Strip = set(c.Aliases), set(c.Federated), set(c.Strip)
	s.TCPCalls = slices.SortedFunc(slices.Values(c.TCPCalls), func(a, b TCPCall) int { return cmp.Compare(a.LocalPort, b.LocalPort) })
	return &s
}

func sortedEndpoints(eps []Endpoint) []Endpoint {
	s := slices.SortedFunc(slices.Values(eps), func(a, b Endpoint) int {
		return cmp.Or(strings.Compare(a.Zone, b.Zone), strings.Compare(a.Address, b.Address), cmp.Compare(a.Port, b.Port))
	})
	return slices.Compact(s)
}
