package controlplane

import (
	"slices"
	"time"

	"github.com/ztmesh/ztmesh/controlplane/policy"
	"github.com/ztmesh/ztmesh/controlplane/spec"
	"github.com/ztmesh/ztmesh/controlplane/view"
	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
	"github.com/ztmesh/ztmesh/store/state"
)

// gateMargin is how long beyond the age bound of connections a closed gate stays
// closed: draining, and clocks that differ.
const gateMargin = 5 * time.Minute

// gates are the (destination, source) pairs whose connections are cut: they were
// admitted, and are not any more. A pair stays closed until it is admitted again
// or no connection of before can be left. By workload, then by runtime key.
type gates map[string]map[string]time.Time // → until when

func (g gates) clone() gates {
	out := make(gates, len(g))
	for w, keys := range g {
		out[w] = make(map[string]time.Time, len(keys))
		for k, until := range keys {
			out[w][k] = until
		}
	}
	return out
}

// update closes what old admits and next does not, and opens what next admits
// again; changed are the keys in which the two differ.
func (g gates) update(old, next *policy.Index, changed []spec.Key, now time.Time) {
	hold := max(old.Mesh().MaxConnectionAge, next.Mesh().MaxConnectionAge) + gateMargin
	for _, p := range next.Opened(old, changed) {
		delete(g[p.Service.String()], gateKey(next, p))
	}
	for _, p := range next.Closed(old, changed) {
		w := p.Service.String()
		if g[w] == nil {
			g[w] = map[string]time.Time{}
		}
		g[w][gateKey(next, p)] = now.Add(hold)
	}
}

func gateKey(ix *policy.Index, p policy.Pair) string {
	return policy.GateKey(p.Service, p.Port, policy.ID(ix.TrustDomain(), p.Source))
}

// gatesFromHistory is what update would have come to: a server that starts takes
// what is closed from the revisions that the state remembers.
func gatesFromHistory(st *state.State, now *view.View, at time.Time) (gates, error) {
	var past []*logv1.Revision
	for r := range st.Revisions(0) {
		if r.When.AsTime().Before(at.Add(-24*time.Hour - gateMargin)) {
			break // no connection may be older than a day
		}
		past = append(past, r)
	}
	views := []*view.View{now}
	for _, r := range past {
		before, err := views[len(views)-1].Undo(r)
		if err != nil {
			return nil, err
		}
		views = append(views, before)
	}
	out := gates{}
	for n := len(past) - 1; n >= 0; n-- {
		old, next := views[n+1].Index, views[n].Index
		var keys []spec.Key
		for _, c := range past[n].Changes {
			keys = append(keys, view.KeyOf(c.Key))
		}
		out.update(old, next, keys, past[n].When.AsTime())
	}
	out.expire(at)
	return out, nil
}

// expire drops the gates that need not be closed any more and returns the
// workloads that it has changed.
func (g gates) expire(now time.Time) (changed []string) {
	for w, keys := range g {
		n := len(keys)
		for k, until := range keys {
			if !now.Before(until) {
				delete(keys, k)
			}
		}
		if len(keys) != n {
			changed = append(changed, w)
		}
		if len(keys) == 0 {
			delete(g, w)
		}
	}
	return changed
}

// keys are the closed runtime keys of a workload, sorted.
func (g gates) keys(workload string) []string {
	out := make([]string, 0, len(g[workload]))
	for k := range g[workload] {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}
