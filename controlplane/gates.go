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

// fold lets every revision between two views close and open gates, one by one: a
// state may stand for several, and what one of them admitted may have a connection,
// by way of another server. since is the revision of old, next the view of st, and
// changed the keys in which they differ. A server that starts folds all that the
// state remembers of the last day; no connection may be older. What this version
// cannot read is passed over as one change.
func (g gates) fold(st *state.State, old, next *view.View, since uint64, changed []spec.Key, now time.Time) {
	var past []*logv1.Revision // newest first
	views := []*view.View{next}
	for r := range st.Revisions(0) {
		if r.Revision <= since || r.When.AsTime().Before(now.Add(-24*time.Hour-gateMargin)) {
			break
		}
		before, err := views[len(views)-1].Undo(r)
		if err != nil {
			g.update(old.Index, views[len(views)-1].Index, changed, now)
			break
		}
		past, views = append(past, r), append(views, before)
	}
	for n := len(past) - 1; n >= 0; n-- {
		var keys []spec.Key
		for _, c := range past[n].Changes {
			keys = append(keys, view.KeyOf(c.Key))
		}
		g.update(views[n+1].Index, views[n].Index, keys, past[n].When.AsTime())
	}
	g.expire(now)
}

// changed are the workloads whose closed keys differ, sorted.
func (g gates) changed(next gates) []string {
	var out []string
	for w := range g {
		if !slices.Equal(g.keys(w), next.keys(w)) {
			out = append(out, w)
		}
	}
	for w := range next {
		if _, had := g[w]; !had {
			out = append(out, w)
		}
	}
	slices.Sort(out)
	return out
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
