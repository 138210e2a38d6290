package controlplane

import (
	"weak"

	"github.com/ztmesh/ztmesh/xds"
)

// pool makes what proxies have in common one value: a resource that is equal to
// one in use somewhere is replaced by it. It keeps nothing alive.
type pool struct {
	held  map[string]weak.Pointer[xds.Resource] // by type, name and version
	sweep int                                   // at this size the dead are dropped
}

func newPool() *pool {
	return &pool{held: map[string]weak.Pointer[xds.Resource]{}, sweep: 1024}
}

// share replaces what is in use elsewhere. It is called before anybody else
// knows r.
func (p *pool) share(r *xds.Resources) {
	for _, byName := range *r {
		for name, res := range byName {
			key := res.Type + "\x00" + name + "\x00" + res.Version
			if had := p.held[key].Value(); had != nil {
				byName[name] = had
				continue
			}
			p.held[key] = weak.Make(res)
		}
	}
	if len(p.held) < p.sweep {
		return
	}
	for key, w := range p.held {
		if w.Value() == nil {
			delete(p.held, key)
		}
	}
	p.sweep = max(1024, 2*len(p.held))
}
