package serve

import (
	"sync"

	"github.com/ztmesh/ztmesh/xds"
)

// endpoints is what every cluster resolves to, the same for all proxies.
type endpoints struct {
	mu    sync.RWMutex // guards the following
	known bool         // set was called
	all   map[string]*xds.Resource
	none  map[string]*xds.Resource // made when asked for, for clusters that are not in all
}

// set replaces the endpoints of some clusters, nil for none, and returns those
// that changed, and whether it is the first call.
func (e *endpoints) set(clusters map[string]*xds.Resource) (moved []string, first bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	first = !e.known
	if first {
		e.known, e.all, e.none = true, map[string]*xds.Resource{}, map[string]*xds.Resource{}
	}
	for cluster, r := range clusters {
		old := e.all[cluster]
		switch {
		case r == nil && old == nil, r != nil && old != nil && r.Version == old.Version:
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

// get returns the endpoints of a cluster that exists. An Envoy waits for the
// endpoints of a cluster before it goes on, so one without any has an empty
// resource rather than none.
func (e *endpoints) get(cluster string) *xds.Resource {
	e.mu.RLock()
	r := e.all[cluster]
	if r == nil {
		r = e.none[cluster]
	}
	e.mu.RUnlock()
	if r != nil {
		return r
	}
	empty := xds.Endpoints(cluster, nil)
	e.mu.Lock()
	defer e.mu.Unlock()
	if r := e.all[cluster]; r != nil {
		return r
	}
	e.none[cluster] = empty
	return empty
}
