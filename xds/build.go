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
// addresses that their listeners are bound to. It never changes, but see Share.
type Prepared struct {
	c         *Config
	secrets   SecretSource
	made      map[string]made // by the name of the part
	shared    Resources       // clusters, routes and extensions
	listeners []*unbound
	version   string // hash of the listeners
}

// made is what was made of a part of a configuration.
type made struct {
	resources []*Resource
	listeners []*unbound
}

// Prepare makes what is common to the proxies of c that take their certificate from
// secrets; For completes it for each. Its errors are those of Build.
func Prepare(c *Config, secrets SecretSource) (*Prepared, error) { return prepare(c, secrets, nil) }

// Again is what Prepare would make of c and the same secrets. Parts that have not changed
// are taken from p: a changed grant costs the callees what judges. So is the map of a type
// of which nothing has.
func (p *Prepared) Again(c *Config) (*Prepared, error) { return prepare(c, p.secrets, p) }

func prepare(c *Config, secrets SecretSource, was *Prepared) (*Prepared, error) {
	if err := c.Validate(); err != nil {
		return nil, fmt.Errorf("%s: %w", c.Workload, err)
	}
	p := &Prepared{c: c.sorted(), secrets: secrets, made: map[string]made{}}
	before := map[string]*Config{}
	if was != nil {
		for _, part := range parts(was.c) {
			before[part.name] = part.of
		}
	}
	all := &builder{out: Resources{}}
	for _, part := range parts(p.c) {
		var m made
		if of := before[part.name]; of != nil && reflect.DeepEqual(of, part.of) {
			m = was.made[part.name]
		} else {
			b := &builder{c: part.of, secrets: secrets, out: Resources{}}
			part.make(b)
			all.errs = append(all.errs, b.errs...)
			m = made{b.out.All(), b.listeners}
		}
		p.made[part.name] = m
		p.listeners = append(p.listeners, m.listeners...)
		for _, r := range m.resources {
			all.take(r)
		}
	}
	p.version = listenersVersion(p.listeners)
	shared, err := all.done()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.Workload, err)
	}
	if p.shared = *shared; was != nil {
		for typeURL, byName := range p.shared {
			if maps.EqualFunc(byName, was.shared[typeURL], sameVersion) {
				p.shared[typeURL] = was.shared[typeURL]
			}
		}
	}
	return p, nil
}

// Config is what it was made of, in canonical order.
func (p *Prepared) Config() *Config { return p.c }

func sameVersion(a, b *Resource) bool { return a.Version == b.Version }

// Share replaces what is in use elsewhere: one is called with each resource, and returns
// it, or an equal one. It is called before anybody else knows p. What p has taken from
// another that was shared is not asked about again.
func (p *Prepared) Share(one func(*Resource) *Resource) {
	for _, byName := range p.shared {
		for name, r := range byName {
			if same := one(r); same != r { // else others may read the map
				byName[name] = same
			}
		}
	}
	for _, m := range p.made {
		for n, r := range m.resources {
			if same := p.shared[r.Type][r.Name]; same != r {
				m.resources[n] = same
			}
		}
		for _, u := range m.listeners {
			if same := one(u.Resource); same != u.Resource {
				u.Resource = same
			}
		}
	}
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
		l, address := p.listeners[i], in.Address
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
