package serve

import (
	"context"

	"github.com/ztmesh/ztmesh/xds"
)

// inOrder is the types that are served, in the order in which one change is
// told: what closes, then what is led to, then what leads there.
var inOrder = [...]string{
	xds.RuntimeType, xds.ExtensionType, xds.SecretType,
	xds.ClusterType, xds.EndpointType, xds.ListenerType, xds.RouteType,
}

// typeLabel is the name of a type in metrics and logs; empty: it is not served.
func typeLabel(typeURL string) string {
	switch typeURL {
	case xds.ListenerType:
		return "listener"
	case xds.ClusterType:
		return "cluster"
	case xds.RouteType:
		return "route"
	case xds.EndpointType:
		return "endpoint"
	case xds.ExtensionType:
		return "extension"
	case xds.RuntimeType:
		return "runtime"
	case xds.SecretType:
		return "secret"
	}
	return ""
}

// maxOutstanding is how many responses of a type may wait for their ACK. Envoy
// withholds the ACK of CDS while a cluster warms, for ever if what the cluster
// needs does not come, so the update that repairs it must be able to overtake.
// Extensions go one to a response, each of another one: they follow each other
// without a round trip between them.
func maxOutstanding(typeURL string) int {
	switch typeURL {
	case xds.ClusterType:
		return 8
	case xds.ExtensionType:
		return 64
	}
	return 1
}

// desired is what a proxy should hold of one type. If endpoints is set, names
// are the clusters that may have some.
type desired struct {
	known     bool // false: not set yet, so that nothing may be said
	names     map[string]*xds.Resource
	endpoints *endpoints
	zone      string
}

// get returns the resource of that name, or nil if the proxy has none.
func (d desired) get(name string) *xds.Resource {
	r := d.names[name]
	if r == nil || d.endpoints == nil {
		return r
	}
	return d.endpoints.get(name, d.zone)
}

// desired is the one place that decides what a stream may see.
func (s *stream) desired(typeURL string, v *view) desired {
	switch typeURL {
	case xds.SecretType:
		return desired{known: v.secrets != nil, names: v.secrets}
	case xds.RuntimeType:
		return desired{known: v.gates != nil, names: v.gates}
	}
	if v.target == nil {
		return desired{}
	}
	if typeURL == xds.EndpointType {
		e := &s.fleet.endpoints
		return desired{known: e.ready(), names: (*v.target)[xds.ClusterType], endpoints: e, zone: v.zone}
	}
	return desired{known: true, names: (*v.target)[typeURL]}
}

// mayAdd holds listeners and routes back until the clusters they lead to are
// ACKed. An Envoy ACKs clusters when they are warm. One that it refuses holds nothing
// back: what leads there goes on as before or fails, and all else is not concerned.
// Nothing else waits.
func (s *stream) mayAdd(typeURL string, v *view) bool {
	switch typeURL {
	case xds.ListenerType, xds.RouteType:
		return s.settled(xds.ClusterType, v, additions)
	}
	return true
}

// mayRemove holds the removal of clusters back until the listeners and routes
// that no longer lead to them are ACKed. Endpoints are never removed: they go
// with their cluster.
func (s *stream) mayRemove(typeURL string, v *view) bool {
	switch typeURL {
	case xds.ClusterType:
		return s.settled(xds.ListenerType, v, everything) && s.settled(xds.RouteType, v, everything)
	case xds.EndpointType:
		return false
	}
	return true
}

// waiting are the types that may wait for an ACK of this one.
func waiting(typeURL string) []string {
	switch typeURL {
	case xds.ClusterType:
		return []string{xds.ListenerType, xds.RouteType}
	case xds.ListenerType, xds.RouteType:
		return []string{xds.ClusterType}
	}
	return nil
}

// repeatEndpoints has the endpoints of clusters that are being sent follow
// them. An Envoy that rebuilds a cluster waits for its endpoints and does not
// ask again.
func (s *stream) repeatEndpoints(clusters *response) {
	w := s.watches[xds.EndpointType]
	if w == nil {
		return
	}
	for _, r := range clusters.resources {
		if e := w.known[r.Name]; e != nil {
			e.sent = ""
		}
	}
	s.wake(xds.EndpointType)
}

// extent is how much of a type settled looks at.
type extent int

const (
	additions  extent = iota // what should be there is, or was refused
	everything               // and nothing else
)

// settled says whether the client has ACKed a whole type of a view.
func (s *stream) settled(typeURL string, v *view, x extent) bool {
	d, w := s.desired(typeURL, v), s.watches[typeURL]
	if !d.known {
		return false
	}
	if w == nil {
		return len(d.names) == 0
	}
	for name, r := range d.names {
		e := w.known[name]
		refused := x == additions && e != nil && e.nack != nil && e.nack.Version == r.Version
		if e == nil || e.acked != r.Version && !refused {
			return false
		}
	}
	if x == additions {
		return true
	}
	return len(w.outstanding) == 0 && w.holdsNothingElse(d)
}

// holdsNothingElse says whether every removal was sent.
func (w *watch) holdsNothingElse(d desired) bool {
	for name, e := range w.known {
		if e.had && d.names[name] == nil {
			return false
		}
	}
	return true
}

// holds says whether the whole view was sent on this stream, and whether the
// client has ACKed all of it.
func (s *stream) holds(v *view) (sent, acked bool) {
	if v.target == nil {
		return false, false
	}
	sent, acked = true, true
	check := func(w *watch, name, version string) {
		var e entry
		if w != nil && w.known[name] != nil {
			e = *w.known[name]
		}
		sent = sent && e.sent == version
		acked = acked && e.acked == version
	}
	for _, typeURL := range []string{xds.ExtensionType, xds.ClusterType, xds.ListenerType, xds.RouteType, xds.RuntimeType} {
		d, w := s.desired(typeURL, v), s.watches[typeURL]
		for name, r := range d.names {
			check(w, name, r.Version)
			if !sent && !acked {
				return false, false
			}
		}
		if w != nil && !w.holdsNothingElse(d) {
			return false, false
		}
	}
	// Of these, a proxy holds what its clusters and listeners made it ask for.
	for _, typeURL := range []string{xds.EndpointType, xds.SecretType} {
		w := s.watches[typeURL]
		if w == nil {
			continue
		}
		d := s.desired(typeURL, v)
		for name := range w.sub.SubscribedResources() {
			switch r := d.get(name); {
			case r != nil:
				check(w, name, r.Version)
			case typeURL == xds.SecretType:
				return false, false // it asks for what it has not got
			}
		}
	}
	for _, w := range s.watches {
		acked = acked && len(w.outstanding) == 0
	}
	return sent, acked
}

// foreign counts a name that is not the proxy's.
func (f *Fleet) foreign(ctx context.Context, instance, typeURL, name string) {
	f.cfg.OnForeign(ctx, instance, typeURL, name)
	f.metrics.foreign.WithLabelValues(typeLabel(typeURL)).Inc()
	f.warn("proxy asked for a name that is not its own", "instance", instance, "type", typeLabel(typeURL))
}
