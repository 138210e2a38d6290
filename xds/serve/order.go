package serve

import (
	"context"
	"maps"

	"github.com/ztmesh/ztmesh/xds"
)

// inOrder is the types that are served, in the order in which one change is
// told: what closes, then what is led to, then what leads there.
var inOrder = [...]string{
	xds.RuntimeType, xds.ExtensionType, xds.SecretType,
	xds.ClusterType, xds.EndpointType, xds.ListenerType, xds.RouteType,
}

// indexOf is the place of a type that is served in inOrder, and where else there is one
// of something for each type.
func indexOf(typeURL string) int {
	switch typeURL {
	case xds.RuntimeType:
		return 0
	case xds.ExtensionType:
		return 1
	case xds.SecretType:
		return 2
	case xds.ClusterType:
		return 3
	case xds.EndpointType:
		return 4
	case xds.ListenerType:
		return 5
	case xds.RouteType:
		return 6
	}
	panic("serve: " + typeURL + " is not served")
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
	if !d.known {
		return nil
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
	w := s.watches[indexOf(xds.EndpointType)]
	if w == nil {
		return
	}
	for _, r := range clusters.resources {
		if w.known.has(r.Name) {
			w.known.own(r.Name).sent = ""
			w.said, w.stand = 0, standing{}
		}
	}
	s.wakeHeldBack(xds.EndpointType)
}

// extent is how much of a type settled looks at.
type extent int

const (
	additions  extent = iota // what should be there is, or was refused
	everything               // and nothing else
)

// settled says whether the client has ACKed a whole type of a view.
func (s *stream) settled(typeURL string, v *view, x extent) bool {
	d, w := s.desired(typeURL, v), s.watches[indexOf(typeURL)]
	switch {
	case !d.known:
		return false
	case w == nil:
		return len(d.names) == 0
	}
	stand := w.standing(v)
	if x == additions {
		return stand.added
	}
	return stand.acked && stand.alone && len(w.outstanding) == 0
}

// standing is how far the client is with one type.
type standing struct {
	at    uint64 // of which state of the type (view.at); 0: of none
	sent  bool   // all of it was sent
	acked bool   // all of it is ACKed
	added bool   // all of it is ACKed, or was refused in this version
	alone bool   // it holds nothing else: every removal was sent
}

// standing is worked out again only when something has changed since: what is said at
// every ACK is to cost what was ACKed.
func (w *watch) standing(v *view) standing {
	at := v.at[indexOf(w.typeURL)]
	if w.stand.at == at {
		return w.stand
	}
	d := w.stream.desired(w.typeURL, v)
	stand := standing{at: at, sent: true, acked: true, added: true, alone: true}
	check := func(name, version string) {
		e, known := w.known.get(name)
		if !known {
			stand.sent, stand.acked, stand.added = false, false, false
			return
		}
		stand.sent = stand.sent && e.sent == version
		stand.acked = stand.acked && e.acked == version
		stand.added = stand.added && (e.acked == version || e.nack != nil && e.nack.Version == version)
	}
	switch w.typeURL {
	case xds.EndpointType, xds.SecretType:
		// Of these, a proxy holds what its clusters and listeners made it ask for.
		for name := range w.subscribed.each() {
			if r := d.get(name); r != nil {
				check(name, r.Version)
			} else if w.typeURL == xds.SecretType || !d.known {
				stand.alone = false // it asks for what it has not got
			}
		}
	default:
		look := maps.Keys(d.names)
		if sameMap(w.known.rest, d.names) {
			look = maps.Keys(w.known.moved)
		}
		for name := range look {
			if r := d.names[name]; r != nil {
				check(name, r.Version)
			}
		}
		for name, e := range w.known.others(d.names) {
			stand.alone = stand.alone && (!e.had || d.names[name] != nil)
		}
	}
	if stand.sent && stand.acked && len(w.outstanding) == 0 && w.typeURL != xds.EndpointType {
		w.known.settle(d.names)
		w.subscribed.settle(d.names)
	}
	w.stand = stand
	return stand
}

// holds says whether the whole view was sent on this stream, and whether the
// client has ACKed all of it.
func (s *stream) holds(v *view) (sent, acked bool) {
	if v.target == nil {
		return false, false
	}
	sent, acked = true, true
	for i, w := range s.watches {
		typeURL := inOrder[i]
		if w == nil {
			if typeURL != xds.EndpointType && typeURL != xds.SecretType && len(s.desired(typeURL, v).names) > 0 {
				return false, false
			}
			continue
		}
		stand := w.standing(v)
		sent = sent && stand.sent && stand.alone
		acked = acked && stand.acked && stand.alone && len(w.outstanding) == 0
	}
	return sent, acked
}

// foreign counts a name that is not the proxy's.
func (f *Fleet) foreign(ctx context.Context, instance, typeURL, name string) {
	f.cfg.OnForeign(ctx, instance, typeURL, name)
	f.metrics.foreign.WithLabelValues(typeLabel(typeURL)).Inc()
	f.warn("proxy asked for a name that is not its own", "instance", instance, "type", typeLabel(typeURL))
}
