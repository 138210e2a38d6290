package view

import (
	"fmt"
	"slices"
	"sync"

	"github.com/ztmesh/ztmesh/controlplane/spec"
	"github.com/ztmesh/ztmesh/store/state"
)

// keep is how many views a Cache holds: more than there are changes under way.
// They share what is equal.
const keep = 64

// Cache holds the views that were asked for last, so that the next one is made from
// one of them. It is safe for concurrent use.
type Cache struct {
	mu   sync.Mutex // guards kept; held while a view is made
	kept []kept     // the one used last comes last
}

type kept struct {
	state *state.State
	view  *View
}

// NewCache makes an empty Cache.
func NewCache() *Cache { return &Cache{} }

// At is the view of a state. The error is that of a document which this version
// cannot read (version skew): the state has no view here.
func (c *Cache) At(st *state.State) (*View, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if i := c.find(st); i >= 0 {
		v := c.kept[i].view
		c.kept = slices.Delete(c.kept, i, i+1)
		c.add(st, v)
		return v, nil
	}
	base := c.base(st)
	var puts []*spec.Document
	var deletes []spec.Key
	for _, k := range state.Diff(base.state, st).Keys {
		stored, ok := st.Document(k)
		if !ok {
			deletes = append(deletes, spec.Key(k))
			continue
		}
		d, err := spec.Decode(stored.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", k, err)
		}
		puts = append(puts, d)
	}
	v := base.view.With(puts, deletes)
	c.add(st, v)
	return v, nil
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
		if k.state.Lineage() == st.Lineage() && k.state.TrustDomain() == st.TrustDomain() {
			return i
		}
	}
	return -1
}

func (c *Cache) add(st *state.State, v *View) {
	if len(c.kept) == keep {
		c.kept = slices.Delete(c.kept, 0, 1)
	}
	c.kept = append(c.kept, kept{st, v})
}
