package controlplane

import (
	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
	"github.com/ztmesh/ztmesh/xds"
)

// configuration is what the proxies of one workload are told, made once for all of
// them; only where listeners are bound differs from one to the other.
type configuration struct {
	*xds.Config                                    // in canonical order once something was prepared
	prepared    map[xds.SecretSource]*xds.Prepared // made when the first proxy needs it
	shared      map[xds.SecretSource]bool          // those of which the pool knows
}

func newConfiguration(c *xds.Config) *configuration {
	return &configuration{Config: c, prepared: map[xds.SecretSource]*xds.Prepared{}, shared: map[xds.SecretSource]bool{}}
}

// again is the configuration of the same workload by which c is replaced, as far as c was
// prepared. It may be called beside others.
func (c *configuration) again(by *xds.Config) (*configuration, error) {
	next := newConfiguration(by)
	for source, p := range c.prepared {
		var err error
		if next.prepared[source], err = p.Again(by); err != nil {
			return nil, err
		}
		next.Config = next.prepared[source].Config()
	}
	return next, nil
}

// bound is the listeners that an instance has been told, and what they were made of.
type bound struct {
	version   string // Prepared.Listeners, and the addresses
	listeners map[string]*xds.Resource
}

// build is what an instance is told. Listeners that it has are taken again where they
// would come out the same; had is left as it is.
func (c *configuration) build(i *logv1.Instance, had bound, shared *pool) (*xds.Resources, bound, error) {
	source := xds.FromADS
	if i.Agent {
		source = xds.FromAgent
	}
	p := c.prepared[source]
	if p == nil {
		var err error
		if p, err = xds.Prepare(c.Config, source); err != nil {
			return nil, had, err
		}
		c.prepared[source] = p
		c.Config = p.Config()
	}
	if !c.shared[source] { // before anybody else knows it
		p.Share(shared.one)
		c.shared[source] = true
	}
	version := p.Listeners() + " " + i.Address + " " + i.EgressAddress
	if had.version == version {
		return p.With(had.listeners), had, nil
	}
	built, err := p.For(xds.Instance{ID: i.Id, Address: i.Address, Egress: i.EgressAddress, Secrets: source})
	if err != nil {
		return nil, had, err
	}
	listeners := (*built)[xds.ListenerType]
	for name, l := range listeners { // of which many are bound to the same address
		listeners[name] = shared.one(l)
	}
	return built, bound{version, listeners}, nil
}
