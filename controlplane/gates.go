package controlplane

import (
	"slices"
	"time"

	"github.com/ztmesh/ztmesh/controlplane/policy"
	"github.com/ztmesh/ztmesh/controlplane/spec"
	"github.com/ztmesh/ztmesh/controlplane/view"
	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
	"github.com/ztmesh/ztmesh/store/state"
	"github.com/ztmesh/ztmesh/xds"
)

const (
	// gateMargin is how long beyond the age bound of connections a closed gate stays
	// closed: draining, and clocks that differ.
	gateMargin = 5 * time.Minute
	// blockHold is how long a Block closes the gates of an HTTP port: until what is
	// open is cut. From then on the port answers by name who has blocked the caller.
	blockHold = time.Minute
	// history is how far back a connection may have been opened: the longest age
	// bound that a spec can say.
	history = 24*time.Hour + gateMargin
)

// gates are the (destination, source) pairs whose connections are cut: they were
// admitted, and are not any more. What a proxy's policy denies it denies without
// them; they end what was open before. A pair stays closed until it is admitted
// again or no connection of before can be left. By workload, then by runtime key.
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

// update closes what old admits at was and next does not at now, and opens what
// next admits again; changed are the keys in which the two differ. It sees the two
// moments and nothing between them.
func (g gates) update(old, next *policy.Index, changed []spec.Key, was, now time.Time) {
	if len(g) > 0 { // else nothing is closed that could open
		for _, p := range next.Opened(old, changed, was, now) {
			delete(g[p.Service.String()], gateKey(p))
		}
	}
	for _, p := range next.Closed(old, changed, was, now) {
		hold := max(old.Settings(p.Service).MaxConnectionAge, next.Settings(p.Service).MaxConnectionAge) + gateMargin
		if p.Blocked && isHTTP(next, p) {
			hold = blockHold
		}
		w := p.Service.String()
		if g[w] == nil {
			g[w] = map[string]time.Time{}
		}
		g[w][gateKey(p)] = now.Add(hold)
	}
}

func gateKey(p policy.Pair) string { return xds.GateKey(p.Service.String(), p.Port, p.SourceID) }

func isHTTP(ix *policy.Index, p policy.Pair) bool {
	w, ok := ix.Workload(p.Service)
	return ok && slices.ContainsFunc(w.Ports, func(o policy.Port) bool { return o.Name == p.Port && o.Protocol != policy.TCP })
}

// elapse lets the time pass: each moment at which a grant or a Block begins or
// ends closes and opens gates. A pair that loses a grant and is given another one
// later in between has been closed in between.
func (g gates) elapse(ix *policy.Index, was, now time.Time) {
	for {
		next, ok := ix.NextChange(was)
		if !ok || next.After(now) {
			return
		}
		g.update(ix, ix, nil, was, next)
		was = next
	}
}

// fold lets every revision between two views close and open gates, one by one, and
// the time between them: a state may stand for several, and what one of them
// admitted may have a connection, by way of another server. since is the revision
// of old, was the moment up to which g is folded, next the view of st, and changed
// the keys in which they differ. A server that starts, at since 0, folds all that
// the state remembers of the last day; no connection may be older. What this
// version cannot read is passed over as one change. It returns the moment up to
// which g is folded then: now, or that of a revision by a clock that is ahead.
func (g gates) fold(st *state.State, old, next *view.View, since uint64, changed []spec.Key, was, now time.Time) time.Time {
	if since == 0 {
		was = now.Add(-history)
	}
	past, follows := revisionsAfter(st, since, now)
	views := []*view.View{next}
	for i, r := range past {
		before := old
		if !follows || i < len(past)-1 {
			var err error
			if before, err = views[i].Undo(r); err != nil {
				g.update(old.Index, views[i].Index, changed, was, r.When.AsTime())
				past = past[:i]
				break
			}
		}
		views = append(views, before)
	}
	for n := len(past) - 1; n >= 0; n-- {
		var keys []spec.Key
		for _, c := range past[n].Changes {
			keys = append(keys, view.KeyOf(c.Key))
		}
		at := past[n].When.AsTime()
		if at.Before(was) {
			at = was // it is applied when it is seen
		}
		g.elapse(views[n+1].Index, was, at)
		g.update(views[n+1].Index, views[n].Index, keys, at, at)
		was = at
	}
	if was.Before(now) {
		g.elapse(next.Index, was, now)
		was = now
	}
	g.expire(was)
	return was
}

// revisionsAfter are those revisions after since of which a connection may be left,
// newest first, and whether the oldest of them is the one that follows since.
func revisionsAfter(st *state.State, since uint64, now time.Time) (past []*logv1.Revision, follows bool) {
	for r := range st.Revisions(0) {
		if r.Revision <= since {
			return past, r.Revision == since
		}
		if r.When.AsTime().Before(now.Add(-history)) {
			break
		}
		past = append(past, r)
	}
	return past, false
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
