package controlplane

import (
	"bytes"
	"fmt"

	"github.com/ztmesh/ztmesh/controlplane/spec"
	"github.com/ztmesh/ztmesh/controlplane/view"
	"github.com/ztmesh/ztmesh/store/state"
)

// proposed is the view of the documents as they would be: those of v, which is of
// st, with every namespace that something is proposed for replaced by that. keys
// are in what it differs from v; without any, it is v.
//
// What operators have written is no file's: it stays as it is.
func proposed(v *view.View, st *state.State) (_ *view.View, keys []spec.Key, _ error) {
	var puts []*spec.Document
	var deletes []spec.Key
	for p := range st.Proposals() {
		stays := map[spec.Key]bool{}
		for _, put := range p.GetPuts() {
			k := view.KeyOf(put.GetKey())
			stays[k] = true
			if had, ok := st.Document(state.Key(k)); ok && bytes.Equal(had.Bytes, put.GetDocument()) {
				continue
			}
			d, err := spec.Decode(put.GetDocument())
			if err != nil {
				return v, nil, fmt.Errorf("what is proposed for %s: %s: %w", p.GetNamespace(), k, err)
			}
			if had, ok := v.Document(k); d.Operator() || ok && had.Operator() {
				continue
			}
			puts, keys = append(puts, d), append(keys, k)
		}
		for stored := range st.Documents("", p.GetNamespace()) {
			k := spec.Key(stored.Key)
			if had, ok := v.Document(k); ok && !stays[k] && !had.Operator() {
				deletes, keys = append(deletes, k), append(keys, k)
			}
		}
	}
	if len(keys) == 0 {
		return v, nil, nil
	}
	return v.With(puts, deletes), keys, nil
}
