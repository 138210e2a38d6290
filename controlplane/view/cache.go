package view

import (
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/ztmesh/ztmesh/controlplane/parallel"
	"github.com/ztmesh/ztmesh/controlplane/spec"
	"github.com/ztmesh/ztmesh/store/state"
)

// keep is how many views a Cache holds: more than there are changes under way.
// They share what is equal.
const keep = 64

// Cache holds the views that were asked for last, so that the next one is made from
// one of them. It is safe for concurrent use: who asks for one waits for those that it
// is made from, and for no other.
type Cache struct {
	decode func([]byte) (*spec.Document, error)

	mu     sync.Mutex // guards what follows; not held while a view is made
	kept   []kept     // the one used last comes last
	making []*making
}

type kept struct {
	state *state.State
	view  *View
}

// making is a view that is being made, by whoever asked for it first.
type making struct {
	kept
	err  error
	done chan struct{} // closed when view and err are set
}

// NewCache makes an empty Cache.
func NewCache() *Cache { return &Cache{decode: spec.Decode} }

// At is the view of a state. The error is that of a document which this version
// cannot read (version skew): the state has no view here.
func (c *Cache) At(st *state.State) (*View, error) {
	c.mu.Lock()
	for {
		if i := c.find(st); i >= 0 {
			v := c.kept[i].view
			c.kept = slices.Delete(c.kept, i, i+1)
			c.add(st, v)
			c.mu.Unlock()
			return v, nil
		}
		i := slices.IndexFunc(c.making, func(m *making) bool { return m.of(st) || st.Follows(m.state) })
		if i < 0 {
			break
		}
		m := c.making[i]
		c.mu.Unlock()
		<-m.done
		if m.of(st) {
			return m.view, m.err
		}
		c.mu.Lock() // what it follows is there now, unless that failed
	}
	m := &making{kept: kept{state: st}, done: make(chan struct{}), err: errNotMade}
	c.making = append(c.making, m)
	base := c.base(st)
	c.mu.Unlock()
	defer func() { // also where it panics
		c.mu.Lock()
		defer c.mu.Unlock()
		c.making = slices.DeleteFunc(c.making, func(o *making) bool { return o == m })
		if m.err == nil && c.find(st) < 0 {
			c.add(st, m.view)
		}
		close(m.done)
	}()
	m.view, m.err = c.make(base, st)
	return m.view, m.err
}

var errNotMade = errors.New("making the view panicked")

// make is the view of a state, from that of another.
func (c *Cache) make(base kept, st *state.State) (*View, error) {
	var deletes []spec.Key
	var changed []state.Key
	var stored [][]byte
	for _, k := range state.Diff(base.state, st).Keys {
		if d, ok := st.Document(k); ok {
			changed, stored = append(changed, k), append(stored, d.Bytes)
		} else {
			deletes = append(deletes, spec.Key(k))
		}
	}
	const worthAProcessor = 256
	puts, errs := make([]*spec.Document, len(stored)), make([]error, len(stored))
	parallel.Chunks(len(stored), worthAProcessor, func(from, to int) {
		for i := from; i < to; i++ {
			puts[i], errs[i] = c.decode(stored[i])
		}
	})
	for i, err := range errs {
		if err != nil {
			return nil, fmt.Errorf("%s: %w", changed[i], err)
		}
	}
	return base.view.With(puts, deletes), nil
}

// base is what the view of st is made from at the least cost: one of a state that st
// follows, or else the one used last. It is called with mu held, as find and add are.
func (c *Cache) base(st *state.State) kept {
	last := kept{state.New(), New(st.TrustDomain())}
	for i, k := range slices.Backward(c.kept) {
		if k.state.TrustDomain() != st.TrustDomain() {
			continue
		}
		if st.Follows(k.state) {
			return k
		}
		if i == len(c.kept)-1 {
			last = k
		}
	}
	return last
}

// Keep notes the view of a state that is expected to come, so that it is not made
// again.
func (c *Cache) Keep(st *state.State, v *View) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.find(st) < 0 {
		c.add(st, v)
	}
}

// find is the index of the view of st's documents, or -1.
func (c *Cache) find(st *state.State) int {
	for i, k := range slices.Backward(c.kept) {
		if k.of(st) {
			return i
		}
	}
	return -1
}

// of tells whether it is about st's documents.
func (k *kept) of(st *state.State) bool {
	return k.state.Lineage() == st.Lineage() && k.state.TrustDomain() == st.TrustDomain()
}

func (c *Cache) add(st *state.State, v *View) {
	if len(c.kept) == keep {
		c.kept = slices.Delete(c.kept, 0, 1)
	}
	c.kept = append(c.kept, kept{st, v})
}
