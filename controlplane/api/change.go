package api

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/ztmesh/ztmesh/failpoint"
	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
	"github.com/ztmesh/ztmesh/store/state"
)

// wish is a change of documents that somebody asks for.
type wish struct {
	named   map[string]bool   // the namespaces whose documents it is about
	bases   map[string]uint64 // as in ApplyRequest
	key     string            // of idempotency
	hash    []byte            // operationHash
	message string
	dryRun  bool
	detail  ztv1.Detail // of the answer
	// plan finds out what the wish comes to. It is asked again when the state
	// has moved on.
	plan func(*state.State) (*plan, error)
}

// change makes a wish come true, or says why not. Each is judged, rights included,
// by what the one before has made. What is proposed may rest on what is proposed
// and not yet agreed on: the state machine takes it only if that came about. An
// answer rests on what is agreed on alone.
func (s *Server) change(ctx context.Context, w wish) (*ztv1.ApplyResponse, error) {
	if err := s.mayAll(ctx, s.cfg.Log.State(), w.named); err != nil {
		return nil, err
	}
	leave, err := s.applier.enter(ctx, w.dryRun)
	if err != nil {
		return nil, err
	}
	defer leave()
	for {
		if w.dryRun {
			a := s.agreedAnswer(ctx, w)
			return a.resp, a.err
		}
		o, a, err := s.offer(ctx, w)
		if err != nil {
			return nil, err
		}
		if o == nil {
			if a = s.confirm(ctx, a, w); a.plan == nil {
				return a.resp, a.err
			}
			continue // what it is to rest on did not come about, or something else has
		}
		shown := o.plan.changes(w.detail) // while the disks are waited for
		result, err := o.submitted.Wait(ctx)
		if err != nil {
			return nil, err
		}
		if result.Replayed || errors.Is(result.Err, state.ErrRevalidate) {
			continue // the same wish, or a change of an earlier leader, came in between
		}
		if result.Err != nil {
			return nil, result.Err
		}
		failpoint.Hit("api.apply.committed")
		if len(result.Changed.Keys) > 0 {
			s.metrics.applies.Inc()
		}
		resp := o.plan.response(result.After, w, shown)
		resp.Revision = result.Revision
		return resp, nil
	}
}

// answer is what a wish comes to on a state: a plan that is to be proposed, or else
// what the caller is told.
type answer struct {
	on   *state.State
	plan *plan
	resp *ztv1.ApplyResponse
	err  error
}

// judge finds out what a wish comes to on a state.
func (s *Server) judge(ctx context.Context, st *state.State, w wish) answer {
	a := answer{on: st}
	if a.err = s.mayAll(ctx, st, w.named); a.err != nil {
		return a
	}
	if a.resp, a.err = s.replay(ctx, st, w); a.resp != nil || a.err != nil {
		return a
	}
	if a.err = checkBases(st, w.bases); a.err != nil {
		return a
	}
	p, err := w.plan(st)
	switch {
	case err != nil:
		a.err = err
	case w.dryRun || p.empty():
		a.resp = p.response(st, w, p.changes(w.detail))
	default:
		a.plan = p
	}
	return a
}

// confirm returns an answer that rests on all that is agreed on by now: a, if it
// does.
func (s *Server) confirm(ctx context.Context, a answer, w wish) answer {
	if err := s.cfg.Log.Barrier(ctx); err != nil {
		return answer{err: err}
	}
	if st := s.cfg.Log.State(); st != a.on {
		return s.judge(ctx, st, w)
	}
	return a
}

// agreedAnswer judges a wish by what is agreed on.
func (s *Server) agreedAnswer(ctx context.Context, w wish) answer {
	return s.confirm(ctx, answer{}, w)
}

func (s *Server) mayAll(ctx context.Context, st *state.State, namespaces map[string]bool) error {
	for _, ns := range slices.Sorted(maps.Keys(namespaces)) {
		if err := s.may(ctx, st, ns); err != nil {
			return err
		}
	}
	return nil
}

// operationHash is over who asked for what, not over what it comes to: a retry may
// come to other puts. What a retry may say anew is left out of req by the caller.
func operationHash(who Principal, req proto.Message) []byte {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(req)
	if err != nil {
		panic(err) // a message that was just unmarshalled
	}
	prefix := who.String() + "\x00" + string(req.ProtoReflect().Descriptor().FullName()) + "\x00"
	h := sha256.Sum256(append([]byte(prefix), b...))
	return h[:]
}

// replay answers a retry of what has taken effect.
func (s *Server) replay(ctx context.Context, st *state.State, w wish) (*ztv1.ApplyResponse, error) {
	if w.key == "" {
		return nil, nil
	}
	outcome, known := st.Outcome(w.key)
	if !known {
		return nil, nil
	}
	if !bytes.Equal(outcome.OperationHash, w.hash) {
		return nil, state.ErrKeyReused
	}
	resp := &ztv1.ApplyResponse{Revision: outcome.Revision, Bases: bases(st, w.named)}
	r, kept := revisionAt(st, outcome.Revision)
	if !kept || r.Who != callOf(ctx).principal.String() || !proto.Equal(r.When, outcome.When) {
		return resp, nil // no longer kept; or it changed no document, and the revision is another's
	}
	var err error
	if resp.Changes, err = changesOf(r.GetChanges(), w.detail); err != nil {
		return nil, err
	}
	resp.Affected, err = s.affected(st, outcome.Revision)
	return resp, err
}

// checkBases is what the state machine checks again: the client saw the newest
// revision of each namespace that it names.
func checkBases(st *state.State, bases map[string]uint64) error {
	for ns, base := range bases {
		if st.NamespaceRevision(ns) == base {
			continue
		}
		stale := &state.StaleBaseError{Current: make(map[string]uint64, len(bases))}
		for ns := range bases {
			stale.Current[ns] = st.NamespaceRevision(ns)
		}
		return stale
	}
	return nil
}

func revisionAt(st *state.State, revision uint64) (*logv1.Revision, bool) {
	for r := range st.Revisions(revision + 1) {
		return r, r.Revision == revision
	}
	return nil, false
}

func bases(st *state.State, named map[string]bool) map[string]uint64 {
	out := make(map[string]uint64, len(named))
	for ns := range named {
		out[ns] = st.NamespaceRevision(ns)
	}
	return out
}
