package serve

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strconv"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"

	"github.com/ztmesh/ztmesh/xds"
)

// watch is one type on one stream: what is asked for, what was sent, what is
// ACKed. It is also the token that wakes the stream: a cache.DeltaResponse that
// works out what it says when it is taken. Except where noted, its fields
// belong to the stream's goroutine.
type watch struct {
	stream  *stream
	typeURL string
	request *discoveryv3.DeltaDiscoveryRequest // names the type, for the server

	sub         cache.Subscription
	known       map[string]*entry    // by name; what is not subscribed to is not here
	outstanding map[string]*response // by nonce: sent, neither ACKed nor NACKed
	answered    bool                 // the client knows of a first answer

	out    chan cache.DeltaResponse // guarded by proxy.mu; nil between watches
	queued bool                     // guarded by proxy.mu: a token is in out
}

// entry is one resource that the client has, was sent, or asked for.
type entry struct {
	sent   string // version sent last; empty: none, or to be sent again
	acked  string // version that the client holds; empty: none
	absent bool   // it was answered that there is none
	had    bool   // the client was sent it or said that it holds it
	alone  bool   // a response with it and others was NACKed: send it by itself
	nack   *Nack  // the newest answer was this; nil: it was an ACK
}

// response is what one response says, and of which view.
type response struct {
	view      *view
	resources []*xds.Resource
	removed   []string
}

// newWatch begins a type. What the client says it holds counts as ACKed: it is
// the client's own word, as an ACK is, and versions are hashes of contents.
func newWatch(s *stream, typeURL string, sub cache.Subscription) *watch {
	w := &watch{
		stream:      s,
		typeURL:     typeURL,
		request:     &discoveryv3.DeltaDiscoveryRequest{TypeUrl: typeURL},
		sub:         sub,
		known:       map[string]*entry{},
		outstanding: map[string]*response{},
		answered:    !sub.IsWildcard(),
	}
	for name, version := range sub.ReturnedResources() {
		if w.asksFor(name) {
			w.known[name] = &entry{sent: version, acked: version, had: true}
			w.answered = true
		}
	}
	return w
}

// subscribe takes a later request. A name that is subscribed to again is wanted
// again: that is how an Envoy asks for what it has dropped.
func (w *watch) subscribe(r *cache.DeltaRequest, sub cache.Subscription) {
	w.sub = sub
	for _, name := range r.GetResourceNamesUnsubscribe() {
		delete(w.known, name)
	}
	for _, name := range r.GetResourceNamesSubscribe() {
		if e := w.known[name]; e != nil {
			e.sent, e.absent = "", false
		}
	}
}

func (w *watch) asksFor(name string) bool {
	if w.sub.IsWildcard() {
		return true
	}
	_, ok := w.sub.SubscribedResources()[name]
	return ok
}

// wakeLocked leaves a token. The channel has room for two per type that the
// server knows, so it does not block. proxy.mu is held.
func (w *watch) wakeLocked() {
	if w.out != nil && !w.queued {
		w.queued = true
		w.out <- w
	}
}

// cancel is called by the server before each new request of the type and at the
// end of the stream, before it closes the channel.
func (w *watch) cancel() {
	p := w.stream.proxy
	p.mu.Lock()
	defer p.mu.Unlock()
	w.out = nil
}

// GetDeltaDiscoveryResponse is part of cache.DeltaResponse: the token is taken.
// If there is nothing to say, the stream's Send drops the empty response.
func (w *watch) GetDeltaDiscoveryResponse() (*discoveryv3.DeltaDiscoveryResponse, error) {
	if err := w.stream.fleet.admission.turn(w.stream.ctx); err != nil {
		return nil, err
	}
	p := w.stream.proxy
	p.mu.Lock()
	w.queued = false
	v := p.view
	p.mu.Unlock()

	next := w.next(v)
	w.stream.current = next
	if next == nil {
		w.stream.report(v)
		w.stream.fleet.admission.done()
		return &discoveryv3.DeltaDiscoveryResponse{TypeUrl: w.typeURL}, nil
	}
	m := &discoveryv3.DeltaDiscoveryResponse{
		TypeUrl:           w.typeURL,
		SystemVersionInfo: w.systemVersion(next),
		ControlPlane:      w.stream.fleet.identity,
		RemovedResources:  next.removed,
		Resources:         make([]*discoveryv3.Resource, 0, len(next.resources)),
	}
	for _, r := range next.resources {
		m.Resources = append(m.Resources, &discoveryv3.Resource{Name: r.Name, Version: r.Version, Resource: r.Body})
	}
	return m, nil
}

// systemVersion is what an Envoy shows of a response as a whole. Of extensions and
// runtime layers it shows nothing else, and a response is about one of them: so it is
// the version of that one.
func (w *watch) systemVersion(r *response) string {
	if len(r.resources) == 1 && (w.typeURL == xds.ExtensionType || w.typeURL == xds.RuntimeType) {
		return r.resources[0].Version
	}
	return strconv.FormatUint(w.stream.fleet.revision.Load(), 10)
}

// GetDeltaRequest is part of cache.DeltaResponse.
func (w *watch) GetDeltaRequest() *discoveryv3.DeltaDiscoveryRequest { return w.request }

// GetReturnedResources is part of cache.DeltaResponse. The watch keeps its own
// account, so the server's stays empty.
func (w *watch) GetReturnedResources() map[string]string { return map[string]string{} }

// GetNextVersionMap is part of cache.DeltaResponse.
func (w *watch) GetNextVersionMap() map[string]string { return w.GetReturnedResources() }

// GetResponseVersion is part of cache.DeltaResponse.
func (w *watch) GetResponseVersion() string { return "" }

// GetSystemVersion is part of cache.DeltaResponse.
func (w *watch) GetSystemVersion() (string, error) { return "", nil }

// GetContext is part of cache.DeltaResponse.
func (w *watch) GetContext() context.Context { return w.stream.ctx }

// next returns what is to be sent now of a view, or nil.
func (w *watch) next(v *view) *response {
	d := w.stream.desired(w.typeURL, v)
	if !d.known || len(w.outstanding) >= maxOutstanding(w.typeURL) || !w.stream.mayAdd(w.typeURL, v) {
		return nil
	}
	r := &response{view: v}
	mayRemove := w.stream.mayRemove(w.typeURL, v)
	for name := range w.interest(d) {
		want, e := d.get(name), w.known[name]
		switch {
		case w.typeURL == xds.ExtensionType && w.awaits(name): // the newest version only, when its ACK has come
		case want != nil && (e == nil || e.sent != want.Version):
			r.resources = append(r.resources, want)
		case want != nil || e != nil && e.absent:
		case e != nil && e.had && !mayRemove:
		default:
			r.removed = append(r.removed, name)
		}
	}
	slices.SortFunc(r.resources, func(a, b *xds.Resource) int { return cmp.Compare(a.Name, b.Name) })
	slices.Sort(r.removed)
	w.divide(r)
	if len(r.resources)+len(r.removed) == 0 && w.answered {
		return nil
	}
	return r
}

// awaits says whether a response that speaks of the name waits for its ACK.
func (w *watch) awaits(name string) bool {
	for _, r := range w.outstanding {
		if slices.Contains(r.removed, name) || slices.ContainsFunc(r.resources, func(res *xds.Resource) bool { return res.Name == name }) {
			return true
		}
	}
	return false
}

// interest returns the names that the client asks for or holds.
func (w *watch) interest(d desired) map[string]struct{} {
	if !w.sub.IsWildcard() {
		return w.sub.SubscribedResources()
	}
	names := make(map[string]struct{}, len(d.names))
	for name := range d.names {
		names[name] = struct{}{}
	}
	for name := range w.known {
		names[name] = struct{}{}
	}
	for name := range w.sub.SubscribedResources() {
		names[name] = struct{}{}
	}
	return names
}

// divide leaves in r what may share a response. The rest follows on the ACK.
func (w *watch) divide(r *response) {
	if w.typeURL == xds.ExtensionType {
		if len(r.removed) > 0 {
			r.resources = nil // closing comes first
		} else if len(r.resources) > 1 {
			r.resources = r.resources[:1]
		}
		return
	}
	if len(r.resources) < 2 {
		return
	}
	together := make([]*xds.Resource, 0, len(r.resources))
	for _, res := range r.resources {
		if e := w.known[res.Name]; e == nil || !e.alone {
			together = append(together, res)
		}
	}
	if len(together) == 0 {
		together = r.resources[:1]
	}
	r.resources = together
}

// commit notes that r is sent under a nonce.
func (w *watch) commit(nonce string, r *response) {
	w.answered = true
	w.outstanding[nonce] = r
	for _, res := range r.resources {
		e := w.known[res.Name]
		if e == nil {
			e = &entry{}
			w.known[res.Name] = e
		}
		e.sent, e.had, e.absent = res.Version, true, false
	}
	for _, name := range r.removed {
		if e := w.known[name]; e == nil || !e.had {
			w.stream.fleet.foreign(w.stream.Context(), w.stream.instance, w.typeURL, name)
		}
		if _, subscribed := w.sub.SubscribedResources()[name]; subscribed {
			w.known[name] = &entry{absent: true}
		} else {
			delete(w.known, name)
		}
	}
	switch w.typeURL {
	case xds.ClusterType:
		w.stream.repeatEndpoints(r)
	case xds.ExtensionType:
		w.stream.wake(xds.ExtensionType) // the next one
	}
}

// acknowledge takes the ACK or NACK that a request may carry. A nonce that is
// not outstanding for this type says nothing.
func (w *watch) acknowledge(r *discoveryv3.DeltaDiscoveryRequest) {
	answered, ok := w.outstanding[r.GetResponseNonce()]
	if !ok {
		return
	}
	delete(w.outstanding, r.GetResponseNonce())
	if detail := r.GetErrorDetail(); detail != nil {
		w.refused(answered, sanitise(detail.GetMessage()))
	} else {
		for _, res := range answered.resources {
			if e := w.known[res.Name]; e != nil {
				e.acked, e.alone, e.nack = res.Version, false, nil
			}
		}
	}
	w.stream.wake(waiting(w.typeURL)...)
}

// refused takes a NACK. Envoy names no resource that could be relied on, so of
// several each is sent once more by itself: then a NACK is about one. That one
// is not sent again in this version.
func (w *watch) refused(r *response, message string) {
	s := w.stream
	s.fleet.metrics.nacks.WithLabelValues(typeLabel(w.typeURL)).Inc()
	for _, res := range r.resources {
		e := w.known[res.Name]
		switch {
		case e == nil:
		case len(r.resources) > 1:
			e.sent, e.alone = "", true
		default:
			e.alone = false
			e.nack = &Nack{
				TypeURL: w.typeURL, Resource: res.Name, Version: res.Version,
				Message: message, When: s.fleet.cfg.Now(),
			}
			s.fleet.warn("proxy refused a resource", "instance", s.instance,
				"type", typeLabel(w.typeURL), "resource", res.Name, "version", res.Version, "message", message)
		}
	}
}

// nacks returns what the client refuses now.
func (s *stream) nacks() []Nack {
	var all []Nack
	for _, w := range s.watches {
		for e := range maps.Values(w.known) {
			if e.nack != nil && len(all) < maxNacks {
				all = append(all, *e.nack)
			}
		}
	}
	slices.SortFunc(all, compareNacks)
	return all
}
