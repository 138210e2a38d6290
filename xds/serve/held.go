package serve

import (
	"iter"
	"reflect"
	"sync"

	"github.com/ztmesh/ztmesh/xds"
)

// entry is one resource that the client has, was sent, or asked for.
type entry struct {
	sent   string   // version sent last; empty: none, or to be sent again
	acked  string   // version that the client holds; empty: none
	absent bool     // it was answered that there is none
	had    bool     // the client was sent it or said that it holds it
	alone  bool     // a response with it and others was NACKed: send it by itself
	again  bool     // it was refused in this version, and is to be sent once more
	nack   *refusal // the newest answer was this; nil: it was an ACK
}

// resting says whether the client was sent a resource, has ACKed it, and that is all.
func (e *entry) resting(r *xds.Resource) bool {
	return *e == entry{sent: r.Version, acked: r.Version, had: true}
}

// entries are those of one type of one stream, by name. Most streams are at rest most of
// the time, and those of one workload then have the same: so what rests is not noted
// for each of them, but is the map of what they are told.
type entries struct {
	rest  map[string]*xds.Resource // of these, those that are not in moved; not written
	moved map[string]*entry        // nil: there is none, though rest has one
}

// get returns a copy; false: there is none.
func (h *entries) get(name string) (entry, bool) {
	if e, ok := h.moved[name]; ok {
		if e == nil {
			return entry{}, false
		}
		return *e, true
	}
	if r := h.rest[name]; r != nil {
		return entry{sent: r.Version, acked: r.Version, had: true}, true
	}
	return entry{}, false
}

func (h *entries) has(name string) bool {
	if e, ok := h.moved[name]; ok {
		return e != nil
	}
	return h.rest[name] != nil
}

// own returns an entry to be written, which is empty if there was none.
func (h *entries) own(name string) *entry {
	if e := h.moved[name]; e != nil {
		return e
	}
	e, _ := h.get(name)
	if h.moved == nil {
		h.moved = map[string]*entry{}
	}
	h.moved[name] = &e
	return &e
}

func (h *entries) forget(name string) {
	if h.rest[name] == nil {
		delete(h.moved, name)
		return
	}
	if h.moved == nil {
		h.moved = map[string]*entry{}
	}
	h.moved[name] = nil
}

// each yields all of them, as copies.
func (h *entries) each() iter.Seq2[string, entry] { return h.others(nil) }

// others is each, and may leave out those at rest if what they are at rest with is that.
func (h *entries) others(at map[string]*xds.Resource) iter.Seq2[string, entry] {
	return func(yield func(string, entry) bool) {
		for name, e := range h.moved {
			if e != nil && !yield(name, *e) {
				return
			}
		}
		if at != nil && sameMap(h.rest, at) {
			return
		}
		for name, r := range h.rest {
			if _, moved := h.moved[name]; !moved && !yield(name, entry{sent: r.Version, acked: r.Version, had: true}) {
				return
			}
		}
	}
}

// settle notes that all of at are at rest, if they are. It changes nothing that can be
// asked for.
func (h *entries) settle(at map[string]*xds.Resource) {
	if len(at) == 0 || sameMap(h.rest, at) && len(h.moved) == 0 {
		return
	}
	for name, r := range at {
		if e, ok := h.get(name); !ok || !e.resting(r) {
			return
		}
	}
	for name := range h.rest {
		if _, moved := h.moved[name]; !moved && at[name] == nil {
			return
		}
	}
	var moved map[string]*entry
	for name, e := range h.moved {
		if e != nil && at[name] == nil {
			if moved == nil {
				moved = map[string]*entry{}
			}
			moved[name] = e
		}
	}
	h.rest, h.moved = at, moved
}

// names is a set of them: of most streams what those of the same workload ask for.
type names struct {
	keys map[string]*xds.Resource // its names; not written. nil:
	own  map[string]struct{}
}

func (n *names) len() int {
	if n.keys != nil {
		return len(n.keys)
	}
	return len(n.own)
}

func (n *names) has(name string) bool {
	if n.keys != nil {
		return n.keys[name] != nil
	}
	_, ok := n.own[name]
	return ok
}

func (n *names) each() iter.Seq[string] {
	return func(yield func(string) bool) {
		for name := range n.keys {
			if !yield(name) {
				return
			}
		}
		for name := range n.own {
			if !yield(name) {
				return
			}
		}
	}
}

// unshare makes the names the stream's own.
func (n *names) unshare() {
	if n.own == nil {
		n.own = make(map[string]struct{}, len(n.keys))
	}
	for name := range n.keys {
		n.own[name] = struct{}{}
	}
	n.keys = nil
}

func (n *names) add(name string) {
	if !n.has(name) {
		n.unshare()
		n.own[name] = struct{}{}
	}
}

func (n *names) remove(name string) {
	if n.has(name) {
		n.unshare()
		delete(n.own, name)
	}
}

// settle has the names be the keys of a map, if that is what they are.
func (n *names) settle(keys map[string]*xds.Resource) {
	if len(keys) == 0 || len(keys) != n.len() || sameMap(n.keys, keys) {
		return
	}
	for name := range keys {
		if !n.has(name) {
			return
		}
	}
	*n = names{keys: keys}
}

// lastMap makes maps of resources by name. What is set for many proxies, one after the
// other, is one map.
type lastMap struct {
	mu   sync.Mutex // guards last
	last map[string]*xds.Resource
}

func (m *lastMap) of(resources ...*xds.Resource) map[string]*xds.Resource {
	byName := make(map[string]*xds.Resource, len(resources))
	for _, r := range resources {
		byName[r.Name] = r
	}
	if len(resources) != 1 { // with a key of its own, which is not to be kept here
		return byName
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if r := resources[0]; m.last[r.Name] != r {
		m.last = byName
	}
	return m.last
}

// sameMap says whether two maps are one: then they need not be compared.
func sameMap(a, b map[string]*xds.Resource) bool {
	return reflect.ValueOf(a).UnsafePointer() == reflect.ValueOf(b).UnsafePointer()
}
