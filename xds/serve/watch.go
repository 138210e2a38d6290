package serve

import (
	"cmp"
	"iter"
	"slices"
	"strconv"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/ztmesh/ztmesh/xds"
)

// watch is one type on one stream: what is asked for, what was sent, what is ACKed.
// Except where noted, its fields are guarded by the stream's lock.
type watch struct {
	stream  *stream
	typeURL string

	all         bool           // everything is asked for
	legacy      bool           // and it was not asked for by name: so long, nothing else was
	subscribed  names          // asked for by name
	known       entries        // what is not subscribed to is not here
	outstanding []*response    // sent, neither ACKed nor NACKed
	awaited     map[string]int // of extensions: how many of these speak of a name; nil: none does
	answered    bool           // the client knows of a first answer

	// said is the state of the type (view.at) of which everything was said that is to
	// be said, and nothing was held back; 0: of none.
	said  uint64
	stand standing // as of stand.at; 0: not known

	queued bool // guarded by proxy.mu: there is a token of it
}

// response is what one response says.
type response struct {
	resources []*xds.Resource
	removed   []string
	complete  bool   // nothing else is to be said
	at        uint64 // of which state of the type
	nonce     string // empty: not sent
}

// wildcard is the name that asks for everything.
const wildcard = "*"

// newWatch begins a type. What the client says it holds counts as ACKed: it is
// the client's own word, as an ACK is, and versions are hashes of contents.
func newWatch(s *stream, r *discoveryv3.DeltaDiscoveryRequest) *watch {
	w := &watch{stream: s, typeURL: r.GetTypeUrl()}
	switch w.typeURL {
	case xds.ListenerType, xds.ClusterType: // of these, who names none wants all
		w.legacy = true
		w.all = len(r.GetResourceNamesSubscribe()) == 0
	}
	w.ask(r)
	w.answered = !w.all
	for name, version := range r.GetInitialResourceVersions() {
		if w.asksFor(name) {
			name, version = w.shared(name, version)
			*w.known.own(name) = entry{sent: version, acked: version, had: true}
			w.answered = true
		}
	}
	return w
}

// shared returns the strings of the resource itself where they are the same.
func (w *watch) shared(name, version string) (string, string) {
	d := w.stream.desired(w.typeURL, w.stream.proxy.current())
	if r := d.names[name]; r != nil {
		name = r.Name
		if r = d.get(name); r != nil && r.Version == version {
			version = r.Version
		}
	}
	return name, version
}

// ask takes the names of a request, by the rules of the protocol: a client that has
// named none of listeners or clusters yet wants all of them, and still does when it
// names some, until it takes back the wildcard.
func (w *watch) ask(r *discoveryv3.DeltaDiscoveryRequest) {
	if w.legacy && len(r.GetResourceNamesSubscribe()) == 0 {
		return
	}
	w.legacy = false
	names := w.stream.desired(w.typeURL, w.stream.proxy.current()).names
	for _, name := range r.GetResourceNamesSubscribe() {
		if name == wildcard {
			w.all = true
			continue
		}
		if r := names[name]; r != nil {
			name = r.Name // not every stream is to have its own string
		}
		w.subscribed.add(name)
	}
	for _, name := range r.GetResourceNamesUnsubscribe() {
		if name == wildcard {
			w.all = false
		}
		w.subscribed.remove(name)
	}
}

// subscribe takes a later request. A name that is subscribed to again is wanted
// again: that is how an Envoy asks for what it has dropped.
func (w *watch) subscribe(r *discoveryv3.DeltaDiscoveryRequest) {
	if len(r.GetResourceNamesSubscribe())+len(r.GetResourceNamesUnsubscribe()) == 0 {
		return
	}
	w.ask(r)
	for _, name := range r.GetResourceNamesUnsubscribe() {
		w.known.forget(name)
	}
	for _, name := range r.GetResourceNamesSubscribe() {
		if w.known.has(name) {
			e := w.known.own(name)
			e.sent, e.absent = "", false
		}
	}
	w.said, w.stand = 0, standing{}
}

func (w *watch) asksFor(name string) bool {
	return w.all || w.subscribed.has(name)
}

// wakeLocked leaves a token and has the senders take it. proxy.mu is held.
func (w *watch) wakeLocked() {
	if w.queued {
		return
	}
	s := w.stream
	w.queued = true
	s.tokens = append(s.tokens, w)
	if !s.ready {
		s.ready = true
		s.fleet.senders.add(s)
	}
}

// message is a response as it is sent.
func (w *watch) message(r *response, nonce string) *discoveryv3.DeltaDiscoveryResponse {
	m := &discoveryv3.DeltaDiscoveryResponse{
		TypeUrl:           w.typeURL,
		Nonce:             nonce,
		SystemVersionInfo: w.systemVersion(r),
		ControlPlane:      w.stream.fleet.identity,
		RemovedResources:  r.removed,
		Resources:         make([]*discoveryv3.Resource, len(r.resources)),
	}
	for i, res := range r.resources {
		m.Resources[i] = &discoveryv3.Resource{Name: res.Name, Version: res.Version, Resource: res.Whole()}
	}
	return m
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

// next returns what is to be sent now of a view, or nil.
func (w *watch) next(v *view) *response {
	at := v.at[indexOf(w.typeURL)]
	if w.said == at {
		return nil
	}
	d := w.stream.desired(w.typeURL, v)
	if !d.known || len(w.outstanding) >= maxOutstanding(w.typeURL) || !w.stream.mayAdd(w.typeURL, v) {
		return nil
	}
	r := &response{at: at, complete: true}
	mayRemove := w.stream.mayRemove(w.typeURL, v)
	for name := range w.interest(d) {
		want := d.get(name)
		e, known := w.known.get(name)
		switch {
		case w.awaited[name] > 0: // the newest version only, when its ACK has come
			r.complete = false
		case want != nil && (!known || e.sent != want.Version || e.again):
			r.resources = append(r.resources, want)
		case want != nil || known && e.absent:
		case known && e.had && !mayRemove:
			r.complete = false
		default:
			r.removed = append(r.removed, name)
		}
	}
	slices.SortFunc(r.resources, func(a, b *xds.Resource) int { return cmp.Compare(a.Name, b.Name) })
	slices.Sort(r.removed)
	w.divide(r)
	if len(r.resources)+len(r.removed) > 0 || !w.answered {
		return r
	}
	if r.complete {
		w.said = at
	}
	return nil
}

// await notes that a response is sent (1), or that its ACK or NACK has come (-1).
func (w *watch) await(r *response, by int) {
	if w.typeURL != xds.ExtensionType {
		return
	}
	if w.awaited == nil {
		w.awaited = map[string]int{}
	}
	note := func(name string) {
		if w.awaited[name] += by; w.awaited[name] == 0 {
			delete(w.awaited, name)
		}
	}
	for _, res := range r.resources {
		note(res.Name)
	}
	for _, name := range r.removed {
		note(name)
	}
	if len(w.awaited) == 0 {
		w.awaited = nil
	}
}

// interest are the names that the client asks for or holds.
func (w *watch) interest(d desired) iter.Seq[string] {
	if !w.all {
		return w.subscribed.each()
	}
	return func(yield func(string) bool) {
		for name := range d.names {
			if !yield(name) {
				return
			}
		}
		for name := range w.known.each() {
			if d.names[name] == nil && !yield(name) {
				return
			}
		}
		for name := range w.subscribed.each() {
			if d.names[name] == nil && !w.known.has(name) && !yield(name) {
				return
			}
		}
	}
}

// divide leaves in r what may share a response. The rest follows on the ACK, or, of
// extensions, at once.
func (w *watch) divide(r *response) {
	n := len(r.resources)
	defer func() { r.complete = r.complete && len(r.resources) == n }()
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
		if e, _ := w.known.get(res.Name); !e.alone {
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
	w.answered, w.stand = true, standing{}
	r.nonce = nonce
	w.outstanding = append(w.outstanding, r)
	w.await(r, 1)
	if r.complete {
		w.said = r.at
	}
	for _, res := range r.resources {
		e := w.known.own(res.Name)
		e.sent, e.had, e.absent, e.again = res.Version, true, false, false
	}
	for _, name := range r.removed {
		if e, _ := w.known.get(name); !e.had {
			w.stream.strangers = append(w.stream.strangers, stranger{w.typeURL, name})
		}
		if w.subscribed.has(name) {
			*w.known.own(name) = entry{absent: true}
		} else {
			w.known.forget(name)
		}
	}
	switch w.typeURL {
	case xds.ClusterType:
		w.stream.repeatEndpoints(r)
	case xds.ExtensionType:
		w.stream.wakeHeldBack(xds.ExtensionType) // the next one
	}
}

// acknowledge takes the ACK or NACK that a request may carry. A nonce that is
// not outstanding for this type says nothing.
func (w *watch) acknowledge(r *discoveryv3.DeltaDiscoveryRequest) {
	i := slices.IndexFunc(w.outstanding, func(o *response) bool { return o.nonce == r.GetResponseNonce() })
	if i < 0 {
		return
	}
	answered := w.outstanding[i]
	if w.outstanding = slices.Delete(w.outstanding, i, i+1); len(w.outstanding) == 0 {
		w.outstanding = nil
	}
	w.await(answered, -1)
	w.stand = standing{}
	if detail := r.GetErrorDetail(); detail != nil {
		w.refused(answered, sanitise(detail.GetMessage()))
	} else {
		for _, res := range answered.resources {
			if w.known.has(res.Name) {
				e := w.known.own(res.Name)
				e.acked, e.alone, e.again, e.nack = res.Version, false, false, nil
			}
		}
	}
	w.stream.wakeHeldBack(waiting(w.typeURL)...)
}

// refused takes a NACK. Envoy names no resource that could be relied on, so of
// several each is sent once more by itself: then a NACK is about one. That one
// is sent again when Retry says so.
func (w *watch) refused(r *response, message string) {
	s := w.stream
	s.refused = true
	s.fleet.metrics.nacks.WithLabelValues(typeLabel(w.typeURL)).Inc()
	for _, res := range r.resources {
		if !w.known.has(res.Name) {
			continue
		}
		e := w.known.own(res.Name)
		switch {
		case len(r.resources) > 1:
			e.sent, e.alone = "", true
			w.said = 0
		default:
			n := Nack{
				TypeURL: w.typeURL, Resource: res.Name, Version: res.Version,
				Message: message, When: s.fleet.cfg.Now(),
			}
			if !s.refuse(e, n) {
				continue
			}
			s.fleet.warn("proxy refused a resource", "instance", s.instance,
				"type", typeLabel(w.typeURL), "resource", res.Name, "version", res.Version, "message", message)
		}
	}
}

// nacks returns what the client refuses now.
func (s *stream) nacks() []Nack {
	if !s.refused {
		return nil
	}
	var all []Nack
	for _, w := range s.watches {
		if w == nil {
			continue
		}
		for _, e := range w.known.moved { // what is refused is not at rest
			if e != nil && e.nack != nil && len(all) < maxNacks {
				all = append(all, e.nack.Nack)
			}
		}
	}
	slices.SortFunc(all, compareNacks)
	return all
}
