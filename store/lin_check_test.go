package store

import (
	"bytes"
	"errors"
	"math"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
	"github.com/ztmesh/ztmesh/store/state"
)

// The store as one register: each operation takes effect at one moment between its
// call and its answer. The model is not partitioned: an apply compares with the
// revision of all documents, and with those of its namespaces, so there is one chain
// of writes, and the search stays short.
var register = porcupine.Model{
	Init: func() any { return view{} },
	Step: func(st, input, _ any) (bool, any) {
		return input.(*operation).step(st.(view))
	},
}

// step tells whether the answer of an operation is right in a state, and what the
// state is then. The order of the checks is that of state.Apply.
func (o *operation) step(v view) (bool, view) {
	if o.read {
		return o.saw == v, v
	}
	matches := true
	for i := range spaces {
		matches = matches && (!o.based[i] || o.bases[i] == v.at[i].revision)
	}
	switch o.outcome {
	case isStale:
		for i := range spaces {
			if o.based[i] && o.current[spaceName(i)] != v.at[i].revision {
				return false, v
			}
		}
		return !matches, v
	case isOutdated:
		return matches && o.validated != v.revision, v
	}
	if !matches || o.validated != v.revision || o.revision <= v.revision {
		return false, v
	}
	v.revision = o.revision
	for i := range spaces {
		if o.writes[i] {
			v.at[i] = written{o.revision, o.id}
		}
	}
	return true, v
}

// history is what porcupine judges. What stayed unknown may take effect until the
// end, if anybody has seen it. What nobody has seen has had no effect that matters:
// the next write would have been validated at its revision, and so had seen it, and
// the last write is seen by the reads at the end.
func (r *record) history() []porcupine.Operation {
	seen := map[int]uint64{}
	see := func(v view) {
		for _, at := range v.at {
			if at.op != 0 {
				seen[at.op] = at.revision
			}
		}
	}
	for _, g := range r.glimpses {
		see(g.saw)
	}
	for _, o := range r.operations {
		if o.read {
			see(o.saw)
		}
	}
	var all []porcupine.Operation
	for _, o := range r.operations {
		end := o.end
		if o.outcome == isUnknown && !o.read {
			revision, ok := seen[o.id]
			if !ok {
				continue
			}
			o.outcome, o.revision, end = isApplied, revision, math.MaxInt64
		}
		all = append(all, porcupine.Operation{ClientId: o.client, Input: o, Call: o.call, Return: end})
	}
	return all
}

// check judges what a world has recorded, when all is over.
func (r *record) check() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.checkLog()
	history := r.history()
	if len(history) > 2000 {
		r.violate("a history of %d operations is more than the checker is meant for", len(history))
	}
	switch porcupine.CheckOperationsTimeout(register, history, time.Minute) {
	case porcupine.Ok:
	case porcupine.Unknown:
		r.violate("the history of %d operations was not judged within a minute", len(history))
	case porcupine.Illegal:
		_, info := porcupine.CheckOperationsVerbose(register, history, time.Minute)
		var longest []porcupine.Operation
		for _, part := range info.PartialLinearizationsOperations()[0] {
			if len(part) > len(longest) {
				longest = part
			}
		}
		v := view{}
		fits := map[*operation]bool{}
		for _, o := range longest {
			fits[o.Input.(*operation)] = true
			_, v = o.Input.(*operation).step(v)
		}
		r.violate("not linearizable: %d of %d operations fit in one order, which leads to %+v", len(longest), len(history), v)
		for _, o := range history { // the first that do not fit
			if o := o.Input.(*operation); !fits[o] && r.violations < 6 {
				r.violate("does not fit: %+v", *o)
			}
		}
	}
}

// checkLog replays what was committed. Every attempt must have been answered as the
// replay answers, and every state that was seen must be the one at its index.
func (r *record) checkLog() {
	s := state.New()
	views := map[uint64]view{0: viewOf(s)}
	states := map[uint64]*state.State{}
	wanted := map[uint64]bool{}
	for _, f := range r.finals {
		wanted[f.Index()] = true
	}
	found := map[string]int{}
	for i := uint64(1); i <= r.last; i++ {
		l := r.log[i]
		if l == nil {
			r.violate("nobody has entry %d, which was committed", i)
			return
		}
		if l.Type != raft.LogCommand {
			continue
		}
		e := &logv1.Entry{}
		if err := proto.Unmarshal(l.Data, e); err != nil {
			r.violate("entry %d: %v", i, err)
			return
		}
		var answer state.Result
		s, answer = state.Apply(s, i, e)
		views[i] = viewOf(s)
		if wanted[i] {
			states[i] = s
		}
		if a := r.attempts[e.GetWho()]; a != nil {
			found[e.GetWho()]++
			r.checkAnswer(e.GetWho(), a, i, answer)
		}
	}
	for who, a := range r.attempts {
		switch n := found[who]; {
		case n > 1, n == 1 && a.outcome == isNothing:
			r.violate("%s is in the log %d times, its outcome was %d", who, n, a.outcome)
		case n == 0 && a.outcome != isNothing && a.outcome != isUnknown:
			r.violate("%s was answered (%d, revision %d) and is not in the log", who, a.outcome, a.revision)
		}
	}
	for _, g := range r.glimpses {
		if at, ok := views[g.index]; !ok || at != g.saw {
			r.violate("%s showed at %d what the log does not say", g.server, g.index)
		}
	}
	for name, f := range r.finals {
		if at := states[f.Index()]; at == nil || !bytes.Equal(bytesOf(at), bytesOf(f)) {
			r.violate("%s ends at %d in another state than the log", name, f.Index())
		}
	}
}

func bytesOf(s *state.State) []byte {
	var b bytes.Buffer
	if _, err := s.WriteTo(&b); err != nil {
		return nil
	}
	return b.Bytes()
}

func (r *record) checkAnswer(who string, a *attempt, index uint64, want state.Result) {
	right := false
	var base *state.StaleBaseError
	switch a.outcome {
	case isUnknown:
		right = true
	case isApplied:
		right = want.Err == nil && want.Revision == a.revision && want.Replayed == a.replayed && (want.Replayed || want.Revision == index)
	case isStale:
		right = errors.As(want.Err, &base) || a.reused && errors.Is(want.Err, state.ErrKeyReused)
	case isOutdated:
		right = errors.Is(want.Err, state.ErrRevalidate)
	}
	if !right {
		r.violate("entry %d of %s was answered %+v, the log says revision %d, replayed %v, %v", index, who, *a, want.Revision, want.Replayed, want.Err)
	}
}
