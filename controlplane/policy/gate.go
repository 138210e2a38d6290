package policy

import (
	"slices"
	"strings"
	"time"

	"github.com/ztmesh/ztmesh/controlplane/spec"
)

// Callers is every SPIFFE ID that may connect to a port of the workload ref,
// sorted: the gate of the port. These are the declared workloads that an enforced
// grant admits, each under the trust domain and its aliases, and the foreign
// identities that one names, whatever the time, the user or a Block says.
func (ix *Index) Callers(ref spec.Ref, port string) []string {
	s, p := ix.port(ref, port)
	if p == nil {
		return nil
	}
	return ix.callersOfRules(ix.rules(s, p, false))
}

// callersOfRules is everybody whom one of rules admits and who may connect, sorted.
func (ix *Index) callersOfRules(rules []Rule) []string {
	var all Callers
	for i := range rules {
		c := &rules[i].Callers
		if len(rules) == 1 {
			all = *c
			break
		}
		all.Any = all.Any || c.Any
		all.Namespaces = append(all.Namespaces, c.Namespaces...)
		all.Workloads = append(all.Workloads, c.Workloads...)
		all.IDs = append(all.IDs, c.IDs...)
	}
	out := make([]string, 0, max(16, len(all.Workloads)+len(all.IDs)))
	add := func(w *Workload) bool {
		out = append(out, w.ID)
		for _, alias := range ix.trust().Aliases {
			out = append(out, ID(alias, w.Ref))
		}
		return true
	}
	if all.Any {
		walk(ix.workloads, nil, add)
	} else {
		for _, ns := range set(all.Namespaces) {
			walk(ix.workloads, []byte(ns+"\x00"), add)
		}
		for _, ref := range all.Workloads {
			if w, ok := ix.Workload(ref); ok {
				add(w)
			}
		}
	}
	out = append(out, all.IDs...)
	slices.Sort(out)
	if len(out) == 0 {
		return nil
	}
	return slices.Compact(out)
}

// holds tells whether the gate of a port has p.
func (ix *Index) holds(s *site, p *Port, of principal) bool {
	if !ix.declared(of) {
		return false
	}
	held := false
	ix.grantsTo(s, func(g *grant) bool {
		held = ix.lets(g, s, p, of)
		return !held
	})
	return held
}

// Admits tells whether callerID may connect to a port of the workload ref at now:
// some enforced grant admits it that is active, and no active Block denies it
// whatever it asks for.
func (ix *Index) Admits(ref spec.Ref, port string, callerID string, now time.Time) bool {
	granted, blocked := ix.gate(ref, port, callerID, now)
	return granted && !blocked
}

func (ix *Index) gate(ref spec.Ref, port string, callerID string, now time.Time) (granted, blocked bool) {
	caller, ok := ix.principal(callerID)
	s, p := ix.port(ref, port)
	if p == nil || !ok || !ix.declared(caller) {
		return false, false
	}
	ix.grantsTo(s, func(g *grant) bool {
		granted = ix.lets(g, s, p, caller) && g.conditions.activeAt(now)
		return !granted
	})
	if granted && ix.blocks.Len() > 0 {
		blocked = slices.ContainsFunc(ix.blocksOn(s.target), func(b Block) bool {
			return b.Users == nil && b.activeAt(now) && b.denies(caller)
		})
	}
	return granted, blocked
}

// timed is a document that the time begins or ends.
type timed struct {
	key  spec.Key
	when Conditions
}

// Lift is ix without the Blocks and Exceptions that have ended at now, and their
// keys, sorted. It is ix itself when there are none.
func (ix *Index) Lift(now time.Time) (*Index, []spec.Key) {
	var ended []spec.Key
	walk(ix.timed, nil, func(t timed) bool {
		if t.key.Kind != spec.KindGrant && !t.when.activeAt(now) {
			ended = append(ended, t.key)
		}
		return true
	})
	if ended == nil {
		return ix, nil
	}
	slices.SortFunc(ended, spec.Key.Compare)
	return ix.With(nil, ended), ended
}

// TimeChanged is the grants, Blocks and Exceptions that are active at one of the
// two moments only, sorted.
func (ix *Index) TimeChanged(was, now time.Time) []spec.Key {
	var out []spec.Key
	walk(ix.timed, nil, func(t timed) bool {
		if t.when.activeAt(was) != t.when.activeAt(now) {
			out = append(out, t.key)
		}
		return true
	})
	slices.SortFunc(out, spec.Key.Compare)
	return out
}

// NextChange is the first moment after now at which a grant, a Block or an
// Exception begins or ends; false when there is none.
func (ix *Index) NextChange(now time.Time) (time.Time, bool) {
	var first time.Time
	found := false
	walk(ix.timed, nil, func(t timed) bool {
		if at, ok := t.when.nextChange(now); ok && (!found || at.Before(first)) {
			first, found = at, true
		}
		return true
	})
	return first, found
}

// Pair is a port of a workload and an identity that may, or might, connect to it.
type Pair struct {
	Service  spec.Ref
	Port     string
	SourceID string
	Blocked  bool // a grant still admits it, and a Block denies it
}

// Compare orders pairs by workload, port and identity.
func (p Pair) Compare(o Pair) int {
	if c := p.Service.Compare(o.Service); c != 0 {
		return c
	}
	if c := strings.Compare(p.Port, o.Port); c != 0 {
		return c
	}
	return strings.Compare(p.SourceID, o.SourceID)
}

// Closed is the pairs that old admits at was and ix does not at now, sorted;
// changed are the keys in which the two differ. Connections of these pairs are to
// be cut. A workload that is gone is closed as a source, a port that is gone for
// every source. What the time alone has changed is among them.
func (ix *Index) Closed(old *Index, changed []spec.Key, was, now time.Time) []Pair {
	return admittedBefore(old, ix, newDelta(old, ix, changed, elapsed(old, ix, was, now)), was, now)
}

// Opened is the pairs that ix admits at now and old does not at was: Closed the
// other way round. The gates of these pairs, if they were closed, are to be
// opened.
func (ix *Index) Opened(old *Index, changed []spec.Key, was, now time.Time) []Pair {
	return admittedBefore(ix, old, newDelta(ix, old, changed, elapsed(old, ix, was, now)), now, was)
}

// elapsed is what the time changes between two moments.
func elapsed(old, now *Index, was, is time.Time) []spec.Key {
	keys := old.TimeChanged(was, is)
	if old != now {
		keys = append(keys, now.TimeChanged(was, is)...)
	}
	return keys
}

// admittedBefore is the pairs that before admits at its moment and after does not
// at its own.
func admittedBefore(before, after *Index, d *delta, was, now time.Time) []Pair {
	var out []Pair
	for e := range d.edges {
		s, ok := before.site(e.callee)
		if !ok {
			continue
		}
		for _, id := range before.ids(e.caller) {
			for _, p := range s.w.Ports {
				if !before.Admits(e.callee, p.Name, id, was) {
					continue
				}
				if granted, blocked := after.gate(e.callee, p.Name, id, now); !granted || blocked {
					out = append(out, Pair{Service: e.callee, Port: p.Name, SourceID: id, Blocked: granted})
				}
			}
		}
	}
	slices.SortFunc(out, Pair.Compare)
	return out
}
