package serve

import (
	"sync"

	"github.com/ztmesh/ztmesh/xds"
)

// endpoints is what every cluster resolves to, the same for all proxies in a zone.
type endpoints struct {
	mu    sync.RWMutex // guards the following
	known bool         // set was called
	all   map[string]*xds.Assignment
	none  map[string]*xds.Resource // made when asked for, for clusters that are not in all
}

// set replaces the endpoints of some clusters, nil for none, and returns those
// that changed, and whether it is the first call.
func (e *endpoints) set(clusters map[string]*xds.Assignment) (moved []string, first bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	first = !e.known
	if first {
		e.known, e.all, e.none = true, map[string]*xds.Assignment{}, map[string]*xds.Resource{}
	}
	for cluster, r := range clusters {
		old := e.all[cluster]
		switch {
		case r.Equal(old):
			continue
		case r == nil:
			delete(e.all, cluster)
		default:
			e.all[cluster] = r
			delete(e.none, cluster)
		}
		moved = append(moved, cluster)
	}
	return moved, first
}

// ready says whether endpoints are known at all.
func (e *endpoints) ready() bool {
	e.mu.RLock()
	defer e.mu.RUnlock()
	return e.known
}

// get returns the endpoints of a cluster that exists, for a proxy in a zone. An Envoy waits for the
// endpoints of a cluster before it goes on, so one without any has an empty
// resource rather than none.
func (e *endpoints) get(cluster, zone string) *xds.Resource {
	e.mu.RLock()
	r := e.none[cluster]
	if a := e.all[cluster]; a != nil {
		r = a.For(zone)
	}
	e.mu.RUnlock()
	if r != nil {
		return r
	}
	empty := xds.Endpoints(cluster, nil)
	e.mu.Lock()
	defer e.mu.Unlock()
	if a := e.all[cluster]; a != nil {
		return a.For(zone)
	}
	e.none[cluster] = empty
	return empty
}
