package controlplane

import (
	"weak"

	"github.com/ztmesh/ztmesh/xds"
)

// pool makes what proxies have in common one value: a resource that is equal to
// one in use somewhere is replaced by it. It keeps nothing alive.
type pool struct {
	held  map[pooled]weak.Pointer[xds.Resource]
	sweep int // at this size the dead are dropped
}

// pooled is what equal resources have in common.
type pooled struct{ typeURL, name, version string }

func newPool() *pool {
	return &pool{held: map[pooled]weak.Pointer[xds.Resource]{}, sweep: 1024}
}

// one is the value that stands for r from now on.
func (p *pool) one(r *xds.Resource) *xds.Resource {
	key := pooled{r.Type, r.Name, r.Version}
	if had := p.held[key].Value(); had != nil {
		return had
	}
	p.held[key] = weak.Make(r)
	if len(p.held) >= p.sweep {
		for key, w := range p.held {
			if w.Value() == nil {
				delete(p.held, key)
			}
		}
		p.sweep = max(1024, 2*len(p.held))
	}
	return r
}
